"""More than one demonstration: greedy k-shot, the order they stand in, and lists drawn at random to compare with."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from tqdm import tqdm

from prompteol_utils.prompts import Demonstration
from prompteol_utils.search import check_candidates, demonstrations_of, exact
from prompteol_utils.trials import Trials


def greedy_shots(
    trials: Trials, pool: Sequence[Demonstration], shots: int, pairs: int, *, held_out: int = 0, show_progress_bar: bool | None = None
) -> pd.DataFrame:
    """Add demonstrations one by one, each time the one of the pool that helps most where it stands, next to the sentence.

    Args:
        trials: Live or recorded.
        pool: The best of an exact search, say; every step tries all that are left.
        shots: How many steps; at most as many as the pool has.
        pairs: The first so many pairs of the sample choose.
        held_out: So many pairs after those only report. 0: none do.
        show_progress_bar: None shows one.

    Returns:
        One row for 0, 1, … shots: shots, sentence, word (of the one added), spearman, gain (over one shot less), held_out (its score on
        the pairs that did not choose, NaN without), n (pairs that chose), encoded (sentences encoded for this step's choice).

    Raises:
        ValueError: No candidates, more shots than candidates, or more pairs than the sample has.

    Source: goes past the paper, which stops at one. Built in notebook 02.
    """
    check_candidates(pool)
    if not 1 <= shots <= len(pool):
        raise ValueError(f"{shots} shots from a pool of {len(pool)}; allowed: 1 to {len(pool)}")
    chosen: list[Demonstration] = []
    rows = [_row(trials, chosen, pairs, held_out, math.nan, 2 * pairs)]
    for _ in tqdm(range(shots), desc="greedy", unit="shot", disable=show_progress_bar is False, leave=False):
        left = [one for one in pool if one not in chosen]
        best = exact(trials, left, pairs, chosen=chosen, step=pairs, show_progress_bar=show_progress_bar)
        chosen += demonstrations_of(best.head(1), left)
        rows.append(_row(trials, chosen, pairs, held_out, best["gain"].iloc[0], 2 * pairs * len(left)))
    return pd.DataFrame(rows)


def _row(trials: Trials, chosen: Sequence[Demonstration], pairs: int, held_out: int, gain: float, encoded: int) -> dict:
    last = {name: getattr(chosen[-1], name) if chosen else "" for name in ("sentence", "word")}
    score = {"spearman": trials.score(chosen, pairs), "gain": gain}
    report = trials.score(chosen, pairs + held_out, pairs) if held_out else math.nan
    return {"shots": len(chosen), **last, **score, "held_out": report, "n": pairs, "encoded": encoded}


def random_shots(
    trials: Trials,
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
        raise ValueError(f"{max(shots)} shots from {len(candidates)} candidates; allowed: 1 to {len(candidates)}")
    rng, rows = np.random.default_rng(seed), []
    lists = [[candidates[i] for i in rng.permutation(len(candidates))[: max(shots)]] for _ in range(draws)]
    todo = list(itertools.product(enumerate(lists), shots))
    for (draw, some), k in tqdm(todo, desc="random", unit="list", disable=show_progress_bar is False, leave=False):
        words = " ".join(one.word for one in some[:k])
        score = trials.score(some[:k], pairs, start)
        rows.append({"draw": draw, "shots": k, "words": words, "spearman": score, "n": pairs - start})
    return pd.DataFrame(rows)


def orders(
    trials: Trials,
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
    for order in tqdm(several[:limit], desc="orders", unit="order", disable=show_progress_bar is False, leave=False):
        some = [chosen[i] for i in order]
        rows.append({"words": " ".join(one.word for one in some), "spearman": trials.score(some, pairs, start), "n": pairs - start})
    table = pd.DataFrame(rows)
    return table.assign(change=table["spearman"] - table["spearman"].iloc[0])
