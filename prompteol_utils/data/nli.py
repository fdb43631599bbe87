"""What contrastive training reads: (anchor, positive, hard negative) from natural language inference, without evaluation sentences.

A premise is the anchor, a sentence that follows from it the positive, one that contradicts it the hard negative. `load_nli` leaves
out every triplet with a sentence that also stands in an evaluation set: a score on a sentence seen in training says nothing.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from prompteol_utils.data import senteval
from prompteol_utils.data import sts as sts_data
from prompteol_utils.data.readers import csv_rows, lines, sentence
from prompteol_utils.utils import files

MINI = files.DATA / "mini_nli.csv"
SOURCES = ("hub", "snli", "mini")
_HUB_FILE = (
    "nli_for_simcse.csv"  # SNLI and MNLI, about 275,000 rows; named in SimCSE: data/download_nli.sh
)
_COLUMNS = {"hub": ("sent0", "sent1", "hard_neg"), "mini": ("anchor", "positive", "negative")}


@dataclass(frozen=True)
class Triplet:
    """One training example.

    Args:
        anchor: A sentence.
        positive: What follows from it.
        negative: What contradicts it.

    Raises:
        ValueError: A sentence is blank, or positive and negative are the same: the loss would pull and push the same vector.
    """

    anchor: str
    positive: str
    negative: str

    def __post_init__(self):
        for name in ("anchor", "positive", "negative"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name).strip():
                raise ValueError(
                    f"the {name} of a triplet is a sentence, got {getattr(self, name)!r}"
                )
        if comparable(self.positive) == comparable(self.negative):
            raise ValueError(
                f"positive and negative are the same sentence ({self.positive[:60]!r})"
            )


@dataclass(frozen=True, eq=False)
class Triplets(Sequence):
    """Triplets, and where they are from.

    Args:
        rows: The triplets.
        origin: "hub" (SNLI and MNLI), "snli" (its dev and test part), "mini", or a file's name.
        text_form: "tokenised" or "natural".
        dropped: What was left out, by reason.
        compared: The evaluation sets whose sentences were looked for.
    """

    rows: tuple[Triplet, ...]
    origin: str
    text_form: str
    dropped: dict[str, int] = field(default_factory=dict)
    compared: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index):
        return (
            replace(self, rows=self.rows[index]) if isinstance(index, slice) else self.rows[index]
        )


def load_nli(
    source: "str | os.PathLike | None" = None,
    *,
    root: str | os.PathLike | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Triplets:
    """Read training triplets, without those that share a sentence with an evaluation set.

    Args:
        source: "snli" (SentEval's copy of SNLI's dev and test part: 5,864 triplets), "hub" (the file of SimCSE, from SNLI and MNLI, as
            in the paper), "mini" (written for this project), or a CSV with the columns anchor, positive, negative. None takes SNLI
            from a folder that is named, else the hub's file, else the mini set.
        root: SentEval's `downstream` folder, which holds SNLI/ and the evaluation sets; default: the one in PROMPTEOL_SENTEVAL.
        limit: At most so many: a sample without replacement, in file order.
        seed: Of that sample.

    Returns:
        The triplets with their origin; `dropped` counts what was left out, `compared` names the evaluation sets that were at hand.

    Raises:
        ValueError: Unknown source, bad limit, or a malformed row (file and line named).
        FileNotFoundError: The named folder or file is missing, or the hub is out of reach and was asked for.

    Source: the fine-tuning part of the paper; SimCSE's supervised set. Built in notebook 04.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 2):
        raise ValueError(
            f"limit is {limit!r}; allowed: None (all triplets) or a whole number from 2 up"
        )
    rows, origin, dropped = _read(source, root)
    known, compared = evaluation_sentences(root)
    kept = [
        row
        for row in rows
        if not known & {comparable(row.anchor), comparable(row.positive), comparable(row.negative)}
    ]
    dropped["a sentence of an evaluation set"] = len(rows) - len(kept)
    if limit is not None and limit < len(kept):
        kept = [
            kept[i]
            for i in np.sort(np.random.default_rng(seed).choice(len(kept), limit, replace=False))
        ]
    return Triplets(
        tuple(kept), origin, "tokenised" if origin == "snli" else "natural", dropped, compared
    )


