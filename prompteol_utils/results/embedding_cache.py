"""Embeddings computed once, kept by encoder and sentence in one SQLite file per encoder."""

import hashlib
import json
import logging
import os
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from prompteol_utils.results.key import digest
from prompteol_utils.utils import files

VECTORS = 1  # to be raised when an encoder's vectors change for the same key
CHUNK = 1_024  # vectors between two commits: what a kill can cost
log = logging.getLogger(__name__)


class EmbeddingCache:
    """A cache of embeddings, written chunk by chunk and safe for two processes.

    Args:
        folder: Where the files go; None takes `embeddings` in `files.cache_folder`. 100,000 vectors
            of width 576 take 240 MB.
    """

    def __init__(self, folder: str | os.PathLike | None = None):
        self.folder = Path(folder) if folder is not None else files.cache_folder() / "embeddings"

    def wrap(self, encoder) -> Callable[..., np.ndarray]:
        """A function `encode(sentences)` that looks here first."""

        def encode(
            sentences: Sequence[str], *, show_progress_bar: bool | None = None
        ) -> np.ndarray:
            return self.encode(encoder, sentences, show_progress_bar=show_progress_bar)

        encode.key = encoder.key
        return encode

    def encode(
        self, encoder, sentences: str | Iterable[str], *, show_progress_bar: bool | None = None
    ) -> np.ndarray:
        """As `encoder.encode`, but only sentences that are new are encoded.

        Args:
            encoder: Has `encode(sentences, show_progress_bar=…)` and `key`, a dict of plain values
                that decides its vectors; `tokens`, if it has them, tell a tokenizer's change.
            sentences: Strings, or one string.
            show_progress_bar: None shows one for long work.

        Returns:
            float32 (n, d) in input order; (d,) for one string.

        Raises:
            CacheError: The disk is full, the folder read-only, or the file damaged; or its vectors
                were made of other tokens of the same text.
        """
        if isinstance(sentences, str):
            return self.encode(encoder, [sentences], show_progress_bar=show_progress_bar)[0]
        sentences = list(sentences)
        try:
            usable = [text.encode() for text in sentences if text.strip()]
        except (AttributeError, UnicodeEncodeError):
            usable = []
        if not sentences or len(usable) < len(sentences):  # the encoder names the bad sentence
            return encoder.encode(sentences, show_progress_bar=show_progress_bar)
        digests = [hashlib.sha256(text).digest() for text in usable]
        file = self._file(encoder.key)
        try:
            with closing(_open(file, encoder.key)) as database:
                _check_tokens(database, file, getattr(encoder, "tokens", None))
                return _encode(database, encoder, sentences, digests, show_progress_bar)
        except files.CacheError:
            raise
        except (sqlite3.DatabaseError, OSError) as error:
            raise files.CacheError(
                f"the embedding cache {file} cannot be used ({error}): free some space, "
                "delete the file if it is damaged, or set PROMPTEOL_CACHE to another folder"
            ) from error

    def _file(self, key: dict) -> Path:
        name = re.sub(r"[^A-Za-z0-9.]+", "-", str(key.get("model", "")))[-60:].strip("-.")
        return self.folder / f"{name or 'encoder'}-{digest([VECTORS, key])[:16]}.sqlite"


class CachedEncoder:
    """A function `encode(sentences)` that computes only what the project's cache does not hold.

    Where the cache folder cannot be written to, everything is computed, and that is said.

    Args:
        encoder: An `Encoder`.
        cache: None takes the project's.

    Attributes:
        new: Sentences that were computed so far.
    """

    def __init__(self, encoder, cache: EmbeddingCache | None = None):
        self.encoder = encoder
        self.key = encoder.key
        self.tokens = getattr(encoder, "tokens", None)
        self.new = 0
        try:
            self._cache = cache or EmbeddingCache()
        except files.CacheError as error:
            log.warning("no embedding is kept for later runs: %s", error)
            self._cache = None

    def __call__(self, sentences: Sequence[str]) -> np.ndarray:
        """Vectors float32 (n, d), in input order."""
        if self._cache is not None:
            return self._cache.encode(self, sentences)
        self.new += len(sentences)
        return self.encoder.encode(sentences)

    def stream(self, sentences: list[str], **options) -> Iterator[np.ndarray]:
        """What the cache asks for: new sentences only."""
        self.new += len(sentences)
        return self.encoder.stream(sentences, **options)

    def encode(self, sentences: list[str], **options) -> np.ndarray:
        """What the cache asks of sentences that cannot be embedded, so that they are named."""
        return self.encoder.encode(sentences, **options)


