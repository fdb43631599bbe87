"""Whether a difference between two scores is decided by the pairs that were measured."""

from dataclasses import dataclass

import numpy as np

from prompteol_utils.evaluation.sts import spearman, spearman_rows

_BATCH = 100  # resamples ranked at once


@dataclass(frozen=True)
class Difference:
    """A difference of two scores x 100, ours minus the baseline's, with its interval.

    Args:
        points: The difference on the pairs themselves.
        low: Lower end of the interval.
        high: Upper end of the interval.
        level: Share of resampled differences inside it.
        n: How many pairs.
    """

    points: float
    low: float
    high: float
    level: float
    n: int

    @classmethod
    def resampled(
        cls, points: float, differences: np.ndarray, level: float, n: int
    ) -> "Difference":
        """Make one with the percentile interval of resampled differences."""
        tail = (1 - level) / 2
        low, high = np.quantile(differences, (tail, 1 - tail))
        return cls(float(points), float(low), float(high), level, n)

    def __str__(self) -> str:
        """The verdict in words, such as "leads by 2.1 [0.4, 3.9]"."""
        interval = f"[{self.low:.1f}, {self.high:.1f}]"
        if self.low > 0:
            return f"leads by {self.points:.1f} {interval}"
        if self.high < 0:
            return f"trails by {-self.points:.1f} [{-self.high:.1f}, {-self.low:.1f}]"
        return f"is not decided by these pairs ({self.points:+.1f} {interval})"


def compare_scores(
    ours: np.ndarray,
    baseline: np.ndarray,
    gold: np.ndarray,
    *,
    samples: int = 1_000,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """The difference of two Spearman scores, with a paired bootstrap interval.

    Pairs are drawn with replacement, and each draw is scored under both systems, so that what is
    easy or hard about a draw cancels out of the difference.

    Args:
        ours: (n,), the cosines of our system.
        baseline: (n,), the cosines of the other one on the same pairs.
        gold: (n,), their grades.
        samples: How many draws.
        level: Share of the draws' differences that the interval holds.
        seed: Of the draws.

    Raises:
        ValueError: The arrays differ in length, as `spearman`, or too few pairs: in most draws
            all grades are equal.

    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13 (percentile
    interval).
    """
    ours, baseline, gold = (np.asarray(one, np.float64) for one in (ours, baseline, gold))
    if not len(ours) == len(baseline) == len(gold):
        lengths = f"{len(ours)}, {len(baseline)} and {len(gold)}"
        raise ValueError(f"ours, baseline and gold are of the same pairs, got lengths {lengths}")
    points = spearman(ours, gold) - spearman(baseline, gold)
    rng = np.random.default_rng(seed)
    differences: list[np.ndarray] = []
    for start in range(0, samples, _BATCH):
        drawn = rng.integers(0, len(gold), (min(_BATCH, samples - start), len(gold)))
        ranges = [np.ptp(one[drawn], axis=1) for one in (ours, baseline, gold)]
        drawn = drawn[np.min(ranges, axis=0) > 0]  # nothing to rank where all are equal
        if not len(drawn):
            continue
        scores = [spearman_rows(one[drawn], gold[drawn]) for one in (ours, baseline)]
        differences.append(scores[0] - scores[1])
    if sum(map(len, differences)) < samples / 2:
        raise ValueError(f"{len(gold)} pairs are too few or too alike for a bootstrap interval")
    return Difference.resampled(points, np.concatenate(differences), level, len(gold))
