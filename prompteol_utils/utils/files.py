"""Files that are never half written: atomic writes, locks, checksums, and wheels fetched from the Python package index.

A process may be killed at any moment. What it was writing then lies under a temporary name beside its target, where the next
run finds and removes it; the target itself is the old one or the new one, never a mixture.
"""

import errno
import hashlib
import os
import re
import shutil
import socket
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

_PACKAGED = (
    Path(__file__).resolve().parents[1] / "_data"
)  # an installed package carries the small tables
DATA = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).resolve().parents[2] / "data"

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_ADVICE = "set PROMPTEOL_CACHE to a folder on a disk with room that you can write to"


class CacheError(OSError):
    """A file could not be kept: the disk is full, the folder is read-only, or a download is not what was expected."""


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turns "no space left" and "permission denied" into a CacheError that says what to do; other errors pass unchanged."""
    try:
        yield
    except CacheError:
        raise
    except OSError as error:
        if error.errno in _FULL:
            raise CacheError(
                f"the disk is full while writing to {folder}: free some space there, or {_ADVICE}"
            ) from error
        if error.errno in _DENIED:
            raise CacheError(
                f"{folder} cannot be written to ({error.strerror}): change its permissions, or {_ADVICE}"
            ) from error
        raise


def cache_folder() -> Path:
    """The folder for what can be fetched or computed again: models, embeddings. Created when it is missing.

    Returns:
        ``$PROMPTEOL_CACHE`` if set, else ``$XDG_CACHE_HOME/prompteol``, else ``~/.cache/prompteol``, absolute.

    Raises:
        CacheError: the folder cannot be made or written to; names the folder and the variable that moves it.
    """
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    try:
        if own := os.environ.get("PROMPTEOL_CACHE"):
            folder = Path(own).expanduser().absolute()
        else:  # the XDG standard: a relative path is invalid and ignored
            folder = (Path(xdg) if os.path.isabs(xdg) else Path.home() / ".cache") / "prompteol"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder is known
        reason = getattr(error, "strerror", None) or str(error)
        where = getattr(error, "filename", None) or own or "~/.cache/prompteol"
        raise CacheError(f"cannot make the cache folder {where} ({reason}): {_ADVICE}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CacheError(f"the cache folder {folder} is read-only: {_ADVICE}")
    return folder


def need_space(folder: str | os.PathLike, bytes_: int) -> None:
    """Checks before a long download or conversion that it will fit.

    Args:
        folder: where the files will go; it need not exist yet.
        bytes_: room needed.

    Raises:
        CacheError: the disk holds less; says how much there is and how to move the cache.
    """
    existing = Path(folder).absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < bytes_:
        raise CacheError(
            f"{folder} needs {bytes_ / 1e6:,.0f} MB and its disk has {free / 1e6:,.0f} MB free: {_ADVICE}"
        )


@contextmanager
def lock(path: str | os.PathLike, timeout: float = 3600) -> Iterator[None]:
    """Holds a lock between processes while the block runs; says on stderr whom it waits for when that takes over 3 seconds.

    Not for nesting: a process that holds it must not ask for the same path again.

    Args:
        path: what is protected; the lock is a file beside it named ``<path>.lock``, left in place (removing it would
            let two waiting processes lock two different files of that name).
        timeout: seconds to wait at most.

    Raises:
        CacheError: not free within ``timeout``, or the folder cannot be written to.
    """
    path = Path(path)
    file = path if path.suffix == ".lock" else path.with_name(path.name + ".lock")
    with _explained(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(file, thread_local=False)
        try:
            held.acquire(timeout=min(3, timeout))
        except Timeout:
            print(
                f"Waiting for {_holder(file)}, which is at work on {path} …",
                file=sys.stderr,
                flush=True,
            )
            try:
                held.acquire(timeout=max(0, timeout - 3))
            except Timeout:
                message = f"{path} was still in use by {_holder(file)} after {timeout:g} s: wait for it, or end it, and run this again"
                raise CacheError(message) from None
    try:
        with suppress(OSError):  # only a courtesy to whoever waits; Windows refuses it
            file.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        held.release()


def _holder(file: Path) -> str:
    with suppress(OSError):
        return file.read_text() or "another process"
    return "another process"


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """Yields an unused sibling of ``path``; whatever is left there is removed, now or, after a kill, by the next call.

    A lock that the operating system drops with its process tells a live run's temporary from a dead one's. A process id could
    not: it is used again, and means nothing on another machine that shares the folder.
    """
    folder, stem = path.parent, f".{path.name[:80]}.tmp-"
    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for file in folder.glob(f"{_escape(stem)}*.lock"):
            dead = FileLock(file, thread_local=False)
            try:
                dead.acquire(blocking=False)
            except (Timeout, OSError, RuntimeError):
                continue
            _remove(file.with_suffix(""))
            file.unlink(missing_ok=True)
            dead.release()
        temporary = folder / f"{stem}{uuid.uuid4().hex[:12]}"
        own = FileLock(f"{temporary}.lock", thread_local=False)
        own.acquire()
    try:
        with _explained(folder):
            yield temporary
    finally:
        _remove(temporary)
        with suppress(OSError):
            Path(own.lock_file).unlink(missing_ok=True)
        own.release()


def _escape(text: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", text)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    """Without this a power cut may leave the new name on an empty file."""
    handle = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_file(path: str | os.PathLike, mode: str = "wb", **open_kw) -> Iterator:
    """Opens a file that appears under its name only when the block has ended without an error.

    Args:
        path: the file to write or replace; a symbolic link is followed, missing parent folders are made.
        mode: "wb" or "w" (text is UTF-8 unless ``encoding`` is given).
        **open_kw: passed on to ``open``.

    Raises:
        CacheError: the disk is full or the folder read-only; what was at ``path`` before is untouched.
    """
    if mode not in ("wb", "w"):
        raise ValueError(f'atomic_file writes whole files: mode is "wb" or "w", not {mode!r}')
    if mode == "w":
        open_kw.setdefault("encoding", "utf-8")
    path = Path(os.path.realpath(path))
    with _temporary(path) as temporary:
        with open(temporary, mode, **open_kw) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, temporary)
        os.replace(temporary, path)


@contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yields an empty folder beside ``path`` that takes its place when the block has ended without an error.

    Two processes that write the same folder at once should hold ``lock(path)``; without it the later one wins, and a reader may
    find no folder for an instant.

    Raises:
        CacheError: the disk is full or the folder read-only; what was at ``path`` before is untouched.
    """
    path = Path(os.path.realpath(path))
    with _temporary(path) as temporary:
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _to_disk(file)
        with _temporary(
            path
        ) as old:  # a folder cannot be renamed onto another one: first move that out of the way
            for _ in range(100):
                with suppress(FileNotFoundError):
                    os.replace(path, old)
                try:
                    os.replace(temporary, path)
                    break
                except OSError as error:  # another process put its folder here in between
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
                    _remove(old)
            else:
                raise CacheError(
                    f"{path} is being written by several processes at once: hold files.lock({str(path)!r})"
                )


def sha256(path: str | os.PathLike) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
