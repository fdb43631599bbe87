"""Nothing half written survives: kills at random moments, races, damaged downloads, full and read-only disks."""

import errno
import http.server
import os
import random
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

from prompteol_utils.models import download
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


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_file_writer_leaves_a_whole_file(tmp_path, python, seed):
    process = python(
        "import sys, itertools\nfor n in itertools.cycle('abc'):\n    with files.atomic_file('a', 'w') as file:\n"
        "        file.write(n * 5_000_000)\n    print('x', file=sys.stderr, flush=True)"
    )
    process.stderr.readline()
    for _ in range(20):  # a reader meets whole files only
        assert len(set((tmp_path / "a").read_text())) == 1
    time.sleep(random.Random(seed).uniform(0, 0.1))
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
    with files.{hold}, files.atomic_folder("f") as folder:
        for name in "abcdefgh":
            (folder / name).write_text(str(n) * 1000)
        files.write_manifest(folder)
    if n == 1: print("x", file=sys.stderr, flush=True)
"""


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_folder_writer_leaves_a_whole_folder_and_its_litter_is_swept(tmp_path, python, seed):
    process = python(WRITER.format(hold='lock("f")'))
    process.stderr.readline()  # the first folder is there
    time.sleep(random.Random(seed).uniform(0, 0.3))
    process.send_signal(signal.SIGKILL)
    process.wait()
    if (
        tmp_path / "f"
    ).exists():  # killed between its two renames, there is none, and the next run makes it anew
        assert download.manifest_ok(tmp_path / "f")
        assert (
            len(
                {
                    file.read_text()[:1]
                    for file in (tmp_path / "f").iterdir()
                    if file.name != download.MANIFEST
                }
            )
            == 1
        )
    with files.atomic_folder(tmp_path / "f") as folder:
        (folder / "new").write_text("")
    assert not litter(tmp_path)


def test_litter_of_a_kill_inside_the_block_is_swept_but_a_live_run_is_left_alone(tmp_path, python):
    block = 'import sys, time\nwith files.{what}("a") as x:\n    print("in", file=sys.stderr, flush=True)\n    time.sleep(60)'
    processes = [
        python(block.format(what=what)) for what in ("atomic_file", "atomic_folder", "atomic_file")
    ]
    for process in processes:
        process.stderr.readline()
    assert len(litter(tmp_path)) == 6  # a temporary and its lock each
    for process in processes[:2]:
        process.kill()
        process.wait()
    with files.atomic_file(tmp_path / "a") as file:
        file.write(b"mine")
    assert len(litter(tmp_path)) == 2
    processes[2].kill()
    processes[2].wait()
    with files.atomic_file(tmp_path / "a"):
        pass
    assert not litter(tmp_path)


@pytest.mark.parametrize(
    "hold",
    ['lock("f")', 'lock(str(__import__("os").getpid()))'],
    ids=["under one lock", "without a common lock"],
)
def test_two_processes_writing_one_folder_never_mix(tmp_path, python, hold):
    processes = [python(WRITER.format(hold=hold)) for _ in range(2)]
    for process in processes:
        process.stderr.readline()
    until, looks = time.monotonic() + 1.5, 0
    while time.monotonic() < until:
        if "f.lock" in hold or 'lock("f")' in hold:
            with files.lock(tmp_path / "f"):
                assert download.manifest_ok(tmp_path / "f")
                looks += 1
        else:
            time.sleep(0.1)
    assert all(process.poll() is None for process in processes), [
        process.stderr.read() for process in processes if process.poll()
    ]
    for process in processes:
        process.kill()
        process.wait()
    assert looks or "getpid" in hold
    if (tmp_path / "f").exists():
        assert download.manifest_ok(tmp_path / "f")


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
        'import sys, time\nwith files.lock("a"):\n    print("in", file=sys.stderr, flush=True)\n    time.sleep(60)'
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


# --- manifests


def test_manifest_notices_what_changed(tmp_path):
    assert not download.manifest_ok(tmp_path)
    (tmp_path / "sub").mkdir()
    for name in ("a", "sub/b"):
        (tmp_path / name).write_text("content")
    download.write_manifest(tmp_path)
    assert download.manifest_ok(tmp_path)
    os.utime(tmp_path / "a", ns=(1, 1))
    assert download.manifest_ok(tmp_path), "only its time changed"
    (tmp_path / "sub/b").write_text("CONTENT")
    os.utime(tmp_path / "sub/b", ns=(2, 2))
    assert not download.manifest_ok(tmp_path), "same size, other content"
    (tmp_path / "sub/b").write_text("content")
    assert download.manifest_ok(tmp_path)
    before = (tmp_path / "a").stat()
    (tmp_path / "a").write_text("conten")
    os.utime(tmp_path / "a", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not download.manifest_ok(tmp_path), "cut"
    (tmp_path / "a").unlink()
    assert not download.manifest_ok(tmp_path), "gone"


def test_manifest_hashes_only_what_looks_changed(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("content")
    download.write_manifest(tmp_path)
    os.utime(tmp_path / "a", ns=(1, 1))
    hashed = []
    real = files.sha256
    monkeypatch.setattr(files, "sha256", lambda path: hashed.append(path) or real(path))
    assert download.manifest_ok(tmp_path) and download.manifest_ok(tmp_path)
    assert len(hashed) == 1, "the second look finds the new time noted"


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"a": 1}', '{"a": {"size": 7}}', "\x00"])
def test_broken_manifest_is_not_ok(tmp_path, content):
    (tmp_path / "a").write_text("content")
    (tmp_path / download.MANIFEST).write_text(content)
    assert download.manifest_ok(tmp_path) is False


# --- wheels, from an index made here


@pytest.fixture
def wheel(tmp_path):
    path = tmp_path / "index" / "tiny_pkg-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_pkg/data", os.urandom(20_000))
        archive.writestr(
            "tiny_pkg-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: tiny-pkg\nVersion: 1.0\n",
        )
        archive.writestr(
            "tiny_pkg-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr("tiny_pkg-1.0.dist-info/RECORD", "")
    return path


@pytest.fixture
def index(wheel, monkeypatch):
    """A package index whose n-th answer for the wheel is ``answers[n]`` (the last one for ever), with the wheel's checksum."""
    served, answers = [], [wheel.read_bytes()]
    digest, length = files.sha256(wheel), len(answers[0])

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = f'<a href="/{wheel.name}#sha256={digest}">{wheel.name}</a>'.encode()
            if self.path.endswith(".whl"):
                body = answers[min(len(served), len(answers) - 1)]
                served.append(len(body))
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header(
                "Content-Length", str(length if self.path.endswith(".whl") else len(body))
            )
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    only_index(monkeypatch, f"http://127.0.0.1:{server.server_port}/simple")
    yield answers, served
    server.shutdown()


