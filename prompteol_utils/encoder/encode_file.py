"""A file of sentences to a file of vectors, chunk by chunk, resumable.

Beside the output lies `NAME.json`: whose vectors they are, and a digest of each finished chunk's
sentences. Until the output is whole the vectors lie in `NAME.part`, a .npy file of full size. A
chunk is on the disk before the JSON counts it, so a kill costs one chunk at most; its borders are
the same in every run, so the batches, and with them the bytes, are the same too.
"""

import hashlib
import json
import os
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice, zip_longest
from pathlib import Path
from typing import NoReturn

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

from prompteol_utils.data.readers import SentenceFileError, numbered_sentences
from prompteol_utils.encoder.inputs import QUIET_BELOW
from prompteol_utils.results.embedding_cache import VECTORS
from prompteol_utils.utils import files

OUTPUTS = (".npy", ".parquet")
CHUNK = 2_048  # sentences between two commits: what a kill can cost, and what is in memory


def encode_file(
    source: str | os.PathLike, target: str | os.PathLike, encoder, column: str | None = None
) -> int:
    """Embed a file; the output appears under its name only when it is whole.

    A run that was cut off is resumed, and chunks whose sentences were edited meanwhile are embedded
    again. On one machine the bytes do not depend on where a run was cut off. An output that is
    finished is left alone.

    Args:
        source: As for `read_sentences`; read through once before the first sentence is embedded.
        target: .npy (float32, n x d; `numpy.load(…, mmap_mode="r")` opens it without reading it) or
            .parquet (columns sentence, embedding).
        encoder: Has `key`, `dimension` and `stream`, as `Encoder`.
        column: As for `read_sentences`.

    Returns:
        How many sentences.

    Raises:
        SentenceFileError: The source cannot be read or embedded (file and line are named) or
            changed meanwhile; the output or the unfinished work beside it is of another model,
            prompt or text; another process is writing it.
        files.CacheError: The disk is full or the folder read-only. Finished chunks are kept.
    """
    target = Path(os.path.realpath(target))
    check_target(target)
    with _locked(target):
        sizes, digests = [], []
        for chunk in _chunks(source, column):
            sizes.append(len(chunk))
            digests.append(_digest(chunk))
        total = sum(sizes)
        job = _Job(target, encoder, total, digests)
        if job.finished:
            print(f"{target.name}: done before, with the same settings", file=sys.stderr)
            return total
        with job.writing():
            job.open()
        done = sum(size for size, todo in zip(sizes, job.todo, strict=True) if not todo)
        if done:
            print(f"{target.name}: {done:,} of {total:,} sentences are done", file=sys.stderr)
        options = {"unit": "sentence", "desc": target.name, "leave": False}
        if total - done < QUIET_BELOW:
            options["disable"] = True
        with tqdm(total=total, initial=done, **options) as bar:
            _embed(source, column, encoder, job, bar)
        with job.writing():
            job.finish(source, column)
    return total


