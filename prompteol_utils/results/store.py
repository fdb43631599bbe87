"""The one store of finished work: score rows with their provenance, an embedding cache, and the paper's numbers beside ours."""

import functools
import json
import os
import platform
import re
import subprocess
import warnings
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd

from prompteol_utils.results.key import MeasurementKey
from prompteol_utils.utils import files

ROOT = Path(__file__).resolve().parents[2]
PROVENANCE = {"versions": dict, "commit": str, "seed": int}
_SCORE = (int, float)
STS_FIELDS = {
    "model": str, "prompt": str, "demonstrations": list, "quantization": (str, type(None)), "adapter": (str, type(None)), "task": str,
    "split": str, "n": int, "spearman": _SCORE, "spearman_subset_mean": _SCORE, "origin": str, "text_form": str, "weight_origin": str,
    "dtype": str, "seconds": _SCORE, **PROVENANCE,
}  # fmt: skip
ORIGINS = ("senteval", "hub", "mini", "own")  # "own" is followed by a digest of the content
TEXT_FORMS = ("tokenised lower case", "tokenised", "natural")


# --- rows


def provenance(seed: int = 0) -> dict:
    """What a row must say about the program that made it.

    Returns:
        ``versions`` (of Python and the packages that decide a score), ``commit`` (of this project's checkout when it was first asked
        for; "+dirty" where code or data differ from it, "unknown" outside a checkout) and ``seed``.
    """
    return {"versions": dict(_versions()), "commit": _commit(), "seed": seed}


@functools.cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in (
        "prompteol-utils",
        "torch",
        "transformers",
        "tokenizers",
        "bitsandbytes",
        "peft",
        "numpy",
        "scipy",
        "pandas",
    ):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def _commit() -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=20, env=environment
        ).stdout.strip()

    try:
        if (
            Path(git("rev-parse", "--show-toplevel")).resolve() != ROOT
        ):  # installed below some other project's checkout
            return "unknown"
        changed = git(
            "status", "--porcelain", "--", "prompteol_utils", "data", ":(exclude)data/results"
        )
        return git("rev-parse", "HEAD") + ("+dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def check_row(row: dict) -> dict:
    """Checks a row before it is kept.

    Args:
        row: an STS row (no ``kind``, or "sts") with every field of ``STS_FIELDS``; or a row of another ``kind`` with the fields of
            ``PROVENANCE``. More fields are welcome.

    Returns:
        The same in plain JSON values: NumPy scalars and tuples are converted.

    Raises:
        ValueError: a field is missing, of another type, not finite or out of range; the message names it.
    """
    if not isinstance(row, dict):
        raise ValueError(f"a row is a dict of fields, got {type(row).__name__}")
    row = {name: _plain(name, value) for name, value in row.items()}
    _check_fields(row)
    return row


def _check_fields(row: dict) -> None:
    kind = row.get("kind", "sts")
    if not isinstance(kind, str) or not kind:
        raise ValueError(f"kind is a name such as 'sts' or 'bench', got {kind!r}")
    required = STS_FIELDS if kind == "sts" else PROVENANCE
    if missing := [name for name in required if name not in row]:
        raise ValueError(
            f"a row of kind {kind!r} lacks {', '.join(missing)}; results.provenance() gives {', '.join(PROVENANCE)}"
        )
    for name, types in required.items():
        if not isinstance(row[name], types) or isinstance(row[name], bool):
            allowed = " or ".join(
                one.__name__ for one in (types if isinstance(types, tuple) else (types,))
            )
            raise ValueError(f"{name} is {allowed}, got {row[name]!r}")
    if kind != "sts":
        return
    for name in ("spearman", "spearman_subset_mean"):
        if not -100 <= row[name] <= 100:
            raise ValueError(f"{name} is a correlation x 100, from -100 to 100, got {row[name]!r}")
    if row["n"] < 1 or row["seconds"] < 0:
        raise ValueError(
            f"n is at least 1 and seconds at least 0, got {row['n']!r} and {row['seconds']!r}"
        )
    for name, allowed in (("origin", ORIGINS), ("text_form", TEXT_FORMS)):
        if row[name].partition(":")[0] not in allowed:
            raise ValueError(f"unknown {name} {row[name]!r}; allowed: {', '.join(allowed)}")


def _plain(name: str, value: object) -> object:
    """JSON and back. Beside every score, NaN and infinity are refused in every field: no JSON reader would take them."""
    try:
        return json.loads(
            json.dumps(value, allow_nan=False, ensure_ascii=False, default=_scalar).encode()
        )
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"field {name!r} cannot be kept as JSON: {error} (got {str(value)[:80]!r})"
        ) from None


