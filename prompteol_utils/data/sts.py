"""Where sentences come from: the seven STS tasks in SentEval's layout, the small set of this project, and demonstrations.

`senteval.find_folder` decides which copy is read; with neither a named folder nor a hub, `stsb` falls back to the set written for
this project. `Pairs.origin` says what it was. Scores of different origin or text form do not belong into one column.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from prompteol_utils.data import senteval
from prompteol_utils.data.readers import cells as _cells
from prompteol_utils.data.readers import csv_rows as _csv_rows
from prompteol_utils.data.readers import lines as _lines
from prompteol_utils.data.readers import sentence as _sentence
from prompteol_utils.utils.files import DATA

STS_TASKS = ("sts12", "sts13", "sts14", "sts15", "sts16", "stsb", "sickr")

# The subsets in SentEval's order (senteval/sts.py); STS13 goes without SMT, whose licence keeps it out of SentEval.
_SUBSETS = {
    "sts12": ("MSRpar", "MSRvid", "SMTeuroparl", "surprise.OnWN", "surprise.SMTnews"),
    "sts13": ("FNWN", "headlines", "OnWN"),
    "sts14": ("deft-forum", "deft-news", "headlines", "images", "OnWN", "tweet-news"),
    "sts15": ("answers-forums", "answers-students", "belief", "headlines", "images"),
    "sts16": ("answer-answer", "headlines", "plagiarism", "postediting", "question-question"),
}
_SPLIT_FILES = {
    "stsb": {split: f"STS/STSBenchmark/sts-{split}.csv" for split in ("train", "dev", "test")},
    "sickr": {
        "train": "SICK/SICK_train.txt",
        "dev": "SICK/SICK_trial.txt",
        "test": "SICK/SICK_test_annotated.txt",
    },
}


@dataclass(frozen=True, eq=False)
class Pairs:
    """Sentence pairs with a similarity grade.

    Args:
        name: The task, as in `STS_TASKS`, or "mini".
        left: n sentences.
        right: n sentences; `right[i]` is compared with `left[i]`.
        gold: float64 (n,), 0 (unrelated) to 5 (the same meaning).
        subset: For each pair the data set or genre it comes from.
        origin: Which copy was read: "senteval" (a folder that was named), "hub" or "mini".
        text_form: "tokenised lower case", "tokenised" or "natural".
        kind: For each pair how it was made; only the mini set has it, else empty.

    Raises:
        ValueError: The columns differ in length.
    """

    name: str
    left: tuple[str, ...]
    right: tuple[str, ...]
    gold: np.ndarray
    subset: tuple[str, ...]
    origin: str
    text_form: str
    kind: tuple[str, ...] = ()

    def __post_init__(self):
        gold = np.array(self.gold, dtype=np.float64)
        gold.flags.writeable = False
        object.__setattr__(self, "gold", gold)
        lengths = {name: len(getattr(self, name)) for name in ("left", "right", "gold", "subset")}
        if len(set(lengths.values())) > 1 or len(self.kind) not in (0, len(gold)):
            raise ValueError(
                f"the columns of {self.name} differ in length: {lengths | {'kind': len(self.kind)}}"
            )

    def __len__(self) -> int:
        return len(self.gold)

    @property
    def sentences(self) -> list[str]:
        """The distinct sentences, in order of first appearance (left before right)."""
        return list(dict.fromkeys(self.left + self.right))

    def take(self, indices: Sequence[int]) -> "Pairs":
        """The pairs at these positions, in this order."""
        columns = {
            name: tuple(getattr(self, name)[i] for i in indices)
            for name in ("left", "right", "subset")
        }
        kind = tuple(self.kind[i] for i in indices) if self.kind else ()
        return replace(self, gold=self.gold[list(indices)], kind=kind, **columns)


def load_sts(
    task: str,
    split: str = "test",
    *,
    root: str | os.PathLike | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Pairs:
    """Read an STS task from SentEval's files, as the paper's evaluation does.

    Pairs without a grade are left out; runs of white space become one space, as SentEval's `split` and `join` have it.

    Args:
        task: One of `STS_TASKS`.
        split: "test"; `stsb` and `sickr` also have "train" and "dev".
        root: The folder that itself holds STS/ and SICK/ (SentEval's `downstream`). Default: the one in PROMPTEOL_SENTEVAL, else
            the hub, else, for `stsb`, the mini set.
        limit: At most so many pairs: a sample without replacement, kept in file order. None: all.
        seed: Of that sample.

    Returns:
        The pairs; `subset` holds SentEval's subset for a year, the genre for `stsb`, "sickr" for `sickr`.

    Raises:
        ValueError: Unknown task or split, bad limit, or a malformed line (its file and number are named).
        FileNotFoundError: The named folder is missing or lacks the task; or none was named, and no hub is in reach.

    Source: the experiments of the paper (STS, "all" setting); SimCSE's copy of SentEval. Built in notebook 01.
    """
    if task not in STS_TASKS:
        raise ValueError(f"unknown STS task {task!r}; allowed: {', '.join(STS_TASKS)}")
    splits = tuple(_SPLIT_FILES[task]) if task in _SPLIT_FILES else ("test",)
    if split not in splits:
        raise ValueError(f"{task} has no split {split!r}; allowed: {', '.join(splits)}")
    try:
        folder, origin = senteval.find_folder(_task_folder(task), root)
    except senteval.Unreachable as error:
        if task != "stsb":
            raise senteval.Unreachable(
                f"{task}: {error}. Without it there is a small set for stsb alone"
            ) from None
        return replace(load_mini_sts(split, limit=limit, seed=seed), name=task)
    columns = _read_split(folder, task, split) if task in _SPLIT_FILES else _read_year(folder, task)
    left, right, gold, subset = (tuple(column) for column in zip(*columns, strict=True))
    return _sample(
        Pairs(task, left, right, gold, subset, origin, _text_form(task, left + right)), limit, seed
    )


def load_mini_sts(
    split: str = "test",
    *,
    limit: int | None = None,
    seed: int = 0,
    path: str | os.PathLike = DATA / "mini_sts.csv",
) -> Pairs:
    """Read the set written for this project: natural text, graded by `data/mini_sts_rubric.md` before any model was run.

    Args:
        split: "dev" or "test"; they share no sentence.
        limit: As in `load_sts`.
        seed: As in `load_sts`.
        path: A CSV with the columns split, genre, kind, score, left, right.

    Returns:
        Pairs named "mini"; `subset` is the genre, `kind` how the pair was made (negation, role_swap, …).

    Raises:
        ValueError: Unknown split, or a malformed row (file and line named).

    Built in notebook 01.
    """
    if split not in ("dev", "test"):
        more = "SentEval's STS-B has more: name its folder with root= or PROMPTEOL_SENTEVAL"
        raise ValueError(f"the mini set has no split {split!r}; allowed: dev, test. {more}")
    rows = []
    for line, row in _csv_rows(path, ("split", "genre", "kind", "score", "left", "right")):
        if row["split"] not in ("dev", "test"):
            raise ValueError(f"{path}, line {line}: split is {row['split']!r}; allowed: dev, test")
        gold, left, right = (
            _grade(row["score"], path, line),
            _sentence(row["left"], path, line),
            _sentence(row["right"], path, line),
        )
        if row["split"] == split:
            rows.append((left, right, gold, row["genre"], row["kind"]))
    if not rows:
        raise ValueError(f"{path}: no row of split {split!r}")
    left, right, gold, genre, kind = zip(*rows, strict=True)
    return _sample(Pairs("mini", left, right, gold, genre, "mini", "natural", kind), limit, seed)


def _task_folder(task: str) -> str:
    return {"stsb": "STS/STSBenchmark", "sickr": "SICK"}.get(task, f"STS/{task.upper()}-en-test")


def _read_year(folder: Path, task: str) -> list[tuple[str, str, float, str]]:
    rows = []
    for subset in _SUBSETS[task]:
        inputs, grades = (
            folder / _task_folder(task) / f"STS.{kind}.{subset}.txt" for kind in ("input", "gs")
        )
        sentences, golds = _lines(inputs), _lines(grades)
        if len(sentences) != len(golds):
            last = min(len(sentences), len(golds))
            raise ValueError(
                f"{grades} has {len(golds)} lines and {inputs.name} {len(sentences)}: line {last + 1} of the longer one has no partner"
            )
        before = len(rows)
        for line, (text, gold) in enumerate(zip(sentences, golds, strict=True), 1):
            left, right = _cells(text, inputs, line, 2)
            if gold.strip():  # a pair that nobody graded: SentEval skips it
                rows.append(
                    (
                        _sentence(left, inputs, line),
                        _sentence(right, inputs, line),
                        _grade(gold, grades, line),
                        subset,
                    )
                )
        if len(rows) == before:
            raise ValueError(f"{grades} holds no grade at all")
    return rows


def _read_split(folder: Path, task: str, split: str) -> list[tuple[str, str, float, str]]:
    path = folder / _SPLIT_FILES[task][split]
    header, columns, at = (0, 7, (5, 6, 4, 0)) if task == "stsb" else (1, 5, (1, 2, 3, None))
    rows = []
    for line, text in enumerate(_lines(path)[header:], header + 1):
        cells = _cells(text, path, line, columns)
        left, right = (_sentence(cells[i], path, line) for i in at[:2])
        rows.append(
            (left, right, _grade(cells[at[2]], path, line), task if at[3] is None else cells[at[3]])
        )
    if not rows:
        raise ValueError(f"{path} holds no pair")
    return rows


def _grade(text: str, path: str | os.PathLike, line: int) -> float:
    try:
        gold = float(text)
    except ValueError:
        gold = math.nan
    if not 0 <= gold <= 5:
        raise ValueError(
            f"{path}, line {line}: the grade is {text[:20]!r}, expected a number from 0 to 5"
        )
    return gold


def _text_form(task: str, sentences: Sequence[str]) -> str:
    """SentEval's STS files are tokenised and lower-cased, its SICK files tokenised; the organisers' own STS files are neither."""
    if task == "sickr":
        return "tokenised"
    cased = sum(sentence != sentence.lower() for sentence in sentences)
    return "natural" if cased > len(sentences) / 100 else "tokenised lower case"


def _sample(pairs: Pairs, limit: int | None, seed: int) -> Pairs:
    if limit is None:
        return pairs
    if isinstance(limit, bool) or not isinstance(limit, int | np.integer) or limit < 1:
        raise ValueError(
            f"limit is {limit!r}; allowed: None (all pairs) or a whole number from 1 up"
        )
    if limit >= len(pairs):
        return pairs
    return pairs.take(
        np.sort(np.random.default_rng(seed).choice(len(pairs), limit, replace=False)).tolist()
    )
