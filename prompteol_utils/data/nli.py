"""Triplets for contrastive training (anchor, positive, hard negative), from NLI data.

A premise is the anchor, a sentence that follows from it the positive, one that contradicts it the
hard negative. `load_nli` drops every triplet that shares a sentence with an evaluation set: a score
on a sentence seen in training says nothing.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from prompteol_utils.data import senteval
from prompteol_utils.data import sts as sts_data
from prompteol_utils.data.readers import (
    TABLES,
    SentenceFileError,
    check_limit,
    clean,
    is_table,
    random_positions,
    read_lines,
    read_records,
)
from prompteol_utils.utils.files import DATA

MINI = DATA / "mini_nli.csv"
SOURCES = ("hub", "snli", "mini")
COLUMNS = ("anchor", "positive", "negative")
SIMCSE_COLUMNS = ("sent0", "sent1", "hard_neg")
# SNLI and MultiNLI, about 275,000 triplets; named in SimCSE: data/download_nli.sh
_HUB_FILE = "nli_for_simcse.csv"
SAME = "positive equals negative"
_LABELS = ("entailment", "contradiction", "neutral")

Source = str | os.PathLike
Found = Iterator[tuple[str, bool, list[str]]]  # "file:line", is published, the three sentences


@dataclass(frozen=True)
class Triplet:
    """One training example.

    Args:
        anchor: A sentence; of NLI data, the premise.
        positive: What follows from it.
        negative: What contradicts it.

    Raises:
        ValueError: A sentence is blank, or positive and negative are the same: the loss would pull
            and push the same vector.
    """

    anchor: str
    positive: str
    negative: str

    def __post_init__(self):
        for name in COLUMNS:
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"the {name} of a triplet is a sentence, got {value!r}")
        if comparable(self.positive) == comparable(self.negative):
            raise ValueError(
                f"positive and negative are the same sentence ({self.positive[:60]!r})"
            )


@dataclass(frozen=True, eq=False)
class Triplets(Sequence):
    """Triplets, and where they are from.

    Args:
        examples: The triplets.
        origin: "hub" (SNLI and MultiNLI), "snli" (its dev and test part), "mini", or a file's
            name; of several sources, their origins joined by " + ".
        text_form: "tokenised", "natural" or, of several sources, "mixed".
        dropped: How many were left out, by reason.
        compared: The evaluation sets whose sentences were looked for.
        not_compared: Those that were not at hand: their sentences may be among the triplets.
    """

    examples: tuple[Triplet, ...]
    origin: str
    text_form: str
    dropped: dict[str, int] = field(default_factory=dict)
    compared: tuple[str, ...] = ()
    not_compared: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return replace(self, examples=self.examples[index])
        return self.examples[index]


def load_nli(
    source: Source | Sequence[Source] | None = None,
    *,
    root: str | os.PathLike | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Triplets:
    """Read training triplets, without those that share a sentence with an evaluation set.

    Args:
        source: "snli" (SentEval's copy of SNLI's dev and test part: 5,864 triplets), "hub" (the
            file of SimCSE, from SNLI and MultiNLI, as in the paper), "mini" (written for this
            project), or a CSV, TSV, JSONL or Parquet file with the columns anchor, positive,
            negative or SimCSE's sent0, sent1, hard_neg. A list joins several. None: SNLI from a
            named folder, else the hub's file, else the mini set.
        root: SentEval's `downstream` folder, which holds SNLI/ and the evaluation sets; default:
            the one in PROMPTEOL_SENTEVAL.
        limit: At most so many: a sample without replacement, in file order.
        seed: Of that sample.

    Returns:
        The triplets. `dropped` counts what was left out, `compared` and `not_compared` name the
        evaluation sets that were and were not at hand.

    Raises:
        ValueError: Unknown source, bad limit, or a malformed line (file and line named).
        FileNotFoundError: The named folder or file is missing, or the hub is out of reach and was
            asked for.

    Source: the fine-tuning part of the paper; SimCSE's supervised set.
    """
    limit = check_limit(limit, 2, "all triplets")
    if source is None:
        source = _default_source(root)
    sources = [source] if isinstance(source, Source) else list(source)
    if not sources:
        raise ValueError(f"no source of triplets; {_allowed()}")
    examples: list[Triplet] = []
    origins: list[str] = []
    dropped: Counter[str] = Counter()
    for one in sources:
        origin, found, left_out = _read(one, root)
        origins.append(origin)
        examples += found
        dropped.update(left_out)
    if len(sources) > 1:
        unique = list(dict.fromkeys(examples))
        dropped["a repeated triplet"] = len(examples) - len(unique)
        examples = unique
    known, compared, missing = evaluation_sentences(root)
    kept = [
        one
        for one in examples
        if known.isdisjoint(map(comparable, (one.anchor, one.positive, one.negative)))
    ]
    dropped["a sentence of an evaluation set"] = len(examples) - len(kept)
    forms = {"tokenised" if origin == "snli" else "natural" for origin in origins}
    return Triplets(
        tuple(kept[i] for i in random_positions(len(kept), limit, seed)),
        " + ".join(origins),
        forms.pop() if len(forms) == 1 else "mixed",
        dict(dropped),
        compared,
        missing,
    )


def evaluation_sentences(
    root: str | os.PathLike | None = None,
) -> tuple[set[str], tuple[str, ...], tuple[str, ...]]:
    """Collect what training must not see: dev and test parts of the STS tasks and the mini set.

    A task that a named folder lacks is looked for in the hub's archive.

    Args:
        root: As in `load_nli`.

    Returns:
        The sentences in the form of `comparable`, and the names of the sets that were at hand and
        of those that were not.

    Raises:
        FileNotFoundError: The named folder is missing.
    """
    folder = senteval.named_folder(root)
    sentences: set[str] = set()
    compared, missing = [], []
    for task in sts_data.STS_TASKS:
        for split in ("dev", "test") if task in ("stsb", "sickr") else ("test",):
            found = _evaluation_set(task, split, folder)
            sentences.update(map(comparable, found))
            (compared if found else missing).append(f"{task} {split}")
    for split in ("dev", "test"):
        sentences.update(map(comparable, sts_data.load_mini_sts(split).sentences))
        compared.append(f"mini {split}")
    return sentences, tuple(compared), tuple(missing)


def comparable(text: str) -> str:
    """Return a sentence without what SentEval's tokenisation changes: case, spaces, punctuation."""
    return re.sub(r"\W+", "", text.lower()) or text.strip()


