"""From embeddings to scores: STS as the paper measures it, and what the cloud of vectors looks like.

Everything takes any function that turns a list of sentences into an array, so that a baseline, another library's model and the
encoder of this package are measured by the same lines.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy.stats import rankdata, spearmanr

from prompteol_utils.data.sts import Pairs

Encode = Callable[[list[str]], np.ndarray]


def evaluate_sts(encode: Encode, pairs: Pairs | Sequence[Pairs]) -> pd.DataFrame:
    """Score an encoder on STS: Spearman's rank correlation of cosine similarity and grade, times 100.

    Args:
        encode: Takes n distinct sentences, returns an array (n, d). It is called once, each sentence appears once, also when tasks
            share it.
        pairs: One task or several.

    Returns:
        One row a task: task, spearman (one correlation over all its pairs: the paper's "all" setting), spearman_subset_mean (the
        plain mean over its subsets, which other libraries report; NaN where a subset is too small to have one), n, origin, text_form.

    Raises:
        TypeError: `encode` cannot be called.
        ValueError: No pairs; the array has another shape; an embedding is NaN, infinite or constant (task, side and index are named);
            all similarities or all grades are equal, so that no ranking exists.

    Source: the experiments of the paper (SentEval, "all"); SimCSE, appendix on STS aggregation. Built in notebook 01.
    """
    tasks = [pairs] if isinstance(pairs, Pairs) else list(pairs)
    rows = []
    for task, left, right in zip(tasks, *embed_pairs(encode, tasks), strict=True):
        similarity = cosines(left, right)
        score = spearman(similarity, task.gold, task.name)
        mean = spearman_by_subset(similarity, task)["spearman"].mean(skipna=False)
        rows.append((task.name, score, mean, len(task), task.origin, task.text_form))
    return pd.DataFrame(
        rows, columns=["task", "spearman", "spearman_subset_mean", "n", "origin", "text_form"]
    )


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
    index = {
        sentence: i
        for i, sentence in enumerate(dict.fromkeys(s for task in tasks for s in task.sentences))
    }
    vectors = embed(encode, list(index))
    finite = np.isfinite(vectors).all(axis=1)
    varied = (vectors != vectors[:, :1]).any(axis=1)
    for task in tasks:
        for side in ("left", "right"):
            rows = [index[sentence] for sentence in getattr(task, side)]
            for ok, what in (
                (finite, "holds NaN or infinity"),
                (varied, "is constant: all its numbers are the same"),
            ):
                if not ok[rows].all():
                    raise ValueError(
                        f"{task.name}: the embedding of {side} sentence {int(np.argmin(ok[rows]))} {what}"
                    )
    return tuple(
        [vectors[[index[s] for s in getattr(task, side)]] for task in tasks]
        for side in ("left", "right")
    )


def embed(encode: Encode, sentences: Sequence[str]) -> np.ndarray:
    """Call an encoder, and look at what it returns.

    Args:
        encode: As in `evaluate_sts`.
        sentences: n of them.

    Returns:
        Its array (n, d).

    Raises:
        TypeError: `encode` cannot be called.
        ValueError: The array has another shape.
    """
    if not callable(encode):
        raise TypeError(
            f"encode must be a function from sentences to an array, got {type(encode).__name__}; pass encoder.encode"
        )
    vectors = np.asarray(encode(list(sentences)))
    if vectors.ndim != 2 or len(vectors) != len(sentences) or vectors.shape[1] < 1:
        raise ValueError(
            f"encode returned an array of shape {vectors.shape} for {len(sentences)} sentences, expected ({len(sentences)}, dimension)"
        )
    return vectors


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Cosine similarity row by row.

    Args:
        left: (n, d), no zero row.
        right: (n, d), no zero row.

    Returns:
        float64 (n,). Built in notebook 01.
    """
    return np.einsum("ij,ij->i", _unit(left), _unit(right))


