"""Transfer tasks, as the paper measures them: a linear probe on frozen embeddings.

Tasks are split as by SentEval: nested cross-validation without a test set, cross-validation on the
training set with one, a development set where there is one.
"""

import logging
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from joblib import parallel_config
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from threadpoolctl import threadpool_limits

from prompteol_utils.data.transfer import TRANSFER_TASKS, Labelled, load_transfer, stratified
from prompteol_utils.evaluation.probes import GRID, HELD_OUT, ProbeTask, fit_senteval, lbfgs_probe
from prompteol_utils.evaluation.sts import Encode, embed
from prompteol_utils.results.published import require_comparable

Splits = list[tuple[np.ndarray, np.ndarray]]  # positions to train on, positions to test on
SEED = 1111  # SentEval's
FEW = 5  # sentences held out to stop the training: with fewer, it stops by chance
log = logging.getLogger(__name__)


def evaluate_transfer(
    encode: Encode,
    tasks: "str | Labelled | Sequence[str | Labelled]" = TRANSFER_TASKS,
    *,
    solvers: Sequence[str] = ("senteval",),
    seeds: Sequence[int] = (SEED,),
    folds: int = 10,
    root: str | None = None,
    limit: int | None = None,
) -> pd.DataFrame:
    """Score an encoder on classification tasks.

    Args:
        encode: Takes n distinct sentences, returns an array (n, d). It is called once a task.
        tasks: Names, or what `load_transfer` returned.
        solvers: "senteval" (the paper's) and "lbfgs" (scikit-learn's, scaled inside the fold).
        seeds: Of the folds and of the classifier; a row for each.
        folds: Of the outer and of the inner cross-validation, 2 or more.
        root: As in `load_transfer`, for tasks given by name.
        limit: As in `load_transfer`, for tasks given by name.

    Returns:
        One row a task, solver and seed: task, solver, seed, accuracy (x 100, the mean over folds),
        fold_std (their standard deviation; NaN without folds), dev_accuracy (what chose the l2),
        l2 (a list, one for each outer fold), folds, n_train, n_test, origin, text_form,
        encode_seconds, classifier_seconds.

    Raises:
        TypeError: `encode` cannot be called.
        ValueError: Unknown task or solver, fewer than two folds; the array has another shape, or an
            embedding is not finite.

    Source: the transfer experiments of the paper; SentEval's senteval/tools/validation.py.
    """
    _check_settings(solvers, folds)
    given = [tasks] if isinstance(tasks, str | Labelled) else tasks
    loaded = [
        load_transfer(task, root=root, limit=limit) if isinstance(task, str) else task
        for task in given
    ]
    rows = []
    for task in loaded:
        start = time.perf_counter()
        x = features(encode, task)
        seconds = {"encode_seconds": round(time.perf_counter() - start, 2)}
        for solver in solvers:
            for seed in seeds:
                rows.append(score(x, task, solver=solver, seed=seed, folds=folds) | seconds)
    return pd.DataFrame(rows)


def features(encode: Encode, task: Labelled) -> np.ndarray:
    """What the probe sees: the embedding u of a sentence, or [|u - v|, u * v] of a pair (MRPC).

    Args:
        encode: As in `evaluate_transfer`; it gets each distinct sentence once.
        task: n sentences or pairs.

    Returns:
        float32 (n, d), or (n, 2 d) for pairs.

    Raises:
        TypeError, ValueError: As in `evaluate_transfer`.
    """
    index = {sentence: i for i, sentence in enumerate(task.sentences)}
    vectors = embed(encode, list(index)).astype(np.float32, copy=False)
    if not (finite := np.isfinite(vectors).all(axis=1)).all():
        raise ValueError(
            f"{task.name}: the embedding of distinct sentence {int(np.argmin(finite))} holds NaN "
            "or infinity"
        )
    u = vectors[[index[sentence] for sentence in task.text]]
    if not task.text2:
        return u
    v = vectors[[index[sentence] for sentence in task.text2]]
    return np.concatenate([np.abs(u - v), u * v], axis=1)