def _scalar(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not a plain value")


class Store:
    """Rows of finished work in a file of JSON lines, safe to share between processes and to kill at any moment.

    Args:
        path: the file; it appears with the first row.

    Example:
        >>> store = Store("rows.jsonl")  # doctest: +SKIP
        >>> if not store.done({"model": "opt-125m", "task": "stsb"}):
        ...     store.append(row)
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._lock = self.path.with_name(f".{self.path.name}.lock")
        self._forget()

    def _forget(self) -> None:
        self._rows: list[dict] = []
        self._stamp: tuple | None = None
        self._end, self._lines, self._last = (
            0,
            0,
            b"",
        )  # how far it was read, and the last line, by which the file is known again

    def append(self, *rows: dict) -> None:
        """Adds rows, all of them or none, and returns when they are on the disk.

        Raises:
            ValueError: a row lacks a field or has a bad value (`check_row`); nothing is written.
            CacheError: the disk is full or the folder read-only; nothing is left of the rows.
        """
        lines = "".join(
            json.dumps(check_row(row), ensure_ascii=False) + "\n" for row in rows
        ).encode()
        with files.lock(self._lock):
            torn = self._refresh()
            if torn:
                warnings.warn(
                    f"{self.path}: the last line was cut off by a kill; it is dropped", stacklevel=2
                )
                os.truncate(self.path, self._end)
            missing_newline = self._last and not self._last.endswith(b"\n")
            handle = os.open(
                self.path,
                os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0),
                0o644,
            )
            size = os.fstat(handle).st_size
            try:
                lines = b"\n" * bool(missing_newline) + lines
                if os.write(handle, lines) != len(lines):
                    raise OSError("no space left for a whole line")
                os.fsync(handle)
            except OSError as error:
                os.ftruncate(handle, size)
                raise files.CacheError(
                    f"{self.path} could not be written ({error}): free some space on its disk and run this again"
                ) from error
            finally:
                os.close(handle)

    def find(self, key: "MeasurementKey | Mapping", *, failed: bool = False) -> dict | None:
        """The last record that agrees with every field of `key`.

        Args:
            key: A key, or fields by name. 1 equals 1.0, a list a tuple of the same items, and
                None a field that the record lacks.
            failed: Look among the failed measurements instead of the finished ones.
        """
        fields = key.record() if isinstance(key, MeasurementKey) else key
        if not fields:
            raise ValueError("a key needs at least one field, such as {'model': 'opt-125m'}")
        wanted = {name: _plain(name, value) for name, value in fields.items() if name != "kind"}
        kind = "failed" if failed else fields.get("kind")
        self._look()
        for record in reversed(self._rows):
            of_kind = record.get("kind") == kind or (kind is None and not _failed(record))
            if of_kind and all(record.get(name) == value for name, value in wanted.items()):
                return dict(record)
        return None

    def done(self, key: "MeasurementKey | Mapping") -> bool:
        """Whether `find` has a finished measurement; one that failed is not done."""
        return self.find(key) is not None

    def rows(self) -> list[dict]:
        """All rows as dicts, as `read`."""
        self._look()
        return [dict(row) for row in self._rows]

    def read(self) -> pd.DataFrame:
        """All rows in the order they were added; without any, an empty table with the columns of an STS row.

        Raises:
            ValueError: a line is no valid row; the message names file and line. A last line cut off by a kill is only warned about.
        """
        self._look()
        return pd.DataFrame(self._rows) if self._rows else pd.DataFrame(columns=list(STS_FIELDS))

    def _look(self) -> None:
        if self._refresh():  # cut off, or another process is just writing it
            try:
                with files.lock(self._lock):
                    torn = self._refresh()
            except files.CacheError:  # a read-only folder: nobody writes here
                torn = True
            if torn:
                warnings.warn(
                    f"{self.path}: the last line was cut off by a kill; it is left out",
                    stacklevel=3,
                )

    def _refresh(self) -> bool:
        """Reads what was added since the last time, or everything if the file is another one. True if its last line is cut off."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            self._forget()
            return False
        stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
        if stamp == self._stamp:
            return False
        if self._stamp and stamp[0] != self._stamp[0]:
            self._forget()
        with open(self.path, "rb") as file:
            file.seek(self._end - len(self._last))
            if file.read(len(self._last)) != self._last:
                self._forget()
                file.seek(0)
            added = file.read()
        lines = re.findall(rb"[^\n]*\n|[^\n]+", added)
        for at, line in enumerate(lines):
            try:
                self._add(line)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                if at == len(lines) - 1:
                    return True
                self._refuse(f"not JSON ({error}); repair or remove the line")
            except ValueError as error:
                self._refuse(str(error))
        self._stamp = stamp
        return False

    def _add(self, line: bytes) -> None:
        if line.strip():
            row = json.loads(line, parse_constant=_no_number)
            if not isinstance(row, dict):
                raise ValueError(f"a row is an object of fields, got {line[:40]!r}")
            _check_fields(row)
            self._rows.append(row)
        self._end, self._last, self._lines = self._end + len(line), line, self._lines + 1

    def _refuse(self, reason: str) -> None:
        line = self._lines + 1
        self._forget()
        raise ValueError(f"{self.path}, line {line}: {reason}") from None


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no score and no JSON")


def _failed(record: Mapping) -> bool:
    return record.get("kind") == "failed"


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


# --- the paper's numbers
