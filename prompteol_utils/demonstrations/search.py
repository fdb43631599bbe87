"""Choose demonstrations on a dev sample: every candidate on every pair, or successive halving over growing samples."""

import math
import os
from collections.abc import Sequence

import numpy as np
import pandas as pd
from tqdm import tqdm

from prompteol_utils.data.sts import Pairs
from prompteol_utils.demonstrations.scores import DemonstrationScores
from prompteol_utils.models.loading import LoadedModel
from prompteol_utils.prompts import Demonstration, Prompt
from prompteol_utils.results.store import Store

MODES = ("exact", "halving")
STEP = 10  # pairs between two finished rankings of an exact search
SHARE = 0.1  # of an exact search's encodings that halving may spend
FIRST = 5  # pairs of halving's first round


def search_demonstrations(
    loaded: LoadedModel,
    candidates: Sequence[Demonstration],
    dev: Pairs,
    *,
    mode: str = "exact",
    pairs: int = 150,
    prompt: "Prompt | str" = "prompteol",
    chosen: Sequence[Demonstration] = (),
    store: "Store | str | os.PathLike | None" = None,
    seed: int = 0,
    show_progress_bar: bool | None = None,
) -> pd.DataFrame:
    """Rank candidate demonstrations by what they do to a model's score on dev pairs.

    Args:
        loaded: A model from `load_model`.
        candidates: Different demonstrations; each is tried as the last one before the sentence.
        dev: Pairs to choose on. Report on others: the best of many is partly the luckiest of many.
        mode: "exact" tries every candidate on every pair; "halving" drops the worse ones early, at a tenth of the encodings.
        pairs: Size of the sample, drawn with `seed`; at most all of `dev`.
        prompt: The prompt that they are put before.
        chosen: Demonstrations that stand before each candidate (greedy k-shot).
        store: A `Store` or its path. Finished work is kept there, and a second run goes on where the first one stopped.
        seed: Of the sample.
        show_progress_bar: None shows one for more than eight prompts.

    Returns:
        One row a candidate, best first: sentence, word, kind, topic, names, spearman, gain (over the prompt without it), n (pairs it
        was tried on; halving ranks those first that it kept longest).

    Raises:
        ValueError: No candidates, one given twice, an unknown mode, no pairs, or all grades equal.

    Source: the paper's search for one demonstration per model (300 candidates on the STS-B development set); halving: Karnin, Koren and
    Somekh 2013, "Almost Optimal Exploration in Multi-Armed Bandits". Built in notebook 02.
    """
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}; allowed: {', '.join(MODES)}")
    check_candidates(candidates)
    trials = DemonstrationScores.live(loaded, dev, prompt=prompt, store=store, seed=seed)
    options = {"chosen": chosen, "show_progress_bar": show_progress_bar}
    return (exact if mode == "exact" else halving)(
        trials, candidates, min(pairs, len(trials)), **options
    )


def exact(
    trials: DemonstrationScores,
    candidates: Sequence[Demonstration],
    pairs: int,
    *,
    chosen: Sequence[Demonstration] = (),
    step: int = STEP,
    show_progress_bar: bool | None = None,
) -> pd.DataFrame:
    """Try every candidate on every pair of the sample, `step` pairs at a time, so that a run cut short is a search on fewer pairs.

    Args:
        trials: From `DemonstrationScores.live`, or `DemonstrationScores.recorded` to replay a search.
        candidates: As for `search_demonstrations`.
        pairs: How many pairs of the sample.
        chosen: As for `search_demonstrations`.
        step: Pairs between two finished rankings.
        show_progress_bar: As for `search_demonstrations`.

    Returns:
        As `rank`.
    """
    check_candidates(candidates)
    lists = [tuple(chosen), *((*chosen, candidate) for candidate in candidates)]
    todo = [
        (one, stop)
        for stop in [*range(step, pairs, step), pairs]
        for one in lists
        if trials.known(one) < stop
    ]  # fmt: skip
    show = show_progress_bar if show_progress_bar is not None else len(todo) > 8
    for one, stop in tqdm(todo, desc="search", unit="prompt", disable=not show, leave=False):
        trials.cosines(one, stop)
    return rank(trials, candidates, pairs, chosen=chosen)


