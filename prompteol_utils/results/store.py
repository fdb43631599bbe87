"""The store of finished work: records with their provenance, one JSON line each."""

import functools
import json
import os
import platform
import subprocess
import warnings
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd

from prompteol_utils.results.key import MeasurementKey
from prompteol_utils.utils import files

ROOT = Path(__file__).resolve().parents[2]
PROVENANCE = {"versions": dict, "commit": str, "seed": int}
_SCORE = (int, float)
_NAME_OR_NONE = (str, type(None))
STS_FIELDS = {
    "model": str,
    "prompt": str,
    "demonstrations": list,
    "quantization": _NAME_OR_NONE,
    "adapter": _NAME_OR_NONE,
    "task": str,
    "split": str,
    "n": int,
    "spearman": _SCORE,
    "spearman_subset_mean": (*_SCORE, type(None)),  # None: a subset is too small for a ranking
    "origin": str,
    "text_form": str,
    "weight_origin": str,
    "dtype": str,
    "seconds": _SCORE,
    **PROVENANCE,
}
ORIGINS = ("senteval", "hub", "mini", "own")  # "own" is followed by a digest of the content
TEXT_FORMS = ("tokenised lower case", "tokenised", "natural")
_PACKAGES = ("prompteol-utils", "torch", "transformers", "tokenizers", "bitsandbytes", "peft")
_PACKAGES += ("numpy", "scipy", "pandas")


def provenance(seed: int = 0) -> dict:
    """What a record must say about the program that made it.

    Returns:
        versions: Of Python and of the packages that decide a score.
        commit: Of this project's checkout when it was first asked for; "+dirty" where code or data
            differ from it, "unknown" outside a checkout.
        seed: As given.
    """
    return {"versions": dict(_versions()), "commit": _commit(), "seed": seed}


@functools.cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
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
        options = {"capture_output": True, "text": True, "check": True, "timeout": 20}
        return subprocess.run(command, env=environment, **options).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != ROOT:
            return "unknown"  # installed below some other project's checkout
        places = ("prompteol_utils", "data", ":(exclude)data/results")
        changed = git("status", "--porcelain", "--", *places)
        return git("rev-parse", "HEAD") + ("+dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def check_row(row: dict) -> dict:
    """Check a record before it is kept.

    Args:
        row: An STS record (no `kind`, or "sts") with every field of `STS_FIELDS`, or a record of
            another `kind` with the fields of `PROVENANCE`. More fields are welcome.

    Returns:
        The same in plain JSON values: NumPy scalars and tuples are converted.

    Raises:
        ValueError: A field is missing, of another type, not finite or out of range; it is named.
    """
    if not isinstance(row, dict):
        raise ValueError(f"a record is a dict of fields, got {type(row).__name__}")
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
            f"a record of kind {kind!r} lacks {', '.join(missing)}; "
            f"results.provenance() gives {', '.join(PROVENANCE)}"
        )
    for name, types in required.items():
        if not isinstance(row[name], types) or isinstance(row[name], bool):
            kinds = types if isinstance(types, tuple) else (types,)
            allowed = " or ".join(one.__name__ for one in kinds)
            raise ValueError(f"{name} is {allowed}, got {row[name]!r}")
    if kind != "sts":
        return
    for name in ("spearman", "spearman_subset_mean"):
        if row[name] is not None and not -100 <= row[name] <= 100:
            raise ValueError(f"{name} is a correlation x 100, from -100 to 100, got {row[name]!r}")
    if row["n"] < 1 or row["seconds"] < 0:
        got = f"{row['n']!r} and {row['seconds']!r}"
        raise ValueError(f"n is at least 1 and seconds at least 0, got {got}")
    for name, allowed in (("origin", ORIGINS), ("text_form", TEXT_FORMS)):
        if row[name].partition(":")[0] not in allowed:
            raise ValueError(f"unknown {name} {row[name]!r}; allowed: {', '.join(allowed)}")


def _plain(name: str, value: object) -> object:
    """A value as JSON gives it back; NaN and infinity, which JSON does not know, are refused."""
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False, default=_scalar)
        return json.loads(text.encode())
    except (TypeError, ValueError) as error:
        given = f"(got {str(value)[:80]!r})"
        raise ValueError(f"field {name!r} cannot be kept as JSON: {error} {given}") from None


