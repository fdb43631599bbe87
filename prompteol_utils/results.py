"""The one store of finished work: rows with provenance, the embedding cache, the paper's numbers beside ours."""

import hashlib
import json
import math
import os
import platform
import sqlite3
import subprocess
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd

from prompteol_utils import files

ROOT = Path(__file__).resolve().parent.parent
PAPER = ROOT / "data" / "paper"
PROVENANCE = ("seed", "versions", "commit")
STS_FIELDS = (
    *("model", "prompt", "demonstrations", "quantization", "adapter", "task", "split", "n", "spearman", "spearman_subset_mean"),
    *("origin", "text_form", "weight_origin", "dtype", "seconds", *PROVENANCE),
)
_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")


def provenance(seed: int = 0) -> dict:
    """What every row says about where it was computed.

    Args:
        seed: The seed that the computation used.

    Returns:
        seed, versions (Python and the packages that decide a number), commit (of this project's checkout; "+dirty" where the package's
        code differs from it, "unknown" outside git).
    """
    versions = {"python": platform.python_version()} | {name: metadata.version(name) for name in _PACKAGES}

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD") + ("+dirty" if git("status", "--porcelain", "--", "prompteol_utils") else "")
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {"seed": seed, "versions": versions, "commit": commit}


class Store:
    """Rows of finished work in one JSON-lines file, safe for two processes and for a kill at any moment.

    Args:
        path: The file; made with its first row.

    Built in notebook 01.
    """

    def __init__(self, path: "str | os.PathLike"):
        self.path = Path(path)

    def append(self, row: dict) -> None:
        """Add a row: a score (all of `STS_FIELDS`), or another measure, which names its `kind` and its provenance.

        Args:
            row: Plain JSON values.

        Raises:
            ValueError: A required field is missing, or a number is NaN or infinite.
        """
        required = STS_FIELDS if "kind" not in row else ("kind", *PROVENANCE)
        if missing := [field for field in required if field not in row]:
            raise ValueError(
                f"a row without {', '.join(missing)}; a score needs {', '.join(STS_FIELDS)}, another measure kind + provenance"
            )
        if bad := [name for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)]:
            raise ValueError(f"a row whose {', '.join(bad)} is not a finite number: {[row[name] for name in bad]}")
        line = json.dumps(row, ensure_ascii=False, allow_nan=False, sort_keys=True).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with files.lock(self.path.with_name(f".{self.path.name}.lock")):
            self._rows(repair=True)
            with open(self.path, "ab", buffering=0) as out:
                out.write(line)  # one write: a kill leaves the whole line, or a torn last one that the next append drops
                os.fsync(out.fileno())

    def rows(self) -> list[dict]:
        """Return all rows as dicts, in the order of writing.

        Raises:
            ValueError: A broken line before the last one; the message names file and line.
        """
        return self._rows()

    def read(self) -> pd.DataFrame:
        """Return all rows as a table, in the order of writing; an empty one where there is no file yet."""
        return pd.DataFrame(self._rows())

    def done(self, key: dict) -> bool:
        """Tell whether some row agrees with `key` on every field of it (a field that a row lacks counts as None)."""
        key = json.loads(json.dumps(key))
        return any(all(row.get(name) == value for name, value in key.items()) for row in self._rows())

    def _rows(self, repair: bool = False) -> list[dict]:
        if not self.path.exists():
            return []
        content, rows, good = self.path.read_bytes(), [], 0
        lines = content.splitlines(keepends=True)
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                if not isinstance(row, dict) or not line.endswith(b"\n"):
                    raise ValueError("torn")
            except ValueError as error:
                if number < len(lines):
                    raise ValueError(f"{self.path}:{number}: not a JSON row ({error}); repair or delete this line") from error
                if repair:
                    warnings.warn(f"{self.path}:{number}: a torn last row (a killed run) is dropped", stacklevel=3)
                    os.truncate(self.path, good)
                break
            rows.append(row)
            good += len(line)
        return rows