def rank(
    trials: DemonstrationScores,
    candidates: Sequence[Demonstration],
    pairs: int | None = None,
    *,
    chosen: Sequence[Demonstration] = (),
) -> pd.DataFrame:
    """The table of an exact search, from what is known.

    Args:
        trials: Live or recorded.
        candidates: Those to rank.
        pairs: On the first so many pairs; None: on as many as all candidates are known on (a search cut short).
        chosen: As for `search_demonstrations`.

    Returns:
        One row a candidate, best first: sentence, word, kind, topic, spearman, gain, n.

    Raises:
        ValueError: None of the pairs is known for all candidates.
    """
    check_candidates(candidates)
    lists = [(*chosen, candidate) for candidate in candidates]
    pairs = pairs if pairs is not None else min(map(trials.known, lists))
    if not pairs:
        raise ValueError(
            f"{sum(not trials.known(one) for one in lists)} of {len(lists)} candidates were not tried yet: run the search first"
        )
    return _table(trials, candidates, [pairs] * len(candidates), chosen)


def halving(
    trials: DemonstrationScores,
    candidates: Sequence[Demonstration],
    pairs: int,
    *,
    share: float = SHARE,
    first: int = FIRST,
    chosen: Sequence[Demonstration] = (),
    show_progress_bar: bool | None = None,
) -> pd.DataFrame:
    """Try all on a few pairs, keep the better ones, try those on more, and so on: what was encoded for one round serves the next.

    Args:
        trials: From `DemonstrationScores.live`, or `DemonstrationScores.recorded` to replay it on an exact search.
        candidates: As for `search_demonstrations`. Where `share` does not even reach for all of them on `first` pairs, a random part
            of them is tried, drawn with the sample's seed.
        pairs: Of the last round.
        share: Of an exact search's encodings that it may spend.
        first: Pairs of the first round; each round has twice as many as the one before.
        chosen: As for `search_demonstrations`.
        show_progress_bar: As for `search_demonstrations`.

    Returns:
        As `rank`, but n differs, and those on more pairs stand first; a candidate that was left out has no row. `encoded` tells the cost.

    Raises:
        ValueError: As `exact`; or the share is too small for two candidates.
    """
    check_candidates(candidates)
    plan = halving_plan(len(candidates), pairs, share=share, first=first)
    order = np.random.default_rng(trials.about["seed"]).permutation(len(candidates))[: plan[0][0]]
    alive, n_of, scores = [candidates[i] for i in sorted(order)], {}, np.zeros(0)
    show = show_progress_bar if show_progress_bar is not None else plan[0][0] > 8
    with tqdm(
        total=sum(kept for kept, _ in plan),
        desc="halving",
        unit="prompt",
        disable=not show,
        leave=False,
    ) as bar:
        for kept, stop in plan:
            if len(
                scores
            ):  # the better ones of the round before; the sort is stable, so ties keep the order of the candidates
                alive = [alive[i] for i in sorted(np.argsort(-scores, kind="stable")[:kept])]
            for one in alive:
                trials.cosines((*chosen, one), stop)
                n_of[str(one)] = stop
                bar.update()
            scores = trials.scores([(*chosen, one) for one in alive], stop)
    tried = [one for one in candidates if str(one) in n_of]
    return _table(trials, tried, [n_of[str(one)] for one in tried], chosen)


def halving_plan(
    candidates: int, pairs: int, *, share: float = SHARE, first: int = FIRST
) -> list[tuple[int, int]]:
    """How many candidates halving tries on how many pairs, round by round, within its share of the exact search's cost.

    Args:
        candidates: How many there are.
        pairs: Of the last round.
        share: As for `halving`.
        first: As for `halving`.

    Returns:
        (candidates, pairs) a round. The first round spends at most six tenths of the share, the rest keeps as many as it allows.

    Raises:
        ValueError: The share is too small for two candidates, or not between 0 and 1.
    """
    if not 0 < share <= 1 or first < 2:
        raise ValueError(
            f"a share above 0 and up to 1 and a first round of 2 pairs or more are needed, got {share!r} and {first!r}"
        )
    if candidates == 1:
        return [(1, pairs)]
    first = min(first, pairs)
    budget = (
        share * (candidates + 1) * pairs - pairs
    )  # the plain prompt is measured on all of them too
    ends = [min(pairs, first * 2**k) for k in range(1 + math.ceil(math.log2(pairs / first)))]
    news = np.diff([0, *ends])
    begin = min(candidates, int(budget * (0.6 if len(ends) > 1 else 1) / first))

    def rounds(keep: float) -> np.ndarray:
        return np.array(
            [begin, *(max(1, math.floor(begin * keep**k)) for k in range(1, len(ends)))]
        )

    if begin < 2 or rounds(0) @ news > budget:
        raise ValueError(
            f"{share:g} of the encodings of {candidates} candidates x {pairs} pairs do not reach for halving; take a larger share"
        )
    keep = max(keep for keep in np.linspace(0, 1, 1001) if rounds(keep) @ news <= budget)
    return [(int(kept), int(stop)) for kept, stop in zip(rounds(keep), ends, strict=True)]


