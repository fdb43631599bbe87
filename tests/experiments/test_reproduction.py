"""The paper's systems again, with a tiny model in OPT's place: cost first, a verdict per task."""

from dataclasses import replace

import pytest
from transformers import AutoConfig

from prompteol_utils import results
from prompteol_utils.cli.main import main
from prompteol_utils.data import TRANSFER_TASKS, load_transfer
from prompteol_utils.encoder import Encoder
from prompteol_utils.evaluation import reported_split
from prompteol_utils.experiments import reproduction, sweep
from prompteol_utils.models import MODELS, load_model, memory, save_tiny
from prompteol_utils.models.registry import NOT_REPRODUCED
from prompteol_utils.results import MeasurementKey
from prompteol_utils.utils import devices

NAMES = ["Anna", "Boris", "Chloe", "Dmitri", "Elena", "Farid", "Greta"]
ACTS = ["bakes a cake", "reads a map", "paints the door", "feeds the geese", "mends a net"]


@pytest.fixture(scope="module")
def opt(tmp_path_factory):
    return str(save_tiny("opt", tmp_path_factory.mktemp("opt")))


@pytest.fixture
def tiny_shapes(monkeypatch):
    """The registry takes tiny models for the published ones."""

    def take(name, folder):
        shape = memory.shape_of(AutoConfig.from_pretrained(folder))
        monkeypatch.setitem(MODELS, name, replace(MODELS[name], shape=shape))

    return take


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder in SentEval's form whose STS-B test set has as many pairs as the real one."""
    folder = tmp_path_factory.mktemp("downstream")
    (folder / "STS/STSBenchmark").mkdir(parents=True)
    lines = []
    for i in range(1379):
        left, right = (
            f"{NAMES[k % 7]} {ACTS[k % 5]} at {k % 11} today" for k in (i, i * 3 + i % 4)
        )
        lines.append(f"main\tMSRvid\t2012\t{i}\t{i % 51 / 10}\t{left.lower()}\t{right.lower()}\n")
    for split in ("train", "dev", "test"):
        (folder / f"STS/STSBenchmark/sts-{split}.csv").write_text("".join(lines))
    return str(folder)


def test_every_row_of_the_sts_tables_has_a_command_or_a_reason():
    known = reproduction.reproductions()
    table = results.paper_table("sts")[["group", "system"]].drop_duplicates()
    have = {(one.group, one.system) for one in known.values()}
    for row in table.itertuples():
        assert (row.group, row.system) in have or any(
            row.system in name for name in NOT_REPRODUCED
        ), row
    assert (
        known["opt-2.7b-icl"].prompt.demonstrations[0].word == "Equestrian"
        and not known["opt-2.7b"].prompt.demonstrations
    )
    assert (
        known["prompteol-llama-7b"].model == "prompteol-llama-7b"
        and known["bert-prompt"].prompt.pooling == "mask"
    )
    assert all(one.model in MODELS for one in known.values())


def test_whole_path_fails_with_a_tiny_model_and_passes_with_its_own_score(
    opt, root, tmp_path, monkeypatch, capsys, tiny_shapes
):
    tiny_shapes("opt-125m", opt)
    arguments = [
        "grid",
        "--paper",
        "opt-125m",
        "--tasks",
        "stsb",
        "--root",
        root,
        "--weights",
        opt,
        "--output",
        str(tmp_path / "rows.jsonl"),
    ]
    assert main(arguments) == 1
    shown = capsys.readouterr().out
    assert (
        shown.index("facebook/opt-125m, a download of ") < shown.index("fail")
        and "seconds on an H100" in shown
        and "0.000 hours" not in shown
    )
    row = results.Store(tmp_path / "rows.jsonl").rows()[0]
    assert (row["model"], row["n"], row["weight_origin"]) == (
        "opt-125m",
        1379,
        "hub fp16, base (a folder)",
    )
    table = results.paper_table("sts")
    table.loc[table["system"].eq("PromptEOL OPT-125M") & table["task"].eq("stsb"), "score"] = (
        row["spearman"] + 0.3
    )
    monkeypatch.setattr(reproduction, "paper_table", lambda name: table)
    assert main(arguments) == 0 and "pass" in capsys.readouterr().out
    assert main([*arguments, "--tolerance", "0.2"]) == 1, "0.3 points are more than 0.2"
    assert len(results.Store(tmp_path / "rows.jsonl").rows()) == 1, "nothing was measured twice"


def test_the_cost_is_said_before_data_is_looked_for(
    opt, tmp_path, monkeypatch, capsys, tiny_shapes
):
    """And the small sets of the project never stand in for SentEval's."""
    tiny_shapes("opt-125m", opt)
    monkeypatch.delenv("PROMPTEOL_SENTEVAL", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"stsb is not there: name its folder \(--root"):
        reproduction.reproduce("opt-125m", tmp_path / "rows.jsonl", tasks=["stsb"], weights=opt)
    assert "opt-125m: facebook/opt-125m" in capsys.readouterr().out
    assert not (tmp_path / "rows.jsonl").exists()