def spearman(similarity: np.ndarray, gold: np.ndarray, name: str = "these pairs") -> float:
    """Spearman's rank correlation x 100; ties share their mean rank.

    Args:
        similarity: (n,).
        gold: (n,).
        name: What an error calls them.

    Raises:
        ValueError: Fewer than two pairs, or one side has no ranking because all its values are equal.
    """
    if len(gold) < 2:
        raise ValueError(f"{name}: a rank correlation needs at least two pairs, got {len(gold)}")
    if np.ptp(gold) == 0:
        raise ValueError(
            f"{name}: all {len(gold)} grades are {gold[0]:g}, so there is nothing to rank; take more pairs"
        )
    similarity = _tied(similarity)
    if np.ptp(similarity) == 0:
        raise ValueError(
            f"{name}: all {len(gold)} similarities are {similarity[0]:.4f}; does the embedding depend on the sentence?"
        )
    return 100 * float(spearmanr(similarity, gold).statistic)


def spearman_rows(
    similarities: np.ndarray, gold: np.ndarray, name: str = "these pairs"
) -> np.ndarray:
    """Spearman's rank correlation x 100 of every row with the same grades: `spearman` for thousands of rows at once.

    Args:
        similarities: (m, n).
        gold: (n,).
        name: What an error calls the pairs.

    Returns:
        float64 (m,).

    Raises:
        ValueError: As `spearman`.
    """
    if len(gold) < 2 or np.ptp(gold) == 0 or not np.ptp(_tied(similarities), axis=1).all():
        return np.array([spearman(row, gold, name) for row in similarities])  # raises, and says why
    ranks, grades = rankdata(_tied(similarities), axis=1), rankdata(gold)
    ranks, grades = ranks - ranks.mean(axis=1, keepdims=True), grades - grades.mean()
    return 100 * (ranks @ grades) / np.sqrt(np.square(ranks).sum(axis=1) * np.square(grades).sum())


def spearman_by_subset(similarity: np.ndarray, pairs: Pairs) -> pd.DataFrame:
    """Spearman x 100 within each subset (or genre) of a task.

    Args:
        similarity: (n,), the cosines of the pairs.
        pairs: The task.

    Returns:
        One row a subset, in order of appearance: task, subset, spearman (NaN where all grades or similarities are equal), n.
        Built in notebook 01.
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
    """How far each kind of pair is ranked too high or too low: a correlation within one kind says little, its grades hardly differ.

    Args:
        similarity: (n,), the cosines of the pairs.
        pairs: A set with kinds: the mini set.

    Returns:
        One row a kind, the most overrated first: kind, shift (mean of the similarity's rank minus the grade's, in percent of the n
        pairs: +30 means that three tenths of the set were overtaken wrongly), error (mean size of that difference), n.

    Raises:
        ValueError: The pairs have no kinds.

    Built in notebook 01.
    """
    if not pairs.kind:
        raise ValueError(
            f"{pairs.name} ({pairs.origin}) does not say of what kind its pairs are; load_mini_sts does"
        )
    difference = 100 * (rankdata(_tied(similarity)) - rankdata(pairs.gold)) / len(pairs)
    rows = [
        (kind, difference[at].mean(), np.abs(difference[at]).mean(), len(at))
        for kind, at in _groups(pairs.kind)
    ]
    return pd.DataFrame(rows, columns=["kind", "shift", "error", "n"]).sort_values(
        "shift", ascending=False, ignore_index=True
    )


def _tied(similarity: np.ndarray) -> np.ndarray:
    """Cosines that differ by rounding alone become equal, so that pairs of equal sentences are tied and not ranked by noise."""
    return np.round(np.asarray(similarity, dtype=np.float64), 10)


def _groups(labels: Sequence[str]) -> list[tuple[str, np.ndarray]]:
    labels = np.asarray(labels)
    return [(label, np.flatnonzero(labels == label)) for label in dict.fromkeys(labels.tolist())]


def _unit(x: np.ndarray) -> np.ndarray:
    """Rows of length one, in float64: float32 would leave equal sentences with slightly different cosines."""
    x = np.asarray(x, dtype=np.float64)
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    if not np.isfinite(norm).all() or not norm.all():
        row = int(np.argmin(np.isfinite(norm[:, 0]) & (norm[:, 0] > 0)))
        raise ValueError(f"row {row} is zero, NaN or infinite, so it has no direction")
    return x / norm
