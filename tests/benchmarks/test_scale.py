"""benchmarks/scale.py on a tiny model: its sentences, its rows, what it does not measure
again, its table and figure.
"""

import re
from pathlib import Path

import pytest
from samples import load_script

from prompteol_utils.models import save_tiny
from prompteol_utils.results import Store

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "scale.py"


@pytest.fixture(scope="module")
def scale():
    return load_script(SCRIPT)


def test_sentences_are_different_short_and_the_same_for_every_size(scale):
    many = scale.sentences(100_000)
    assert len(set(many)) == 100_000 and {len(text.split()) for text in many} == {7}
    assert scale.sentences(50) == many[:50]
    with pytest.raises(ValueError, match="different sentences, got 9,000,000"):
        scale.sentences(9_000_000)


def test_rows_are_measured_once(scale, tmp_path, monkeypatch, capsys):
    model, rows = str(save_tiny("llama", tmp_path / "tiny")), tmp_path / "rows.jsonl"
    command = [
        "--model",
        model,
        "--sizes",
        "20",
        "40",
        "--shots",
        "0",
        "2",
        "--sentences",
        "10",
        "--rows",
        str(rows),
    ]
    first, asked = [*command[:3], "20", *command[5:]], []

    def here(options, number):  # a process of its own takes seconds to start
        asked.append(number)
        assert scale.main([*first, "--one", str(number)]) == 0

    monkeypatch.setattr(scale, "child", here)
    assert scale.main(first) == 0 and asked == [0, 1, 2, 3, 4]
    asked.clear()
    monkeypatch.setattr(scale, "child", lambda options, number: asked.append(number))
    assert scale.main(command) == 0 and asked == [1], "only the new size is missing"
    written = Store(rows).rows()
    assert [(row["n"], row.get("shots"), row.get("prefix_cache")) for row in written[1:]] == [
        (10, k, c) for k in (0, 2) for c in (True, False)
    ]
    assert all(
        row["seconds"] > 0
        and row["memory_above_loaded_mb"] > -50
        and row["commit"]
        and row["machine"]
        for row in written
    )
    assert written[0]["ms_a_sentence"] == pytest.approx(1000 * written[0]["seconds"] / 20)
    told = capsys.readouterr().out
    assert re.search(r"scale\n +model .*off_linear\n.* 0\n", told) and "shots_cost" in told
    assert (
        scale.main([*command, "--figure", str(tmp_path / "figure.png")]) == 0
        and (tmp_path / "figure.png").stat().st_size > 1000
    )


def test_a_child_measures_the_row_that_it_is_told(scale, tmp_path):
    model, rows = str(save_tiny("llama", tmp_path / "tiny")), tmp_path / "rows.jsonl"
    assert (
        scale.main(
            ["--model", model, "--sizes", "--shots", "1", "--sentences", "5", "--rows", str(rows)]
        )
        == 0
    )
    assert [(row["kind"], row["shots"], row["prefix_cache"]) for row in Store(rows).rows()] == [
        ("shots_cost", 1, True),
        ("shots_cost", 1, False),
    ]


def test_a_figure_of_nothing_says_so(scale, tmp_path):
    with pytest.raises(SystemExit, match="no row of kind shots_cost"):
        scale.main(
            ["--rows", str(tmp_path / "none.jsonl"), "--figure", str(tmp_path / "figure.png")]
        )
