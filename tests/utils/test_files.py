"""Nothing half written survives: kills at random moments, races, full and read-only disks."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prompteol_utils.utils import files


@pytest.fixture
def python(tmp_path):
    """Starts a Python process in ``tmp_path`` that has imported files, and returns its Popen."""

    def start(code):
        return subprocess.Popen(
            [sys.executable, "-c", f"from prompteol_utils.utils import files\n{code}"],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
        )

    return start


def litter(folder):
    return [entry for entry in os.listdir(folder) if entry.startswith(".")]


# --- where the cache is


def test_cache_folder_follows_its_variable_then_xdg_then_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("PROMPTEOL_CACHE", raising=False)
    assert files.cache_folder() == tmp_path / "home/.cache/prompteol"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert files.cache_folder() == tmp_path / "home/.cache/prompteol"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert files.cache_folder() == tmp_path / "xdg/prompteol"
    monkeypatch.setenv("PROMPTEOL_CACHE", "~/own")
    assert files.cache_folder() == tmp_path / "home/own"
    assert (tmp_path / "home/own").is_dir()


def test_cache_folder_that_cannot_be_made_names_folder_and_variable(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PROMPTEOL_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(files.CacheError, match=r"file.*PROMPTEOL_CACHE"):
        files.cache_folder()


def test_read_only_cache_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PROMPTEOL_CACHE", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda *_: False)  # the super-user may write everywhere
    with pytest.raises(files.CacheError, match=r"read-only.*PROMPTEOL_CACHE"):
        files.cache_folder()
    assert files.cache_folder(writable=False) == tmp_path, "to look what is there"


def test_need_space_counts_what_is_free(tmp_path):
    files.need_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(files.CacheError, match="MB free"):
        files.need_space(tmp_path / "not" / "yet", 10**18)


# --- one file


@pytest.mark.parametrize("mode, content", [("w", "é\n"), ("wb", b"\x00\xff")])
def test_atomic_file_replaces_whole(tmp_path, mode, content):
    target = tmp_path / "new" / "a"
    for _ in range(2):
        with files.atomic_file(target, mode) as file:
            file.write(content)
    assert target.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert os.listdir(target.parent) == ["a"]


def test_atomic_file_keeps_the_old_one_on_an_error(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(KeyError), files.atomic_file(tmp_path / "a", "w") as file:
        file.write("half")
        raise KeyError
    assert (tmp_path / "a").read_text() == "old" and not litter(tmp_path)


def test_atomic_file_keeps_permissions_and_follows_a_link(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "real").chmod(0o640)
    (tmp_path / "link").symlink_to("real")
    with files.atomic_file(tmp_path / "link", "w") as file:
        file.write("new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o640


def test_killed_file_writer_leaves_a_whole_file(tmp_path, python):
    process = python(
        "import sys, itertools\nfor n in itertools.cycle('abc'):\n"
        "    with files.atomic_file('a', 'w') as file:\n"
        "        file.write(n * 5_000_000)\n    print('x', file=sys.stderr, flush=True)"
    )
    process.stderr.readline()
    for _ in range(20):  # a reader meets whole files only
        assert len(set((tmp_path / "a").read_text())) == 1
    time.sleep(random.Random(3).uniform(0, 0.1))
    process.kill()
    process.wait()
    content = (tmp_path / "a").read_text()
    assert len(content) == 5_000_000 and len(set(content)) == 1


def test_atomic_file_refuses_to_append(tmp_path):
    with pytest.raises(ValueError, match="'a'"), files.atomic_file(tmp_path / "a", "a"):
        pass


@pytest.mark.parametrize(
    "code, words",
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EROFS, "cannot be written"),
        (errno.EACCES, "cannot be written"),
    ],
)
def test_full_and_read_only_disks_are_explained(tmp_path, monkeypatch, code, words):
    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, "fsync", fail)
    with (
        pytest.raises(files.CacheError, match=f"(?s){words}.*PROMPTEOL_CACHE"),
        files.atomic_file(tmp_path / "a") as file,
    ):
        file.write(b"x")
    assert os.listdir(tmp_path) == []
    with (
        pytest.raises(files.CacheError, match=words),
        files.atomic_folder(tmp_path / "f") as folder,
    ):
        (folder / "x").write_text("x")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_really_full_device_is_explained(tmp_path, monkeypatch):
    real_open = open
    monkeypatch.setattr(
        "builtins.open",
        lambda name, *rest, **kw: real_open(
            "/dev/full" if ".tmp-" in str(name) else name, *rest, **kw
        ),
    )
    with (
        pytest.raises(files.CacheError, match="disk is full"),
        files.atomic_file(tmp_path / "a") as file,
    ):
        file.write(b"x" * 100_000)


# --- a folder


def test_atomic_folder_replaces_whole_or_not_at_all(tmp_path):
    for name in "ab":
        with files.atomic_folder(tmp_path / "f") as folder:
            assert list(folder.iterdir()) == []
            (folder / name).write_text(name)
    assert os.listdir(tmp_path / "f") == ["b"]
    with pytest.raises(KeyError), files.atomic_folder(tmp_path / "f") as folder:
        (folder / "c").write_text("c")
        raise KeyError
    assert os.listdir(tmp_path / "f") == ["b"] and os.listdir(tmp_path) == ["f"]


WRITER = """
import sys
n = 0
while True:
    n += 1
    with files.atomic_folder("f") as folder:
        for name in "abcdefgh":
            (folder / name).write_text(str(n) * 1000)
    if n == 1: print("x", file=sys.stderr, flush=True)
