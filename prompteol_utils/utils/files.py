"""Files that are never half written: atomic writes, locks, checksums, and the cache folder."""

import errno
import hashlib
import os
import shutil
import socket
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

# An installed package carries the small tables; in a checkout they lie in data/.
_PACKAGED = Path(__file__).resolve().parents[1] / "_data"
DATA = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).resolve().parents[2] / "data"

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_ADVICE = "set PROMPTEOL_CACHE to a folder on a disk with room that you can write to"


class CacheError(OSError):
    """A file cannot be kept: disk full, folder read-only, or a download is not the expected one."""


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn "no space left" and "permission denied" into a CacheError that says what to do."""
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
                f"{folder} cannot be written to ({error.strerror}): "
                f"change its permissions, or {_ADVICE}"
            ) from error
        raise


def cache_folder(*, writable: bool = True) -> Path:
    """Return the folder for what can be fetched or computed again: models, embeddings.

    Args:
        writable: Make the folder and check that it can be written to. False only names it, to look
            for what is already there: a shared cache may be read-only.

    Returns:
        `$PROMPTEOL_CACHE` if set, else `$XDG_CACHE_HOME/prompteol`, else `~/.cache/prompteol`,
        absolute.

    Raises:
        CacheError: The folder cannot be made or written to.
    """
    own = os.environ.get("PROMPTEOL_CACHE")
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    try:
        if own:
            folder = Path(own).expanduser().absolute()
        else:  # by the XDG standard a relative path is ignored
            folder = (Path(xdg) if os.path.isabs(xdg) else Path.home() / ".cache") / "prompteol"
        if not writable:
            return folder
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder is known
        reason = getattr(error, "strerror", None) or str(error)
        where = getattr(error, "filename", None) or own or "~/.cache/prompteol"
        raise CacheError(f"cannot make the cache folder {where} ({reason}): {_ADVICE}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CacheError(f"the cache folder {folder} is read-only: {_ADVICE}")
    return folder


def need_space(folder: str | os.PathLike, bytes_: int) -> None:
    """Check before a long download or conversion that it will fit.

    Args:
        folder: Where the files will go; it need not exist yet.
        bytes_: Space needed.

    Raises:
        CacheError: The disk has less free.
    """
    existing = Path(folder).absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < bytes_:
        raise CacheError(
            f"{folder} needs {bytes_ / 1e6:,.0f} MB and its disk has {free / 1e6:,.0f} MB free: "
            f"{_ADVICE}"
        )


@contextmanager
def lock(path: str | os.PathLike, timeout: float = 3600) -> Iterator[None]:
    """Hold a lock between processes while the block runs; not reentrant.

    After 3 seconds of waiting the holder is named on stderr.

    Args:
        path: What is protected. The lock file `<path>.lock` beside it is left in place: removing
            it would let two waiting processes lock two different files of that name.
        timeout: Seconds to wait at most.

    Raises:
        CacheError: Not free within `timeout`, or the folder cannot be written to.
    """
    path = Path(path)
    file = path if path.suffix == ".lock" else path.with_name(path.name + ".lock")
    with _explained(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(file, thread_local=False)
        try:
            held.acquire(timeout=min(3, timeout))
        except Timeout:
            print(f"Waiting for {_holder(file)}, which uses {path} …", file=sys.stderr, flush=True)
            try:
                held.acquire(timeout=max(0, timeout - 3))
            except Timeout:
                raise CacheError(
                    f"{path} was still in use by {_holder(file)} after {timeout:g} s: "
                    "wait for it, or end it, and run this again"
                ) from None
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


def _sibling(path: Path, kind: str) -> Path:
    """Return an unused hidden name beside `path`, on the same file system."""
    return path.with_name(f".{path.name[:80]}.{kind}-{uuid.uuid4().hex[:12]}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Write a file through to the disk: a power cut could leave the new name on an empty file."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


@contextmanager
def atomic_file(path: str | os.PathLike, mode: str = "wb", **open_kw) -> Iterator:
    """Open a file that appears under its name only when the block has ended without an error.

    Args:
        path: The file to write or replace; symbolic links are followed, missing parents are made.
        mode: "wb" or "w" (text is UTF-8 unless `encoding` is given).
        **open_kw: Passed on to `open`.

    Raises:
        CacheError: Disk full or folder read-only; what was at `path` before is untouched.
    """
    if mode not in ("wb", "w"):
        raise ValueError(f'atomic_file writes whole files: mode is "wb" or "w", not {mode!r}')
    if mode == "w":
        open_kw.setdefault("encoding", "utf-8")
    path = Path(os.path.realpath(path))
    temporary = _sibling(path, "tmp")
    try:
        with _explained(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, mode, **open_kw) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if path.exists():
                shutil.copymode(path, temporary)
            os.replace(temporary, path)
    finally:
        _remove(temporary)


@contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `path` when the block ends without an error.

    A folder cannot be renamed onto another one, so the old one is first moved aside. A process
    killed between these two renames leaves it under a hidden name, and `restore_folder` (called
    here too) puts it back. Of two processes that write one folder at once, the later one wins.

    Raises:
        CacheError: Disk full or folder read-only; what was at `path` before is untouched.
    """
    path = Path(os.path.realpath(path))
    temporary = _sibling(path, "tmp")
    old = _sibling(path, "old")
    try:
        with _explained(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            restore_folder(path)
            temporary.mkdir()
            yield temporary
            readable = temporary.stat().st_mode & 0o666  # some writers make files of mode 0600
            for file in temporary.rglob("*"):
                if file.is_file():
                    file.chmod(readable)
                    _sync(file)
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
                raise CacheError(f"{path} is written by several processes at once: hold its lock")
        _remove(old)
    finally:
        _remove(temporary)
        restore_folder(path)


def restore_folder(path: str | os.PathLike) -> None:
    """Put a folder back that a killed `atomic_folder` had moved aside, if nothing replaced it."""
    path = Path(os.path.realpath(path))
    if path.exists() or not path.parent.is_dir():
        return
    start = f".{path.name[:80]}.old-"
    for old in sorted(entry for entry in path.parent.iterdir() if entry.name.startswith(start)):
        with suppress(OSError):
            os.replace(old, path)
            return


def sha256(path: str | os.PathLike) -> str:
    """Return the hexadecimal SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
