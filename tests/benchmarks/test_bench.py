"""The benchmark of encoders compares like with like: the same sentences, and vectors that
are the model's.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from samples import load_script

from prompteol_utils.results import provenance

ROOT = Path(__file__).resolve().parents[2]


def script(name: str):
    return load_script(ROOT / "benchmarks" / f"{name}.py")


@pytest.fixture
def bench():
    return script("encode")


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    from prompteol_utils.models import download, tiny

    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    folder = tiny.save_tiny("opt", tmp_path / "tiny")
    monkeypatch.setattr(download, "fetch_model", lambda name: folder)
    return script("gpu")


def rows(path, **changes):
    speeds = {("ours", 0): 80.0, ("ours", 1): 120.0, ("paper_loop", 0): 20.0}
    about = {
        "gemm_peak_gflops": 500.0,
        "share": 0.7,
        "peak_memory_mb": 900.0,
        "smallest_cosine": 1.0,
        "stsb_dev": 60.0,
    } | changes
    lines = [
        {
            "kind": "bench",
            "model": "m",
            "shots": 0,
            "engine": engine,
            "round": number,
            "sentences_per_second": speed,
        }
        | {"useful_tokens_per_second": 20 * speed, **about, **provenance()}
        for (engine, number), speed in speeds.items()
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_ratio_is_of_the_rounds_that_both_took_part_in(bench, tmp_path):
    table = bench.table(rows(tmp_path / "bench.jsonl")).set_index("engine")
    assert (
        table.loc["paper_loop", "ours_is_faster"] == 4 and table.loc["ours", "ours_is_faster"] == 1
    )
    assert table.loc["ours", "sentences_per_second"] == 100, "the median of all rounds"


def test_vectors_that_are_not_the_models_are_no_measurement(bench, tmp_path):
    with pytest.raises(ValueError, match="3 rows are of vectors that are not the model's"):
        bench.table(rows(tmp_path / "bench.jsonl", smallest_cosine=0.74))


def test_rows_without_scores_make_a_table_too(bench, tmp_path):
    path = rows(tmp_path / "bench.jsonl")
    path.write_text(
        "".join(
            json.dumps({k: v for k, v in json.loads(line).items() if k != "stsb_dev"}) + "\n"
            for line in path.open()
        )
    )
    table = bench.table(path)
    assert len(table) == 2 and table["stsb_dev"].isna().all() and table["share"].notna().all()


def test_attentions_work_is_that_of_the_scores_and_sums_that_are_asked_for(bench):
    """Counted by torch on a model whose only products are attention's, and there once more
    than half of all pairs is masked.
    """
    from torch.utils.flop_counter import FlopCounterMode

    from prompteol_utils.encoder import Encoder
    from prompteol_utils.models import tiny_model

    loaded = tiny_model("llama")
    encoder, texts = (
        Encoder(loaded, "prompteol"),
        ["The kettle sings.", "Two boats drift past the empty pier."],
    )
    ids = encoder.tokenize(texts)
    shared, pairs, counted = encoder.tokenize.count_shared(ids), 0, 0
    loaded.model.set_attn_implementation("eager")
    for row in ids:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            loaded.model(torch.tensor([row]))
        products = counter.get_flop_counts()["Global"]
        counted += (
            sum(flops for name, flops in products.items() if "bmm" in str(name)) // 2
        )  # every token with every other
        pairs += len(row) ** 2
    seen = sum(n + 1 for row in ids for n in range(shared, len(row)))
    assert bench.attention(encoder, texts) == round(counted / pairs * seen)


def test_the_reference_is_of_exactly_these_sentences(bench):
    assert bench.work_file("m", 0, ["a", "b"]) == bench.work_file("m", 0, ["a", "b"])
    others = [("m", 0, ["a", "c"]), ("m", 0, ["ab"]), ("m", 1, ["a", "b"]), ("o/m", 0, ["a", "b"])]
    assert len({bench.work_file(*one) for one in [("m", 0, ["a", "b"]), *others]}) == 5


def run(gpu, monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["gpu.py", *map(str, arguments)])
    return gpu.main()


def test_the_gpus_benchmark_runs_on_a_processor_too(gpu, monkeypatch, tmp_path, capsys):
    rows = tmp_path / "gpu.jsonl"
    short = [
        "--device",
        "cpu",
        "--layers",
        1,
        "--models",
        "opt-125m",
        "--sentences",
        6,
        "--shots",
        0,
        2,
        "--rounds",
        2,
        "--rows",
        rows,
    ]
    assert run(gpu, monkeypatch, *short) == 0
    found = [
        row for row in map(json.loads, rows.read_text().splitlines()) if row["engine"] == "ours"
    ]
    assert [(row["shots"], row["round"], row["layers"], row["dtype"]) for row in found] == [
        (s, r, 1, "float32") for s in (0, 2) for r in (0, 1)
    ]
    assert all(
        row["sentences_per_second"] > 0 and row["gemm_peak_gflops"] > 0 and row["n"] == 6
        for row in found
    )
    assert "opt-125m" in capsys.readouterr().out
    before = rows.read_bytes()
    assert run(gpu, monkeypatch, *short) == 0 and rows.read_bytes() == before, (
        "what is there is not measured again"
    )


@pytest.fixture
def check(gpu, monkeypatch, tmp_path):
    """`gpu_check.py --tiny`, one model; returns the exit code and the records."""
    module = script("gpu_check")
    output = tmp_path / "check.jsonl"

    def run(*more):
        arguments = ["--tiny", "--models", "opt-1.3b", "--output", output, *more]
        monkeypatch.setattr(sys, "argv", ["gpu_check.py", *map(str, arguments)])
        code = module.main()
        lines = output.read_text().splitlines() if output.exists() else []
        return code, [json.loads(line) for line in lines]

    run.module = module
    return run


def test_the_check_of_a_card_runs_on_a_processor_too(check):
    code, found = check()
    names = [row.get("precision", row["part"]) for row in found]
    assert code == 0 and names == [*check.module.PRECISIONS, "training", "speed"]
    assert all(row["passed"] and row["apart"] > 0.1 for row in found[:4])
    assert found[4]["planned_memory"] > 0 and found[4]["seconds_a_step"] > 0
    assert found[5]["share_of_peak, ours"] > 0 and found[5]["sentences_per_second, ours"] > 0
    assert all(row["tiny"] and "machine" in row and "versions" in row for row in found)


def test_a_part_that_fails_says_why_and_the_next_goes_on(check, monkeypatch):
    def broken(folder, precision, options):
        raise RuntimeError(f"no kernel\nfor {precision}")

    monkeypatch.setattr(check.module, "exactness", broken)
    monkeypatch.setattr(check.module, "training", lambda *_: {"planned_to_peak": 1.0})
    monkeypatch.setattr(check.module, "speed", lambda *_: {"share_of_peak, ours": 0.5})
    code, found = check()
    assert code == 1 and [row.get("failed") for row in found] == [
        *(f"RuntimeError: no kernel for {one}" for one in check.module.PRECISIONS),
        *(None, None),
    ]


def test_a_part_ends_when_no_time_is_left(check, capsys):
    with pytest.raises(check.module.OutOfTimeError), check.module.at_most(0.01):
        time.sleep(60)
    assert check("--minutes", 0) == (1, [])
    assert "no time was left" in capsys.readouterr().out


def test_vectors_that_are_not_the_references_do_not_pass(check, monkeypatch):
    from prompteol_utils.encoder import Encoder

    encode = Encoder.encode
    monkeypatch.setattr(Encoder, "encode", lambda self, texts, **_: encode(self, texts)[::-1])
    monkeypatch.setattr(check.module, "training", lambda *_: {})
    monkeypatch.setattr(check.module, "speed", lambda *_: {})
    code, found = check()
    assert code == 1 and not any(row["passed"] for row in found[:4])


def test_cards_and_sets_of_sentences_are_not_mixed(gpu, tmp_path):
    from prompteol_utils.results import Store

    key = {
        "kind": "gpu_bench",
        "model": "opt-1.3b",
        "dtype": "bfloat16",
        "device": "cuda",
        "layers": None,
        "origin": "mini",
        "shots": 0,
    }
    about = {"share": 0.5, "gemm_peak_gflops": 9e5, "peak_memory_mb": 1.0}
    store = Store(tmp_path / "gpu.jsonl")
    for gpu_name, n, number, speeds in (
        ("A", 9, 0, (10, 5)),
        ("A", 9, 1, (30, 5)),
        ("B", 9, 0, (80, 20)),
        ("A", 4, 0, (7, 7)),
    ):
        for engine, speed in zip(gpu.ENGINES, speeds, strict=True):
            row = {
                **key,
                "gpu": gpu_name,
                "n": n,
                "round": number,
                "engine": engine,
                "sentences_per_second": speed,
                "smallest_cosine": 1.0,
            }
            store.append({**row, **about, **provenance()})
    table = gpu.table(store.path)
    theirs = table[table["engine"] != "ours"].set_index(["gpu", "n"])["ours_is_faster"]
    assert theirs.to_dict() == {("A", 9): 4.0, ("B", 9): 4.0, ("A", 4): 1.0}
    store.append(
        {
            **key,
            "gpu": "C",
            "n": 9,
            "round": 0,
            "engine": "ours",
            "sentences_per_second": 1,
            "smallest_cosine": 0.1,
            **about,
            **provenance(),
        }
    )
    with pytest.raises(ValueError, match="do not agree"):
        gpu.table(store.path)


def test_the_other_engine_gets_its_best_batch(gpu, monkeypatch):
    from prompteol_utils.utils import devices

    class Clock:
        now = seconds = 0.0

        def __init__(self, device):
            pass

        def __enter__(self):
            self.start = Clock.now
            return self

        def __exit__(self, *error):
            self.seconds = Clock.now - self.start

    def pass_time(seconds):
        def run(size):
            if seconds[size] is None:
                raise torch.OutOfMemoryError("too large")
            Clock.now += seconds[size]

        return run

    monkeypatch.setattr(devices, "Timer", Clock)
    device = torch.device("cpu")
    assert gpu._fastest(pass_time({16: 5, 32: 3, 64: 2, 128: 4}), device) == 64
    assert gpu._fastest(pass_time({16: 5, 32: 3, 64: None}), device) == 32
    with pytest.raises(torch.OutOfMemoryError):
        gpu._fastest(pass_time({16: None}), device)


def test_a_gpu_that_is_not_there_and_a_shape_that_is_not_known_are_said(
    gpu, monkeypatch, tmp_path, capsys
):
    if not torch.cuda.is_available():
        assert (
            run(gpu, monkeypatch, "--rows", tmp_path / "gpu.jsonl") == 2
            and "0 CUDA GPUs" in capsys.readouterr().err
        )
    with pytest.raises(ValueError, match="not an OPT size"):
        gpu.random_model("smollm2-135m-instruct", torch.device("cpu"), torch.float32, 1)


def test_engines_are_compared_by_what_sets_sentences_apart(gpu):
    vectors = np.random.default_rng(0).normal(size=(5, 8)) + 100
    assert (
        gpu.smallest_cosine(vectors, 3 * vectors)
        > 0.999
        > 0.9
        > gpu.smallest_cosine(vectors, vectors[::-1])
    )