def test_weights_of_another_shape_are_refused(opt, root, tmp_path):
    settings = {"tasks": ["stsb"], "root": root, "weights": opt}
    with pytest.raises(ValueError, match=r"is no opt-125m: layers \d+, hidden .* has 12, 768"):
        reproduction.reproduce("opt-125m", tmp_path / "rows.jsonl", **settings)


def test_a_failure_has_its_reason_and_is_tried_again(opt, root, tmp_path, monkeypatch, tiny_shapes):
    tiny_shapes("opt-125m", opt)
    settings = {"tasks": ["stsb"], "root": root, "weights": opt}
    load = sweep.load_model

    def full(*arguments, **options):
        raise devices.NotEnoughMemoryError("it needs 140 GB")

    monkeypatch.setattr(sweep, "load_model", full)
    failed = reproduction.reproduce("opt-125m", tmp_path / "rows.jsonl", **settings)
    assert failed[["verdict", "reason"]].to_numpy().tolist() == [
        ["failed", "loading: it needs 140 GB"]
    ]
    monkeypatch.setattr(sweep, "load_model", load)
    again = reproduction.reproduce("opt-125m", tmp_path / "rows.jsonl", **settings)
    assert again["verdict"].tolist() == ["fail"] and again["ours"].notna().all()


def test_durations_have_a_unit_that_shows_them():
    found = [reproduction._duration(seconds) for seconds in (0.001, 40, 400, 9000)]
    assert found == ["1 seconds", "40 seconds", "6.7 minutes", "2.5 hours"]


# --- transfer


def sentence(i: int) -> str:
    return f"{NAMES[i % 7]} {ACTS[i % 5]} at {i} today".lower()


@pytest.fixture
def small(tmp_path, monkeypatch):
    """All seven tasks in SentEval's form, a few sentences each.

    Their sizes are taken for the real ones.
    """
    classes = {
        "MR/rt-polarity": ("pos", "neg"),
        "CR/custrev": ("pos", "neg"),
        "SUBJ/subj": ("subjective", "objective"),
        "MPQA/mpqa": ("pos", "neg"),
    }
    files, folder = {}, tmp_path / "small"
    for stem, labels in classes.items():
        files |= {
            f"{stem}.{label}": [sentence(i) for i in range(100 * k, 100 * k + 14)]
            for k, label in enumerate(labels)
        }
    for k, split in enumerate(("train", "dev", "test")):
        files[f"SST/binary/sentiment-{split}"] = [
            f"{sentence(100 * k + i)}\t{i % 2}" for i in range(20)
        ]
    for k, name in enumerate(("train_5500", "TREC_10")):
        files[f"TREC/{name}.label"] = [
            f"{('NUM:dist', 'HUM:ind')[i % 2]} {sentence(100 * k + i)} ?" for i in range(28)
        ]
    for k, split in enumerate(("train", "test")):
        rows = [
            f"{i % 2}\t1\t2\t{sentence(100 * k + i)}\t{sentence(100 * k + i * 3)}"
            for i in range(28)
        ]
        files[f"MRPC/msr_paraphrase_{split}.txt"] = [
            "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
            *rows,
        ]
    for name, lines in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    sizes = {task: len(load_transfer(task, root=str(folder))) for task in TRANSFER_TASKS}
    monkeypatch.setattr(reproduction, "TRANSFER_SIZES", sizes)
    monkeypatch.setenv("PROMPTEOL_CACHE", str(tmp_path / "cache"))
    return str(folder)


def test_every_transfer_row_has_a_command_or_a_reason():
    have = {(one.group, one.system) for one in reproduction.reproductions("transfer").values()}
    for row in results.paper_table("transfer")[["group", "system"]].drop_duplicates().itertuples():
        named = any(row.system in reason.split(", ") for reason in NOT_REPRODUCED)
        assert ((row.group, row.system) in have) != named, row


