"""Build candidate demonstrations: a model labels sentences, a dictionary adds words."""

import csv
import os
import re
from collections.abc import Iterable, Iterator, Sequence

import pandas as pd
from tqdm import tqdm

from prompteol_utils.data.dictionary import find_wordnet, wordnet_entries
from prompteol_utils.demonstrations.labelling import EXAMPLES, Label
from prompteol_utils.prompts import PROMPTS, Demonstration
from prompteol_utils.results.store import Store, provenance
from prompteol_utils.utils import files

KIND = "label"  # of the records
BATCH = 16  # sentences labelled together, and lost at most when a run is killed
_FUNCTION_WORDS = """a an and are as at be but by for from had has have he her his i in is it its
not of on or she so that the they to was were with"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
_PROMPT = PROMPTS["prompteol"].prefix + PROMPTS["prompteol"].suffix
PROMPT_WORDS = frozenset(re.findall(r"[a-z]+", _PROMPT.lower()))


def build_demonstrations(
    label: Label | None,
    sentences: Iterable[str],
    *,
    definitions: Iterable[tuple[str, str]] = (),
    taken: Iterable[str] = tuple(example.word for example in EXAMPLES),
    store: "Store | str | os.PathLike | None" = None,
    batch: int = BATCH,
    show_progress_bar: bool | None = None,
) -> pd.DataFrame:
    """Label sentences with one word each, add dictionary words, and check every word.

    Args:
        label: Takes sentences, returns the answers for each, best first; its attribute `name`
            tells its records from another's. None where there are no sentences.
        sentences: To label, of the domain that you will embed.
        definitions: (definition, word) pairs, which need no label (`read_wordnet`).
        taken: Words that may not come out again: those of the examples that `label` shows.
        store: A `Store` or its path: answers are kept there batch by batch, so it is resumable.
        batch: Sentences a batch.
        show_progress_bar: None shows one for more than one batch.

    Returns:
        A line a sentence or definition, in order: sentence, word (the first answer that passes),
        kind ("sentence" or "dictionary"), reject ("" for a candidate, else the reason; the word is
        then the best answer).

    Raises:
        ValueError: Nothing to build from, a sentence that is no text, too few answers.
        LabelError: The endpoint failed for good; the finished batches are in the store.

    Source: the paper's framework (300: 100 from STS-B sentences, 200 from a dictionary).
    """
    sentences = list(sentences)
    definitions = list(definitions)
    if not sentences and not definitions:
        raise ValueError("neither sentences nor definitions to build from")
    for index, sentence in enumerate(sentences):
        if not isinstance(sentence, str) or not sentence.strip():
            raise ValueError(f"sentence {index} is {sentence!r}; a text is needed")
    store = store if isinstance(store, Store | None) else Store(store)
    answers = _answers(label, list(dict.fromkeys(sentences)), store, batch, show_progress_bar)
    offered = [(sentence, "sentence", answers[sentence]) for sentence in sentences]
    offered += [(definition, "dictionary", [word]) for definition, word in definitions]
    seen: set[str] = set()
    used = {word.casefold() for word in taken}
    found = []
    for sentence, kind, words in offered:
        words = [clean_answer(word) for word in words] or [""]
        reasons = [reject(word, used) for word in words]
        if sentence in seen:
            reasons = ["sentence given twice"] * len(words)
        best = reasons.index("") if "" in reasons else 0
        seen.add(sentence)
        if not reasons[best]:
            used.add(words[best].casefold())
        found.append((sentence, words[best], kind, reasons[best]))
    return pd.DataFrame(found, columns=["sentence", "word", "kind", "reject"])


def _answers(
    label: Label, sentences: Sequence[str], store: Store | None, batch: int, show: bool | None
) -> dict[str, list[str]]:
    name = getattr(label, "name", getattr(label, "__name__", "label"))
    answers = {
        record["sentence"]: record["answers"]
        for record in (store.rows() if store else ())
        if record.get("kind") == KIND and record["labeller"] == name
    }
    missing = [sentence for sentence in sentences if sentence not in answers]
    parts = [missing[start : start + batch] for start in range(0, len(missing), batch)]
    show = show if show is not None else len(parts) > 1
    for part in tqdm(parts, desc="label", unit="batch", disable=not show, leave=False):
        new = dict(zip(part, [list(words) for words in label(part)], strict=False))
        if len(new) != len(part):
            raise ValueError(
                f"the labelling function {name!r} returned {len(new)} answers for {len(part)} "
                "sentences"
            )
        if store is not None:
            facts = {"kind": KIND, "labeller": name}
            records = [{**facts, "sentence": s, "answers": words} for s, words in new.items()]
            store.append(*(record | provenance() for record in records))  # a batch or nothing
        answers |= new
    return answers


def clean_answer(answer: str) -> str:
    """Strip what models put around a word (quotes, stars, a period), and capitalise it."""
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
    if len(word) < 3 or lower in FUNCTION_WORDS:
        return "a form word or too short"
    return "word already taken" if lower in used else ""


def save_demonstrations(table: pd.DataFrame, path: str | os.PathLike) -> int:
    """Write what passed as a CSV that `load_demonstrations` reads; returns how many there are."""
    kept = table[table["reject"] == ""]
    with files.atomic_file(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["sentence", "word", "kind", "topic"])
        for line in kept.itertuples():
            one = Demonstration(line.sentence, line.word, line.kind)
            writer.writerow((one.sentence, one.word, one.kind, one.topic))
    return len(kept)


def read_wordnet(folder: str | os.PathLike, *, max_words: int = 12) -> Iterator[tuple[str, str]]:
    """Read dictionary pairs from a WordNet 3 database; none of its text is part of this project.

    Only entries with a single lower-case word and a short definition are taken; examples and
    remarks after the definition are cut off.

    Args:
        folder: On Debian and Ubuntu /usr/share/wordnet, from the package wordnet-base.
        max_words: Longest definition.

    Yields:
        (definition with a final period, word with a capital), in the order of the files.

    Raises:
        FileNotFoundError: No such folder, or no data file in it.
        ValueError: A malformed line (file and number are named).

    Source: the paper takes its dictionary pairs from the Oxford dictionary, which is not free.
    """
    for words, gloss in wordnet_entries(find_wordnet(folder)):
        text = gloss.partition(";")[0]
        text = re.sub(r"\s*\([^)]*\)\s*", " ", text).strip()
        if re.fullmatch(r"[a-z]{3,}", words[0]) and 3 <= len(text.split()) <= max_words:
            yield text.rstrip(".") + ".", words[0].capitalize()
