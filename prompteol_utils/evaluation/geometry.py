"""How embeddings lie in space: anisotropy, alignment, uniformity."""

import numpy as np

from prompteol_utils.data.sts import Pairs
from prompteol_utils.evaluation.sts import Encode, _unit, embed_pairs


def embedding_geometry(encode: Encode, pairs: Pairs, positive: float = 4.0) -> dict[str, float]:
    """Anisotropy, alignment and uniformity of a task's embeddings.

    Args:
        encode: As in `evaluate_sts`.
        pairs: The task; alignment is over its pairs graded `positive` or more, the other two over
            its distinct sentences.
        positive: From which grade on a pair counts as meaning the same.

    Returns:
        {"anisotropy": …, "alignment": …, "uniformity": …}

    Raises:
        ValueError: No pair has such a grade; else as in `evaluate_sts`.

    Source: SimCSE, section 3 (STS-B as the sample of pairs).
    """
    same = pairs.gold >= positive
    if not same.any():
        raise ValueError(
            f"{pairs.name}: no pair is graded {positive:g} or more, which alignment needs"
        )
    (left,), (right,) = embed_pairs(encode, [pairs])
    first = {sentence: i for i, sentence in reversed(list(enumerate(pairs.left + pairs.right)))}
    cloud = np.concatenate([left, right])[sorted(first.values())]
    return {
        "anisotropy": anisotropy(cloud),
        "alignment": alignment(left[same], right[same]),
        "uniformity": uniformity(cloud),
    }


def anisotropy(x: np.ndarray) -> float:
    """Mean cosine of two different rows: 0 when directions spread evenly, 1 in one narrow cone.

    Over all pairs, not a sample of them: with unit vectors u, (‖Σ u‖² − n) / (n (n − 1)).

    Args:
        x: (n, d), n ≥ 2, one row for each different sentence.

    Source: Ethayarajh 2019, "How Contextual are Contextualized Word Representations?", section 3.
    """
    u = _unit(_at_least_two(x))
    n = len(u)
    return float((np.square(u.sum(axis=0)).sum() - n) / (n * (n - 1)))


def alignment(left: np.ndarray, right: np.ndarray) -> float:
    """How near sentences of the same meaning lie: mean of ‖u − v‖² on unit vectors; 0 is best.

    Args:
        left: (n, d), one side of pairs that mean the same (STS: graded 4 or more).
        right: (n, d), the other side.

    Source: Wang and Isola 2020, "Understanding Contrastive Representation Learning through
    Alignment and Uniformity on the Hypersphere", section 4 (α = 2).
    """
    return float(np.square(_unit(left) - _unit(right)).sum(axis=1).mean())


def uniformity(x: np.ndarray) -> float:
    """How evenly vectors cover the sphere: log of the mean of exp(−2 ‖u − v‖²); lower is better.

    0 means that all rows coincide; the least possible value tends to −4 in many dimensions.

    Args:
        x: (n, d), n ≥ 2, one row for each different sentence.

    Source: Wang and Isola 2020, section 4 (t = 2).
    """
    u = _unit(_at_least_two(x))
    n = len(u)
    total = 0.0
    for start in range(0, n, 1024):  # n x n at once would be gigabytes on a whole task
        block = u[start : start + 1024]
        kernel = np.exp(4 * (block @ u.T) - 4)  # ‖u − v‖² = 2 − 2 u·v
        total += (
            kernel.sum() - kernel[np.arange(len(block)), np.arange(start, start + len(block))].sum()
        )
    return float(np.log(total / (n * (n - 1))))


def _at_least_two(x: np.ndarray) -> np.ndarray:
    if np.ndim(x) != 2 or len(x) < 2:
        raise ValueError(f"expected an array (n, d) with n of 2 or more, got shape {np.shape(x)}")
    return x