class EmbeddingCache:
    """Vectors that were computed once: one SQLite file for each encoder, so that a second run encodes nothing.

    An encoder is anything with `key` (a dict of all that decides a vector: model, weight origin, prompt, dtype, …) and `encode`.

    Args:
        folder: Where the files are; None takes `embeddings` in the cache folder.

    Built in notebook 01.
    """

    def __init__(self, folder: "str | os.PathLike | None" = None):
        self.folder = Path(folder) if folder else files.cache_folder() / "embeddings"

    def wrap(self, encoder) -> Callable[[Sequence[str]], np.ndarray]:
        """Return an `encode` function for `encoder` that looks here first."""
        return lambda sentences, **options: self.encode(encoder, sentences, **options)

    def path(self, encoder) -> Path:
        """Return the file of an encoder's vectors."""
        identity = json.dumps(encoder.key, sort_keys=True, default=str)
        return self.folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:24]}.sqlite"

    def encode(self, encoder, sentences: Sequence[str], *, show_progress_bar: bool | None = None, chunk: int = 1024) -> np.ndarray:
        """Embed sentences, computing only those that are not stored.

        Args:
            encoder: As above.
            sentences: Strings.
            show_progress_bar: Handed to the encoder.
            chunk: Sentences computed between two commits: what a kill loses at most.

        Returns:
            float32 (n, d) in input order.
        """
        sentences = list(sentences)
        if not sentences or not all(isinstance(sentence, str) for sentence in sentences):
            return encoder.encode(sentences)  # its errors and its empty result are the right ones
        names = {sentence: hashlib.sha256(sentence.encode("utf-8", "surrogatepass")).digest() for sentence in sentences}
        with self._database(encoder) as database:
            known = self._read(database, list(names.values()))
            missing = [sentence for sentence, name in names.items() if name not in known]
            missing.sort(key=len, reverse=True)  # like lengths share a chunk, so padding stays small
            for start in range(0, len(missing), chunk):
                part = missing[start : start + chunk]
                for sentence, vector in zip(part, encoder.encode(part, show_progress_bar=show_progress_bar), strict=True):
                    known[names[sentence]] = vector
                with database:
                    rows = [(names[sentence], known[names[sentence]].astype("<f4").tobytes()) for sentence in part]
                    database.executemany("INSERT OR IGNORE INTO vectors VALUES (?, ?)", rows)
        return np.stack([known[names[sentence]] for sentence in sentences])

    @contextmanager
    def _database(self, encoder) -> Iterator[sqlite3.Connection]:
        path = self.path(encoder)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            database = self._open(path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # locked, read-only, full: not the file's fault
                raise files.CacheError(f"the embedding cache {path} cannot be used ({error}); PROMPTEOL_CACHE moves it") from error
            warnings.warn(f"the embedding cache {path} is damaged; it is set aside and made anew", stacklevel=4)
            path.replace(path.with_suffix(".damaged"))
            for extra in ("-wal", "-shm"):
                Path(f"{path}{extra}").unlink(missing_ok=True)
            database = self._open(path)
        with closing(database):
            yield database

    @staticmethod
    def _open(path: Path) -> sqlite3.Connection:
        database = sqlite3.connect(path, timeout=60)
        try:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("CREATE TABLE IF NOT EXISTS vectors (text BLOB PRIMARY KEY, vector BLOB NOT NULL) WITHOUT ROWID")
            if database.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                raise sqlite3.DatabaseError("damaged")
        except BaseException:
            database.close()
            raise
        return database

    @staticmethod
    def _read(database: sqlite3.Connection, names: list[bytes]) -> dict[bytes, np.ndarray]:
        found = {}
        for start in range(0, len(names), 900):  # SQLite's limit on variables
            part = names[start : start + 900]
            marks = ",".join("?" * len(part))
            for name, vector in database.execute(f"SELECT text, vector FROM vectors WHERE text IN ({marks})", part):
                found[name] = np.frombuffer(vector, "<f4")
        return found


def paper_table(name: str) -> pd.DataFrame:
    """Return a table of published numbers; every row carries its source.

    Args:
        name: "sts", "demonstrations", "transfer", "followups" or "text_facts".

    Raises:
        ValueError: Unknown table; the message lists the known ones.
    """
    path = PAPER / f"{name}.csv"
    if not path.is_file():
        raise ValueError(f"unknown table {name!r}; allowed: {', '.join(sorted(file.stem for file in PAPER.glob('*.csv')))}")
    return pd.read_csv(path)


def one_origin(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the table unchanged if its scores may stand in one column.

    Args:
        frame: Rows of scores.

    Raises:
        ValueError: origin, text_form or weight_origin differ between rows of one task (and, for weights, one model).
    """
    for field, by in (("origin", ["task"]), ("text_form", ["task"]), ("weight_origin", ["model"])):
        by = [name for name in by if name in frame]
        if field not in frame or not by:
            continue
        for name, values in frame.groupby(by)[field]:
            if values.nunique(dropna=False) > 1:
                raise ValueError(
                    f"{by[0]} {name[0]!r} mixes {field} {sorted(map(str, values.unique()))}; scores on different ones need columns apart"
                )
    return frame


def compare(ours: pd.DataFrame, paper: pd.DataFrame) -> pd.DataFrame:
    """Put our scores beside the paper's.

    Args:
        ours: STS rows (model, prompt, task, split, spearman, origin).
        paper: Rows of `paper_table("sts")`.

    Returns:
        ours with two more columns: paper, and difference (ours − paper). Both are NaN unless model, prompt, task and set agree: the paper
        ran SentEval's test files, whole and with "all" aggregation; its other rows are context, not a comparison.
    """
    keys = ["model", "prompt", "task"]
    published = paper.loc[paper["demonstrations"].eq(0) & paper["model"].notna(), [*keys, "score"]].rename(columns={"score": "paper"})
    table = ours.merge(published, on=keys, how="left")
    comparable = table["origin"].isin(["senteval", "hub"]) & table["split"].eq("test")
    if "demonstrations" in table:
        comparable &= table["demonstrations"].map(len).eq(0)
    table["paper"] = table["paper"].where(comparable)
    table["difference"] = table["spearman"] - table["paper"]
    return table
