"""Sentences from a file, one after the other, each with the line it stands on: what the `encode` command reads."""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path

INPUTS = (".txt", ".csv", ".tsv", ".jsonl", ".parquet")
COLUMNS = ("sentence", "text")  # looked for in this order when no column is named


class SentenceFileError(ValueError):
    """A file that cannot be read or written as sentences; the message names file and line."""


def read_sentences(path: str | os.PathLike, column: str | None = None) -> Iterator[str]:
    """Sentences of a file, one after the other, without holding the file in memory.

    Args:
        path: .txt (a sentence a line), .csv or .tsv with a header, .jsonl (strings or objects), .parquet.
        column: Name of the column with the sentences; by default "sentence", "text", or the only one.

    Yields:
        Strings, not blank.

    Raises:
        SentenceFileError: File and line of a blank line, a missing column, broken text, broken JSON or a value that is no string.
    """
    return (sentence for _, sentence in numbered_sentences(path, column))


def numbered_sentences(
    path: str | os.PathLike, column: str | None = None
) -> Iterator[tuple[int, str]]:
    """As `read_sentences`, each with its line (its row in a Parquet file), counted from 1."""
    path = Path(path)
    readers = {".txt": _lines, ".csv": _rows, ".tsv": _rows, ".jsonl": _objects, ".parquet": _table}
    if path.suffix.lower() not in readers:
        raise SentenceFileError(
            f"{path}: the input ends with one of {', '.join(INPUTS)}, not {path.suffix!r}"
        )
    if not path.is_file():
        raise SentenceFileError(f"{path}: there is no such file")
    for line, sentence in readers[path.suffix.lower()](path, column):
        if not isinstance(sentence, str):
            raise SentenceFileError(f"{path}:{line}: a string is needed, not {sentence!r}")
        if not sentence.strip():
            raise SentenceFileError(
                f"{path}:{line}: a blank sentence; take it out, or write what it stands for"
            )
        if not sentence.isascii() and any("\ud800" <= char <= "\udfff" for char in sentence):
            raise SentenceFileError(
                f"{path}:{line}: a lone surrogate (broken Unicode); repair it, or take the sentence out"
            )
        yield line, sentence


def _lines(path: Path, column: str | None = None) -> Iterator[tuple[int, str]]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise SentenceFileError(
                    f"{path}:{number}: no valid UTF-8 at byte {error.start}"
                ) from None


def _rows(path: Path, column: str | None) -> Iterator[tuple[int, str]]:
    reader = csv.DictReader(
        (f"{line}\n" for _, line in _lines(path)),
        delimiter="\t" if path.suffix.lower() == ".tsv" else ",",
        strict=True,
    )
    try:
        column = _column(path, column, reader.fieldnames or [])
        line = (
            reader.line_num + 1
        )  # where the row begins: a quoted sentence may run over several lines
        for row in reader:
            yield line, row[column]
            line = reader.line_num + 1
    except csv.Error as error:
        raise SentenceFileError(f"{path}:{line}: {error}") from None


def _objects(path: Path, column: str | None) -> Iterator[tuple[int, str]]:
    for number, line in _lines(path):
        try:
            item = json.loads(line)
        except ValueError as error:
            raise SentenceFileError(f"{path}:{number}: no valid JSON: {error}") from None
        yield (
            number,
            item[_column(f"{path}:{number}", column, list(item))]
            if isinstance(item, dict)
            else item,
        )


def _table(path: Path, column: str | None) -> Iterator[tuple[int, str]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        table = pyarrow.parquet.ParquetFile(path)
        for batch in table.iter_batches(columns=[_column(path, column, table.schema_arrow.names)]):
            for sentence in batch.column(0).to_pylist():
                number += 1
                yield number, sentence
    except (pyarrow.ArrowException, OSError) as error:
        raise SentenceFileError(f"{path}: no readable Parquet file: {error}") from None


def _column(where: str | os.PathLike, column: str | None, names: list[str]) -> str:
    wanted = [column] if column else [*COLUMNS, *(names if len(names) == 1 else [])]
    for name in wanted:
        if name in names:
            return name
    told = (
        f"no column is called {column!r}"
        if column
        else "name the column with the sentences (--text-column)"
    )
    raise SentenceFileError(f"{where}: {told}; there are: {', '.join(map(str, names)) or 'none'}")
