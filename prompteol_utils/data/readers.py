"""Read text files and tables of sentences; an error names the file, the line and what is wrong."""

import codecs
import csv
import hashlib
import json
import operator
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
INPUTS = (".txt", *TABLES)
TEXT_COLUMNS = ("sentence", "text")  # looked for in this order when no column is named

Choose = Callable[[Sequence[str], str], Sequence[str]]  # (names, where) -> the columns to read


class SentenceFileError(ValueError):
    """A file that cannot be read or written as sentences; the message names file and line."""


def text_problem(text: object) -> str | None:
    """Say why something is not a sentence that can be embedded; None if it is one."""
    if not isinstance(text, str):
        return f"a string is needed, not {repr(text)[:80]} ({type(text).__name__})"
    if not text.strip():
        return "an empty or blank sentence; take it out, or write what it stands for"
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        return (
            "a lone surrogate (broken Unicode); take the sentence out, or repair it, for example "
            "with text.encode('utf-8', 'replace').decode()"
        )
    return None


def clean(text: object, where: str) -> str:
    """Return a sentence with single spaces between its words.

    Raises:
        SentenceFileError: It is not a sentence; `where` (file and line) and the reason are named.
    """
    if problem := text_problem(text):
        raise SentenceFileError(f"{where}: {problem}")
    return " ".join(text.split())


def check_limit(limit: int | None, least: int = 1, meaning: str = "all") -> int | None:
    """Return a limit as an int; NumPy's integers are welcome, booleans and fractions are not."""
    if limit is None:
        return None
    try:
        number = operator.index(limit)
    except TypeError:
        number = least - 1
    if isinstance(limit, bool) or number < least:
        raise ValueError(
            f"limit is {limit!r}; allowed: None ({meaning}) or a whole number from {least} up"
        )
    return number


def random_positions(n: int, limit: int | None, seed: int) -> list[int]:
    """Return at most `limit` of n positions, drawn without replacement, in rising order."""
    if limit is None or limit >= n:
        return list(range(n))
    return np.sort(np.random.default_rng(seed).choice(n, limit, replace=False)).tolist()


def own_origin(*columns: Sequence) -> str:
    """Return "own:" and a digest of a user's data, so that an edited file is another data set."""
    content = json.dumps([list(column) for column in columns]).encode()
    return f"own:{hashlib.sha256(content).hexdigest()[:12]}"


def is_table(name: str | os.PathLike) -> bool:
    """Tell a file of the user's from the name of a task."""
    path = Path(name)
    return isinstance(name, os.PathLike) or path.suffix.lower() in TABLES or path.is_file()