def score(
    x: np.ndarray, task: Labelled, *, solver: str = "senteval", seed: int = SEED, folds: int = 10
) -> dict:
    """One row of `evaluate_transfer`, without the time of encoding.

    Args:
        x: float32 (n, d), from `features`.
        task: The task.
        solver: A name in `probes.GRID`.
        seed: Of folds and classifier.
        folds: Of the outer and the inner cross-validation.
    """
    start = time.perf_counter()
    found = classify(x, task, solver=solver, seed=seed, folds=folds)
    seconds = time.perf_counter() - start
    by_fold = found.assign(right=found["predicted"] == found["label"]).groupby("fold", sort=False)
    accuracies = 100 * by_fold["right"].mean()
    return {
        "task": task.name,
        "solver": solver,
        "seed": seed,
        "accuracy": accuracies.mean(),
        "fold_std": accuracies.std(ddof=0) if len(accuracies) > 1 else np.nan,
        "dev_accuracy": 100 * by_fold["dev_accuracy"].first().mean(),
        "l2": by_fold["l2"].first().tolist(),
        "folds": folds,
        "n_train": task.sizes.get("train", len(task)),
        "n_test": len(found),
        "origin": task.origin,
        "text_form": task.text_form,
        "classifier_seconds": round(seconds, 2),
    }


def classify(
    x: np.ndarray, task: Labelled, *, solver: str = "senteval", seed: int = SEED, folds: int = 10
) -> pd.DataFrame:
    """Predict every sentence that is tested, by a probe that has seen neither it nor its fold.

    The strength of regularisation is chosen inside the training sentences, by their own folds (or
    by the dev sentences that a task brings).

    Args:
        x: float32 (n, d), from `features`.
        task: The task.
        solver: "senteval" or "lbfgs".
        seed: Of folds and classifier.
        folds: Of the outer and the inner cross-validation, 2 or more.

    Returns:
        One row a tested sentence: index (its position in the task), fold, label, predicted, l2 and
        dev_accuracy (of its fold's choice).

    Raises:
        ValueError: Unknown solver, fewer than two folds, x and the task differ in length, too few
            sentences for two folds, or a fold with a single class to learn from.
    """
    _check_settings([solver], folds)
    if len(x) != len(task):
        raise ValueError(f"{task.name} has {len(task)} sentences and x {len(x)} rows")
    split = np.asarray(task.split)
    order = senteval_order(task)
    part = {name: order[split[order] == name] for name in task.sizes}
    if "all" not in part and not {"train", "test"} <= set(part):
        raise ValueError(
            f"{task.name} has only the part {', '.join(part)}; a classifier is trained on 'train' "
            "and tested on 'test', or cross-validated on 'all'"
        )
    if "dev" in part:
        outer = [(part["train"], part["test"])]
        inner = [[(part["train"], part["dev"])]]
    else:
        outer = [(part["train"], part["test"])] if "test" in part else None
        outer = outer or _folds(part["all"], task, folds, seed)
        inner = [_folds(train, task, folds, seed) for train, _ in outer]
    for train, _ in (pair for pairs in (outer, *inner) for pair in pairs):
        if len(held := np.unique(task.label[train])) < 2:
            only = task.label_names[held[0]]
            raise ValueError(
                f"{task.name}: the training sentences of a fold are all of class {only!r}; "
                "take more sentences of the other classes, or fewer folds"
            )
    held_out = int(HELD_OUT * min(len(train) for train, _ in outer))
    if solver == "senteval" and "dev" not in part and held_out < FEW:
        log.warning(
            "%s: SentEval's classifier stops by one training sentence in twenty, here %d: too few "
            "to tell, so its accuracy may be that of chance; the solver 'lbfgs' needs none",
            task.name,
            max(1, held_out),
        )
    choose = _senteval if solver == "senteval" else _lbfgs
    found = []
    chosen = choose(x, task, outer, inner, seed)
    for fold, ((_, test), (guess, l2, dev)) in enumerate(zip(outer, chosen, strict=True)):
        columns = {"index": test, "fold": fold, "label": task.label[test], "predicted": guess}
        found.append(pd.DataFrame(columns | {"l2": l2, "dev_accuracy": dev}))
    return pd.concat(found, ignore_index=True)


