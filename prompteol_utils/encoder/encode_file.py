"""A file of sentences into a file of vectors, chunk by chunk: memory stays flat, and a killed run goes on where it was.

Beside the output lie, until it is whole, `NAME.part` (a .npy file that grows) and `NAME.part.json` (whose vectors these are, and how
many). A chunk is on the disk before the second file counts it, so a kill costs one chunk at most; its borders are the same in every run,
so the batches, and with them the bytes, are the same too.
"""

import hashlib
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

from prompteol_utils.data.readers import SentenceFileError, numbered_sentences
from prompteol_utils.results.embedding_cache import VECTORS
from prompteol_utils.utils import files

OUTPUTS = (".npy", ".parquet")
CHUNK = 2_048  # sentences between two commits: what a kill can cost, and what is in memory; its borders decide the batches
QUIET_BELOW = 256  # sentences for which no progress bar is shown


def encode_file(
    source: str | os.PathLike, target: str | os.PathLike, encoder, column: str | None = None
) -> int:
    """Embed a file; the result appears under its name only when it is whole, and a run that was cut off goes on where it was.

    On one machine the bytes do not depend on where a run was cut off. Sentences may be mended or added after those that are done.

    Args:
        source: As for `read_sentences`. It is read through once before the first sentence is embedded.
        target: .npy (float32, n x d; `numpy.load(…, mmap_mode="r")` opens it without reading it) or .parquet (columns sentence, embedding).
        encoder: Has `key`, `dimension` and `stream`, as `Encoder`.
        column: As for `read_sentences`.

    Returns:
        How many sentences.

    Raises:
        SentenceFileError: The source cannot be read or embedded (file and line are named) or changed meanwhile; the unfinished work
            beside the target is of another model, prompt or text; another process is at work on it.
        files.CacheError: The disk is full or the folder read-only. The finished chunks are kept.

    Source: the project's own; the model's work on each chunk is built in notebook 01.
    """
    target = Path(os.path.realpath(target))
    check_target(target)
    with _alone(target):
        part = _Part(target, encoder)
        total, digest, whole = _look_through(source, column, part.done)
        part.begin(total, digest)
        quiet = {} if total - part.done >= QUIET_BELOW else {"disable": True}
        with tqdm(
            total=total, initial=part.done, unit="sentence", desc=target.name, leave=False, **quiet
        ) as bar:
            _embed(source, column, encoder, part, bar)
        if (part.done, part.digest.hexdigest()) != (total, whole):
            raise SentenceFileError(f"{source} changed while it was read; {part.advice}")
        part.finish(source, column)
    return total


def check_target(target: str | os.PathLike) -> None:
    """Refuse an output name before any time is spent."""
    if Path(target).suffix not in OUTPUTS:
        raise SentenceFileError(f"{target}: the output ends with one of {', '.join(OUTPUTS)}")


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Two processes on one output would write into each other's part."""
    target.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(target.with_name(f".{target.name}.lock"), thread_local=False)
    try:
        held.acquire(blocking=False)
    except Timeout:
        raise SentenceFileError(
            f"{target}: another process is writing it; wait for it, or choose another output"
        ) from None
    try:
        yield
    finally:
        with suppress(OSError):
            os.unlink(held.lock_file)
        held.release()


def _look_through(
    source: str | os.PathLike, column: str | None, done: int
) -> tuple[int, "hashlib._Hash", str]:
    """How many sentences there are, the digest of the first `done` of them (ready to go on), and of all."""
    digest, total = hashlib.sha256(), 0
    at_done = digest.copy()
    for total, (_, sentence) in enumerate(numbered_sentences(source, column), 1):
        _add(digest, sentence)
        if total == done:
            at_done = digest.copy()
    return total, at_done, digest.hexdigest()


def _add(digest: "hashlib._Hash", sentence: str) -> None:
    text = sentence.encode()
    digest.update(b"%d:" % len(text) + text)  # the length, so that two sentences are not one


def _embed(
    source: str | os.PathLike, column: str | None, encoder, part: "_Part", bar: tqdm
) -> None:
    """Embed what is not done yet, and commit each chunk."""
    lines: list[int] = []  # of the chunk that is at work
    first = part.done

    def rest() -> Iterator[str]:
        for line, sentence in islice(numbered_sentences(source, column), first, None):
            lines.append(line)
            _add(part.digest, sentence)
            yield sentence

    try:
        for vectors in encoder.stream(rest(), chunk=CHUNK, bar=bar):
            part.append(vectors)
            lines.clear()
    except ValueError as error:
        if (index := getattr(error, "index", None)) is None:  # not about a single sentence
            raise
        line, reason = lines[index - (part.done - first)], str(error).partition(": ")[2]
        raise SentenceFileError(f"{source}:{line}: {reason} ({part.kept})") from error


def _differences(before: dict, now: dict) -> Iterator[str]:
    for name, value in now.items():
        if isinstance(value, dict) and isinstance(before.get(name), dict):
            yield from _differences(before[name], value)
        elif before.get(name) != value:
            yield f"{name} was {before.get(name)!r:.80}, now {value!r:.80}"