def _evaluation_set(task: str, split: str, folder: Path | None) -> list[str]:
    for place in (folder, None):
        try:
            root = senteval.hub_folder() if place is None else place
            return sts_data.load_sts(task, split, root=root).sentences
        except FileNotFoundError:  # this copy of SentEval lacks the task, or there is none
            continue
    return []


def _default_source(root: str | os.PathLike | None) -> str:
    if senteval.named_folder(root):
        return "snli"
    try:
        senteval.hub_file(_HUB_FILE)
    except senteval.Unreachable:
        return "mini"
    return "hub"


def _allowed() -> str:
    return (
        f"allowed: {', '.join(SOURCES)}, or a file ({', '.join(TABLES)}) with the columns "
        f"{', '.join(COLUMNS)} or {', '.join(SIMCSE_COLUMNS)}"
    )


def _read(
    source: Source, root: str | os.PathLike | None
) -> tuple[str, list[Triplet], dict[str, int]]:
    """Return origin, triplets, and what was left out.

    In published data (SNLI, SimCSE's file) a positive that equals its negative is left out and
    counted; in a file with our columns it is an error.
    """
    if source == "snli":
        found = _snli(senteval.find_folder("SNLI", root)[0] / "SNLI")
    elif source == "hub":
        found = _table(senteval.hub_file(_HUB_FILE))
    elif source == "mini" or is_table(source):
        found = _table(MINI if source == "mini" else source)
    else:
        raise ValueError(f"unknown triplets {str(source)!r}; {_allowed()}")
    examples: list[Triplet] = []
    dropped: dict[str, int] = {}
    for where, published, sentences in found:
        if published:
            dropped.setdefault(SAME, 0)
            if comparable(sentences[1]) == comparable(sentences[2]):
                dropped[SAME] += 1
                continue
        try:
            examples.append(Triplet(*sentences))
        except ValueError as error:
            raise SentenceFileError(f"{where}: {error}") from None
    return source if source in SOURCES else Path(source).name, examples, dropped


def _table(path: str | os.PathLike) -> Found:
    for where, record in read_records(path, COLUMNS, SIMCSE_COLUMNS):
        sentences = [clean(text, where) for text in record.values()]
        yield where, "sent0" in record, sentences


def _snli(folder: Path) -> Found:
    """Yield one triplet per premise: its first entailed and its first contradicted sentence."""
    for split in ("dev", "test"):
        paths = [folder / f"{name}.{split}" for name in ("s1", "s2", "labels")]
        columns = [list(read_lines(path)) for path in paths]
        if len({len(column) for column in columns}) > 1:
            lengths = ", ".join(
                f"{path.name} {len(column)}" for path, column in zip(paths, columns, strict=True)
            )
            raise SentenceFileError(f"{folder}: the files differ in length ({lengths})")
        first: dict[str, dict[str, tuple[int, str]]] = {}
        for line, (premise, hypothesis, label) in enumerate(zip(*columns, strict=True), 1):
            if label.strip() not in _LABELS:
                raise SentenceFileError(
                    f"{paths[2]}:{line}: the label is {label[:20]!r}; allowed: {', '.join(_LABELS)}"
                )
            first.setdefault(premise, {}).setdefault(label.strip(), (line, hypothesis))
        for premise, labels in first.items():
            if {"entailment", "contradiction"} <= set(labels):
                (line, positive), (_, negative) = labels["entailment"], labels["contradiction"]
                where = f"{paths[1]}:{line}"
                yield where, True, [clean(text, where) for text in (premise, positive, negative)]
