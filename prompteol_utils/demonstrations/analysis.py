"""What a choice on a sample is worth; most of it reads a recorded search and encodes nothing."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from tqdm import tqdm

from prompteol_utils.demonstrations import search
from prompteol_utils.demonstrations.scores import DemonstrationScores
from prompteol_utils.prompts import Demonstration


def split_half_validation(
    scores: DemonstrationScores,
    candidates: Sequence[Demonstration],
    pairs: int,
    *,
    repeats: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Choose the best candidate on a random half of the sample, and score it on the other half.

    Args:
        scores: With all candidates known on the pairs.
        candidates: What is chosen from.
        pairs: From the beginning of the sample.
        repeats: Random splits.
        seed: Of the first one.

    Returns:
        A line a split: word (chosen), chosen_seen and chosen_unseen (its gain over the plain
        prompt on the half that chose it, and on the other one), random_unseen (mean gain of all
        candidates there), best_unseen (the highest gain there, known only in hindsight).

    Raises:
        ValueError: Fewer than four pairs, or some are not recorded.
    """
    if pairs < 4:
        raise ValueError(f"two halves need four pairs or more, got {pairs}")
    lists = [(), *((one,) for one in candidates)]
    splits = []
    for repeat in range(repeats):
        order = scores.shuffled(seed + repeat, pairs)
        seen = order.scores(lists, pairs // 2)
        unseen = order.scores(lists, pairs, pairs // 2)
        seen, unseen = seen[1:] - seen[0], unseen[1:] - unseen[0]
        best = int(seen.argmax())
        found = (seen[best], unseen[best], unseen.mean(), unseen.max())
        splits.append((candidates[best].word, *found))
    columns = ["word", "chosen_seen", "chosen_unseen", "random_unseen", "best_unseen"]
    return pd.DataFrame(splits, columns=columns)


def replay_halving(
    scores: DemonstrationScores,
    candidates: Sequence[Demonstration],
    pairs: int,
    *,
    share: float = search.SHARE,
    first: int = search.FIRST,
    repeats: int = 100,
    seed: int = 0,
) -> pd.DataFrame:
    """Run halving on the recorded cosines of an exact search, each time in another order.

    Args:
        scores: With all candidates known on the pairs.
        candidates: What is searched.
        pairs: As for `halving`.
        share: As for `halving`.
        first: As for `halving`.
        repeats: Orders.
        seed: Of the first one.

    Returns:
        A line an order: word (the winner), rank (its place in the exact search; 1 is best), gain
        (in the exact search), behind (how far below the exact winner), encoded (sentences), share
        (of the exact search's cost).
    """
    whole = search.rank(scores, candidates, pairs)
    place = {key: at for at, key in enumerate(zip(whole["sentence"], whole["word"], strict=True))}
    full_cost = search.count_encoded_sentences(whole)
    replays = []
    for repeat in range(repeats):
        order = scores.shuffled(seed + repeat, pairs)
        settings = {"share": share, "first": first, "show_progress_bar": False}
        table = search.halving(order, candidates, pairs, **settings)
        at = place[table["sentence"].iloc[0], table["word"].iloc[0]]
        gain = whole["gain"].iloc[at]
        cost = search.count_encoded_sentences(table)
        behind = whole["gain"].iloc[0] - gain
        replays.append((whole["word"].iloc[at], at + 1, gain, behind, cost, cost / full_cost))
    return pd.DataFrame(replays, columns=["word", "rank", "gain", "behind", "encoded", "share"])


def expected_max_of_k(gains: Sequence[float]) -> np.ndarray:
    """The mean of the best of k random candidates, for every k.

    Args:
        gains: (m,), of all candidates.

    Returns:
        float64 (m,): at place k - 1 the mean over all choices of k out of m.
    """
    gains = np.sort(np.asarray(gains, dtype=np.float64))
    m = len(gains)
    # The j-th smallest (from 0) is the best of k with probability C(j, k-1) / C(m, k); taken step
    # by step, because those numbers are huge.
    weight = np.full(m, 1 / m)
    out = []
    for k in range(1, m + 1):
        out.append(weight @ gains)
        weight = weight * np.maximum(np.arange(m) - (k - 1), 0) * (k + 1) / (k * max(m - k, 1))
    return np.array(out)


def random_shots(
    scores: DemonstrationScores,
    candidates: Sequence[Demonstration],
    shots: Sequence[int],
    draws: int,
    pairs: int,
    *,
    start: int = 0,
    seed: int = 0,
    show_progress_bar: bool | None = None,
) -> pd.DataFrame:
    """Score random lists: the control for every choice.

    Args:
        scores: Live or recorded.
        candidates: What is drawn from.
        shots: The numbers k to measure; a draw's first k demonstrations are its k shots.
        draws: Lists.
        pairs: The score is over pairs `start` to `pairs` of the sample.
        start: Their beginning.
        seed: Of the draws.
        show_progress_bar: None shows one.

    Returns:
        A line a draw and k: draw, shots, words, spearman, n.

    Raises:
        ValueError: More shots than candidates.
    """
    search.check_candidates(candidates)
    most = max(shots)
    if not 1 <= most <= len(candidates):
        raise ValueError(f"{most} shots; allowed: 1 to {len(candidates)}, the candidates there are")
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(len(candidates))[:most] for _ in range(draws)]
    todo = list(itertools.product(range(draws), shots))
    lists = [[candidates[i] for i in drawn[draw][:k]] for draw, k in todo]
    table = _score_lists(scores, lists, pairs, start, show_progress_bar)
    return pd.DataFrame(todo, columns=["draw", "shots"]).join(table)


def _score_lists(
    scores: DemonstrationScores, lists: list, pairs: int, start: int, show: bool | None
) -> pd.DataFrame:
    """A line a list of demonstrations: words, spearman, n."""
    found = []
    for some in tqdm(lists, desc="lists", unit="list", disable=show is False, leave=False):
        words = " ".join(one.word for one in some)
        found.append((words, scores.score(some, pairs, start), pairs - start))
    return pd.DataFrame(found, columns=["words", "spearman", "n"])


def orders(
    scores: DemonstrationScores,
    chosen: Sequence[Demonstration],
    pairs: int,
    *,
    limit: int = 24,
    start: int = 0,
    seed: int = 0,
    show_progress_bar: bool | None = None,
) -> pd.DataFrame:
    """Score the same demonstrations in other orders.

    Args:
        scores: Live or recorded.
        chosen: Two or more, in the order that is compared with.
        pairs: The score is over pairs `start` to `pairs` of the sample.
        limit: Orders at most: all if there are no more, else the given one, its reverse and
            random ones.
        start: Beginning of the pairs.
        seed: Of the random orders.
        show_progress_bar: None shows one.

    Returns:
        A line an order, the given one first: words, spearman, n, change (from the given order).

    Raises:
        ValueError: Fewer than two demonstrations.
    """
    search.check_candidates(chosen)
    if len(chosen) < 2:
        raise ValueError("one demonstration has one order; give two or more")
    identity = tuple(range(len(chosen)))
    if math.factorial(len(chosen)) <= limit:
        several = list(itertools.permutations(identity))
    else:
        rng = np.random.default_rng(seed)
        several = [identity, identity[::-1]]
        while len(several) < limit:
            order = tuple(rng.permutation(len(chosen)).tolist())
            if order not in several:
                several.append(order)
    lists = [[chosen[i] for i in order] for order in several[:limit]]
    table = _score_lists(scores, lists, pairs, start, show_progress_bar)
    return table.assign(change=table["spearman"] - table["spearman"].iloc[0])
