"""Sentences from a file and their vectors into a file, both streamed: what the `encode` command reads and writes."""

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, tee
from pathlib import Path

import numpy as np

from prompteol_utils import files

INPUTS = (".txt", ".csv", ".tsv", ".jsonl", ".parquet")
OUTPUTS = (".npy", ".parquet")
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
        SentenceFileError: File and line of a blank line, a missing column, broken UTF-8, broken JSON or a value that is no string.
    """
    path = Path(path)
    readers = {".txt": _lines, ".csv": _rows, ".tsv": _rows, ".jsonl": _objects, ".parquet": _table}
    if path.suffix.lower() not in readers:
        raise SentenceFileError(f"{path}: the input ends with one of {', '.join(INPUTS)}, not {path.suffix!r}")
    if not path.is_file():
        raise SentenceFileError(f"{path}: there is no such file")
    for line, sentence in readers[path.suffix.lower()](path, column):
        if not isinstance(sentence, str):
            raise SentenceFileError(f"{path}:{line}: a string is needed, not {sentence!r}")
        if not sentence.strip():
            raise SentenceFileError(f"{path}:{line}: a blank sentence; take it out, or write what it stands for")
        yield sentence


def _lines(path: Path, column: str | None = None) -> Iterator[tuple[int, str]]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise SentenceFileError(f"{path}:{number}: no valid UTF-8 at byte {error.start}") from None


def _rows(path: Path, column: str | None) -> Iterator[tuple[int, str]]:
    reader = csv.DictReader(
        (f"{line}\n" for _, line in _lines(path)), delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True
    )
    try:
        column = _column(path, column, reader.fieldnames or [])
        line = reader.line_num + 1  # where the row begins: a quoted sentence may run over several lines
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
        yield number, item[_column(f"{path}:{number}", column, list(item))] if isinstance(item, dict) else item


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
    told = f"no column is called {column!r}" if column else "name the column with the sentences (--text-column)"
    raise SentenceFileError(f"{where}: {told}; there are: {', '.join(map(str, names)) or 'none'}")


def encode_file(
    source: str | os.PathLike,
    target: str | os.PathLike,
    dimension: int,
    stream: Callable[[Iterable[str]], Iterator],
    column: str | None = None,
) -> int:
    """Embed a file; the result appears under its name only when it is whole.

    Args:
        source: As for `read_sentences`.
        target: .npy (float32, n x d) or .parquet (columns sentence, embedding).
        dimension: Width d of the vectors.
        stream: Sentences to float32 chunks (k, d) in order, as `Encoder.stream`.
        column: As for `read_sentences`.

    Returns:
        How many sentences.

    Raises:
        SentenceFileError: The source cannot be read, or changed meanwhile.
    """
    target = Path(target)
    check_target(target)
    total, done = sum(1 for _ in read_sentences(source, column)), 0
    sentences, kept = tee(read_sentences(source, column))
    with files.atomic_file(target) as file:
        write = _npy(file, total, dimension) if target.suffix == ".npy" else _parquet(file, dimension)
        for chunk in stream(sentences):
            write(chunk, list(islice(kept, len(chunk))))
            done += len(chunk)
        write(None, [])
        if done != total:
            raise SentenceFileError(f"{source} changed while it was read: {total} sentences at first, then {done}")
    return total


def check_target(target: str | os.PathLike) -> None:
    """Refuse an output name before any time is spent."""
    if Path(target).suffix not in OUTPUTS:
        raise SentenceFileError(f"{target}: the output ends with one of {', '.join(OUTPUTS)}")


def _npy(file, total: int, dimension: int) -> Callable:
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (total, dimension)})
    return lambda chunk, _: chunk is not None and file.write(np.ascontiguousarray(chunk, "<f4").tobytes())


def _parquet(file, dimension: int) -> Callable:
    import pyarrow
    import pyarrow.parquet

    vectors = pyarrow.list_(pyarrow.float32(), dimension)
    writer = pyarrow.parquet.ParquetWriter(file, pyarrow.schema([("sentence", pyarrow.string()), ("embedding", vectors)]))

    def write(chunk, sentences):
        if chunk is None:
            return writer.close()
        flat = pyarrow.array(np.ascontiguousarray(chunk, np.float32).reshape(-1))
        arrays = [pyarrow.array(sentences, pyarrow.string()), pyarrow.FixedSizeListArray.from_arrays(flat, dimension)]
        return writer.write_table(pyarrow.Table.from_arrays(arrays, schema=writer.schema))

    return write
