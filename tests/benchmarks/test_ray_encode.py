"""benchmarks/ray_encode.py: the vectors of `Encoder`, resumed shard by shard, here and on Ray."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from samples import load_script

from prompteol_utils.encoder import Encoder
from prompteol_utils.models import load_model, save_tiny

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "ray_encode.py"
SHARDS = {f"{at:03}.parquet": [f"Sentence {at} of part {k}." for k in range(5)] for at in range(6)}


@pytest.fixture(scope="module")
def script():
    return load_script(SCRIPT)


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "sentences"
    folder.mkdir()
    for name, sentences in SHARDS.items():
        pq.write_table(pa.table({"sentence": sentences}), folder / name)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_tiny("llama", tmp_path_factory.mktemp("base")))


def check(output: Path, model: str):
    encoder = Encoder(load_model(model))
    assert {path.name for path in output.glob("*.parquet")} == set(SHARDS)
    assert not list(output.glob(".*parquet.*")), "no unfinished file"
    for name, sentences in SHARDS.items():
        table = pq.read_table(output / name)
        assert table["sentence"].to_pylist() == sentences
        found = np.stack(table["embedding"].to_pylist())
        expected = encoder.encode(sentences)
        assert np.linalg.norm(expected[0] - expected[1]) > 1e-2, "cannot tell them apart"
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_one_process_writes_each_shard_once(script, source, model, tmp_path):
    output, settings = tmp_path / "vectors", {"name_or_path": model}
    found = script.embed(settings, source, output)
    assert (found["n"], found["shards"]) == (30, 6)
    check(output, model)
    (output / "002.parquet").unlink()
    kept = (output / "001.parquet").stat().st_mtime_ns
    assert script.embed(settings, source, output)["shards"] == 1
    assert (output / "001.parquet").stat().st_mtime_ns == kept
    assert script.embed(settings, source, output)["n"] == 0
    check(output, model)


def test_vectors_of_two_encoders_do_not_mix(script, source, model, tmp_path):
    output = tmp_path / "vectors"
    script.embed({"name_or_path": model}, source, output)
    (output / "003.parquet").unlink()
    with pytest.raises(ValueError, match="vectors of another encoder"):
        script.embed({"name_or_path": model, "prompt": "means"}, source, output)


def test_a_killed_run_is_resumed(source, model, tmp_path):
    output = tmp_path / "vectors"
    command = [sys.executable, str(SCRIPT), "--model", model]
    command += ["--input", str(source), "--output", str(output)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and not list(output.glob("*.parquet")):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in output.glob("*.parquet")}
    assert before
    for part in output.glob(".*.parquet.*"):
        part.unlink()
    subprocess.run(command, check=True, capture_output=True)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    check(output, model)


@pytest.mark.slow
def test_rays_actors_write_the_same(script, source, model, tmp_path):
    pytest.importorskip("ray")
    found = script.embed({"name_or_path": model}, source, tmp_path / "vectors", workers=2)
    assert (found["n"], found["shards"]) == (30, 6)
    check(tmp_path / "vectors", model)


def test_without_ray_one_line_names_the_extra(script, source, model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit, match=r"prompteol-utils\[scale\]"):
        script.embed({"name_or_path": model}, source, tmp_path / "vectors", workers=2)