def count_encoded_sentences(table: pd.DataFrame) -> int:
    """What a table of `exact` or `halving` cost, in encoded sentences: two for each pair, the prompt without a candidate included."""
    return int(2 * (table["n"].sum() + table["n"].max()))


def _table(
    trials: DemonstrationScores,
    candidates: Sequence[Demonstration],
    ns: Sequence[int],
    chosen: Sequence[Demonstration],
) -> pd.DataFrame:
    parts = []
    for n in sorted(set(ns), reverse=True):
        some = [candidate for candidate, own in zip(candidates, ns, strict=True) if own == n]
        plain, *scores = trials.scores([chosen, *((*chosen, one) for one in some)], n)
        part = pd.DataFrame(
            [
                {
                    name: getattr(one, name)
                    for name in ("sentence", "word", "kind", "topic", "names")
                }
                for one in some
            ]
        )
        part = part.assign(spearman=scores, gain=np.array(scores) - plain, n=n)
        parts.append(part.sort_values("spearman", ascending=False, kind="stable"))
    return pd.concat(parts, ignore_index=True)


def demonstrations_of(table: pd.DataFrame, pool: Sequence[Demonstration]) -> list[Demonstration]:
    """The demonstrations that a table names in its columns sentence and word, in its order; `pool` is what it was made from."""
    by_text = {str(one): one for one in pool}
    return [
        by_text[f"{sentence}=>{word}"]
        for sentence, word in zip(table["sentence"], table["word"], strict=True)
    ]


def check_candidates(candidates: Sequence[Demonstration]) -> None:
    """Raise ValueError where there are none, or where one is given twice."""
    if not len(candidates):
        raise ValueError(
            "no candidates to search in; load_demonstrations() gives the 300 of this project"
        )
    first: dict[str, int] = {}
    for index, candidate in enumerate(candidates):
        if not isinstance(candidate, Demonstration):
            raise ValueError(
                f"candidate {index} is a {type(candidate).__name__}; a Demonstration(sentence, word) is needed"
            )
        if (before := first.setdefault(str(candidate), index)) != index:
            raise ValueError(
                f"candidates {before} and {index} are the same: {str(candidate)!r}; leave one out"
            )


def greedy_shots(
    trials: DemonstrationScores,
    pool: Sequence[Demonstration],
    shots: int,
    pairs: int,
    *,
    held_out: int = 0,
    show_progress_bar: bool | None = None,
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
    for _ in tqdm(
        range(shots), desc="greedy", unit="shot", disable=show_progress_bar is False, leave=False
    ):
        left = [one for one in pool if one not in chosen]
        best = exact(
            trials, left, pairs, chosen=chosen, step=pairs, show_progress_bar=show_progress_bar
        )
        chosen += demonstrations_of(best.head(1), left)
        rows.append(
            _row(trials, chosen, pairs, held_out, best["gain"].iloc[0], 2 * pairs * len(left))
        )
    return pd.DataFrame(rows)


def _row(
    trials: DemonstrationScores,
    chosen: Sequence[Demonstration],
    pairs: int,
    held_out: int,
    gain: float,
    encoded: int,
) -> dict:
    last = {name: getattr(chosen[-1], name) if chosen else "" for name in ("sentence", "word")}
    score = {"spearman": trials.score(chosen, pairs), "gain": gain}
    report = trials.score(chosen, pairs + held_out, pairs) if held_out else math.nan
    return {
        "shots": len(chosen),
        **last,
        **score,
        "held_out": report,
        "n": pairs,
        "encoded": encoded,
    }
