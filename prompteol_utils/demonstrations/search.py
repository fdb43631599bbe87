"""Choose demonstrations on a dev sample: exact search, successive halving, greedy selection."""

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
SHARE = 0.1  # of an exact search's cost that halving may spend
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
    """Rank candidate demonstrations by the score they give a model on dev pairs.

    Args:
        loaded: A model from `load_model`.
        candidates: Different demonstrations; each is tried as the last one before the sentence.
        dev: Pairs used for selection. Report on others: the best of many is partly luck.
        mode: "exact" tries every candidate on every pair; "halving" drops the worse ones early,
            at a tenth of the cost.
        pairs: Size of the sample, drawn with `seed`; at most all of `dev`.
        prompt: The prompt after the demonstrations.
        chosen: Demonstrations before each candidate.
        store: A `Store` or its path: finished work is kept there, so the search is resumable.
        seed: Of the sample.
        show_progress_bar: None shows one for more than eight prompts.

    Returns:
        A line a candidate, best first: sentence, word, kind, topic, names, spearman, gain (over
        the prompt without it), n (pairs it was tried on; halving puts those kept longest first).

    Raises:
        ValueError: No candidates, one given twice, an unknown mode, no pairs, all grades equal.

    Source: the paper's search for one demonstration per model (300 candidates on STS-B dev);
    halving: Karnin, Koren and Somekh 2013.
    """
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}; allowed: {', '.join(MODES)}")
    check_candidates(candidates)
    scores = DemonstrationScores.live(loaded, dev, prompt=prompt, store=store, seed=seed)
    function = exact if mode == "exact" else halving
    shown = {"chosen": chosen, "show_progress_bar": show_progress_bar}
    return function(scores, candidates, min(pairs, len(scores)), **shown)


def exact(
    scores: DemonstrationScores,
    candidates: Sequence[Demonstration],
    pairs: int,
    *,
    chosen: Sequence[Demonstration] = (),
    step: int = STEP,
    show_progress_bar: bool | None = None,
) -> pd.DataFrame:
    """Try every candidate on every pair, `step` pairs at a time.

    A run that is cut short is thereby a search on fewer pairs.

    Args:
        scores: Live, or recorded to replay a search.
        candidates: As for `search_demonstrations`.
        pairs: From the beginning of the sample.
        chosen: As for `search_demonstrations`.
        step: Pairs between two finished rankings.
        show_progress_bar: As for `search_demonstrations`.

    Returns:
        As `rank`.
    """
    check_candidates(candidates)
    lists = [tuple(chosen), *((*chosen, candidate) for candidate in candidates)]
    stops = [*range(step, pairs, step), pairs]
    todo = [(one, stop) for stop in stops for one in lists if scores.known(one) < stop]
    show = show_progress_bar if show_progress_bar is not None else len(todo) > 8
    for one, stop in tqdm(todo, desc="search", unit="prompt", disable=not show, leave=False):
        scores.cosines(one, stop)
    return rank(scores, candidates, pairs, chosen=chosen)


def rank(
    scores: DemonstrationScores,
    candidates: Sequence[Demonstration],
    pairs: int | None = None,
    *,
    chosen: Sequence[Demonstration] = (),
) -> pd.DataFrame:
    """The ranking of an exact search, from what is known.

    Args:
        scores: Live or recorded.
        candidates: Those to rank.
        pairs: From the beginning of the sample; None takes as many as all candidates are known on.
        chosen: As for `search_demonstrations`.

    Returns:
        A line a candidate, best first: sentence, word, kind, topic, spearman, gain, n.

    Raises:
        ValueError: No pair is known for all candidates.
    """
    check_candidates(candidates)
    lists = [(*chosen, candidate) for candidate in candidates]
    pairs = pairs if pairs is not None else min(map(scores.known, lists))
    if not pairs:
        missing = sum(not scores.known(one) for one in lists)
        raise ValueError(
            f"{missing} of {len(lists)} candidates were not tried yet: run the search first"
        )
    return _table(scores, candidates, [pairs] * len(candidates), chosen)


