"""MTEB on an exported folder is our own score: the same pairs, the same "all" Spearman."""

import pytest

from prompteol_utils.data import Pairs
from prompteol_utils.encoder import Encoder
from prompteol_utils.evaluation import evaluate_sts
from prompteol_utils.export import (
    benchmark,
    evaluate_mteb,
    export_sentence_transformer,
    local_tasks,
)
from prompteol_utils.models import load_model, save_tiny
from prompteol_utils.prompts import PROMPTS, Prompt

PLAIN = Prompt(PROMPTS["prompteol"].prefix, PROMPTS["prompteol"].suffix, "plain", punctuation=None)
# Written for this test.
LINES = [
    ("A goat climbs the shed roof.", "A goat is on top of the shed.", 4.0),
    ("The ferry left early.", "Nobody likes cold soup.", 0.0),
    ("He counts coins at night.", "He counts money in the dark.", 3.6),
    ("Snow blocks the mountain pass.", "The pass is closed by snow.", 4.8),
    ("Two boys share an umbrella.", "Two boys share a sandwich.", 1.4),
    ("The violin needs new strings.", "A tractor is in the barn.", 0.2),
]


@pytest.fixture
def senteval(tmp_path) -> str:
    folder = tmp_path / "downstream" / "STS" / "STSBenchmark"
    folder.mkdir(parents=True)
    for split in ("train", "dev", "test"):
        text = "".join(f"genre\tfile\t2020\t1\t{grade}\t{a}\t{b}\n" for a, b, grade in LINES)
        (folder / f"sts-{split}.csv").write_text(text)
    return str(tmp_path / "downstream")


def test_mteb_agrees_with_our_own_score(tmp_path, senteval):
    pytest.importorskip("mteb")
    ours = Encoder(load_model(str(save_tiny("llama", tmp_path / "base"))), PLAIN)
    folder = export_sentence_transformer(ours, tmp_path / "out")
    table = evaluate_mteb(folder, local_tasks(["stsb"], root=senteval))
    pairs = benchmark.load_sts("stsb", "test", root=senteval)
    assert isinstance(pairs, Pairs)
    expected = evaluate_sts(ours.encode, pairs)["spearman"].iloc[0]
    assert table["main_score"].iloc[0] == pytest.approx(expected, abs=0.01)


def test_other_names_are_refused_and_translated():
    pytest.importorskip("mteb")
    with pytest.raises(ValueError, match="allowed: sts12"):
        local_tasks(["sickr"])
    assert benchmark.hub_names(["stsb", "sts12", "Banking77"]) == [
        "STSBenchmark",
        "STS12",
        "Banking77",
    ]


def test_without_mteb_one_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mteb", None)
    with pytest.raises(ImportError, match=r"prompteol-utils\[export\]"):
        local_tasks(["stsb"])
