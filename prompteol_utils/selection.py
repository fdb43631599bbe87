"""What a choice on a sample is worth: the chosen one on the pairs that chose it, and on others. Reads an exact search, encodes nothing."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from prompteol_utils.prompts import Demonstration
from prompteol_utils.search import FIRST, SHARE, encoded, halving, rank
from prompteol_utils.trials import Trials


def honest_choice(trials: Trials, candidates: Sequence[Demonstration], pairs: int, *, repeats: int = 200, seed: int = 0) -> pd.DataFrame:
    """Cut the sample in two at random, again and again: one half chooses the best candidate, the other half says what that is worth.

    Args:
        trials: Recorded (or live, with all candidates measured on the pairs).
        candidates: What is chosen from.
        pairs: The first so many pairs of the sample.
        repeats: How many cuts.
        seed: Of the first one.

    Returns:
        One row a cut: word (chosen), chosen_seen and chosen_unseen (its gain over the plain prompt on the half that chose it, and on the
        other one), random_unseen (mean gain of all candidates on the other half: what a blind choice can expect), best_unseen (the
        highest gain there: what only hindsight can have).

    Raises:
        ValueError: Fewer than four pairs, or some are not recorded.

    Built in notebook 02.
    """
    if pairs < 4:
        raise ValueError(f"two halves need four pairs or more, got {pairs}")
    lists, rows = [(), *((one,) for one in candidates)], []
    for repeat in range(repeats):
        order = trials.shuffled(seed + repeat, pairs)
        seen, unseen = order.scores(lists, pairs // 2), order.scores(lists, pairs, pairs // 2)
        seen, unseen = seen[1:] - seen[0], unseen[1:] - unseen[0]
        best = int(seen.argmax())
        rows.append((candidates[best].word, seen[best], unseen[best], unseen.mean(), unseen.max()))
    return pd.DataFrame(rows, columns=["word", "chosen_seen", "chosen_unseen", "random_unseen", "best_unseen"])


def replay_halving(
    trials: Trials,
    candidates: Sequence[Demonstration],
    pairs: int,
    *,
    share: float = SHARE,
    first: int = FIRST,
    repeats: int = 100,
    seed: int = 0,
) -> pd.DataFrame:
    """Run halving on the stored cosines of an exact search, each time with the pairs in another order.

    Args:
        trials: Recorded (or live, with all candidates measured on the pairs).
        candidates: What is searched.
        pairs: As for `halving`.
        share: As for `halving`.
        first: As for `halving`.
        repeats: How many orders.
        seed: Of the first one.

    Returns:
        One row an order: word (the winner), rank (its place in the exact search; 1 is best), gain (in the exact search), behind (how far
        below the exact winner), encoded (sentences), share (of the exact search's).

    Raises:
        ValueError: Some pairs are not recorded.

    Built in notebook 02.
    """
    whole = rank(trials, candidates, pairs)
    place = {key: at for at, key in enumerate(zip(whole["sentence"], whole["word"], strict=True))}
    rows = []
    for repeat in range(repeats):
        order = trials.shuffled(seed + repeat, pairs)
        table = halving(order, candidates, pairs, share=share, first=first, show_progress_bar=False)
        at = place[table["sentence"].iloc[0], table["word"].iloc[0]]
        gain, cost = whole["gain"].iloc[at], encoded(table)
        rows.append((whole["word"].iloc[at], at + 1, gain, whole["gain"].iloc[0] - gain, cost, cost / encoded(whole)))
    return pd.DataFrame(rows, columns=["word", "rank", "gain", "behind", "encoded", "share"])


def expected_best(gains: Sequence[float]) -> np.ndarray:
    """The best of k random candidates, on average, for every k: what trying more of them buys on the sample.

    Args:
        gains: (m,), of all candidates.

    Returns:
        float64 (m,): at place k - 1 the mean of the best of k, over all choices of k out of m.
    """
    gains = np.sort(np.asarray(gains, dtype=np.float64))
    m, out = len(gains), []
    # The j-th smallest (from 0) is the best of k with probability C(j, k-1) / C(m, k), taken step by step: those numbers are huge.
    weight = np.full(m, 1 / m)
    for k in range(1, m + 1):
        out.append(weight @ gains)
        weight = weight * np.maximum(np.arange(m) - (k - 1), 0) * (k + 1) / (k * max(m - k, 1))
    return np.array(out)
