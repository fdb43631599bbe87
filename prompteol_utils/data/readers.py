"""Reading text files whose bad lines name themselves: decoding, lines as editors count them, cells, sentences, CSV rows."""

import csv
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path


def text(path: str | os.PathLike, fallback: str | None = None) -> str:
    """A file's text, its line ends made one character each.

    Args:
        path: A UTF-8 file; a byte order mark is skipped.
        fallback: Encoding for a line that is not UTF-8, such as "latin-1" for old data; None refuses such a line.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is not UTF-8 (file and line named).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        if fallback is None:
            line = raw[: error.start].count(b"\n") + 1
            raise ValueError(f"{path}, line {line}: not UTF-8 ({error.reason})") from None
    parts = []
    for line in raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        try:
            parts.append(line.decode("utf-8"))
        except UnicodeDecodeError:
            parts.append(line.decode(fallback))
    return "\n".join(parts).replace("\r\n", "\n")


def lines(path: str | os.PathLike, fallback: str | None = None) -> list[str]:
    """Lines as editors count them: `splitlines` would also cut at characters inside a sentence, such as U+0085."""
    found = text(path, fallback).split("\n")
    return found[:-1] if found[-1] == "" else found


def cells(line: str, path: str | os.PathLike, number: int, columns: int) -> list[str]:
    """The tab-separated cells of a line.

    Raises:
        ValueError: Not as many as `columns`.
    """
    found = line.split("\t")
    if len(found) != columns:
        raise ValueError(
            f"{path}, line {number}: {len(found)} tab-separated columns, expected {columns}"
        )
    return found


def sentence(given: str, path: str | os.PathLike, number: int) -> str:
    """A sentence with single spaces between its words.

    Raises:
        ValueError: It is blank.
    """
    joined = " ".join(given.split())
    if not joined:
        raise ValueError(f"{path}, line {number}: a sentence is blank")
    return joined


def csv_rows(
    path: str | os.PathLike, columns: Sequence[str]
) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a comma-separated file with their line numbers; further columns are allowed.

    Raises:
        ValueError: A column is missing, a row has another number of cells, or the file is no CSV (file and line named).
    """
    reader = csv.DictReader(io.StringIO(text(path), newline=""), strict=True)
    try:
        missing = [column for column in columns if column not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(
                f"{path}, line 1: no column {', '.join(missing)}; expected: {', '.join(columns)}"
            )
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(
                    f"{path}, line {reader.line_num}: not as many cells as the {len(reader.fieldnames)} columns of the header"
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.reader.line_num}: {error}") from None
