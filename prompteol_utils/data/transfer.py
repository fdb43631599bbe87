"""Sentences with a class: SentEval's seven tasks, this project's mini sets, and files of your own.

`senteval.find_folder` decides which copy of a task is read; with neither a named folder nor a hub,
the mini set is. `Labelled.origin` says which it was: accuracies of different origin do not belong
in one column.
"""

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
    read_lines,
    read_records,
    split_tabs,
)
from prompteol_utils.utils.files import DATA

MINI = DATA / "mini_transfer.csv"
QUESTIONS = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
BLANK = "."  # what SentEval gives an encoder for a line without words (four in CR, three in MPQA)

# task: (names of the labels 0, 1, …; split: its files; a task without splits has one per label)
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
_SPLIT_SETS = ({"all"}, {"train", "test"}, {"train", "dev", "test"})


@dataclass(frozen=True, eq=False)
class Labelled:
    """Sentences, or pairs of sentences, with a class each: what a classifier is trained on.

    `Labelled.from_csv` makes one from a file with the columns text and label.

    Args:
        name: The task, as in `TRANSFER_TASKS`, or the name of a file without its ending.
        text: n sentences.
        text2: n sentences, the second ones of pairs; empty for a task on single sentences.
        label: int64 (n,), positions in `label_names`.
        split: For each sentence "train", "dev" or "test", or, for all of them, "all": such a task
            is cut into folds.
        label_names: What the labels 0, 1, … stand for.
        origin: Which copy was read: "senteval" (a named folder), "hub", "mini", or "own:" and a
            digest of the content.
        text_form: "tokenised lower case", "tokenised" or "natural".

    Raises:
        ValueError: The columns differ in length, a label is not a position in `label_names`, or an
            unknown split.
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
        given = np.array(self.label)
        label = given.astype(np.int64)
        if not np.array_equal(given, label):
            raise ValueError(
                f"{self.name}: labels are whole numbers, positions in label_names, got "
                f"{given[given != label][0]}"
            )
        label.flags.writeable = False
        object.__setattr__(self, "label", label)
        for name in ("text", "text2", "split", "label_names"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        lengths = {name: len(getattr(self, name)) for name in ("text", "label", "split")}
        if len(set(lengths.values())) > 1 or len(self.text2) not in (0, len(label)):
            lengths["text2"] = len(self.text2)
            raise ValueError(f"the columns of {self.name} differ in length: {lengths}")
        if len(label) and not 0 <= label.min() <= label.max() < len(self.label_names):
            raise ValueError(
                f"{self.name}: labels go from 0 to {len(self.label_names) - 1}, got {label.min()} "
                f"to {label.max()}"
            )
        if not any(set(self.sizes) <= allowed for allowed in _SPLIT_SETS):
            raise ValueError(
                f"{self.name} has the splits {', '.join(map(repr, self.sizes))}; allowed: 'all' "
                "alone, or 'train', 'test' and perhaps 'dev'"
            )

    @classmethod
    def from_csv(cls, path: str | os.PathLike) -> "Labelled":
        """Read labelled sentences of your own.

        Args:
            path: CSV, TSV, JSONL or Parquet with the columns text and label (words or whole
                numbers). Optional: text2, for tasks on pairs, and split ("train", "test", perhaps
                "dev"); without it, the evaluation cuts folds.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: A missing column, a malformed line, fewer than two classes, a class with a
                single example, or a training or test part that is missing.
        """
        name = Path(path).stem
        records = list(read_records(path, ("text", "label"), optional=("text2", "split")))
        if not records:
            raise SentenceFileError(f"{path} holds no sentence")
        given = [_own_label(record["label"], where) for where, record in records]
        whole = all(one.lstrip("-").isdecimal() for one in given)
        names = sorted(set(given), key=int if whole else None)
        text = [clean(record["text"], where) for where, record in records]
        pairs = "text2" in records[0][1]
        text2 = [clean(record.get("text2"), where) for where, record in records] if pairs else []
        split = [str(record.get("split", "all")) for _, record in records]
        label = [names.index(one) for one in given]
        origin = own_origin(text, text2, given, split)
        task = cls(name, text, text2, label, split, names, origin, "natural")
        task._check_classes(path)
        return task

    def _check_classes(self, path: str | os.PathLike) -> None:
        """Refuse classes that no classifier can learn or no fold can hold."""
        if set(self.sizes) not in _SPLIT_SETS:
            raise SentenceFileError(
                f"{path} has the splits {', '.join(self.sizes)}; needed are both train and test, "
                "or no column split"
            )
        counts = np.bincount(self.label)
        if len(counts) < 2:
            raise SentenceFileError(
                f"{path}: all sentences have the label {self.label_names[0]!r}; a classifier needs "
                "at least two classes"
            )
        train = [i for i, split in enumerate(self.split) if split in ("all", "train")]
        trained = np.bincount(self.label[train], minlength=len(counts))
        if rare := [name for name, n in zip(self.label_names, trained, strict=True) if n < 2]:
            more = f" and {len(rare) - 5} more" if len(rare) > 5 else ""
            raise SentenceFileError(
                f"{path}: at least two training examples of each class are needed, but there are "
                f"fewer of {', '.join(map(repr, rare[:5]))}{more}; add examples, merge the class "
                "with another, or leave it out"
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
        """Return the sentences at these positions, in this order."""
        columns = {
            name: tuple(getattr(self, name)[i] for i in indices) for name in ("text", "split")
        }
        text2 = tuple(self.text2[i] for i in indices) if self.text2 else ()
        return replace(self, label=self.label[list(indices)], text2=text2, **columns)


def load_transfer(
    task: str | os.PathLike,
    *,
    root: str | os.PathLike | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Labelled:
    """Read a classification task, all its splits, as SentEval does, or a file of your own.

    Runs of white space become one space. A line that is not UTF-8 is read as Latin-1 (TREC has
    some). A line without words counts in SentEval's sizes of CR and MPQA and is kept as a period.

    Args:
        task: One of `TRANSFER_TASKS`, or a file as in `Labelled.from_csv`.
        root: The folder that itself holds MR/, CR/ and so on (SentEval's `downstream`). Default:
            the one in PROMPTEOL_SENTEVAL, else the hub, else the mini set.
        limit: At most so many sentences of each split: a sample that keeps the proportions of the
            classes, in file order. None: all.
        seed: Of that sample.

    Returns:
        The task; `split` is "all" for mr, cr, subj and mpqa, "train" and "test" for trec and mrpc,
        and sst2 has "dev" besides.

    Raises:
        ValueError: Unknown task, bad limit, or a malformed line (file and line named).
        FileNotFoundError: The named folder is missing or lacks the task.

    Source: the transfer tasks of the paper; SimCSE's copy of SentEval.
    """
    if task not in _FILES and is_table(task):
        return _sample(Labelled.from_csv(task), limit, seed)
    _check_task(task)
    files = _FILES[task][1]
    needs = next(iter(files.values()))[0].rpartition("/")[0]
    try:
        folder, origin = senteval.find_folder(needs, root)
    except senteval.Unreachable:
        return load_mini_transfer(task, limit=limit, seed=seed)
    examples = [
        (split, *example)
        for split, paths in files.items()
        for label, path in enumerate(paths)
        for example in _read_file(task, folder / path, label)
    ]
    form = "tokenised" if task in ("trec", "mrpc") else "tokenised lower case"
    return _sample(_labelled(task, examples, origin, form), limit, seed)


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
        ValueError: Unknown task, or a malformed line (file and line named).
    """
    _check_task(task)
    examples = []
    for where, record in read_records(path, ("task", "split", "label", "text", "text2")):
        _check_task(record["task"], f"{where}: ")
        if record["task"] != task:
            continue
        split = "all" if "all" in SPLITS[task] else record["split"]
        if split not in SPLITS[task]:
            raise SentenceFileError(
                f"{where}: {task} has no split {split!r}; allowed: {', '.join(SPLITS[task])}"
            )
        label = _label(record["label"], task, where)
        text2 = clean(record["text2"], where) if task == "mrpc" else ""
        examples.append((split, label, clean(record["text"], where), text2))
    if not examples:
        raise SentenceFileError(f"{path}: no example of task {task!r}")
    return _sample(_labelled(task, examples, "mini", "natural"), limit, seed)


def stratified(label: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Return positions of a random sample that keeps the classes' proportions, each at least once.

    Args:
        label: int (n,).
        size: How many; at least as many as there are classes. n or more gives all.
        seed: Of the sample. A bigger sample of the same seed contains the smaller one as far as
            the proportions allow.

    Returns:
        int64 (size,), rising.
    """
    if size >= len(label):
        return np.arange(len(label))
    random = np.random.default_rng(seed)
    groups = [random.permutation(np.flatnonzero(label == one)) for one in np.unique(label)]
    exact = np.array([size * len(group) / len(label) for group in groups])
    counts = np.maximum(1, np.floor(exact)).astype(int)
    while counts.sum() < size:  # the remainders: up where most is missing
        counts[int(np.argmax(exact - counts))] += 1
    while counts.sum() > size:  # down where most is too much
        counts[int(np.argmax(np.where(counts > 1, counts - exact, -np.inf)))] -= 1
    chosen = [group[:count] for group, count in zip(groups, counts, strict=True)]
    return np.sort(np.concatenate(chosen))


def _check_task(task: object, where: str = "") -> None:
    if task not in _FILES:
        raise ValueError(
            f"{where}unknown transfer task {task!r}; allowed: {', '.join(TRANSFER_TASKS)}, or a "
            "file with the columns text, label (.csv, .tsv, .jsonl, .parquet)"
        )


def _labelled(task: str, examples: list[tuple], origin: str, form: str) -> Labelled:
    split, label, text, text2 = zip(*examples, strict=True)
    if task != "mrpc":
        text2 = ()
    return Labelled(task, text, text2, label, split, _FILES[task][0], origin, form)


def _read_file(task: str, path: Path, label: int) -> Iterator[tuple[int, str, str]]:
    """Yield label, sentence and second sentence of one of SentEval's files.

    Args:
        label: Of a file that holds one class.
    """
    for number, line in enumerate(read_lines(path, fallback="latin-1"), 1):
        where, second = f"{path}:{number}", None
        if task == "sst2":
            text, given = split_tabs(line, where, 2)
        elif task == "trec":  # `NUM:dist How far … ?`: coarse class, fine class, question
            given, colon, rest = line.strip().partition(":")
            text = rest.partition(" ")[2]
            if not colon:
                raise SentenceFileError(
                    f"{where}: no colon; expected a line such as `NUM:dist How far … ?`"
                )
        elif task == "mrpc":
            given, _, _, text, second = split_tabs(line, where, 5)
            if number == 1:  # the header
                continue
        else:
            yield label, " ".join(line.split()) or BLANK, ""
            continue
        found = _label(given.strip(), task, where)
        yield found, clean(text, where), "" if second is None else clean(second, where)


def _label(given: str, task: str, where: str) -> int:
    allowed = QUESTIONS if task == "trec" else ("0", "1")
    if given not in allowed:
        raise SentenceFileError(
            f"{where}: the label is {given[:20]!r}, expected one of {', '.join(allowed)}"
        )
    return allowed.index(given)


def _own_label(given: object, where: str) -> str:
    """Return a user's label as text; 1, 1.0 and "1" are the same one."""
    if isinstance(given, float) and given.is_integer():
        given = int(given)
    if given is None or isinstance(given, float) or not str(given).strip():
        raise SentenceFileError(
            f"{where}: the label is {given!r}, expected a word or a whole number"
        )
    return str(given).strip()


def _sample(whole: Labelled, limit: int | None, seed: int) -> Labelled:
    least = len(whole.label_names)
    limit = check_limit(limit, least, f"all; {whole.name} has {least} classes")
    if limit is None:
        return whole
    split, keep = np.asarray(whole.split), []
    for number, name in enumerate(whole.sizes):
        at = np.flatnonzero(split == name)
        keep += at[stratified(whole.label[at], limit, seed + number)].tolist()
    return whole.take(sorted(keep))