class _Part:
    """Unfinished work beside its target.

    Args:
        target: The output.
        encoder: Whose vectors they are.

    Raises:
        SentenceFileError: What lies there is another encoder's.
    """

    def __init__(self, target: Path, encoder):
        self.target, self.dimension, self.done = target, encoder.dimension, 0
        self.path, self.state = (
            target.with_name(f"{target.name}.part{end}") for end in ("", ".json")
        )
        self.run = json.loads(
            json.dumps(
                {
                    "encoder": encoder.key,
                    "dimension": self.dimension,
                    "vectors": VECTORS,
                    "chunk": CHUNK,
                }
            )
        )
        self.before: dict = {}
        if self.path.is_file() and self.state.is_file():  # the one without the other is of no use
            self.before = json.loads(self.state.read_text(encoding="utf-8"))
            if changed := list(_differences(self.before, self.run)):
                raise SentenceFileError(
                    f"{self.path} is unfinished work of another run ({'; '.join(changed)}); {self.advice}"
                )
            self.done = self.before["done"]

    @property
    def advice(self) -> str:
        """What to do with work that does not fit."""
        return (
            f"choose another output, or delete {self.path.name} and {self.state.name} to start anew"
        )

    @property
    def kept(self) -> str:
        """What an error leaves."""
        return f"{self.done:,} sentences are kept, the same command goes on from there"

    def begin(self, total: int, digest: "hashlib._Hash") -> None:
        """Make ready for `total` sentences, of which the first ones, with this digest, may be done."""
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "<f4", "fortran_order": False, "shape": (total, self.dimension)}
        )
        header = header.getvalue()
        self.start = len(header)  # the same for any total: the format leaves room for its digits
        if self.done > total or self.before.get("sha256", digest.hexdigest()) != digest.hexdigest():
            raise SentenceFileError(
                f"{self.path} is unfinished work on another text: one of the first {self.done:,} sentences was changed, added or taken "
                f"out; {self.advice}"
            )
        whole = (
            self.done == total or self.done % CHUNK == 0
        )  # else sentences came after the last, short chunk
        if self.done and not (whole and self.path.stat().st_size >= self._end):
            print(
                f"{self.path.name} does not end at the border of a chunk: starting anew",
                file=sys.stderr,
            )
            self.done, digest = 0, hashlib.sha256()
        self.digest = digest
        need = (total - self.done + total * (self.target.suffix == ".parquet")) * 4 * self.dimension
        if (free := shutil.disk_usage(self.target.parent).free) < need:
            raise files.CacheError(
                f"{self.target} needs {need / 1e6:,.0f} MB and its disk has {free / 1e6:,.0f} MB free; {self.kept}"
            )
        if self.done:
            print(
                f"{self.path.name}: {self.done:,} of {total:,} sentences are done; going on",
                file=sys.stderr,
            )
        with self._writing():
            if not self.done:
                self.state.unlink(missing_ok=True)  # what it counts is gone with the next line
            with open(self.path, "r+b" if self.done else "wb") as file:
                file.write(header)
                file.truncate(self._end)  # what was written and not counted
            self._save()

    @property
    def _end(self) -> int:
        return self.start + self.done * 4 * self.dimension

    def append(self, vectors: np.ndarray) -> None:
        """Keep a chunk of float32 (k, d): first its vectors, then the count of them."""
        with self._writing():
            with open(self.path, "r+b") as file:
                file.seek(self._end)
                file.write(np.ascontiguousarray(vectors, "<f4").tobytes())
                file.flush()
                os.fsync(file.fileno())
            done, self.done = self.done, self.done + len(vectors)
            try:
                self._save()
            except OSError:
                self.done = done
                raise

    def _save(self) -> None:
        with files.atomic_file(self.state, "w") as file:
            json.dump(
                self.run | {"done": self.done, "sha256": self.digest.hexdigest()},
                file,
                indent=1,
                ensure_ascii=False,
            )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = getattr(error.__cause__, "strerror", None) or error.strerror or error
            raise files.CacheError(
                f"{self.target} could not be written ({reason}): free some space on its disk; {self.kept}"
            ) from error

    def finish(self, source: str | os.PathLike, column: str | None) -> None:
        """Give the vectors the target's name, or put them with their sentences into a table of that name."""
        with self._writing():
            if self.target.suffix == ".parquet":
                self._to_parquet(source, column)
                self.path.unlink()
            else:
                os.replace(self.path, self.target)
            self.state.unlink()

    def _to_parquet(self, source: str | os.PathLike, column: str | None) -> None:
        import pyarrow
        import pyarrow.parquet

        width, digest = self.dimension, hashlib.sha256()
        schema = pyarrow.schema(
            [("sentence", pyarrow.string()), ("embedding", pyarrow.list_(pyarrow.float32(), width))]
        )
        sentences = (
            sentence for _, sentence in islice(numbered_sentences(source, column), self.done)
        )
        with files.atomic_file(self.target) as out, open(self.path, "rb") as vectors:
            vectors.seek(self.start)
            with pyarrow.parquet.ParquetWriter(out, schema) as writer:
                while texts := list(islice(sentences, CHUNK)):
                    for text in texts:
                        _add(digest, text)
                    flat = pyarrow.array(np.fromfile(vectors, "<f4", len(texts) * width))
                    columns = [
                        pyarrow.array(texts, pyarrow.string()),
                        pyarrow.FixedSizeListArray.from_arrays(flat, width),
                    ]
                    writer.write_table(pyarrow.Table.from_arrays(columns, schema=schema))
            if digest.hexdigest() != self.digest.hexdigest():  # the file was read again
                raise SentenceFileError(f"{source} changed while it was read; {self.advice}")