def _scalar(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not a plain value")


class Store:
    """Records in a file of JSON lines, safe to share between processes and to kill at any moment.

    Args:
        path: The file; it appears with the first record.

    Example:
        >>> store = Store("records.jsonl")  # doctest: +SKIP
        >>> if not store.done(MeasurementKey.of(encoder, pairs, "test")):
        ...     store.append(record)
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._lock = self.path.with_name(f".{self.path.name}.lock")
        self._rows: list[dict] = []
        self._stamp: tuple | None = None

    def append(self, *rows: dict) -> None:
        """Add records, all of them or none; they are on the disk when this returns.

        Raises:
            ValueError: A record is refused by `check_row`; nothing is written.
            CacheError: The disk is full or the folder read-only; nothing is left of the records.
        """
        checked = [json.dumps(check_row(row), ensure_ascii=False) + "\n" for row in rows]
        lines = "".join(checked).encode()
        with files.lock(self._lock):
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
            handle = os.open(self.path, flags, 0o644)
            try:
                self._repair(handle)
                size = os.fstat(handle).st_size
                try:
                    if os.write(handle, lines) != len(lines):
                        raise OSError("no space left for a whole line")
                    os.fsync(handle)
                except OSError as error:
                    os.ftruncate(handle, size)
                    raise files.CacheError(
                        f"{self.path} could not be written ({error}): "
                        "free some space on its disk and run this again"
                    ) from error
            finally:
                os.close(handle)

    def _repair(self, handle: int) -> None:
        """End a last line that lacks its newline; drop it where a kill has cut it off."""
        content = b""
        size = start = os.fstat(handle).st_size
        while start > 0 and b"\n" not in content:
            start = max(0, start - 65_536)
            os.lseek(handle, start, os.SEEK_SET)
            content = os.read(handle, size - start)
        last = content[content.rfind(b"\n") + 1 :]
        if not last:
            return
        try:
            json.loads(last)
            os.write(handle, b"\n")
        except ValueError:
            message = f"{self.path}: the last line was cut off by a kill; it is dropped"
            warnings.warn(message, stacklevel=3)
            os.ftruncate(handle, size - len(last))

    def find(self, key: MeasurementKey | Mapping, *, failed: bool = False) -> dict | None:
        """The last record that agrees with every field of `key`.

        Args:
            key: A key, or fields by name. 1 equals 1.0, a list a tuple of the same items, and
                None a field that the record lacks.
            failed: Look among the failed measurements instead of the finished ones.
        """
        return next(self._matching(key, failed), None)

    def find_all(self, key: MeasurementKey | Mapping) -> list[dict]:
        """All finished records that agree with every field of `key`, as `find` sees it."""
        return [*self._matching(key, failed=False)][::-1]

    def _matching(self, key: MeasurementKey | Mapping, failed: bool) -> Iterator[dict]:
        """The newest first."""
        fields = key.record() if isinstance(key, MeasurementKey) else key
        if not fields:
            raise ValueError("a key needs at least one field, such as {'model': 'opt-125m'}")
        wanted = {name: _plain(name, value) for name, value in fields.items()}
        if failed:
            wanted["kind"] = "failed"
        self._look()
        for record in reversed(self._rows):
            if (record.get("kind") == "failed") == failed and all(
                record.get(name) == value for name, value in wanted.items()
            ):
                yield dict(record)

    def done(self, key: MeasurementKey | Mapping) -> bool:
        """Whether `find` has a finished measurement; one that failed is not done."""
        return self.find(key) is not None

    def rows(self) -> list[dict]:
        """All records as dicts, in the order in which they were added; raises as `read`."""
        self._look()
        return [dict(row) for row in self._rows]

    def read(self) -> pd.DataFrame:
        """All records; without any, an empty table with the columns of an STS record.

        Raises:
            ValueError: A line is no valid record; file and line are named. A last line that a kill
                has cut off is only warned about.
        """
        self._look()
        return pd.DataFrame(self._rows) if self._rows else pd.DataFrame(columns=list(STS_FIELDS))

    def _look(self) -> None:
        """Read the file if it has changed."""
        if self._refresh():  # cut off, or another process is just writing it
            try:
                with files.lock(self._lock):
                    torn = self._refresh()
            except files.CacheError:  # a read-only folder: nobody writes here
                torn = True
            if torn:
                message = f"{self.path}: the last line was cut off by a kill; it is left out"
                warnings.warn(message, stacklevel=4)

    def _refresh(self) -> bool:
        """Read the file if it is not the one that was read last; True if its last line is cut."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            self._rows, self._stamp = [], None
            return False
        stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
        if stamp == self._stamp:
            return False
        self._rows, self._stamp = [], None
        lines = self.path.read_bytes().split(b"\n")
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line, parse_constant=_no_number)
                if not isinstance(row, dict):
                    raise ValueError(f"a record is an object of fields, got {line[:40]!r}")
                _check_fields(row)
            except ValueError as error:
                invalid = isinstance(error, json.JSONDecodeError | UnicodeDecodeError)
                if invalid and number == len(lines):
                    return True
                reason = f"not JSON ({error}); repair or remove the line" if invalid else error
                raise ValueError(f"{self.path}, line {number}: {reason}") from None
            self._rows.append(row)
        self._stamp = stamp
        return False


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no score and no JSON")
