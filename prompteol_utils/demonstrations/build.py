"""Build a set of candidate demonstrations: words for sentences, words of definitions, every one checked, rejects kept with the reason."""

import csv
import os
import re
from collections.abc import Iterable, Sequence

import pandas as pd
from tqdm import tqdm

from prompteol_utils.demonstrations.labelling import EXAMPLES, Label
from prompteol_utils.demonstrations.search import demonstrations_of, exact, search_demonstrations
from prompteol_utils.prompts import PROMPTS, Demonstration
from prompteol_utils.results.store import Store, provenance
from prompteol_utils.utils import files

__all__ = [
    "build_demonstrations",
    "clean_answer",
    "demonstrations_of",
    "exact",
    "reject",
    "save_demonstrations",
    "search_demonstrations",
]

KIND = "label"  # of the rows
BATCH = 16  # sentences labelled together; a kill costs at most these
_FORM = "a an and are as at be but by for from had has have he her his i in is it its not of on or she so that the they to was were with"
FORM_WORDS = frozenset(re.findall(r"[a-z]+", _FORM))
PROMPT_WORDS = frozenset(
    re.findall(r"[a-z]+", (PROMPTS["prompteol"].prefix + PROMPTS["prompteol"].suffix).lower())
)


def build_demonstrations(
    label: Label,
    sentences: Iterable[str],
    *,
    definitions: Iterable[tuple[str, str]] = (),
    taken: Iterable[str] = tuple(example.word for example in EXAMPLES),
    store: "Store | str | os.PathLike | None" = None,
    batch: int = BATCH,
    show_progress_bar: bool | None = None,
) -> pd.DataFrame:
    """The paper's framework: a model sums up sentences in one word each, a dictionary adds words with their definitions.

    Args:
        label: A labelling function: takes sentences, returns the answers for each, best first (`labelling`); its attribute `name`, if it
            has one, tells its rows from another's.
        sentences: To label, in the domain that you will embed.
        definitions: (definition, word) pairs, which need no label (`read_wordnet`).
        taken: Words that may not come out again: those of the examples that the labelling function shows.
        store: A `Store` or its path: answers are kept there batch by batch, and a second run asks only for what is missing.
        batch: Sentences a batch.
        show_progress_bar: None shows one for more than one batch.

    Returns:
        One row a sentence or definition, in order: sentence, word (the first answer that passes), kind ("sentence" or "dictionary"),
        reject ("" for a candidate, else why the best answer was not taken; the word is then that answer).

    Raises:
        ValueError: Nothing to build from, a sentence that is no text, or a labelling function that returns too few answers.
        LabelError: The endpoint failed for good; the finished batches are in the store.

    Source: the paper's framework for demonstrations (300: 100 from STS-B sentences, 200 from a dictionary). Built in notebook 02.
    """
    sentences, definitions = list(sentences), list(definitions)
    if not sentences and not definitions:
        raise ValueError("neither sentences nor definitions to build from")
    for index, sentence in enumerate(sentences):
        if not isinstance(sentence, str) or not sentence.strip():
            raise ValueError(f"sentence {index} is {sentence!r}; a text is needed")
    store = store if isinstance(store, Store | None) else Store(store)
    answers = _answers(label, list(dict.fromkeys(sentences)), store, batch, show_progress_bar)
    rows, seen, used = [], set(), {word.casefold() for word in taken}
    offered = [(sentence, "sentence", answers[sentence]) for sentence in sentences]
    for sentence, kind, words in offered + [
        (definition, "dictionary", [word]) for definition, word in definitions
    ]:
        words = [clean_answer(word) for word in words] or [""]
        reasons = (
            ["sentence given twice"] * len(words)
            if sentence in seen
            else [reject(word, used) for word in words]
        )
        best = reasons.index("") if "" in reasons else 0
        seen.add(sentence)
        if not reasons[best]:
            used.add(words[best].casefold())
        rows.append((sentence, words[best], kind, reasons[best]))
    return pd.DataFrame(rows, columns=["sentence", "word", "kind", "reject"])


def _answers(
    label: Label, sentences: Sequence[str], store: Store | None, batch: int, show: bool | None
) -> dict[str, list[str]]:
    name = getattr(label, "name", getattr(label, "__name__", "label"))
    kept = (
        [row for row in store.rows() if row.get("kind") == KIND and row["labeller"] == name]
        if store
        else []
    )
    answers = {row["sentence"]: row["answers"] for row in kept}
    missing = [sentence for sentence in sentences if sentence not in answers]
    parts = [missing[start : start + batch] for start in range(0, len(missing), batch)]
    for part in tqdm(
        parts,
        desc="label",
        unit="batch",
        disable=not (show if show is not None else len(parts) > 1),
        leave=False,
    ):
        new = [list(words) for words in label(part)]
        if len(new) != len(part):
            raise ValueError(
                f"the labelling function {name!r} returned {len(new)} answers for {len(part)} sentences"
            )
        if store is not None:
            rows = [
                {"kind": KIND, "labeller": name, "sentence": s, "answers": words}
                for s, words in zip(part, new, strict=True)
            ]
            store.append(*(row | provenance() for row in rows))  # all of a batch or none
        answers |= dict(zip(part, new, strict=True))
    return answers


def clean_answer(answer: str) -> str:
    """A model's answer without what it likes to put around a word: spaces, quotes, stars, a final period; the first letter is a capital."""
    word = answer.strip().strip("\"'*`.!,:;“”„‘’ \n\t")
    return word[:1].upper() + word[1:]


def reject(word: str, used: Iterable[str] = ()) -> str:
    """Why a word makes no demonstration, or "" where it does.

    Args:
        word: A cleaned answer.
        used: Words that are taken, in `casefold`.
    """
    lower = word.casefold()
    if not word:
        return "empty answer"
    if len(word.split()) > 1:
        return "more than one word"
    if not re.fullmatch(r"[^\W\d_]+(-[^\W\d_]+)*", word):
        return "not only letters"
    if lower in PROMPT_WORDS:
        return "a word of the prompt itself"
    if len(word) < 3 or lower in FORM_WORDS:
        return "a form word or too short"
    return "word already taken" if lower in used else ""


def save_demonstrations(table: pd.DataFrame, path: str | os.PathLike) -> int:
    """Write what passed as a CSV that `load_demonstrations` reads.

    Args:
        table: From `build_demonstrations`.
        path: The file; it is written whole or not at all.

    Returns:
        How many there are.
    """
    kept = [
        Demonstration(row.sentence, row.word, row.kind)
        for row in table[table["reject"] == ""].itertuples()
    ]
    with files.atomic_file(path, "w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["sentence", "word", "kind", "topic"])
        rows.writerows((one.sentence, one.word, one.kind, one.topic) for one in kept)
    return len(kept)