def read_lines(path: str | os.PathLike, fallback: str | None = None) -> Iterator[str]:
    """Yield lines as editors count them; `splitlines` would also cut at, for example, U+0085.

    Args:
        path: A UTF-8 file; a byte order mark is skipped.
        fallback: Encoding of lines that are not UTF-8, such as "latin-1"; None: refuse them.

    Raises:
        FileNotFoundError: There is no such file.
        SentenceFileError: A line is not UTF-8.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            line = raw.removesuffix(b"\n").removesuffix(b"\r")
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            try:
                yield line.decode()
            except UnicodeDecodeError as error:
                if fallback is None:
                    raise SentenceFileError(
                        f"{path}:{number}: no valid UTF-8 at byte {error.start}; "
                        "save the file as UTF-8"
                    ) from None
                yield line.decode(fallback)


def split_tabs(line: str, where: str, columns: int) -> list[str]:
    """Return the tab-separated cells of a line, and refuse any number but `columns`."""
    cells = line.split("\t")
    if len(cells) != columns:
        raise SentenceFileError(f"{where}: {len(cells)} tab-separated columns, expected {columns}")
    return cells


def read_records(
    path: str | os.PathLike, *columns: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[str, dict]]:
    """Yield the records of a CSV, TSV, JSONL or Parquet file.

    Args:
        path: CSV and TSV have a header. In TSV, quotes are text.
        columns: Sets of column names; the first set that the file has whole is read.
        optional: Columns that are read if they are there. All others are ignored.

    Yields:
        `where` ("file:line"; for Parquet the number of the record) and the record. Values of CSV
        and TSV are strings.

    Raises:
        FileNotFoundError: There is no such file.
        SentenceFileError: Missing columns, a line with too many or too few cells, broken text.
    """

    def choose(names: Sequence[str], where: str) -> list[str]:
        for wanted in columns:
            if set(wanted) <= set(names):
                return [*wanted, *(name for name in optional if name in names)]
        needed = " or ".join(", ".join(wanted) for wanted in columns)
        raise SentenceFileError(f"{where}: needs the columns {needed}; {_there_are(names)}")

    for line, record in _records(Path(path), TABLES, choose):
        if not isinstance(record, dict):
            raise SentenceFileError(f"{path}:{line}: an object is needed, not {record!r}")
        yield f"{path}:{line}", record


def read_sentences(path: str | os.PathLike, column: str | None = None) -> Iterator[str]:
    """Yield the sentences of a file without holding the file in memory.

    Args:
        path: .txt (one sentence per line), .csv or .tsv with a header, .jsonl (strings or
            objects), .parquet.
        column: Name of the column with the sentences; default: "sentence", "text" or the only one.

    Raises:
        FileNotFoundError: There is no such file.
        SentenceFileError: File and line of a blank line, a missing column, a line with too many
            cells, broken text, broken JSON or a value that is not a string.
    """
    return (sentence for _, sentence in numbered_sentences(path, column))


def numbered_sentences(
    path: str | os.PathLike, column: str | None = None
) -> Iterator[tuple[int, str]]:
    """As `read_sentences`, each with its line (in Parquet: its record), counted from 1."""

    def choose(names: Sequence[str], where: str) -> list[str]:
        wanted = [column] if column else [*TEXT_COLUMNS, *(names if len(names) == 1 else [])]
        for name in wanted:
            if name in names:
                return [name]
        reason = "name the column with the sentences (--text-column)"
        if column:
            reason = f"no column is called {column!r}"
        raise SentenceFileError(f"{where}: {reason}; {_there_are(names)}")

    for line, record in _records(Path(path), INPUTS, choose):
        sentence = next(iter(record.values())) if isinstance(record, dict) else record
        if problem := text_problem(sentence):
            raise SentenceFileError(f"{path}:{line}: {problem}")
        yield line, sentence


def _there_are(names: Sequence[str]) -> str:
    hint = "; separate cells by commas" if any(";" in str(name) for name in names) else ""
    return f"there are: {_list(names)}{hint}"


def _list(names: Sequence[str]) -> str:
    return ", ".join(map(str, names)) or "none"


def _records(path: Path, allowed: Sequence[str], choose: Choose) -> Iterator[tuple[int, object]]:
    """Yield line and record: a dict of the chosen columns, or what a line without columns holds."""
    suffix = path.suffix.lower()
    if suffix not in allowed:
        raise SentenceFileError(
            f"{path}: the input ends with one of {', '.join(allowed)}, not {path.suffix!r}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    if suffix == ".txt":
        return enumerate(read_lines(path), 1)
    if suffix == ".jsonl":
        return _jsonl(path, choose)
    if suffix == ".parquet":
        return _parquet(path, choose)
    return _delimited(path, _tsv(path) if suffix == ".tsv" else _csv(path), choose)


def _delimited(
    path: Path, lines: Iterator[tuple[int, list[str]]], choose: Choose
) -> Iterator[tuple[int, dict]]:
    _, header = next(lines, (1, []))
    header = [name.strip() for name in header]
    if len(set(header)) < len(header):
        raise SentenceFileError(f"{path}:1: a column name stands twice: {_list(header)}")
    indices = {name: header.index(name) for name in choose(header, f"{path}:1")}
    for line, cells in lines:
        if len(cells) != len(header):
            raise SentenceFileError(
                f"{path}:{line}: {len(cells)} cells, but the header has {len(header)} columns; "
                "in CSV, put quotes around a text with a comma; in TSV, take tabs out of the text"
            )
        yield line, {name: cells[index] for name, index in indices.items()}


def _csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader((f"{line}\n" for line in read_lines(path)), strict=True)
    line = 1  # where the record begins: a quoted text may run over several lines
    try:
        for cells in reader:
            if cells:
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise SentenceFileError(f"{path}:{line}: {error}") from None


def _tsv(path: Path) -> Iterator[tuple[int, list[str]]]:
    return ((number, line.split("\t")) for number, line in enumerate(read_lines(path), 1) if line)


def _jsonl(path: Path, choose: Choose) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(read_lines(path), 1):
        where = f"{path}:{number}"
        try:
            item = json.loads(line)
        except ValueError as error:
            raise SentenceFileError(f"{where}: no valid JSON: {error}") from None
        if isinstance(item, dict):
            item = {name: item[name] for name in choose(list(item), where)}
        yield number, item


def _parquet(path: Path, choose: Choose) -> Iterator[tuple[int, dict]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        table = pyarrow.parquet.ParquetFile(path)
        columns = list(choose(table.schema_arrow.names, str(path)))
        for batch in table.iter_batches(columns=columns):
            for record in batch.to_pylist():
                number += 1
                yield number, record
    except (pyarrow.ArrowException, OSError) as error:
        raise SentenceFileError(f"{path}: no readable Parquet file: {error}") from None