def only_index(monkeypatch, url):
    for name in [
        name for name in os.environ if name.startswith("PIP_") or name.lower().endswith("_proxy")
    ]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", url)


def test_wheel_is_fetched_once_announced_and_reused(tmp_path, wheel, index, capsys):
    digest = files.sha256(wheel)
    path = download.fetch_wheel("tiny-pkg", "1.0", digest, tmp_path / "w", megabytes=12.3)
    assert path == tmp_path / "w" / wheel.name and files.sha256(path) == digest
    assert (
        capsys.readouterr().err
        == "Downloading tiny-pkg 1.0 (12 MB) from the Python package index …\n"
    )
    assert download.fetch_wheel("Tiny_Pkg", "1.0", digest, tmp_path / "w") == path
    assert (
        len(index[1]) == 1
        and capsys.readouterr().err == ""
        and os.listdir(tmp_path / "w") == [wheel.name]
    )


@pytest.mark.parametrize("cut", [100, 15_000])
def test_truncated_download_is_fetched_once_more(tmp_path, wheel, index, cut):
    index[0].insert(0, wheel.read_bytes()[:cut])
    path = download.fetch_wheel("tiny-pkg", "1.0", files.sha256(wheel), tmp_path / "w")
    assert path.read_bytes() == wheel.read_bytes() and len(index[1]) == 2


def test_wheel_damaged_on_disk_is_replaced(tmp_path, wheel, index):
    kept = tmp_path / "w" / wheel.name
    kept.parent.mkdir()
    kept.write_bytes(wheel.read_bytes()[:-1])
    assert download.fetch_wheel("tiny-pkg", "1.0", files.sha256(wheel), kept.parent) == kept
    assert kept.read_bytes() == wheel.read_bytes()


def test_wrong_checksum_twice_names_both_and_keeps_nothing(tmp_path, wheel, index):
    with pytest.raises(
        files.CacheError, match=f"{files.sha256(wheel)}.*expected {'0' * 64}"
    ) as error:
        download.fetch_wheel("tiny-pkg", "1.0", "0" * 64, tmp_path / "w")
    assert not isinstance(error.value, download.WheelUnavailable)
    assert len(index[1]) == 2 and os.listdir(tmp_path / "w") == []


def test_always_truncated_download_is_an_error_after_two(tmp_path, wheel, index):
    index[0][:] = [wheel.read_bytes()[:5000]]
    with pytest.raises(files.CacheError, match="tiny-pkg"):
        download.fetch_wheel("tiny-pkg", "1.0", files.sha256(wheel), tmp_path / "w")
    assert os.listdir(tmp_path / "w") == []


def test_version_that_is_gone_is_unavailable(tmp_path, index):
    with pytest.raises(download.WheelUnavailable, match=r"no wheel of tiny-pkg 2\.0"):
        download.fetch_wheel("tiny-pkg", "2.0", "0" * 64, tmp_path)


def test_no_network_is_said_soon(tmp_path, monkeypatch):
    only_index(monkeypatch, "https://127.0.0.1:9/simple")
    start = time.monotonic()
    with pytest.raises(download.WheelUnavailable, match="is there a network"):
        download.fetch_wheel("tiny-pkg", "1.0", "0" * 64, tmp_path)
    assert time.monotonic() - start < 30


def test_no_room_is_said_before_the_download(tmp_path, index):
    with pytest.raises(files.CacheError, match="MB free"):
        download.fetch_wheel("tiny-pkg", "1.0", "0" * 64, tmp_path, megabytes=1e12)
    assert index[1] == []


def test_killed_download_is_swept_and_redone(tmp_path, wheel, index, python):
    process = python(f'files.fetch_wheel("tiny-pkg", "1.0", "{files.sha256(wheel)}", "w")')
    process.stderr.readline()
    time.sleep(0.3)
    process.kill()
    process.wait()
    assert litter(tmp_path / "w")
    download.fetch_wheel("tiny-pkg", "1.0", files.sha256(wheel), tmp_path / "w")
    assert os.listdir(tmp_path / "w") == [wheel.name]


def test_sha256_is_the_standard_one(tmp_path):
    Path(tmp_path / "a").write_bytes(b"abc")
    assert (
        files.sha256(tmp_path / "a")
        == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
