"""Embeddings computed once: vectors kept by encoder and sentence, in a form that survives kills and serves two processes."""

import hashlib
import json
import os
import re
import sqlite3
import warnings
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from prompteol_utils.results.key import digest as key_digest
from prompteol_utils.utils import files

VECTORS = 1  # raise it when an encoder's vectors change for the same key: the old ones are then not found any more
CHUNK = 1_024  # vectors between two commits: what a kill can cost


class EmbeddingCache:
    """Embeddings computed once: one SQLite file per encoder (its ``key``), written chunk by chunk, safe for two processes.

    Args:
        folder: where the files go; None takes ``embeddings`` in `files.cache_folder`. 100,000 vectors of width 576 take 240 MB.
    """

    def __init__(self, folder: str | os.PathLike | None = None):
        self.folder = Path(folder) if folder is not None else files.cache_folder() / "embeddings"

    def wrap(self, encoder) -> Callable[..., np.ndarray]:
        """A function ``encode(sentences)`` that looks here first, with the encoder's ``key`` as its attribute."""

        def encode(
            sentences: Sequence[str], *, show_progress_bar: bool | None = None
        ) -> np.ndarray:
            return self.encode(encoder, sentences, show_progress_bar=show_progress_bar)

        encode.key = encoder.key
        return encode

    def encode(
        self, encoder, sentences: "str | Iterable[str]", *, show_progress_bar: bool | None = None
    ) -> np.ndarray:
        """As ``encoder.encode``, but only the sentences that are new are run; a kill loses at most the last 1,024 of them.

        Args:
            encoder: has ``encode(sentences, show_progress_bar=…)`` and ``key``, a dict of plain values that decides its vectors.
            sentences: a list or any iterable of strings, or one string.
            show_progress_bar: None shows one for long work.

        Returns:
            float32 (n, d) in input order; (d,) for one string.

        Raises:
            CacheError: the disk is full or the folder read-only. A corrupt file is set aside with a warning, and made again.
        """
        if isinstance(sentences, str):
            return self.encode(encoder, [sentences], show_progress_bar=show_progress_bar)[0]
        sentences = list(sentences)
        try:
            usable = [text.encode() for text in sentences if text.strip()]
        except (AttributeError, UnicodeEncodeError):
            usable = []
        if not sentences or len(usable) < len(
            sentences
        ):  # for the encoder to refuse: it names the sentence
            return encoder.encode(sentences, show_progress_bar=show_progress_bar)
        digests = [hashlib.sha256(text).digest() for text in usable]
        file = self._file(encoder.key)
        for last in (False, True):
            before = file.stat().st_ino if file.exists() else None
            try:
                with closing(_open(file, encoder.key)) as database:
                    return _encode(database, encoder, sentences, digests, show_progress_bar)
            except sqlite3.DatabaseError as error:
                if last or error.sqlite_errorcode & 0xFF not in (
                    sqlite3.SQLITE_CORRUPT,
                    sqlite3.SQLITE_NOTADB,
                ):
                    raise files.CacheError(
                        f"the embedding cache {file} cannot be used ({error}): free some space or set PROMPTEOL_CACHE"
                    ) from error
                _set_aside(file, before)

    def _file(self, key: dict) -> Path:
        content = key_digest([VECTORS, key])
        name = re.sub(r"[^A-Za-z0-9.]+", "-", str(key.get("model", "")))[-60:].strip("-.")
        return self.folder / f"{name or 'encoder'}-{content[:16]}.sqlite"


def _open(file: Path, key: dict) -> sqlite3.Connection:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(file, timeout=120)
    except (OSError, sqlite3.OperationalError) as error:
        raise files.CacheError(
            f"the embedding cache {file} cannot be opened ({error}): set PROMPTEOL_CACHE to a folder you can write to"
        ) from error
    try:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=NORMAL")
        with database:
            database.execute(
                "CREATE TABLE IF NOT EXISTS vectors (text BLOB PRIMARY KEY, vector BLOB NOT NULL, crc INTEGER NOT NULL)"
            )
            database.execute("CREATE TABLE IF NOT EXISTS key (json TEXT PRIMARY KEY)")
            database.execute(
                "INSERT OR IGNORE INTO key VALUES (?)", [json.dumps(key, sort_keys=True)]
            )
    except BaseException:
        database.close()
        raise
    return database


def _set_aside(file: Path, inode: int | None) -> None:
    with files.lock(file):
        if not file.exists() or file.stat().st_ino != inode:
            return  # another process did it first
        warnings.warn(
            f"{file} is corrupt; it is kept as {file.name}.corrupt, and its embeddings are computed again",
            stacklevel=4,
        )
        os.replace(file, f"{file}.corrupt")
        for rest in ("-wal", "-shm"):
            Path(f"{file}{rest}").unlink(missing_ok=True)


def _encode(
    database: sqlite3.Connection,
    encoder,
    sentences: list[str],
    digests: list[bytes],
    show: bool | None,
) -> np.ndarray:
    rows: dict[bytes, list[int]] = {}
    for row, text in enumerate(digests):
        rows.setdefault(text, []).append(row)
    found, out = set(), None
    wanted = list(rows)
    for start in range(0, len(wanted), 500):
        part = wanted[start : start + 500]
        marks = ",".join("?" * len(part))
        for digest, blob, crc in database.execute(
            f"SELECT text, vector, crc FROM vectors WHERE text IN ({marks})", part
        ):
            if zlib.crc32(blob) == crc:
                vector = np.frombuffer(blob, np.float32)
                out = np.empty((len(sentences), len(vector)), np.float32) if out is None else out
                out[rows[digest]] = vector
                found.add(digest)
    # The longest first, so that a batch that does not fit shows at once; ties by text, so that a resumed run makes the same chunks.
    missing = sorted(
        (sentences[rows[digest][0]] for digest in wanted if digest not in found),
        key=lambda text: (-len(text), text),
    )
    done = 0
    for vectors in _chunks(encoder, missing, show):
        texts = missing[done : done + len(vectors)]
        done += len(vectors)
        out = np.empty((len(sentences), vectors.shape[1]), np.float32) if out is None else out
        with database:
            for text, vector in zip(texts, vectors, strict=True):
                digest, blob = hashlib.sha256(text.encode()).digest(), vector.tobytes()
                out[rows[digest]] = vector
                if np.isfinite(vector).all():
                    database.execute(
                        "INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)",
                        [digest, blob, zlib.crc32(blob)],
                    )
    return out


def _chunks(encoder, texts: list[str], show: bool | None) -> Iterable[np.ndarray]:
    if not texts:
        return
    if hasattr(encoder, "stream"):
        parts = encoder.stream(texts, chunk=CHUNK, show_progress_bar=show)
    else:
        parts = (
            encoder.encode(texts[start : start + CHUNK], show_progress_bar=show)
            for start in range(0, len(texts), CHUNK)
        )
    for part in parts:
        yield np.ascontiguousarray(part, np.float32)
