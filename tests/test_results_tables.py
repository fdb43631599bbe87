"""The documents' tables of results are what the recorded rows say."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
READMES = [ROOT / "docs" / "results.md", ROOT / "benchmarks" / "README.md"]


def tool():
    from tools import results_tables

    return results_tables


@pytest.fixture(params=READMES, ids=lambda path: path.parent.name)
def readme(request):
    return request.param.read_text(encoding="utf-8")


def test_every_table_is_made_from_the_rows(readme):
    assert tool().render(readme) == readme, (
        "results differ from data/results: run python -m tools.results_tables"
    )


def test_a_number_changed_by_hand_is_seen(readme):
    made = tool()
    block = next(made.BLOCK.finditer(readme)).group(0)
    digit = next(c for c in block.split("-->", 1)[1] if c in "123456789")
    head, tail = readme.split("-->", 1)
    changed = head + "-->" + tail.replace(digit, "0", 1)
    assert changed != readme and made.render(changed) == readme


def test_no_block_is_left_out(readme):
    made = tool()
    assert (
        len(made.BLOCK.findall(readme))
        == readme.count("<!-- results:")
        == readme.count("<!-- end -->")
        > 0
    )


def test_the_bundled_adapter_is_the_one_that_was_scored():
    from prompteol_utils.models import adapters
    from prompteol_utils.results import Store
    from prompteol_utils.utils import files

    place = ROOT / "data" / "adapters" / "nli-nf4-r16"
    name = f"{place.name}@{files.sha256(place / 'adapter_model.safetensors')[:8]}"
    trained = [
        row
        for row in Store(ROOT / "data" / "results" / "finetune.jsonl").rows()
        if row["adapter"] == name
    ]
    scored = {
        row["task"]
        for row in Store(ROOT / "data" / "results" / "sts.jsonl").rows()
        if row["adapter"] == name
    }
    record = adapters.read(place)
    assert [row["dev_best"] for row in trained] == [record["dev"]] and trained[0]["config"][
        "rank"
    ] == record["config"]["rank"]
    assert "stsb" in scored and sum(file.stat().st_size for file in place.iterdir()) < 20e6
