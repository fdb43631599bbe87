"""The seven classification tasks that the paper transfers to: SentEval's files, and the small sets written for this project.

`senteval.find_folder` decides which copy is read; with neither a named folder nor a hub, the mini sets are. `Labelled.origin` says
what it was; accuracies of different origin do not belong into one column.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from prompteol_utils.data import senteval
from prompteol_utils.data.readers import cells, csv_rows, lines, sentence
from prompteol_utils.utils.files import DATA

MINI = DATA / "mini_transfer.csv"
QUESTIONS = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
BLANK = "."  # what SentEval's own examples give an encoder for a line without words; CR has four of them, MPQA three

# task: (names of the labels 0, 1, …; split: its files, for a task without splits one a label)
_FILES: dict[str, tuple[tuple[str, ...], dict[str, tuple[str, ...]]]] = {
    "mr": (("negative", "positive"), {"all": ("MR/rt-polarity.neg", "MR/rt-polarity.pos")}),
    "cr": (("negative", "positive"), {"all": ("CR/custrev.neg", "CR/custrev.pos")}),
    "subj": (("subjective", "objective"), {"all": ("SUBJ/subj.subjective", "SUBJ/subj.objective")}),
    "mpqa": (("negative", "positive"), {"all": ("MPQA/mpqa.neg", "MPQA/mpqa.pos")}),
    "sst2": (
        ("negative", "positive"),
        {split: (f"SST/binary/sentiment-{split}",) for split in ("train", "dev", "test")},
    ),
    "trec": (QUESTIONS, {"train": ("TREC/train_5500.label",), "test": ("TREC/TREC_10.label",)}),
    "mrpc": (
        ("different", "paraphrase"),
        {split: (f"MRPC/msr_paraphrase_{split}.txt",) for split in ("train", "test")},
    ),
}
TRANSFER_TASKS = tuple(_FILES)
SPLITS = {task: tuple(files) for task, (_, files) in _FILES.items()}


@dataclass(frozen=True, eq=False)
class Labelled:
    """Sentences, or pairs of sentences, with a class each.

    Args:
        name: The task, as in `TRANSFER_TASKS`.
        text: n sentences.
        text2: n sentences, the second ones of pairs; empty for a task on single sentences.
        label: int64 (n,), positions in `label_names`.
        split: For each sentence "all" (a task that is cut into folds), "train", "dev" or "test".
        label_names: What the labels 0, 1, … stand for.
        origin: Which copy was read: "senteval" (a folder that was named), "hub" or "mini".
        text_form: "tokenised lower case", "tokenised" or "natural".

    Raises:
        ValueError: The columns differ in length, or a label has no name.
    """

    name: str
    text: tuple[str, ...]
    text2: tuple[str, ...]
    label: np.ndarray
    split: tuple[str, ...]
    label_names: tuple[str, ...]
    origin: str
    text_form: str

    def __post_init__(self):
        label = np.array(self.label, dtype=np.int64)
        label.flags.writeable = False
        object.__setattr__(self, "label", label)
        lengths = {name: len(getattr(self, name)) for name in ("text", "label", "split")}
        if len(set(lengths.values())) > 1 or len(self.text2) not in (0, len(label)):
            raise ValueError(
                f"the columns of {self.name} differ in length: {lengths | {'text2': len(self.text2)}}"
            )
        if len(label) and not 0 <= label.min() <= label.max() < len(self.label_names):
            raise ValueError(
                f"{self.name}: labels go from 0 to {len(self.label_names) - 1}, got {label.min()} to {label.max()}"
            )

    def __len__(self) -> int:
        return len(self.label)

    @property
    def sentences(self) -> list[str]:
        """The distinct sentences, in order of first appearance."""
        return list(dict.fromkeys(self.text + self.text2))

    @property
    def sizes(self) -> dict[str, int]:
        """How many sentences (or pairs) each split has."""
        return {split: self.split.count(split) for split in dict.fromkeys(self.split)}

    def take(self, indices: Sequence[int]) -> "Labelled":
        """The sentences at these positions, in this order."""
        columns = {
            name: tuple(getattr(self, name)[i] for i in indices) for name in ("text", "split")
        }
        text2 = tuple(self.text2[i] for i in indices) if self.text2 else ()
        return replace(self, label=self.label[list(indices)], text2=text2, **columns)


def load_transfer(
    task: str, *, root: str | os.PathLike | None = None, limit: int | None = None, seed: int = 0
) -> Labelled:
    """Read a classification task, all its splits, as SentEval does.

    Runs of white space become one space. A line that is not UTF-8 is read as Latin-1 (TREC has some). A line without words counts in
    SentEval's sizes of CR and MPQA, so it is kept, as a single period.

    Args:
        task: One of `TRANSFER_TASKS`.
        root: The folder that itself holds MR/, CR/ and so on (SentEval's `downstream`). Default: the one in PROMPTEOL_SENTEVAL, else the
            hub, else the mini set.
        limit: At most so many sentences of each split: a sample that keeps the proportions of the classes, in file order. None: all.
        seed: Of that sample.

    Returns:
        The task; `split` is "all" for mr, cr, subj and mpqa, "train" and "test" for trec and mrpc, and sst2 has "dev" besides.

    Raises:
        ValueError: Unknown task, bad limit, or a malformed line (its file and number are named).
        FileNotFoundError: The named folder is missing or lacks the task.

    Source: the transfer tasks of the paper; SimCSE's copy of SentEval. Built in notebook 05.
    """
    if task not in _FILES:
        raise ValueError(f"unknown transfer task {task!r}; allowed: {', '.join(TRANSFER_TASKS)}")
    names, files = _FILES[task]
    try:
        folder, origin = senteval.find_folder(
            files["all" if "all" in files else "train"][0].rpartition("/")[0], root
        )
    except senteval.Unreachable:
        return load_mini_transfer(task, limit=limit, seed=seed)
    rows = [
        (split, *row)
        for split, paths in files.items()
        for label, name in enumerate(paths)
        for row in _READERS.get(task, _one_class)(folder / name, label)
    ]
    split, label, text, text2 = zip(*rows, strict=True)
    form = "tokenised" if task in ("trec", "mrpc") else "tokenised lower case"
    whole = Labelled(task, text, text2 if task == "mrpc" else (), label, split, names, origin, form)
    return _sample(whole, limit, seed)


def load_mini_transfer(
    task: str, *, limit: int | None = None, seed: int = 0, path: str | os.PathLike = MINI
) -> Labelled:
    """Read a task's small set, written for this project by hand in natural text.

    Args:
        task: As in `load_transfer`.
        limit: As in `load_transfer`.
        seed: As in `load_transfer`.
        path: A CSV with the columns task, split, label, text, text2.

    Raises:
        ValueError: Unknown task, or a malformed row (file and line named).

    Built in notebook 05.
    """
    if task not in _FILES:
        raise ValueError(f"unknown transfer task {task!r}; allowed: {', '.join(TRANSFER_TASKS)}")
    names, rows = _FILES[task][0], []
    for line, row in csv_rows(path, ("task", "split", "label", "text", "text2")):
        if row["task"] not in _FILES:
            raise ValueError(
                f"{path}, line {line}: unknown task {row['task']!r}; allowed: {', '.join(TRANSFER_TASKS)}"
            )
        if row["task"] != task:
            continue
        split = "all" if "all" in SPLITS[task] else row["split"]
        if split not in SPLITS[task]:
            raise ValueError(
                f"{path}, line {line}: {task} has no split {split!r}; allowed: {', '.join(SPLITS[task])}"
            )
        second = sentence(row["text2"], path, line) if task == "mrpc" else ""
        rows.append(
            (
                split,
                _label(row["label"], task, path, line),
                sentence(row["text"], path, line),
                second,
            )
        )
    if not rows:
        raise ValueError(f"{path}: no row of task {task!r}")
    split, label, text, text2 = zip(*rows, strict=True)
    return _sample(
        Labelled(
            task, text, text2 if task == "mrpc" else (), label, split, names, "mini", "natural"
        ),
        limit,
        seed,
    )


def _label(given: str, task: str, path: str | os.PathLike, line: int) -> int:
    allowed = QUESTIONS if task == "trec" else ("0", "1")
    if given not in allowed:
        raise ValueError(
            f"{path}, line {line}: the label is {given[:20]!r}, expected one of {', '.join(allowed)}"
        )
    return allowed.index(given)


def _one_class(path: Path, label: int) -> list[tuple[int, str, str]]:
    return [
        (label, " ".join(line.split()) or BLANK, "") for line in lines(path, fallback="latin-1")
    ]


def _sst2(path: Path, _: int) -> list[tuple[int, str, str]]:
    rows = []
    for number, line in enumerate(lines(path, fallback="latin-1"), 1):
        text, label = cells(line, path, number, 2)
        rows.append((_label(label.strip(), "sst2", path, number), sentence(text, path, number), ""))
    return rows


def _trec(path: Path, _: int) -> list[tuple[int, str, str]]:
    """`NUM:dist How far … ?`: coarse class, fine class, question."""
    rows = []
    for number, line in enumerate(lines(path, fallback="latin-1"), 1):
        coarse, colon, rest = line.strip().partition(":")
        if not colon:
            raise ValueError(
                f"{path}, line {number}: no colon; expected a line such as `NUM:dist How far … ?`"
            )
        rows.append(
            (
                _label(coarse, "trec", path, number),
                sentence(rest.partition(" ")[2], path, number),
                "",
            )
        )
    return rows


def _mrpc(path: Path, _: int) -> list[tuple[int, str, str]]:
    rows = []
    for number, line in enumerate(lines(path, fallback="latin-1")[1:], 2):
        label, _, _, left, right = cells(line, path, number, 5)
        rows.append(
            (
                _label(label, "mrpc", path, number),
                sentence(left, path, number),
                sentence(right, path, number),
            )
        )
    return rows


_READERS: dict[str, Callable] = {"sst2": _sst2, "trec": _trec, "mrpc": _mrpc}


def _sample(whole: Labelled, limit: int | None, seed: int) -> Labelled:
    if limit is None:
        return whole
    least = len(whole.label_names)
    if isinstance(limit, bool) or not isinstance(limit, int | np.integer) or limit < least:
        raise ValueError(
            f"limit is {limit!r}; allowed: None (all) or a whole number from {least} up, the classes of {whole.name}"
        )
    split, keep = np.asarray(whole.split), []
    for number, name in enumerate(whole.sizes):
        at = np.flatnonzero(split == name)
        keep += at[stratified(whole.label[at], limit, seed + number)].tolist()
    return whole.take(sorted(keep))


def stratified(label: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Positions of a random sample that keeps the classes' proportions, each class at least once.

    Args:
        label: int (n,).
        size: How many; at least as many as there are classes. n or more gives all.
        seed: Of the sample. A bigger sample of the same seed contains the smaller one as far as the proportions allow.

    Returns:
        int64 (size,), rising.
    """
    if size >= len(label):
        return np.arange(len(label))
    random = np.random.default_rng(seed)
    groups = [random.permutation(np.flatnonzero(label == one)) for one in np.unique(label)]
    exact = np.array([size * len(group) / len(label) for group in groups])
    counts = np.maximum(1, np.floor(exact)).astype(int)
    while (
        counts.sum() != size
    ):  # the remainders: up where most is missing, down where most is too much
        step = 1 if counts.sum() < size else -1
        gap = np.where(counts > 1, step * (exact - counts), -np.inf) if step < 0 else exact - counts
        counts[int(np.argmax(gap))] += step
    return np.sort(
        np.concatenate([group[:count] for group, count in zip(groups, counts, strict=True)])
    )
