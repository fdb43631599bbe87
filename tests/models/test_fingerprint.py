"""A local folder is known by its content: other weights or tokenizer, another model."""

import os
import shutil
import time

import pytest

from prompteol_utils.encoder import Encoder
from prompteol_utils.models import fingerprint, load_model, save_tiny
from prompteol_utils.utils import files

LARGE = 8 << 20  # bytes from which a checksum is remembered


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PROMPTEOL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_folders_of_one_name_are_two_models(tmp_path):
    one, two = (save_tiny("llama", tmp_path / run / "merged", seed=i) for i, run in enumerate("ab"))
    keys = [Encoder(load_model(str(folder))).key for folder in (one, two)]
    assert keys[0]["model"] == keys[1]["model"] == "merged" and keys[0] != keys[1]
    copy = shutil.copytree(one, tmp_path / "c" / "merged")
    assert Encoder(load_model(str(copy))).key == keys[0], "the place does not matter"
    assert load_model("opt-125m", weights=one).commit == keys[0]["commit"]


def test_an_overwritten_folder_is_another_model(tmp_path):
    before = fingerprint.folder_fingerprint(save_tiny("llama", tmp_path / "f"))
    assert before.startswith("sha256-") and len(before) == 7 + 16
    assert fingerprint.folder_fingerprint(save_tiny("llama", tmp_path / "f", seed=1)) != before


@pytest.mark.parametrize(
    ("name", "matters"),
    [
        ("config.json", True),
        ("tokenizer.json", True),
        ("tokenizer_config.json", True),
        ("model.safetensors", True),
        ("2_Dense/model.safetensors", True),
        ("pytorch_model-00001-of-00002.bin", True),
        ("README.md", False),
        ("optimizer.pt", False),
        ("training_args.bin", False),
    ],
)
def test_only_what_decides_a_vector_counts(tmp_path, name, matters):
    file = save_tiny("opt", tmp_path / "f") / name
    before = fingerprint.folder_fingerprint(tmp_path / "f")
    file.parent.mkdir(exist_ok=True)
    with file.open("ab") as out:
        out.write(b" ")
    assert (fingerprint.folder_fingerprint(tmp_path / "f") != before) == matters


def test_large_files_are_read_once_while_they_stay_the_same(tmp_path, monkeypatch, cache):
    weights = tmp_path / "f" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(bytes(LARGE))
    read = []
    real = files.sha256
    monkeypatch.setattr(files, "sha256", lambda path: read.append(path) or real(path))
    just_written = fingerprint.folder_fingerprint(weights.parent)
    assert not (cache / "checksums.json").exists(), "a file just written may change unseen"
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 60)
    for _ in range(3):
        assert fingerprint.folder_fingerprint(weights.parent) == just_written
    assert len(read) == 2
    before = weights.stat()
    with weights.open("r+b") as out:
        out.write(b"x")
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert fingerprint.folder_fingerprint(weights.parent) != just_written, "size and mtime restored"
    (cache / "checksums.json").write_text("[1, {")
    assert fingerprint.folder_fingerprint(weights.parent) != just_written


def test_a_cache_that_cannot_be_written_is_no_hindrance(tmp_path, monkeypatch):
    folder = save_tiny("opt", tmp_path / "f")
    (folder / "pytorch_model.bin").write_bytes(bytes(LARGE))
    expected = fingerprint.folder_fingerprint(folder)
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the folder should be")
    monkeypatch.setenv("PROMPTEOL_CACHE", str(blocked / "cache"))
    assert fingerprint.folder_fingerprint(folder) == expected