"""


def is_whole(folder):
    written = [file.read_text() for file in folder.iterdir()]
    return len(written) == 8 and len({text[: len(text) // 1000] for text in written}) == 1


def test_killed_folder_writers_leave_a_whole_folder(tmp_path, python):
    """Two at once, and a reader; a folder may be missing for an instant, but is never mixed."""
    writers = [python(WRITER) for _ in range(2)]
    for process in writers:
        process.stderr.readline()
    time.sleep(random.Random(7).uniform(0, 0.3))
    assert all(process.poll() is None for process in writers)
    for process in writers:
        process.send_signal(signal.SIGKILL)
        process.wait()
    files.restore_folder(tmp_path / "f")
    assert is_whole(tmp_path / "f")
    with files.atomic_folder(tmp_path / "f") as folder:
        (folder / "new").write_text("")
    assert os.listdir(tmp_path / "f") == ["new"]


@pytest.mark.parametrize("then", ["read", "written"])
def test_a_kill_between_the_two_renames_loses_nothing(tmp_path, monkeypatch, then):
    """What a killed process leaves: the old folder moved aside, nothing under its name."""
    target, real = tmp_path / "f", os.replace
    with files.atomic_folder(target) as folder:
        (folder / "a").write_text("old")

    class Killed(BaseException):
        pass

    def replace(source, goal):
        if str(goal) == str(target):
            raise Killed
        return real(source, goal)

    monkeypatch.setattr(files.os, "replace", replace)
    monkeypatch.setattr(files, "_remove", lambda path: None)
    with pytest.raises(Killed), files.atomic_folder(target) as folder:
        (folder / "a").write_text("new")
    monkeypatch.undo()
    assert not target.exists()
    if then == "read":
        files.restore_folder(target)
    else:
        with pytest.raises(KeyError), files.atomic_folder(target):
            raise KeyError
    assert (target / "a").read_text() == "old"


def test_files_of_a_folder_are_readable_for_others(tmp_path):
    """safetensors writes files that only their owner may read."""
    with files.atomic_folder(tmp_path / "f") as folder:
        (folder / "a").write_text("")
        (folder / "a").chmod(0o600)
        (tmp_path / "plain").write_text("")
    assert (tmp_path / "f" / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_atomic_folder_meets_another_that_came_in_between(tmp_path, monkeypatch):
    target, real, seen = tmp_path / "f", os.replace, []

    def replace(source, goal):
        if str(goal) == str(target) and len(seen) < 3:
            seen.append(goal)
            target.mkdir()
            (target / "of another process").write_text("")
        return real(source, goal)

    monkeypatch.setattr(files.os, "replace", replace)
    with files.atomic_folder(target) as folder:
        (folder / "mine").write_text("")
    assert len(seen) == 3 and os.listdir(target) == ["mine"] and os.listdir(tmp_path) == ["f"]


# --- locks


def test_lock_says_whom_it_waits_for_and_gives_up(tmp_path, python, capsys, monkeypatch):
    holder = python(
        'import sys, time\nwith files.lock("a"):\n'
        '    print("in", file=sys.stderr, flush=True)\n    time.sleep(60)'
    )
    holder.stderr.readline()
    start = time.monotonic()
    with (
        pytest.raises(files.CacheError, match=f"process {holder.pid} on "),
        files.lock(tmp_path / "a", timeout=4),
    ):
        pass
    assert 3.5 < time.monotonic() - start < 10
    assert f"process {holder.pid} on" in capsys.readouterr().err
    holder.kill()
    holder.wait()
    with files.lock(
        tmp_path / "a.lock", timeout=1
    ):  # the same lock: a dead holder does not keep it
        pass
    assert not capsys.readouterr().err


def test_sha256_is_the_standard_one(tmp_path):
    Path(tmp_path / "a").write_bytes(b"abc")
    assert (
        files.sha256(tmp_path / "a")
        == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