def _senteval(x: np.ndarray, task: Labelled, outer: Splits, inner: list[Splits], seed: int) -> list:
    """For each outer fold the predictions, the chosen l2 and its dev accuracy."""
    classes = {"classes": len(task.label_names), "seed": seed}
    grid = GRID["senteval"]
    problems = [ProbeTask(train, dev, grid) for splits in inner for train, dev in splits]
    probes = fit_senteval(x, task.label, problems, **classes)
    ends = np.cumsum([0, *map(len, inner)])
    best = [_best(probes.dev[first:last].mean(axis=0)) for first, last in pairwise(ends)]
    chosen = [(grid[at], accuracy) for at, accuracy in best]
    if "dev" in task.sizes:  # SentEval tests the very classifier that the dev sentences chose
        guesses = [probes.predict(x[test], 0, best[0][0]) for _, test in outer]
    else:
        problems = [
            ProbeTask(train, None, (l2,)) for (train, _), (l2, _) in zip(outer, chosen, strict=True)
        ]
        probes = fit_senteval(x, task.label, problems, **classes)
        guesses = [probes.predict(x[test], fold) for fold, (_, test) in enumerate(outer)]
    return [(guess, *choice) for guess, choice in zip(guesses, chosen, strict=True)]


def _lbfgs(x: np.ndarray, task: Labelled, outer: Splits, inner: list[Splits], seed: int) -> list:
    """As `_senteval`, by scikit-learn's grid search; its solution needs no seed."""
    x = np.ascontiguousarray(x, np.float32)
    y = task.label
    chosen = []
    # Threads are enough (the work is BLAS, which leaves Python's lock alone), each on one core.
    with threadpool_limits(1), parallel_config("threading", n_jobs=torch.get_num_threads()):
        for (train, test), splits in zip(outer, inner, strict=True):
            strengths = {"meanlogisticregression__l2": GRID["lbfgs"]}
            search = GridSearchCV(lbfgs_probe(), strengths, cv=splits, refit=False).fit(x, y)
            at, accuracy = _best(search.cv_results_["mean_test_score"])
            l2 = GRID["lbfgs"][at]
            guess = lbfgs_probe(l2).fit(x[train], y[train]).predict(x[test])
            chosen.append((guess, l2, accuracy))
    return chosen