def check_target(target: str | os.PathLike) -> None:
    """Refuse an output name before any time is spent."""
    if Path(target).suffix not in OUTPUTS:
        raise SentenceFileError(f"{target}: the output ends with one of {', '.join(OUTPUTS)}")


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Keep a second process away from the same output."""
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(target.with_name(f".{target.name}.lock"), thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise SentenceFileError(
            f"{target}: another process is writing it; wait for it, or choose another output"
        ) from None
    try:
        yield
    finally:
        with suppress(OSError):
            os.unlink(lock.lock_file)
        lock.release()


def _chunks(source: str | os.PathLike, column: str | None) -> Iterator[list[tuple[int, str]]]:
    """Chunks of (line, sentence)."""
    numbered = numbered_sentences(source, column)
    while chunk := list(islice(numbered, CHUNK)):
        yield chunk


def _digest(chunk: list[tuple[int, str]]) -> str:
    digest = hashlib.sha256()
    for _, sentence in chunk:
        text = sentence.encode()
        digest.update(b"%d:" % len(text) + text)  # the length, so that two sentences are not one
    return digest.hexdigest()


def _embed(source: str | os.PathLike, column: str | None, encoder, job: "_Job", bar: tqdm) -> None:
    """Embed the chunks that are not done yet, and commit each."""
    pending: deque[tuple[int, list[int]]] = deque()  # index and lines of chunks that were read
    embedded = 0

    def sentences() -> Iterator[str]:
        for index, chunk in enumerate(job.checked(_chunks(source, column), source)):
            if job.todo[index]:
                pending.append((index, [line for line, _ in chunk]))
                yield from (sentence for _, sentence in chunk)

    try:
        for vectors in encoder.stream(sentences(), chunk=CHUNK, bar=bar):
            with job.writing():
                job.append(pending[0][0], vectors)
            pending.popleft()
            embedded += len(vectors)
    except ValueError as error:
        if (index := getattr(error, "index", None)) is None:  # not about a single sentence
            raise
        line = [line for _, lines in pending for line in lines][index - embedded]
        reason = str(error).partition(": ")[2]
        raise SentenceFileError(f"{source}:{line}: {reason} ({job.kept})") from error


def _differences(before: dict, now: dict) -> Iterator[str]:
    for name, value in now.items():
        if isinstance(value, dict) and isinstance(before.get(name), dict):
            yield from _differences(before[name], value)
        elif before.get(name) != value:
            yield f"{name} was {before.get(name)!r:.80}, now {value!r:.80}"


class _Job:
    """The work on one output.

    Args:
        target: The output.
        encoder: Whose vectors they are.
        total: Sentences of the source.
        digests: Of its chunks.

    Attributes:
        finished: The output is there and holds exactly this.
        todo: Per chunk, whether it must be embedded.

    Raises:
        SentenceFileError: What lies there is of another encoder or text.
    """

    def __init__(self, target: Path, encoder, total: int, digests: list[str]):
        self.target = target
        self.part = target.with_name(f"{target.name}.part")
        self.state = target.with_name(f"{target.name}.json")
        self.shape = (total, encoder.dimension)
        self.digests = digests
        identity = {
            "encoder": encoder.key,
            "dimension": encoder.dimension,
            "vectors": VECTORS,
            "chunk": CHUNK,
        }
        self.identity = json.loads(json.dumps(identity))
        before = {}
        if self.state.is_file() and (target.is_file() or self.part.is_file()):
            before = json.loads(self.state.read_text(encoding="utf-8"))
        if not before or "tokens" in before:  # a library's version may change them; the key stays
            self.identity["tokens"] = getattr(encoder, "tokens", None)
        done = before.pop("chunks", [])
        self.todo = [old != new for old, new in zip_longest(done[: len(digests)], digests)]
        self.finished = target.is_file() and self._is_finished(before, done)
        if not self.finished and any(done):
            self._check_unfinished(before)

    def _is_finished(self, before: dict, done: list) -> bool:
        if not before:
            self._refuse(f"{self.target} is there, and nothing says whose vectors it holds")
        if changed := list(_differences(before, self.identity)):
            self._refuse(f"{self.target} is of another run ({'; '.join(changed)})")
        if done != self.digests:
            self._refuse(f"{self.target} holds the vectors of another text")
        return True

    def _check_unfinished(self, before: dict) -> None:
        if changed := list(_differences(before, self.identity)):
            self._refuse(f"{self.part} is unfinished work of another run ({'; '.join(changed)})")
        if all(self.todo):
            self._refuse(f"{self.part} is unfinished work on another text")

    def _refuse(self, reason: str) -> NoReturn:
        path = self.target if self.target.is_file() else self.part
        raise SentenceFileError(
            f"{reason}; choose another output, or delete {path.name} and {self.state.name} to "
            "start anew"
        )

    @property
    def kept(self) -> str:
        """What an error leaves."""
        done = sum(not todo for todo in self.todo)
        return f"{min(done * CHUNK, self.shape[0]):,} sentences are kept for the next run"

    def checked(self, chunks: Iterator[list], source: str | os.PathLike) -> Iterator[list]:
        """Chunks of the source as it was when it was read first."""
        for chunk, digest in zip_longest(chunks, self.digests):
            if chunk is None or _digest(chunk) != digest:
                raise SentenceFileError(f"{source} changed while it was read; run it again")
            yield chunk

    def open(self) -> None:
        """Make a file for all vectors, with those that are done, and reserve its space."""
        if all(self.todo):
            self.state.unlink(missing_ok=True)  # what it counts is gone with the next line
            self._create(self.part)
        elif (old := np.load(self.part, mmap_mode="r")).shape != self.shape:
            resized = self.part.with_name(f"{self.part.name}2")
            kept = min(len(old), self.shape[0])
            self._create(resized)[:kept] = old[:kept]
            os.replace(resized, self.part)

    def _create(self, path: Path) -> np.memmap:
        vectors = np.lib.format.open_memmap(path, "w+", np.dtype("<f4"), self.shape)
        if hasattr(os, "posix_fallocate"):  # a full disk is an error here, not a crash later
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, max(path.stat().st_size, 1))
        return vectors

    def append(self, index: int, vectors: np.ndarray) -> None:
        """Keep a chunk of float32 (k, d): first its vectors, then its digest."""
        kept = np.lib.format.open_memmap(self.part, "r+")
        kept[index * CHUNK : index * CHUNK + len(vectors)] = vectors
        kept.flush()
        self.todo[index] = False
        self._save()

    def _save(self) -> None:
        pairs = zip(self.todo, self.digests, strict=True)
        chunks = [None if todo else digest for todo, digest in pairs]
        with files.atomic_file(self.state, "w") as file:
            json.dump(self.identity | {"chunks": chunks}, file, indent=1, ensure_ascii=False)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Say what to do when the disk is full or the folder read-only."""
        try:
            yield
        except OSError as error:
            reason = getattr(error.__cause__, "strerror", None) or error.strerror or error
            raise files.CacheError(
                f"{self.target} could not be written ({reason}): it needs "
                f"{4e-6 * self.shape[0] * self.shape[1]:,.0f} MB on its disk; {self.kept}"
            ) from error

    def finish(self, source: str | os.PathLike, column: str | None) -> None:
        """Give the vectors the target's name, or write them with their sentences to a table."""
        if self.target.suffix == ".npy":
            os.replace(self.part, self.target)
        else:
            self._write_parquet(source, column)
            self.part.unlink()

    def _write_parquet(self, source: str | os.PathLike, column: str | None) -> None:
        import pyarrow
        import pyarrow.parquet

        width = self.shape[1]
        vectors = pyarrow.list_(pyarrow.float32(), width)
        schema = pyarrow.schema([("sentence", pyarrow.string()), ("embedding", vectors)])
        with (
            files.atomic_file(self.target) as out,
            pyarrow.parquet.ParquetWriter(out, schema) as writer,
        ):
            for index, chunk in enumerate(self.checked(_chunks(source, column), source)):
                start = index * CHUNK
                part = np.load(self.part, mmap_mode="r")[start : start + len(chunk)]
                columns = [
                    pyarrow.array([sentence for _, sentence in chunk], pyarrow.string()),
                    pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(part.reshape(-1)), width),
                ]
                writer.write_table(pyarrow.Table.from_arrays(columns, schema=schema))