def _open(file: Path, key: dict) -> sqlite3.Connection:
    file.parent.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(file, timeout=120)
    try:
        try:
            _prepare(database, key, "WAL")
        except sqlite3.OperationalError:  # a network file system has no shared memory for it
            _prepare(database, key, "DELETE")
    except BaseException:
        database.close()
        raise
    return database


def _prepare(database: sqlite3.Connection, key: dict, journal: str) -> None:
    database.execute(f"PRAGMA journal_mode={journal}")
    database.execute("PRAGMA synchronous=NORMAL")
    with database:
        # `crc` is no longer read; files made before have it.
        columns = "text BLOB PRIMARY KEY, vector BLOB NOT NULL, crc INTEGER NOT NULL DEFAULT 0"
        database.execute(f"CREATE TABLE IF NOT EXISTS vectors ({columns})")
        database.execute("CREATE TABLE IF NOT EXISTS key (json TEXT PRIMARY KEY)")
        database.execute("INSERT OR IGNORE INTO key VALUES (?)", [json.dumps(key, sort_keys=True)])


def _check_tokens(database: sqlite3.Connection, file: Path, tokens: str | None) -> None:
    """A library may read the same files differently in another version; the key does not say so."""
    if tokens is None:
        return
    with database:
        database.execute("CREATE TABLE IF NOT EXISTS tokens (digest TEXT PRIMARY KEY)")
        database.execute(
            "INSERT INTO tokens SELECT ? WHERE NOT EXISTS (SELECT 1 FROM tokens)", [tokens]
        )
    if (before := database.execute("SELECT digest FROM tokens").fetchone()[0]) != tokens:
        raise files.CacheError(
            f"the vectors in {file} were made of other tokens of the same text ({before}, now "
            f"{tokens}: another version of a library?); delete it, or set PROMPTEOL_CACHE to "
            "another folder"
        )


def _encode(
    database: sqlite3.Connection,
    encoder,
    sentences: list[str],
    digests: list[bytes],
    show_progress_bar: bool | None,
) -> np.ndarray:
    text_of = dict(zip(digests, sentences, strict=True))
    vectors: dict[bytes, np.ndarray] = {}
    wanted = list(text_of)
    for start in range(0, len(wanted), 500):
        part = wanted[start : start + 500]
        query = f"SELECT text, vector FROM vectors WHERE text IN ({','.join('?' * len(part))})"
        for found, blob in database.execute(query, part):
            vectors[found] = np.frombuffer(blob, np.float32)
    # The longest first, so that a batch that does not fit shows at once.
    missing = [one for one in wanted if one not in vectors]
    missing.sort(key=lambda one: (-len(text_of[one]), text_of[one]))
    start = 0
    for chunk in _chunks(encoder, [text_of[one] for one in missing], show_progress_bar):
        new = dict(zip(missing[start : start + len(chunk)], chunk, strict=True))
        start += len(chunk)
        vectors |= new
        finite = [(one, row.tobytes()) for one, row in new.items() if np.isfinite(row).all()]
        with database:
            database.executemany(
                "INSERT OR REPLACE INTO vectors (text, vector, crc) VALUES (?, ?, 0)", finite
            )
    return np.stack([vectors[one] for one in digests])


def _chunks(encoder, texts: list[str], show_progress_bar: bool | None) -> Iterator[np.ndarray]:
    if not texts:
        return
    if hasattr(encoder, "stream"):
        parts = encoder.stream(texts, chunk=CHUNK, show_progress_bar=show_progress_bar)
    else:
        starts = range(0, len(texts), CHUNK)
        parts = (
            encoder.encode(texts[start : start + CHUNK], show_progress_bar=show_progress_bar)
            for start in starts
        )
    for part in parts:
        yield np.ascontiguousarray(part, np.float32)
