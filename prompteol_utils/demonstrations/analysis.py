"""What a choice on a sample is worth: the chosen one on the pairs that chose it, and on others. Reads an exact search, encodes nothing."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from tqdm import tqdm

from prompteol_utils.demonstrations.scores import DemonstrationScores
from prompteol_utils.demonstrations.search import (
    FIRST,
    SHARE,
    check_candidates,
    count_encoded_sentences,
    halving,
    rank,
)
from prompteol_utils.prompts import Demonstration


def split_half_validation(
    trials: DemonstrationScores,
    candidates: Sequence[Demonstration],
    pairs: int,
    *,
    repeats: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
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
    return pd.DataFrame(
        rows, columns=["word", "chosen_seen", "chosen_unseen", "random_unseen", "best_unseen"]
    )


def replay_halving(
    trials: DemonstrationScores,
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
        gain, cost = whole["gain"].iloc[at], count_encoded_sentences(table)
        rows.append(
            (
                whole["word"].iloc[at],
                at + 1,
                gain,
                whole["gain"].iloc[0] - gain,
                cost,
                cost / count_encoded_sentences(whole),
            )
        )
    return pd.DataFrame(rows, columns=["word", "rank", "gain", "behind", "encoded", "share"])


def expected_max_of_k(gains: Sequence[float]) -> np.ndarray:
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


def random_shots(
    trials: DemonstrationScores,
    candidates: Sequence[Demonstration],
    shots: Sequence[int],
    draws: int,
    pairs: int,
    *,
    start: int = 0,
    seed: int = 0,
    show_progress_bar: bool | None = None,
) -> pd.DataFrame:
    """What demonstrations do that nobody chose: each draw is a random list, and its first k are its k shots.

    Args:
        trials: Live or recorded.
        candidates: What is drawn from.
        shots: The numbers k to measure.
        draws: How many lists.
        pairs: The score is over pairs `start` to `pairs` of the sample.
        start: Its beginning.
        seed: Of the draws.
        show_progress_bar: None shows one.

    Returns:
        One row a draw and k: draw, shots, words, spearman, n.

    Raises:
        ValueError: More shots than candidates.

    Built in notebook 02.
    """
    check_candidates(candidates)
    if not 1 <= max(shots) <= len(candidates):
        raise ValueError(
            f"{max(shots)} shots from {len(candidates)} candidates; allowed: 1 to {len(candidates)}"
        )
    rng, rows = np.random.default_rng(seed), []
    lists = [
        [candidates[i] for i in rng.permutation(len(candidates))[: max(shots)]]
        for _ in range(draws)
    ]
    todo = list(itertools.product(enumerate(lists), shots))
    for (draw, some), k in tqdm(
        todo, desc="random", unit="list", disable=show_progress_bar is False, leave=False
    ):
        words = " ".join(one.word for one in some[:k])
        score = trials.score(some[:k], pairs, start)
        rows.append(
            {"draw": draw, "shots": k, "words": words, "spearman": score, "n": pairs - start}
        )
    return pd.DataFrame(rows)


def orders(
    trials: DemonstrationScores,
    chosen: Sequence[Demonstration],
    pairs: int,
    *,
    limit: int = 24,
    start: int = 0,
    seed: int = 0,
    show_progress_bar: bool | None = None,
) -> pd.DataFrame:
    """The same demonstrations in other orders.

    Args:
        trials: Live or recorded.
        chosen: Two or more, in the order that is compared with.
        pairs: The score is over pairs `start` to `pairs` of the sample.
        limit: At most so many orders: all of them if there are no more, else the given one, its reverse and random ones.
        start: Its beginning.
        seed: Of the random orders.
        show_progress_bar: None shows one.

    Returns:
        One row an order, the given one first: words, spearman, change (from the given order), n.

    Raises:
        ValueError: Fewer than two demonstrations.

    Built in notebook 02.
    """
    check_candidates(chosen)
    if len(chosen) < 2:
        raise ValueError("one demonstration has one order; give two or more")
    identity = tuple(range(len(chosen)))
    if math.factorial(len(chosen)) <= limit:
        several = list(itertools.permutations(identity))
    else:
        rng, several = np.random.default_rng(seed), [identity, identity[::-1]]
        while len(several) < limit:
            if (order := tuple(rng.permutation(len(chosen)).tolist())) not in several:
                several.append(order)
    rows = []
    for order in tqdm(
        several[:limit],
        desc="orders",
        unit="order",
        disable=show_progress_bar is False,
        leave=False,
    ):
        some = [chosen[i] for i in order]
        rows.append(
            {
                "words": " ".join(one.word for one in some),
                "spearman": trials.score(some, pairs, start),
                "n": pairs - start,
            }
        )
    table = pd.DataFrame(rows)
    return table.assign(change=table["spearman"] - table["spearman"].iloc[0])