def halving(
    scores: DemonstrationScores,
    candidates: Sequence[Demonstration],
    pairs: int,
    *,
    share: float = SHARE,
    first: int = FIRST,
    chosen: Sequence[Demonstration] = (),
    show_progress_bar: bool | None = None,
) -> pd.DataFrame:
    """Try all on a few pairs, keep the better ones, try those on twice as many, and so on.

    What was encoded for one round serves the next.

    Args:
        scores: Live, or recorded to replay it on an exact search.
        candidates: As for `search_demonstrations`. Where `share` does not reach for all of them on
            `first` pairs, a random part is tried, drawn with the sample's seed.
        pairs: Of the last round.
        share: Of an exact search's cost that it may spend.
        first: Pairs of the first round.
        chosen: As for `search_demonstrations`.
        show_progress_bar: As for `search_demonstrations`.

    Returns:
        As `rank`, but n differs, and those on more pairs come first; a candidate that was not
        tried is left out.

    Raises:
        ValueError: As `exact`; or the share is too small for two candidates.
    """
    check_candidates(candidates)
    plan = halving_plan(len(candidates), pairs, share=share, first=first)
    tried = plan[0][0]
    order = np.random.default_rng(scores.about["seed"]).permutation(len(candidates))[:tried]
    alive = [candidates[i] for i in sorted(order)]
    pairs_of: dict[str, int] = {}
    found = np.zeros(0)
    show = show_progress_bar if show_progress_bar is not None else tried > 8
    total = sum(kept for kept, _ in plan)
    with tqdm(total=total, desc="halving", unit="prompt", disable=not show, leave=False) as bar:
        for kept, stop in plan:
            if len(found):  # a stable sort: ties keep the order of the candidates
                best = np.argsort(-found, kind="stable")[:kept]
                alive = [alive[i] for i in sorted(best)]
            for one in alive:
                scores.cosines((*chosen, one), stop)
                pairs_of[str(one)] = stop
                bar.update()
            found = scores.scores([(*chosen, one) for one in alive], stop)
    kept = [one for one in candidates if str(one) in pairs_of]
    return _table(scores, kept, [pairs_of[str(one)] for one in kept], chosen)


def halving_plan(
    candidates: int, pairs: int, *, share: float = SHARE, first: int = FIRST
) -> list[tuple[int, int]]:
    """How many candidates halving tries on how many pairs in each round.

    Args:
        candidates: How many there are.
        pairs: Of the last round.
        share: As for `halving`.
        first: As for `halving`.

    Returns:
        (candidates, pairs) a round. The first one spends at most six tenths of the share; the
        rest keep as many candidates as the share allows.

    Raises:
        ValueError: The share is not in (0, 1], or too small for two candidates.
    """
    if not 0 < share <= 1 or first < 2:
        raise ValueError(
            f"a share above 0 and up to 1 and a first round of 2 pairs or more are needed, "
            f"got {share!r} and {first!r}"
        )
    if candidates == 1:
        return [(1, pairs)]
    first = min(first, pairs)
    budget = share * (candidates + 1) * pairs - pairs  # the plain prompt is measured too
    ends = [min(pairs, first * 2**k) for k in range(1 + math.ceil(math.log2(pairs / first)))]
    added = np.diff([0, *ends])
    begin = min(candidates, int(budget * (0.6 if len(ends) > 1 else 1) / first))

    def rounds(keep: float) -> np.ndarray:
        later = (max(1, math.floor(begin * keep**k)) for k in range(1, len(ends)))
        return np.array([begin, *later])

    if begin < 2 or rounds(0) @ added > budget:
        raise ValueError(
            f"{share:g} of the cost of {candidates} candidates x {pairs} pairs is too little for "
            "halving; take a larger share"
        )
    keep = max(keep for keep in np.linspace(0, 1, 1001) if rounds(keep) @ added <= budget)
    return [(int(kept), int(stop)) for kept, stop in zip(rounds(keep), ends, strict=True)]


