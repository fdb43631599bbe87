"""Semantic textual similarity, as the paper measures it, for any encoding function."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy.stats import rankdata, spearmanr

from prompteol_utils.data.sts import Pairs

Encode = Callable[[list[str]], np.ndarray]


def evaluate_sts(encode: Encode, pairs: Pairs | Sequence[Pairs]) -> pd.DataFrame:
    """Score an encoder on STS: Spearman's rank correlation of cosine similarity and grade, x 100.

    Args:
        encode: Takes n distinct sentences, returns an array (n, d). It is called once, and each
            sentence appears once, also when tasks share it.
        pairs: One task or several.

    Returns:
        One row a task: task, spearman (over all its pairs: the paper's "all" setting),
        spearman_subset_mean (the plain mean over its subsets, which other libraries report; NaN
        where a subset is too small to have one), n, origin, text_form.

    Raises:
        TypeError: `encode` cannot be called.
        ValueError: No pairs; a grade is not finite; the array has another shape; an embedding is
            NaN, infinite or constant (task, side and index are named); all similarities or all
            grades are equal.

    Source: the experiments of the paper; SimCSE, appendix on STS aggregation.
    """
    tasks = [pairs] if isinstance(pairs, Pairs) else list(pairs)
    rows = []
    for task, left, right in zip(tasks, *embed_pairs(encode, tasks), strict=True):
        similarity = cosines(left, right)
        score = spearman(similarity, task.gold, task.name)
        mean = spearman_by_subset(similarity, task)["spearman"].mean(skipna=False)
        rows.append((task.name, score, mean, len(task), task.origin, task.text_form))
    columns = ["task", "spearman", "spearman_subset_mean", "n", "origin", "text_form"]
    return pd.DataFrame(rows, columns=columns)


def embed_pairs(
    encode: Encode, tasks: Sequence[Pairs]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Embed both sides of several tasks, each distinct sentence once.

    Args:
        encode: As in `evaluate_sts`.
        tasks: One or more.

    Returns:
        Two lists with an array (n, d) a task: the left sides and the right sides.

    Raises:
        TypeError, ValueError: As in `evaluate_sts`.
    """
    if not tasks or not all(len(task) for task in tasks):
        raise ValueError("no pairs to score")
    for task in tasks:
        _check_gold(task.gold, task.name)  # before the first second is spent
    sentences = dict.fromkeys(sentence for task in tasks for sentence in task.sentences)
    index = {sentence: i for i, sentence in enumerate(sentences)}
    vectors = embed(encode, list(index))
    checks = {
        "holds NaN or infinity": np.isfinite(vectors).all(axis=1),
        "is constant: all its numbers are the same": (vectors != vectors[:, :1]).any(axis=1),
    }
    sides: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for task in tasks:
        for name, side in zip(("left", "right"), sides, strict=True):
            at = [index[sentence] for sentence in getattr(task, name)]
            for what, ok in checks.items():
                if not ok[at].all():
                    first = int(np.argmin(ok[at]))
                    raise ValueError(
                        f"{task.name}: the embedding of {name} sentence {first} {what}"
                    )
            side.append(vectors[at])
    return sides


def embed(encode: Encode, sentences: Sequence[str]) -> np.ndarray:
    """Call an encoder, and check what it returns.

    Args:
        encode: As in `evaluate_sts`. Torch tensors of any dtype, with or without gradient, on any
            device, are accepted too.
        sentences: n of them.

    Returns:
        Its array (n, d).

    Raises:
        TypeError: `encode` cannot be called.
        ValueError: The array has another shape.
    """
    if not callable(encode):
        raise TypeError(
            "encode must be a function from sentences to an array, "
            f"got {type(encode).__name__}; pass encoder.encode"
        )
    vectors = encode(list(sentences))
    if isinstance(vectors, list | tuple):
        vectors = [_as_array(one) for one in vectors]
    vectors = np.asarray(_as_array(vectors))
    if vectors.ndim != 2 or len(vectors) != len(sentences) or vectors.shape[1] < 1:
        raise ValueError(
            f"encode returned an array of shape {vectors.shape} for {len(sentences)} sentences, "
            f"expected ({len(sentences)}, dimension)"
        )
    return vectors


def _as_array(vectors):
    """NumPy knows neither bfloat16 nor tensors with a gradient or on a GPU."""
    return vectors.detach().float().cpu().numpy() if hasattr(vectors, "detach") else vectors


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Cosine similarity row by row.

    Args:
        left: (n, d), no zero row.
        right: (n, d), no zero row.

    Returns:
        float64 (n,).
    """
    return np.einsum("ij,ij->i", _unit(left), _unit(right))


def spearman(similarity: np.ndarray, gold: np.ndarray, name: str = "these pairs") -> float:
    """Spearman's rank correlation x 100; ties share their mean rank.

    Args:
        similarity: (n,).
        gold: (n,).
        name: What an error calls them.

    Raises:
        ValueError: Fewer than two pairs, a grade is not finite, or one side cannot be ranked
            because all its values are equal.
    """
    _check_gold(gold, name)
    if len(gold) < 2:
        raise ValueError(f"{name}: a rank correlation needs at least two pairs, got {len(gold)}")
    if np.ptp(gold) == 0:
        raise ValueError(f"{name}: all {len(gold)} grades are {gold[0]:g}; take more pairs")
    similarity = _tied(similarity)
    if np.ptp(similarity) == 0:
        raise ValueError(
            f"{name}: all {len(gold)} similarities are {similarity[0]:.4f}; "
            "does the embedding depend on the sentence?"
        )
    return 100 * float(spearmanr(similarity, gold).statistic)


def spearman_rows(
    similarities: np.ndarray, gold: np.ndarray, name: str = "these pairs"
) -> np.ndarray:
    """Spearman's rank correlation x 100 of each row with its grades: `spearman`, many at once.

    Args:
        similarities: (m, n).
        gold: (n,) for all rows, or (m, n).
        name: What an error calls the pairs.

    Returns:
        float64 (m,).

    Raises:
        ValueError: As `spearman`.
    """
    gold = np.atleast_2d(np.asarray(gold, np.float64))
    similarities = _tied(similarities)
    if (
        gold.shape[1] < 2
        or not np.ptp(gold, axis=1).all()
        or not np.ptp(similarities, axis=1).all()
    ):
        everyone = np.broadcast_to(gold, similarities.shape)
        return np.array(
            [
                spearman(row, grades, name)
                for row, grades in zip(similarities, everyone, strict=True)
            ]
        )  # raises, and says why
    ranks, grades = rankdata(similarities, axis=1), rankdata(gold, axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    grades -= grades.mean(axis=1, keepdims=True)
    norms = np.sqrt(np.square(ranks).sum(axis=1) * np.square(grades).sum(axis=1))
    return 100 * np.einsum("ij,ij->i", ranks, np.broadcast_to(grades, ranks.shape)) / norms


def spearman_by_subset(similarity: np.ndarray, pairs: Pairs) -> pd.DataFrame:
    """Spearman x 100 within each subset (or genre) of a task.

    Args:
        similarity: (n,), the cosines of the pairs.
        pairs: The task.

    Returns:
        One row a subset, in order of appearance: task, subset, spearman (NaN where all grades or
        similarities are equal), n.
    """
    rows = []
    for subset, at in _groups(pairs.subset):
        try:
            score = spearman(similarity[at], pairs.gold[at])
        except ValueError:
            score = np.nan
        rows.append((pairs.name, subset, score, len(at)))
    return pd.DataFrame(rows, columns=["task", "subset", "spearman", "n"])


def rank_errors_by_kind(similarity: np.ndarray, pairs: Pairs) -> pd.DataFrame:
    """How far each kind of pair is ranked too high or too low.

    A correlation within one kind says little, because its grades hardly differ.

    Args:
        similarity: (n,), the cosines of the pairs.
        pairs: A set with kinds: the mini set.

    Returns:
        One row a kind, the most overrated first: kind, shift (mean of the similarity's rank minus
        the grade's, in percent of the n pairs), error (mean size of that difference), n.

    Raises:
        ValueError: The pairs have no kinds.
    """
    if not pairs.kind:
        raise ValueError(
            f"{pairs.name} ({pairs.origin}) does not say of what kind its pairs are; "
            "load_mini_sts does"
        )
    difference = 100 * (rankdata(_tied(similarity)) - rankdata(pairs.gold)) / len(pairs)
    rows = [
        (kind, difference[at].mean(), np.abs(difference[at]).mean(), len(at))
        for kind, at in _groups(pairs.kind)
    ]
    table = pd.DataFrame(rows, columns=["kind", "shift", "error", "n"])
    return table.sort_values("shift", ascending=False, ignore_index=True)


def _check_gold(gold: np.ndarray, name: str) -> None:
    if not (finite := np.isfinite(gold)).all():
        raise ValueError(
            f"{name}: {np.sum(~finite)} of {len(gold)} grades are missing or infinite, "
            f"the first at index {int(np.argmin(finite))}; leave these pairs out"
        )


def _tied(similarity: np.ndarray) -> np.ndarray:
    """Cosines that differ by rounding alone become equal, so that equal sentences are tied."""
    return np.round(np.asarray(similarity, dtype=np.float64), 10)


def _groups(labels: Sequence[str]) -> list[tuple[str, np.ndarray]]:
    labels = np.asarray(labels)
    return [(label, np.flatnonzero(labels == label)) for label in dict.fromkeys(labels.tolist())]


def _unit(x: np.ndarray) -> np.ndarray:
    """Rows of length one, in float64: float32 would leave equal sentences with unequal cosines."""
    x = np.asarray(x, dtype=np.float64)
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    if not np.isfinite(norm).all() or not norm.all():
        row = int(np.argmin(np.isfinite(norm[:, 0]) & (norm[:, 0] > 0)))
        raise ValueError(f"row {row} is zero, NaN or infinite, so it has no direction")
    return x / norm
