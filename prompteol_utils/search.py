"""Choose demonstrations on a dev sample: every candidate on every pair, or successive halving over growing samples."""

import os
from collections.abc import Sequence

import pandas as pd
from tqdm import tqdm

from prompteol_utils.data import Pairs
from prompteol_utils.models import Loaded
from prompteol_utils.prompts import Demonstration, Prompt
from prompteol_utils.results import Store
from prompteol_utils.trials import Trials, text_of

STEP = 10  # pairs between two finished rankings of an exact search


def search_demonstrations(
    loaded: Loaded,
    candidates: Sequence[Demonstration],
    dev: Pairs,
    *,
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
        pairs: Size of the sample, drawn with `seed`; at most all of `dev`.
        prompt: The prompt that they are put before.
        chosen: Demonstrations that stand before each candidate (greedy k-shot).
        store: A `Store` or its path. Finished candidates are kept there, and a second run goes on where the first one stopped.
        seed: Of the sample.
        show_progress_bar: None shows one for more than eight prompts.

    Returns:
        One row a candidate, best first: sentence, word, kind, topic, spearman, gain (over the prompt without it), n (pairs).

    Raises:
        ValueError: No candidates, one given twice, no pairs, or all grades equal.

    Source: the paper's search for one demonstration per model (300 candidates on the STS-B development set). Built in notebook 02.
    """
    check_candidates(candidates)
    trials = Trials.live(loaded, dev, prompt=prompt, store=store, seed=seed)
    return exact(trials, candidates, min(pairs, len(trials)), chosen=chosen, show_progress_bar=show_progress_bar)


def exact(
    trials: Trials,
    candidates: Sequence[Demonstration],
    pairs: int,
    *,
    chosen: Sequence[Demonstration] = (),
    step: int = STEP,
    show_progress_bar: bool | None = None,
) -> pd.DataFrame:
    """Try every candidate on every pair of the sample, `step` pairs at a time, so that a run cut short is a search on fewer pairs.

    Args:
        trials: From `Trials.live`, or `Trials.recorded` to replay a search.
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
    trials: Trials, candidates: Sequence[Demonstration], pairs: int | None = None, *, chosen: Sequence[Demonstration] = ()
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
    plain = trials.score(chosen, pairs)
    rows = []
    for candidate, one in zip(candidates, lists, strict=True):
        score = trials.score(one, pairs)
        rows.append((candidate.sentence, candidate.word, candidate.kind, candidate.topic, score, score - plain, pairs))
    table = pd.DataFrame(rows, columns=["sentence", "word", "kind", "topic", "spearman", "gain", "n"])
    return table.sort_values("spearman", ascending=False, kind="stable", ignore_index=True)


def check_candidates(candidates: Sequence[Demonstration]) -> None:
    """Raise ValueError where there are none, or where one is given twice."""
    if not len(candidates):
        raise ValueError("no candidates to search in; load_demonstrations() gives the 300 of this project")
    first: dict[str, int] = {}
    for index, candidate in enumerate(candidates):
        if not isinstance(candidate, Demonstration):
            raise ValueError(f"candidate {index} is a {type(candidate).__name__}; a Demonstration(sentence, word) is needed")
        if (before := first.setdefault(text_of(candidate), index)) != index:
            raise ValueError(f"candidates {before} and {index} are the same: {text_of(candidate)!r}; leave one out")
