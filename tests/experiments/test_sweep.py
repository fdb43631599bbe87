"""Grids keep what is done through kills and through cells that do not fit.

Their rows are those of the verb `sts`.
"""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from prompteol_utils import experiments
from prompteol_utils.cli.main import main
from prompteol_utils.data import load_sts
from prompteol_utils.encoder import Encoder
from prompteol_utils.experiments import sweep
from prompteol_utils.models import load_model, save_tiny
from prompteol_utils.results import Store
from prompteol_utils.utils import devices

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two folders with tiny models."""
    return [str(save_tiny(name, tmp_path_factory.mktemp(name) / name)) for name in ("opt", "llama")]


@pytest.fixture(autouse=True)
def mini(monkeypatch, tmp_path):
    """No SentEval and no hub: the mini set."""
    monkeypatch.setenv("PROMPTEOL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PROMPTEOL_SENTEVAL", raising=False)
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)


def scores(rows: pd.DataFrame) -> pd.DataFrame:
    """What a row says of its cell, without what differs from run to run."""
    return rows[
        ["model", "dtype", "quantization", "prompt", "task", "split", "n", "spearman", "origin"]
    ]


def test_a_cell_is_a_row_of_the_verb_sts(models, tmp_path):
    grid = experiments.grid(
        models[:1], ["stsb"], tmp_path / "rows.jsonl", prompts=["prompteol", "mean"], limit=40
    )
    assert (
        main(
            [
                "sts",
                "--model",
                models[0],
                "--prompt",
                "prompteol",
                "mean",
                "--limit",
                "40",
                "--output",
                str(tmp_path / "sts.jsonl"),
            ]
        )
        == 0
    )
    alone = Store(tmp_path / "sts.jsonl").read()
    pd.testing.assert_frame_equal(scores(grid), scores(alone))
    assert grid["spearman"].nunique() == 2, "two prompts, two scores"
    assert (grid["weight_bytes"] == load_model(models[0]).model.get_memory_footprint()).all()
    assert (grid["sentences"] > 40).all() and (grid["batch_tokens"].isna()).all()
    before = (tmp_path / "sts.jsonl").read_bytes()
    again = experiments.grid(
        models[:1], ["stsb"], tmp_path / "sts.jsonl", prompts=["prompteol", "mean"], limit=40
    )
    assert (tmp_path / "sts.jsonl").read_bytes() == before, (
        "rows of the verb sts are cells that are done"
    )
    pd.testing.assert_frame_equal(scores(again), scores(alone))


def test_done_cells_load_no_model(models, tmp_path, monkeypatch):
    settings = {"precisions": ["fp32"], "limit": 20}
    first = experiments.grid(models, ["stsb"], tmp_path / "rows.jsonl", **settings)
    loads = []
    monkeypatch.setattr(sweep, "load_model", lambda name, **options: loads.append(name))
    pd.testing.assert_frame_equal(
        experiments.grid(models, ["stsb"], tmp_path / "rows.jsonl", **settings), first
    )
    assert loads == [] and list(first["model"]) == ["opt", "llama"]
    with pytest.raises(AttributeError):  # another sample is another cell
        experiments.grid(models, ["stsb"], tmp_path / "rows.jsonl", precisions=["fp32"], limit=21)
    assert loads == models[:1]


def test_an_interrupted_grid_ends_in_the_same_records(models, tmp_path, monkeypatch):
    settings = {"prompts": ["prompteol", "means"], "limit": 30}
    append, left = Store.append, []

    def stopping(self, *rows):
        append(self, *rows)
        left.pop()
        if not left:
            raise KeyboardInterrupt

    for finished in (1, 2):  # with the first model, and with the second
        left[:] = [None] * finished
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Store, "append", stopping)
            experiments.grid(models, ["stsb"], tmp_path / "broken.jsonl", **settings)
    after = experiments.grid(models, ["stsb"], tmp_path / "broken.jsonl", **settings)
    unbroken = experiments.grid(models, ["stsb"], tmp_path / "unbroken.jsonl", **settings)
    assert scores(after).to_csv() == scores(unbroken).to_csv()
    assert len(Store(tmp_path / "broken.jsonl").rows()) == len(unbroken) == 4


def test_two_folders_of_one_name_are_two_models(tmp_path):
    """Also where a folder is overwritten by another model."""
    folders = [
        str(save_tiny("llama", tmp_path / str(seed) / "merged", seed=seed)) for seed in (0, 1)
    ]
    store = Store(tmp_path / "rows.jsonl")
    settings = {"limit": 20, "prompts": ["mean"]}
    found = [experiments.grid([one], ["stsb"], store, **settings) for one in folders]
    assert found[0]["spearman"][0] != found[1]["spearman"][0]
    assert len(store.rows()) == 2
    save_tiny("llama", folders[1], seed=2)
    experiments.grid(folders[1:], ["stsb"], store, **settings)
    assert len(store.rows()) == 3


def test_a_subset_too_small_for_a_ranking_is_recorded(models, tmp_path, monkeypatch):
    pairs = load_sts("stsb", limit=6)
    apart = replace(pairs, subset=("one", *["rest"] * 5))
    monkeypatch.setattr(sweep.sts_data, "load_sts", lambda *arguments, **options: apart)
    rows = experiments.grid(models[:1], ["stsb"], tmp_path / "rows.jsonl", prompts=["mean"])
    assert rows["spearman"].notna().all() and rows["spearman_subset_mean"].isna().all()


def test_a_cell_out_of_memory_halves_then_fails_and_the_rest_go_on(models, tmp_path, monkeypatch):
    run, sizes = Encoder.run_batch, []

    def small(self, ids, *rest, **more):
        if self.prompt.name == "means":  # this prompt never fits, the other only in small batches
            sizes.append(len(ids))
            raise torch.OutOfMemoryError("CUDA out of memory")
        if len(ids) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(self, ids, *rest, **more)

    monkeypatch.setattr(Encoder, "run_batch", small)
    settings = {"prompts": ["means", "prompteol"], "limit": 20}
    rows = experiments.grid(models[:1], ["stsb"], tmp_path / "rows.jsonl", **settings)
    assert list(rows["kind"]) == ["failed", rows["kind"][1]] and pd.isna(rows["kind"][1])
    assert "out of memory" in rows["reason"][0] and sizes[0] > 1 and sizes[-1] == 1, (
        "halved down to one sentence"
    )
    monkeypatch.setattr(
        Encoder, "run_batch", run
    )  # not undo(): it would also give the fixture's environment back
    experiments.grid(models[:1], ["stsb"], tmp_path / "rows.jsonl", skip_failed=True, **settings)
    assert len(Store(tmp_path / "rows.jsonl").rows()) == 2
    rows = experiments.grid(models[:1], ["stsb"], tmp_path / "rows.jsonl", **settings)
    assert len(Store(tmp_path / "rows.jsonl").rows()) == 3, "the failed cell alone is tried again"
    assert rows.get("kind") is None or rows["kind"].isna().all()
    unbroken = experiments.grid(models[:1], ["stsb"], tmp_path / "other.jsonl", **settings)
    assert scores(rows).to_csv(float_format="%.4f") == scores(unbroken).to_csv(float_format="%.4f")


def test_a_model_that_does_not_fit_fails_and_the_rest_go_on(models, tmp_path, monkeypatch, capsys):
    load = sweep.load_model

    def too_large(name, **options):
        if name == models[0]:
            raise devices.NotEnoughMemoryError("it needs 140 GB, 24 GB are free")
        return load(name, **options)

    monkeypatch.setattr(sweep, "load_model", too_large)
    arguments = [
        "grid",
        "--model",
        *models,
        "--limit",
        "20",
        "--output",
        str(tmp_path / "rows.jsonl"),
    ]
    assert main(arguments) == 1, "a failed cell is a failed run"
    rows = Store(tmp_path / "rows.jsonl").read()
    assert rows["reason"][0] == "loading: it needs 140 GB, 24 GB are free" and rows[
        "spearman"
    ].notna().tolist() == [False, True]
    assert "140 GB" in capsys.readouterr().out


def test_precisions_stand_beside_fp32_and_gaps_stay_gaps(tmp_path):
    wide = {"hidden_size": 64, "intermediate_size": 128}
    names = [
        str(save_tiny("llama", tmp_path / name, seed=seed, **wide))
        for seed, name in enumerate("ba")
    ]
    rows = experiments.grid(
        names, ["stsb"], tmp_path / "rows.jsonl", precisions=["nf4", "fp32"], limit=20
    )
    table = experiments.by_precision(rows)
    assert table[["model", "precision"]].to_numpy().tolist() == [
        ["b", "fp32"],
        ["b", "nf4"],
        ["a", "fp32"],
        ["a", "nf4"],
    ]
    score = table["spearman"]
    assert table["difference"].tolist() == pytest.approx(
        [0, score[1] - score[0], 0, score[3] - score[2]]
    )
    assert table["difference"].ne(0).sum() == 2 and table["sentences/s"].gt(0).all()
    nf4 = table["precision"].eq("nf4")
    assert (table["weights, MB"][nf4].to_numpy() < table["weights, MB"][~nf4].to_numpy()).all()
    without = rows[~(rows["model"].eq("b") & rows["quantization"].isna())]
    assert experiments.by_precision(without)["difference"].isna().tolist() == [
        True,
        False,
        False,
    ], "nothing to compare with"
    half = experiments.by_precision(
        pd.concat([rows, rows[rows["quantization"].isna()].assign(dtype="bfloat16", spearman=1.0)])
    )
    assert (
        half["precision"].tolist() == ["fp32", "bf16", "nf4"] * 2
        and half["difference"][::3].eq(0).all()
    ), "fp32 first, not 16 bits"
    other = experiments.by_precision(
        pd.concat([rows, rows.assign(n=21, spearman=rows["spearman"] + 9)])
    )
    assert len(other) == 8 and other["difference"].abs().max() == table["difference"].abs().max(), (
        "each sample has its own fp32"
    )
    fields = ["weight_bytes", "sentences", "threads"]
    assert experiments.by_precision(rows.drop(columns=fields))["sentences/s"].isna().all(), (
        "records of the command sts have no speed"
    )
    failed = rows.assign(spearman=float("nan"), kind="failed")
    assert (
        len(experiments.by_precision(pd.concat([failed, rows, rows]))) == 4
        and len(experiments.by_precision(failed)) == 0
    )
    assert len(experiments.by_precision(Store(tmp_path / "none.jsonl").read())) == 0


def test_a_system_reads_its_own_prompt_unasked(tmp_path):
    weights = {"bert-prompt": {"weights": str(save_tiny("bert", tmp_path / "bert"))}}
    rows = experiments.grid(
        ["bert-prompt"], ["stsb"], tmp_path / "rows.jsonl", limit=20, load_options=weights
    )
    assert (rows["prompt"][0], rows["pooling"][0]) == ("bert-prompt", "mask")


def test_other_errors_are_not_taken_for_memory(models, tmp_path, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(Encoder, "run_batch", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        experiments.grid(models[:1], ["stsb"], tmp_path / "rows.jsonl", limit=20)
    assert Store(tmp_path / "rows.jsonl").rows() == []


def test_wrong_names_are_said_before_any_work(models, tmp_path):
    for settings, message in (
        ({"precisions": ["fp8"]}, "allowed: auto, fp32"),
        ({"prompts": ["promteol"]}, "did you mean 'prompteol'"),
    ):
        with pytest.raises(ValueError, match=message):
            experiments.grid(models, ["stsb"], tmp_path / "rows.jsonl", **settings)
    with pytest.raises(ValueError, match="unknown STS task"):
        experiments.grid(models, ["sts99"], tmp_path / "rows.jsonl")
    with pytest.raises(ValueError, match="unknown model 'smollm2-135'; nearest names: smollm2"):
        experiments.grid([*models, "smollm2-135"], ["stsb"], tmp_path / "rows.jsonl")
    with pytest.raises(ValueError, match="holds no saved model"):
        experiments.grid([*models, str(tmp_path)], ["stsb"], tmp_path / "rows.jsonl")
    assert not (tmp_path / "rows.jsonl").exists()