def test_an_average_of_seven_fails_with_a_tiny_model_and_passes_with_its_own(
    opt, small, tmp_path, monkeypatch, capsys, tiny_shapes
):
    tiny_shapes("opt-6.7b", opt)
    arguments = [
        "grid",
        "--paper",
        "opt-6.7b",
        "--transfer",
        "--root",
        small,
        "--weights",
        opt,
        "--output",
        str(tmp_path / "rows.jsonl"),
    ]
    assert main(arguments) == 1
    shown = capsys.readouterr().out
    assert (
        shown.index("facebook/opt-6.7b, a download of ")
        < shown.index("sentences encoded")
        < shown.index("fail")
    )
    rows = results.Store(tmp_path / "rows.jsonl").read()
    assert (
        rows["task"].tolist() == list(TRANSFER_TASKS)
        and set(rows["solver"]) == {"senteval"}
        and set(rows["seed"]) == {1111}
    )
    table = results.paper_table("transfer")
    own = table["model"].eq("opt-6.7b") & table["system"].eq("PromptEOL")
    table.loc[own, "score"] = rows["accuracy"].mean() + 0.3
    monkeypatch.setattr(reproduction, "paper_table", lambda name: table)
    monkeypatch.setattr(
        reproduction, "load_model", lambda *a, **k: pytest.fail("all rows are there")
    )
    assert main(arguments) == 0 and main([*arguments, "--tolerance", "0.2"]) == 1
    shown = capsys.readouterr().out
    assert shown.count("no number") == 14 and shown.count("pass") == shown.count("fail") == 1
    monkeypatch.setitem(reproduction.TRANSFER_SIZES, "trec", 5_952)
    assert main(arguments) == 1 and "not comparable" in capsys.readouterr().out, (
        "one smaller set, and the average is another"
    )
    assert main([*arguments, "--tasks", "mr", "trec"]) == 2
    assert "no number is published for mr, trec; there is: avg" in capsys.readouterr().err


def test_single_tasks_resume_and_are_records_of_the_command_transfer(
    small, tmp_path, monkeypatch, tiny_shapes
):
    llama = str(save_tiny("llama", tmp_path / "llama", hidden_size=64, intermediate_size=128))
    tiny_shapes("llama-2-7b", llama)
    settings = {"root": small, "weights": llama}
    first = reproduction.reproduce_transfer(
        "llama-2-7b", tmp_path / "rows.jsonl", tasks=["cr"], **settings
    )
    assert (
        first["verdict"].tolist() == ["fail"]
        and first["paper"].tolist() == [92.87]
        and first["tolerance"].tolist() == [1.0]
    )
    both = reproduction.reproduce_transfer(
        "llama-2-7b", tmp_path / "rows.jsonl", tasks=["cr", "trec"], **settings
    )
    assert both["task"].tolist() == ["cr", "trec"], "no average over fewer than seven"
    store = results.Store(tmp_path / "rows.jsonl")
    assert [row["task"] for row in store.rows()] == ["cr", "trec"], "nothing is measured twice"
    encoder = Encoder(load_model("llama-2-7b", weights=llama))
    for name in ("cr", "trec"):
        task = load_transfer(name, root=small)
        key = MeasurementKey.of(
            encoder,
            task,
            reported_split(task),
            kind="transfer",
            seed=1111,
            **sweep.transfer_settings("senteval"),
        )
        assert store.done(key)
    quantised = reproduction.reproduce_transfer(
        "llama-2-7b", tmp_path / "nf4.jsonl", tasks=["cr"], precision="nf4", **settings
    )
    assert (
        quantised["verdict"].tolist() == ["not comparable"]
        and quantised["reason"].tolist() == ["measured in nf4"]
        and quantised["difference"].isna().all()
    )


def test_another_folder_of_weights_finds_no_vectors_of_the_first(small, tmp_path, tiny_shapes):
    for seed in (0, 1):
        folder = save_tiny("llama", tmp_path / f"llama{seed}", seed=seed)
        tiny_shapes("llama-2-7b", folder)
        reproduction.reproduce_transfer(
            "llama-2-7b", tmp_path / f"{seed}.jsonl", tasks=["cr"], root=small, weights=folder
        )
        assert results.Store(tmp_path / f"{seed}.jsonl").rows()[0]["encoded"] == 28


def test_an_unknown_task_is_named(capsys):
    assert main(["grid", "--paper", "opt-125m", "--output", "x", "--tasks", "stsb", "sst5"]) == 2
    assert "unknown task 'sst5'; allowed: sts12, " in capsys.readouterr().err


def test_unknown_name_lists_what_there_is():
    with pytest.raises(ValueError, match=r"opt-125m, .*SGPT: a mean weighted"):
        reproduction.get_reproduction("sgpt")
    with pytest.raises(
        ValueError, match=r"on transfer is called 'opt-125m'; allowed: opt-6.7b, llama-2-7b"
    ):
        reproduction.get_reproduction("opt-125m", "transfer")


def test_no_system_is_silently_missing(capsys):
    assert main(["grid", "--paper", "--output", "x"]) == 0
    shown = capsys.readouterr().out
    assert "opt-125m-icl" in shown and "llama-2-7b" in shown
    states = reproduction.reproduction_status().set_index("system")
    assert set(states.index) == {*MODELS, *NOT_REPRODUCED}
    assert states.loc["smollm2-135m-instruct", "state"] == "real weights"
    assert (
        states.loc["opt-6.7b", "state"] == "class path on a tiny opt"
        and states.loc["SGPT", "state"] == "does not run"
    )
    assert states["reason"].ne("").all()
