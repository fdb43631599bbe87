"""The benchmark of encoders compares like with like: the same sentences, and vectors that are the model's."""

import importlib.util
import json
from pathlib import Path

import pytest

from prompteol_utils.results import provenance

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def bench():
    spec = importlib.util.spec_from_file_location("bench_encode", ROOT / "benchmarks" / "encode.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(path, **changes):
    speeds = {("ours", 0): 80.0, ("ours", 1): 120.0, ("paper_loop", 0): 20.0}
    about = {"gemm_peak_gflops": 500.0, "share": 0.7, "peak_memory_mb": 900.0, "smallest_cosine": 1.0, "stsb_dev": 60.0} | changes
    lines = [
        {"kind": "bench", "model": "m", "shots": 0, "engine": engine, "round": number, "sentences_per_second": speed}
        | {"useful_tokens_per_second": 20 * speed, **about, **provenance()}
        for (engine, number), speed in speeds.items()
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_ratio_is_of_the_rounds_that_both_took_part_in(bench, tmp_path):
    table = bench.table(rows(tmp_path / "bench.jsonl")).set_index("engine")
    assert table.loc["paper_loop", "ours_is_faster"] == 4 and table.loc["ours", "ours_is_faster"] == 1
    assert table.loc["ours", "sentences_per_second"] == 100, "the median of all rounds"


def test_vectors_that_are_not_the_models_are_no_measurement(bench, tmp_path):
    with pytest.raises(ValueError, match="3 rows are of vectors that are not the model's"):
        bench.table(rows(tmp_path / "bench.jsonl", smallest_cosine=0.74))


def test_the_reference_is_of_exactly_these_sentences(bench):
    assert bench.work_file("m", 0, ["a", "b"]) == bench.work_file("m", 0, ["a", "b"])
    others = [("m", 0, ["a", "c"]), ("m", 0, ["ab"]), ("m", 1, ["a", "b"]), ("o/m", 0, ["a", "b"])]
    assert len({bench.work_file(*one) for one in [("m", 0, ["a", "b"]), *others]}) == 5
