"""Embedding to score: semantic textual similarity as the paper measures it, and the geometry of an embedding space."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from prompteol_utils.data import Pairs


def evaluate_sts(encode: Callable[[list[str]], np.ndarray], pairs: "Pairs | Sequence[Pairs]") -> pd.DataFrame:
    """Score an encoder on semantic textual similarity.

    Args:
        encode: Any function from a list of strings to (n, d); each distinct sentence is handed over once for all sets.
        pairs: One set or several.

    Returns:
        A row per set: task, spearman (x 100: one Spearman over all its pairs, subsets concatenated: what SentEval calls "all" and the paper
        reports), spearman_subset_mean (the plain mean over subsets, which other libraries report), n, origin, text_form.

    Raises:
        ValueError: A vector is NaN, infinite or the same for every sentence, the shape is wrong, or the gold scores are constant.

    Source: section 4.2 of the paper; SentEval. Built in notebook 01.
    """
    sets = [pairs] if isinstance(pairs, Pairs) else list(pairs)
    sentences = list(dict.fromkeys(sentence for one in sets for sentence in (*one.left, *one.right)))
    vectors = np.asarray(encode(sentences), np.float32)
    if vectors.ndim != 2 or len(vectors) != len(sentences):
        raise ValueError(f"encode returned shape {vectors.shape} for {len(sentences)} sentences; (n, d) is needed")
    row = {sentence: i for i, sentence in enumerate(sentences)}
    table = []
    for one in sets:
        left, right = (vectors[[row[sentence] for sentence in side]] for side in (one.left, one.right))
        similarity = cosines(left, right)
        table.append(
            {
                "task": one.name,
                "spearman": _spearman(similarity, one.gold, one.name),
                "spearman_subset_mean": spearman_by(similarity, one.gold, one.subset)["spearman"].mean(),
                "n": len(one),
                "origin": one.origin,
                "text_form": one.text_form,
            }
        )
    return pd.DataFrame(table)


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Cosine of each pair of rows.

    Args:
        left: (n, d).
        right: (n, d).

    Returns:
        float64 (n,).

    Raises:
        ValueError: A row is NaN, infinite or zero, or one side is the same vector throughout; index and side are named.
    """
    lengths = []
    for side, vectors in (("left", left), ("right", right)):
        if not np.isfinite(vectors).all():
            index = int(np.flatnonzero(~np.isfinite(vectors).all(1))[0])
            raise ValueError(f"the {side} embedding of pair {index} holds NaN or infinite values")
        lengths.append(np.linalg.norm(vectors.astype(np.float64), axis=1))
        if (lengths[-1] == 0).any():
            raise ValueError(f"the {side} embedding of pair {int(np.flatnonzero(lengths[-1] == 0)[0])} is zero, so it has no direction")
    both = np.concatenate([left, right])
    if len(left) > 1 and (both == both[0]).all():
        raise ValueError("all embeddings are the same vector, from pair 0 on: the encoder does not depend on its input")
    return (left.astype(np.float64) * right).sum(1) / (lengths[0] * lengths[1])


def spearman_by(similarity: np.ndarray, gold: np.ndarray, group: Sequence[str]) -> pd.DataFrame:
    """Spearman x 100 within each group (subset, genre or kind of pair).

    Args:
        similarity: (n,) cosines.
        gold: (n,) grades.
        group: n labels.

    Returns:
        group, spearman, n, in order of first appearance. A group of constant grades has no Spearman (NaN).
    """
    frame = pd.DataFrame({"group": list(group), "similarity": similarity, "gold": gold})
    rows = []
    for name, part in frame.groupby("group", sort=False):
        constant = part["gold"].nunique() < 2
        rows.append({"group": name, "spearman": np.nan if constant else _spearman(part["similarity"], part["gold"], name), "n": len(part)})
    return pd.DataFrame(rows)


def _spearman(similarity, gold, name: str) -> float:
    if len(gold) < 2 or np.ptp(gold) == 0:
        raise ValueError(f"{name}: the gold scores of its {len(gold)} pairs are constant, so no rank correlation exists")
    if np.ptp(similarity) == 0:
        raise ValueError(f"{name}: every pair has the same cosine, so no rank correlation exists")
    return 100 * float(spearmanr(similarity, gold).statistic)


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype(np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def anisotropy(vectors: np.ndarray) -> float:
    """Mean cosine between different sentences: 0 where directions are spread evenly, near 1 where all vectors point one way.

    Args:
        vectors: (n, d) of different, unrelated sentences; n ≥ 2.

    Returns:
        A number in [-1, 1].

    Source: Ethayarajh (2019), "How contextual are contextualized word representations?". Built in notebook 01.
    """
    unit, n = _unit(vectors), len(vectors)
    if n < 2:
        raise ValueError(f"anisotropy compares different sentences; got {n}")
    return float((np.square(unit.sum(0)).sum() - n) / (n * (n - 1)))


def alignment(left: np.ndarray, right: np.ndarray) -> float:
    """Mean squared distance of unit vectors of paraphrases, E‖f(x) − f(y)‖²: lower is better.

    Args:
        left: (n, d).
        right: (n, d), paraphrases of left (STS: grades of 4 and more).

    Returns:
        A number in [0, 4].

    Source: Wang and Isola (2020), "Understanding contrastive representation learning through alignment and uniformity on the
    hypersphere". Built in notebook 01.
    """
    if len(left) == 0:
        raise ValueError("alignment needs at least one pair of paraphrases; got none")
    return float(np.square(_unit(left) - _unit(right)).sum(1).mean())


def uniformity(vectors: np.ndarray) -> float:
    """Log of the mean Gaussian potential of unit vectors, log E exp(−2‖f(x) − f(y)‖²): lower is more evenly spread.

    Args:
        vectors: (n, d) of different sentences; n ≥ 2.

    Returns:
        A number ≤ 0.

    Source: Wang and Isola (2020). Built in notebook 01.
    """
    if len(vectors) < 2:
        raise ValueError(f"uniformity compares different sentences; got {len(vectors)}")
    unit = _unit(vectors)
    squared = 2 - 2 * (unit @ unit.T)[np.triu_indices(len(unit), 1)]
    return float(np.log(np.exp(-2 * squared).mean()))
