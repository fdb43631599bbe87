"""Sentence pairs with a grade: the seven STS tasks, this project's mini set, and files of your own.

`senteval.find_folder` decides which copy of a task is read; with neither a named folder nor a hub,
`stsb` falls back to the mini set. `Pairs.origin` says which it was: scores of different origin or
text form do not belong in one column.
"""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from prompteol_utils.data import senteval
from prompteol_utils.data.readers import (
    SentenceFileError,
    check_limit,
    clean,
    is_table,
    own_origin,
    random_positions,
    read_lines,
    read_records,
    split_tabs,
)
from prompteol_utils.utils.files import DATA

STS_TASKS = ("sts12", "sts13", "sts14", "sts15", "sts16", "stsb", "sickr")

# SentEval's subsets in its order (senteval/sts.py); STS13's SMT is missing there for its licence.
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
        name: The task, as in `STS_TASKS`; "mini"; or the name of a file without its ending.
        left: n sentences.
        right: n sentences; `right[i]` is compared with `left[i]`.
        gold: float64 (n,), finite; 0 (unrelated) to 5 (the same meaning), but for own files, whose
            scale is free: a rank correlation does not depend on it.
        subset: For each pair the data set or genre it comes from.
        origin: Which copy was read: "senteval" (a named folder), "hub", "mini", or "own:" and a
            digest of the content.
        text_form: "tokenised lower case", "tokenised" or "natural".
        kind: For each pair how it was made; only the mini set has it, else empty.

    Raises:
        ValueError: The columns differ in length, or a pair has no finite grade.
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
        for name in ("left", "right", "subset", "kind"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        lengths = {name: len(getattr(self, name)) for name in ("left", "right", "gold", "subset")}
        if len(set(lengths.values())) > 1 or len(self.kind) not in (0, len(gold)):
            lengths["kind"] = len(self.kind)
            raise ValueError(f"the columns of {self.name} differ in length: {lengths}")
        if not np.isfinite(gold).all():
            index = int(np.argmin(np.isfinite(gold)))
            raise ValueError(
                f"{self.name}: the grade of pair {index} is {gold[index]}; leave ungraded pairs out"
            )

    @classmethod
    def from_csv(cls, path: str | os.PathLike, split: str | None = None) -> "Pairs":
        """Read graded pairs of your own.

        Args:
            path: CSV, TSV, JSONL or Parquet with the columns sentence1, sentence2, score (any
                number; higher is more similar). A column split is optional.
            split: The pairs of this split; None, or a file without that column: all.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: A missing column, a malformed line, or no pair of the split.
        """
        name = Path(path).stem
        records = list(read_records(path, ("sentence1", "sentence2", "score"), optional=("split",)))
        splits = dict.fromkeys(str(record["split"]) for _, record in records if "split" in record)
        if split and splits:
            records = [(where, record) for where, record in records if record["split"] == split]
        if not records:
            found = f"; its splits: {', '.join(splits)}" if splits else ""
            raise SentenceFileError(f"{path} holds no pair of split {split!r}{found}")
        left = [clean(record["sentence1"], where) for where, record in records]
        right = [clean(record["sentence2"], where) for where, record in records]
        gold = [_grade(record["score"], where, own=True) for where, record in records]
        origin = own_origin(left, right, gold)
        return cls(name, left, right, gold, [name] * len(gold), origin, "natural")

    def __len__(self) -> int:
        return len(self.gold)

    @property
    def sentences(self) -> list[str]:
        """The distinct sentences, in order of first appearance (left before right)."""
        return list(dict.fromkeys(self.left + self.right))

    def take(self, indices: Sequence[int]) -> "Pairs":
        """Return the pairs at these positions, in this order."""
        columns = {
            name: tuple(getattr(self, name)[i] for i in indices)
            for name in ("left", "right", "subset")
        }
        kind = tuple(self.kind[i] for i in indices) if self.kind else ()
        return replace(self, gold=self.gold[list(indices)], kind=kind, **columns)


def load_sts(
    task: str | os.PathLike,
    split: str = "test",
    *,
    root: str | os.PathLike | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Pairs:
    """Read an STS task from SentEval's files as the paper's evaluation does, or a file of your own.

    Pairs without a grade are left out; runs of white space become one space, as in SentEval.

    Args:
        task: One of `STS_TASKS`, or a file as in `Pairs.from_csv`.
        split: "test"; `stsb` and `sickr` also have "train" and "dev".
        root: The folder that itself holds STS/ and SICK/ (SentEval's `downstream`). Default: the
            one in PROMPTEOL_SENTEVAL, else the hub, else, for `stsb`, the mini set.
        limit: At most so many pairs: a sample without replacement, in file order. None: all.
        seed: Of that sample.

    Returns:
        The pairs; `subset` is SentEval's subset for a year, the genre for `stsb`.

    Raises:
        ValueError: Unknown task or split, bad limit, or a malformed line (file and line named).
        FileNotFoundError: The named folder is missing or lacks the task; or none was named, and no
            hub can be reached.

    Source: the experiments of the paper (STS, "all" setting); SimCSE's copy of SentEval.
    """
    if task not in STS_TASKS:
        if is_table(task):
            return _sample(Pairs.from_csv(task, split), limit, seed)
        raise ValueError(
            f"unknown STS task {task!r}; allowed: {', '.join(STS_TASKS)}, or a file with the "
            "columns sentence1, sentence2, score (.csv, .tsv, .jsonl, .parquet)"
        )
    splits = tuple(_SPLIT_FILES.get(task, ("test",)))
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
    read = _read_split(folder, task, split) if task in _SPLIT_FILES else _read_year(folder, task)
    left, right, gold, subset = zip(*read, strict=True)
    form = _text_form(task, left + right)
    return _sample(Pairs(task, left, right, gold, subset, origin, form), limit, seed)


def load_mini_sts(
    split: str = "test",
    *,
    limit: int | None = None,
    seed: int = 0,
    path: str | os.PathLike = DATA / "mini_sts.csv",
) -> Pairs:
    """Read the set written for this project: natural text, graded by `data/mini_sts_rubric.md`.

    Args:
        split: "dev" or "test"; they share no sentence.
        limit: As in `load_sts`.
        seed: As in `load_sts`.
        path: A CSV with the columns split, genre, kind, score, left, right.

    Returns:
        Pairs named "mini"; `subset` is the genre, `kind` how the pair was made.

    Raises:
        ValueError: Unknown split, or a malformed line (file and line named).
    """
    if split not in ("dev", "test"):
        more = "SentEval's STS-B has more: name its folder with root= or PROMPTEOL_SENTEVAL"
        raise ValueError(f"the mini set has no split {split!r}; allowed: dev, test. {more}")
    found = []
    columns = ("split", "genre", "kind", "score", "left", "right")
    for where, record in read_records(path, columns):
        if record["split"] not in ("dev", "test"):
            raise SentenceFileError(f"{where}: split is {record['split']!r}; allowed: dev, test")
        left, right = (clean(record[side], where) for side in ("left", "right"))
        gold = _grade(record["score"], where)
        if record["split"] == split:
            found.append((left, right, gold, record["genre"], record["kind"]))
    if not found:
        raise SentenceFileError(f"{path}: no pair of split {split!r}")
    left, right, gold, genre, kind = zip(*found, strict=True)
    return _sample(Pairs("mini", left, right, gold, genre, "mini", "natural", kind), limit, seed)


def _task_folder(task: str) -> str:
    return {"stsb": "STS/STSBenchmark", "sickr": "SICK"}.get(task, f"STS/{task.upper()}-en-test")


def _read_year(folder: Path, task: str) -> Iterator[tuple[str, str, float, str]]:
    for subset in _SUBSETS[task]:
        inputs = folder / _task_folder(task) / f"STS.input.{subset}.txt"
        grades = inputs.with_name(f"STS.gs.{subset}.txt")
        lines = list(read_lines(inputs))
        golds = list(read_lines(grades))
        if len(lines) != len(golds):
            raise SentenceFileError(
                f"{grades} has {len(golds)} lines and {inputs.name} {len(lines)}: line "
                f"{min(len(lines), len(golds)) + 1} of the longer one has no partner"
            )
        if not any(gold.strip() for gold in golds):
            raise SentenceFileError(f"{grades} holds no grade at all")
        for number, (line, gold) in enumerate(zip(lines, golds, strict=True), 1):
            where = f"{inputs}:{number}"
            left, right = split_tabs(line, where, 2)
            if gold.strip():  # a pair that nobody graded: SentEval skips it
                grade = _grade(gold, f"{grades}:{number}")
                yield clean(left, where), clean(right, where), grade, subset


def _read_split(folder: Path, task: str, split: str) -> Iterator[tuple[str, str, float, str]]:
    path = folder / _SPLIT_FILES[task][split]
    lines = list(enumerate(read_lines(path), 1))
    if task == "sickr":
        lines = lines[1:]  # the header
    if not lines:
        raise SentenceFileError(f"{path} holds no pair")
    for number, line in lines:
        where = f"{path}:{number}"
        if task == "stsb":
            subset, _, _, _, gold, left, right = split_tabs(line, where, 7)
        else:
            _, left, right, gold, _ = split_tabs(line, where, 5)
            subset = task
        yield clean(left, where), clean(right, where), _grade(gold, where), subset


def _grade(given: object, where: str, own: bool = False) -> float:
    """Return a grade from 0 to 5; in a user's own file, any finite number."""
    try:
        gold = float(given)
    except (TypeError, ValueError):
        gold = math.nan
    if not math.isfinite(gold) or not (own or 0 <= gold <= 5):
        allowed = "a number, with a decimal point" if own else "a number from 0 to 5"
        raise SentenceFileError(f"{where}: the grade is {str(given)[:20]!r}, expected {allowed}")
    return gold


def _text_form(task: str, sentences: Sequence[str]) -> str:
    """SentEval's STS is tokenised and lower-cased, its SICK tokenised; the original STS neither."""
    if task == "sickr":
        return "tokenised"
    cased = sum(sentence != sentence.lower() for sentence in sentences)
    return "natural" if cased > len(sentences) / 100 else "tokenised lower case"


def _sample(pairs: Pairs, limit: int | None, seed: int) -> Pairs:
    limit = check_limit(limit, meaning="all pairs")
    return pairs.take(random_positions(len(pairs), limit, seed))