def evaluation_sentences(root: str | os.PathLike | None = None) -> tuple[set[str], tuple[str, ...]]:
    """The sentences that training must not see: dev and test parts of the STS tasks that are at hand, and of the mini set.

    Args:
        root: As in `load_nli`.

    Returns:
        The sentences in the form of `comparable`, and the names of the sets.
    """
    found, names = set(), []
    for task in sts_data.STS_TASKS:
        for split in ("dev", "test") if task in ("stsb", "sickr") else ("test",):
            try:
                pairs = sts_data.load_sts(task, split, root=root)
            except FileNotFoundError:  # this copy of SentEval lacks the task, or there is none
                continue
            if pairs.origin != "mini":
                found.update(map(comparable, pairs.sentences))
                names.append(f"{task} {split}")
    for split in ("dev", "test"):
        found.update(map(comparable, sts_data.load_mini_sts(split).sentences))
        names.append(f"mini {split}")
    return found, tuple(names)


def comparable(text: str) -> str:
    """A sentence without what SentEval's tokenisation changes: case, spaces and punctuation."""
    return re.sub(r"\W+", "", text.lower()) or text.strip()


def _read(
    source: "str | os.PathLike | None", root: str | os.PathLike | None
) -> tuple[list[Triplet], str, dict[str, int]]:
    if source is None:
        if root is not None or os.environ.get(senteval.VARIABLE):
            source = "snli"
        else:
            try:
                return _from_benchmark(_csv(senteval.hub_file(_HUB_FILE), _COLUMNS["hub"]), "hub")
            except senteval.Unreachable:
                source = "mini"
    if source == "hub":
        return _from_benchmark(_csv(senteval.hub_file(_HUB_FILE), _COLUMNS["hub"]), "hub")
    if source == "snli":
        return _from_benchmark(_snli(senteval.find_folder("SNLI", root)[0]), "snli")
    if source != "mini" and not str(source).endswith(".csv"):
        raise ValueError(
            f"unknown triplets {str(source)!r}; allowed: {', '.join(SOURCES)}, or a .csv file with {_COLUMNS['mini']}"
        )
    path = MINI if source == "mini" else Path(source)
    return (
        [_triplet(*row) for row in _csv(path, _COLUMNS["mini"])],
        "mini" if source == "mini" else path.name,
        {},
    )


def _from_benchmark(
    found: Iterable[tuple], origin: str
) -> tuple[list[Triplet], str, dict[str, int]]:
    """A row whose positive equals its negative is an error in a file of one's own; in a published set it is left out and counted."""
    rows, same = [], 0
    for path, line, anchor, positive, negative in found:
        if comparable(positive) == comparable(negative):
            same += 1
        else:
            rows.append(_triplet(path, line, anchor, positive, negative))
    return rows, origin, {"positive equals negative": same}


def _csv(path: str | os.PathLike, columns: tuple[str, ...]) -> Iterator[tuple]:
    for line, row in csv_rows(path, columns):
        yield path, line, *(sentence(row[column], path, line) for column in columns)


def _snli(folder: Path) -> Iterator[tuple]:
    """One triplet a premise that has both: its first entailed and its first contradicted sentence."""
    for split in ("dev", "test"):
        paths = [folder / "SNLI" / f"{name}.{split}" for name in ("s1", "s2", "labels")]
        columns = [lines(path) for path in paths]
        if len({len(column) for column in columns}) > 1:
            lengths = ", ".join(
                f"{path.name} {len(column)}" for path, column in zip(paths, columns, strict=True)
            )
            raise ValueError(f"{paths[0].parent}: the files differ in length ({lengths})")
        found: dict[str, dict[str, tuple[int, str]]] = {}
        for line, (premise, hypothesis, label) in enumerate(zip(*columns, strict=True), 1):
            if label.strip() not in ("entailment", "contradiction", "neutral"):
                raise ValueError(
                    f"{paths[2]}, line {line}: the label is {label[:20]!r}; allowed: entailment, contradiction, neutral"
                )
            found.setdefault(premise, {}).setdefault(label.strip(), (line, hypothesis))
        for premise, labels in found.items():
            if {"entailment", "contradiction"} <= set(labels):
                (line, positive), (_, negative) = labels["entailment"], labels["contradiction"]
                yield (
                    paths[1],
                    line,
                    *(sentence(text, paths[1], line) for text in (premise, positive, negative)),
                )


def _triplet(path: str | os.PathLike, line: int, *sentences: str) -> Triplet:
    try:
        return Triplet(*sentences)
    except ValueError as error:
        raise ValueError(f"{path}, line {line}: {error}") from None