def learning_curve(
    x: np.ndarray,
    task: Labelled,
    sizes: Sequence[int],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    folds: int = 5,
    solver: str = "lbfgs",
) -> pd.DataFrame:
    """Accuracy by the number of labelled sentences: a learning curve.

    Args:
        x: float32 (n, d), from `features`.
        task: The task. Without a test set, a fifth of its sentences becomes one (the same for all
            sizes and seeds).
        sizes: How many training sentences; those beyond the training set become all of it.
        seeds: Of the choice of training sentences, which keeps the proportions of the classes.
        folds: Inside the training sentences, to choose the strength of regularisation.
        solver: A name in `probes.GRID`.

    Returns:
        One row a size and seed: task, size, seed, accuracy (x 100), n_test, origin, text_form.

    Raises:
        ValueError: As in `classify`.
    """
    split = np.asarray(task.split)
    if reported_split(task) == "test":
        pool, test = np.flatnonzero(split == "train"), np.flatnonzero(split == "test")
    else:
        test = stratified(task.label, len(task) // 5, SEED)
        pool = np.setdiff1d(np.arange(len(task)), test)
    rows = []
    for size in sorted({min(size, len(pool)) for size in sizes}):
        for seed in seeds:
            train = pool[stratified(task.label[pool], size, seed)]
            marks = tuple(["train"] * len(train) + ["test"] * len(test))
            at = np.concatenate([train, test])
            part = replace(task.take(at.tolist()), split=marks)
            row = score(x[at], part, solver=solver, seed=seed, folds=folds)
            rows.append(
                {
                    name: row[name]
                    for name in ("task", "seed", "accuracy", "n_test", "origin", "text_form")
                }
                | {"size": size}
            )
    return pd.DataFrame(rows)


def summarise(rows: pd.DataFrame, by: Sequence[str] = ("solver",)) -> pd.DataFrame:
    """Accuracies of several tasks side by side.

    Args:
        rows: From `evaluate_transfer` or a store.
        by: What the lines of the table differ in.

    Returns:
        Index `by`, a column for each task (the mean over seeds), own tasks last; `avg`,
        the mean of the paper's seven, only where there are all seven.

    Raises:
        ValueError: Rows of different sets or forms of text would stand in one column.
    """
    require_comparable(rows, "task", shown=by)
    table = rows.pivot_table(index=list(by), columns="task", values="accuracy", sort=False)
    known = [task for task in TRANSFER_TASKS if task in table]
    own = [task for task in table if task not in TRANSFER_TASKS]
    average = table[known].mean(axis=1, skipna=False)
    table = table[[*known, *own]]
    table["avg"] = average if len(known) == len(TRANSFER_TASKS) else np.nan
    return table


def spread(rows: pd.DataFrame, by: Sequence[str] = ("task", "solver")) -> pd.DataFrame:
    """How far accuracies scatter: between folds, and between runs with other seeds.

    Args:
        rows: From `evaluate_transfer` or a store.
        by: What the lines of the table differ in.

    Returns:
        Index `by`; accuracy (the mean over seeds), fold_std (their mean; NaN without folds),
        seed_std (of the means over folds, with n - 1 in the denominator; NaN for a single seed),
        seeds (how many) and n_test.

    Raises:
        ValueError: Rows of different sets, forms of text or sizes would be averaged.
    """
    require_comparable(rows, "task", shown=by)
    groups = rows.groupby(list(by), sort=False)
    if (mixed := groups["n_test"].nunique() > 1).any():
        raise ValueError(
            f"n_test is mixed within {mixed.idxmax()}: a spread is over seeds of one sample; "
            "leave out the other's rows"
        )
    columns = {
        "accuracy": ("accuracy", "mean"),
        "fold_std": ("fold_std", "mean"),
        "seed_std": ("accuracy", "std"),
    }
    return groups.agg(**columns, seeds=("seed", "nunique"), n_test=("n_test", "first"))


def reported_split(task: Labelled) -> str:
    """The split that an accuracy is of: "test" if there is one, else "all" (cross-validation)."""
    return "test" if "test" in task.sizes else "all"


def senteval_order(task: Labelled) -> np.ndarray:
    """SentEval's order (by length) of a task's sentences; in it, our folds are its folds."""
    second = task.text2 or task.text
    keys = [
        (len(a.split()), len(b.split()), y)
        for a, b, y in zip(task.text, second, task.label.tolist(), strict=True)
    ]
    return np.array(sorted(range(len(task)), key=keys.__getitem__))


def _check_settings(solvers: Sequence[str], folds: int) -> None:
    if wrong := [solver for solver in solvers if solver not in GRID]:
        raise ValueError(f"unknown solver {wrong[0]!r}; allowed: {', '.join(GRID)}")
    if folds < 2:
        raise ValueError(f"cross-validation needs 2 folds or more, got {folds}")


def _folds(positions: np.ndarray, task: Labelled, folds: int, seed: int) -> Splits:
    """Stratified folds of some sentences; fewer where no class has as many sentences."""
    y = task.label[positions]
    count = min(folds, int(np.bincount(y).max()))
    if count < 2:
        raise ValueError(
            f"{task.name}: {len(y)} sentences with {count} in the largest class cannot be cut into "
            "folds; take more"
        )
    with warnings.catch_warnings():
        # TREC's class ABBR is rare; SentEval cuts all the same.
        warnings.filterwarnings("ignore", message="The least populated class")
        cut = StratifiedKFold(count, shuffle=True, random_state=seed).split(positions, y)
        return [(positions[train], positions[test]) for train, test in cut]


def _best(accuracies: np.ndarray) -> tuple[int, float]:
    """The best of the mean accuracies (G,), rounded as SentEval does; of equals the first."""
    rounded = np.round(100 * accuracies, 2)
    return int(np.argmax(rounded)), float(rounded.max() / 100)