def greedy_shots(
    scores: DemonstrationScores,
    pool: Sequence[Demonstration],
    shots: int,
    pairs: int,
    *,
    held_out: int = 0,
    show_progress_bar: bool | None = None,
) -> pd.DataFrame:
    """Add demonstrations one by one, each time the one that helps most next to the sentence.

    Args:
        scores: Live or recorded.
        pool: The best of an exact search, say; every step tries all that are left.
        shots: Steps; at most as many as the pool has.
        pairs: Used for selection, from the beginning of the sample.
        held_out: Pairs after those, used for reporting only.
        show_progress_bar: None shows one.

    Returns:
        A line for 0, 1, … shots: shots, sentence, word (of the one added), spearman, gain (over
        one shot less), held_out (its score there, NaN without), n (pairs used for selection),
        encoded (sentences encoded for this step).

    Raises:
        ValueError: No candidates, more shots than candidates, more pairs than the sample has.

    Source: goes past the paper, which stops at one.
    """
    check_candidates(pool)
    if not 1 <= shots <= len(pool):
        raise ValueError(f"{shots} shots from a pool of {len(pool)}; allowed: 1 to {len(pool)}")
    chosen: list[Demonstration] = []

    def step(gain: float, encoded: int) -> dict:
        report = scores.score(chosen, pairs + held_out, pairs) if held_out else math.nan
        return {
            "shots": len(chosen),
            "sentence": chosen[-1].sentence if chosen else "",
            "word": chosen[-1].word if chosen else "",
            "spearman": scores.score(chosen, pairs),
            "gain": gain,
            "held_out": report,
            "n": pairs,
            "encoded": encoded,
        }

    steps = [step(math.nan, 2 * pairs)]
    hidden = show_progress_bar is False
    for _ in tqdm(range(shots), desc="greedy", unit="shot", disable=hidden, leave=False):
        left = [one for one in pool if one not in chosen]
        shown = {"step": pairs, "show_progress_bar": show_progress_bar}
        best = exact(scores, left, pairs, chosen=chosen, **shown)
        chosen += demonstrations_of(best.head(1), left)
        steps.append(step(best["gain"].iloc[0], 2 * pairs * len(left)))
    return pd.DataFrame(steps)


def count_encoded_sentences(table: pd.DataFrame) -> int:
    """What a table of `exact` or `halving` cost: two sentences a pair, plain prompt included."""
    return int(2 * (table["n"].sum() + table["n"].max()))


def demonstrations_of(table: pd.DataFrame, pool: Sequence[Demonstration]) -> list[Demonstration]:
    """The demonstrations of `pool` that a table names in its columns sentence and word."""
    by_text = {(one.sentence, one.word): one for one in pool}
    return [by_text[pair] for pair in zip(table["sentence"], table["word"], strict=True)]


def check_candidates(candidates: Sequence[Demonstration]) -> None:
    """Raise ValueError where there are none, one is no demonstration, or one is given twice."""
    if not len(candidates):
        raise ValueError("no candidates; load_demonstrations() gives the 300 of this project")
    first: dict[str, int] = {}
    for index, candidate in enumerate(candidates):
        if not isinstance(candidate, Demonstration):
            kind = type(candidate).__name__
            raise ValueError(
                f"candidate {index} is a {kind}; a Demonstration(sentence, word) is needed"
            )
        before = first.setdefault(str(candidate), index)
        if before != index:
            raise ValueError(
                f"candidates {before} and {index} are the same: {str(candidate)!r}; leave one out"
            )


def _table(
    scores: DemonstrationScores,
    candidates: Sequence[Demonstration],
    ns: Sequence[int],
    chosen: Sequence[Demonstration],
) -> pd.DataFrame:
    names = ("sentence", "word", "kind", "topic", "names")
    parts = []
    for n in sorted(set(ns), reverse=True):
        some = [candidate for candidate, own in zip(candidates, ns, strict=True) if own == n]
        plain, *found = scores.scores([chosen, *((*chosen, one) for one in some)], n)
        part = pd.DataFrame([{name: getattr(one, name) for name in names} for one in some])
        part = part.assign(spearman=found, gain=np.array(found) - plain, n=n)
        parts.append(part.sort_values("spearman", ascending=False, kind="stable"))
    return pd.concat(parts, ignore_index=True)
