"""`reproduce`, with a tiny model in OPT's place: cost first, a verdict per task, and no verdict where the measurement is another one."""

import pandas as pd
import pytest

from prompteol_utils import reproduction, results
from prompteol_utils.__main__ import main
from prompteol_utils.registry import MODELS, NOT_HERE
from prompteol_utils.tiny import save_tiny

NAMES = ["Anna", "Boris", "Chloe", "Dmitri", "Elena", "Farid", "Greta"]
ACTS = ["bakes a cake", "reads a map", "paints the door", "feeds the geese", "mends a net"]


@pytest.fixture(scope="module")
def opt(tmp_path_factory):
    return str(save_tiny("opt", tmp_path_factory.mktemp("opt")))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder in SentEval's form whose STS-B test set has as many pairs as the real one."""
    folder = tmp_path_factory.mktemp("downstream")
    (folder / "STS/STSBenchmark").mkdir(parents=True)
    lines = []
    for i in range(1379):
        left, right = (f"{NAMES[k % 7]} {ACTS[k % 5]} at {k % 11} today" for k in (i, i * 3 + i % 4))
        lines.append(f"main\tMSRvid\t2012\t{i}\t{i % 51 / 10}\t{left.lower()}\t{right.lower()}\n")
    for split in ("train", "dev", "test"):
        (folder / f"STS/STSBenchmark/sts-{split}.csv").write_text("".join(lines))
    return str(folder)


def test_every_row_of_the_sts_tables_has_a_command_or_a_reason():
    known = reproduction.reproductions()
    table = results.paper_table("sts")[["group", "system"]].drop_duplicates()
    have = {(one.group, one.system) for one in known.values()}
    for row in table.itertuples():
        assert (row.group, row.system) in have or any(row.system in name for name in NOT_HERE), row
    assert known["opt-2.7b-icl"].prompt.demonstrations[0].word == "Equestrian" and not known["opt-2.7b"].prompt.demonstrations
    assert known["prompteol-llama-7b"].model == "prompteol-llama-7b" and known["bert-prompt"].prompt.pooling == "mask"
    assert all(one.model in MODELS for one in known.values())


def test_whole_path_fails_with_a_tiny_model_and_passes_with_its_own_score(opt, root, tmp_path, monkeypatch, capsys):
    arguments = ["reproduce", "opt-125m", "--tasks", "stsb", "--root", root, "--weights", opt, "--output", str(tmp_path / "rows.jsonl")]
    assert main(arguments) == 1
    shown = capsys.readouterr().out
    assert shown.index("facebook/opt-125m, a download of 0.2 GB") < shown.index("fail") and "hours on an H100" in shown
    row = results.Store(tmp_path / "rows.jsonl").rows()[0]
    assert (row["model"], row["n"], row["weight_origin"]) == ("opt-125m", 1379, "hub fp16, base (a folder)")
    table = results.paper_table("sts")
    table.loc[table["system"].eq("PromptEOL OPT-125M") & table["task"].eq("stsb"), "score"] = row["spearman"] + 0.3
    monkeypatch.setattr(results, "paper_table", lambda name: table)
    assert main(arguments) == 0 and "pass" in capsys.readouterr().out
    assert main([*arguments, "--tolerance", "0.2"]) == 1, "0.3 points are more than 0.2"
    assert len(results.Store(tmp_path / "rows.jsonl").rows()) == 1, "nothing was measured twice"


def test_another_precision_or_set_gets_no_verdict(opt, tmp_path, monkeypatch):
    monkeypatch.delenv("PROMPTEOL_SENTEVAL", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    table = reproduction.reproduce("opt-125m", tmp_path / "rows.jsonl", tasks=["stsb"], weights=opt)  # the mini set
    assert table["verdict"].tolist() == ["not comparable"] and pd.isna(table["difference"][0])


def test_unknown_name_lists_what_there_is():
    with pytest.raises(ValueError, match=r"opt-125m, .*SGPT: a mean weighted"):
        reproduction.get_reproduction("sgpt")


def test_no_system_is_silently_missing(capsys):
    assert main(["states"]) == 0 and main(["reproduce"]) == 0 and main(["plan", "opt-6.7b", "opt-66b"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in MODELS) and all(system in shown for system in NOT_HERE)
    states = reproduction.states().set_index("system")
    assert states.loc["smollm2-135m-instruct", "state"] == "real weights"
    assert states.loc["opt-6.7b", "state"] == "class path on a tiny opt" and states.loc["SGPT", "state"] == "does not run"
    assert states["reason"].ne("").all()
