"""A paired bootstrap says what is decided, and only that."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from prompteol_utils.evaluation import Difference, compare_scores


def systems(n=200, seed=0):
    rng = np.random.default_rng(seed)
    gold = rng.integers(0, 6, n).astype(float)
    good, bad = (gold + noise * rng.normal(size=n) for noise in (1.0, 4.0))
    return gold, good, bad


def test_the_three_verdicts():
    gold, good, bad = systems()
    like_good = good + 0.2 * np.random.default_rng(1).normal(size=len(gold))
    leads = compare_scores(good, bad, gold)
    assert str(leads) == f"leads by {leads.points:.1f} [{leads.low:.1f}, {leads.high:.1f}]"
    trails = compare_scores(bad, good, gold)
    assert str(trails) == str(leads).replace("leads", "trails")
    undecided = compare_scores(like_good, good, gold)
    assert undecided.low < 0 < undecided.high
    assert str(undecided).startswith("is not decided by these pairs (")
    assert str(Difference(2.1, 0.4, 3.9, 0.95, 9)) == "leads by 2.1 [0.4, 3.9]"
    assert str(Difference(-2.1, -3.9, -0.4, 0.95, 9)) == "trails by 2.1 [0.4, 3.9]"
    assert str(Difference(1.1, -0.4, 2.9, 0.95, 9)).endswith("(+1.1 [-0.4, 2.9])")


def test_equals_the_bootstrap_written_out():
    gold, good, bad = systems(n=40)
    rng = np.random.default_rng(3)
    drawn = rng.integers(0, 40, (50, 40))
    both = [[spearmanr(one[at], gold[at]).statistic for at in drawn] for one in (good, bad)]
    low, high = np.quantile(100 * (np.array(both[0]) - both[1]), (0.05, 0.95))
    found = compare_scores(good, bad, gold, samples=50, level=0.9, seed=3)
    assert (found.low, found.high) == pytest.approx((low, high))
    points = 100 * (spearmanr(good, gold).statistic - spearmanr(bad, gold).statistic)
    assert found.points == pytest.approx(points)


def test_draws_are_paired():
    """What is easy or hard about a draw cancels out: the interval of two like systems is narrow."""
    gold, _, bad = systems()
    like_bad = bad + 0.2 * np.random.default_rng(1).normal(size=len(gold))
    found = compare_scores(like_bad, bad, gold)
    rng = np.random.default_rng(0)
    alone = [spearmanr(bad[at], gold[at]).statistic for at in rng.integers(0, 200, (300, 200))]
    assert found.high - found.low < 0.2 * 100 * np.ptp(np.quantile(alone, (0.025, 0.975)))


def test_the_interval_holds_the_true_difference_about_as_often_as_it_says():
    """Two systems of equal quality: about one in twenty comparisons is "decided"."""
    rng, decided = np.random.default_rng(5), 0
    for _ in range(100):
        gold = rng.normal(size=150)
        one, two = (gold + rng.normal(size=150) for _ in range(2))
        found = compare_scores(one, two, gold, samples=200)
        decided += not found.low <= 0 <= found.high
    assert decided <= 12


def test_arrays_of_other_pairs_are_refused():
    gold, good, bad = systems()
    with pytest.raises(ValueError, match="lengths 200, 199 and 200"):
        compare_scores(good, bad[1:], gold)


def test_few_pairs_skip_draws_without_a_ranking():
    gold = np.array([0.0, 0.0, 0.0, 0.0, 5.0, 5.0])
    ours = np.array([0.1, 0.2, 0.3, 0.4, 0.8, 0.9])
    found = compare_scores(ours, ours[::-1].copy(), gold, samples=200)
    assert found.low <= found.points <= found.high
    with pytest.raises(ValueError, match="too few or too alike"):
        compare_scores(np.arange(2.0), -np.arange(2.0), np.array([0.0, 1.0]), samples=200)
