"""The student's edition: nothing in it gives an answer away, everything that a lesson needs is."""

import json
import zipfile

import pytest

from tools.notebooks import rules
from tools.student.__main__ import NAME, make

LESSONS = [path.name for path in rules.find()]


@pytest.fixture(scope="module")
def edition(tmp_path_factory):
    target = tmp_path_factory.mktemp("edition") / "student"
    make(target)
    return target


def test_the_zip_file_holds_the_folder(edition):
    with zipfile.ZipFile(edition / f"{NAME}.zip") as packed:
        names = {name for name in packed.namelist() if not name.endswith("/")}
    there = {p.relative_to(edition).as_posix() for p in (edition / NAME).rglob("*") if p.is_file()}
    assert names == there
    for needed in ("README.md", "Makefile", "pyproject.toml", "tools/setup_env.py"):
        assert f"{NAME}/{needed}" in names
    assert {f"{NAME}/notebooks/{name}" for name in LESSONS} <= names


@pytest.mark.parametrize("name", LESSONS)
def test_no_solution_output_or_tried_answer_is_left(edition, name):
    path = edition / NAME / "notebooks" / name
    ours, theirs = rules.read(rules.NOTEBOOKS / name), rules.read(path)
    assert not rules.tagged(theirs, "solution")
    code = [cell for cell in theirs.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    text = path.read_text(encoding="utf-8")
    assert "wrong_answer" not in text and "right_answer" not in text
    kept = [cell for cell in ours.cells if "solution" not in cell.metadata.get("tags", ())]
    assert [cell.id for cell in kept] == [cell.id for cell in theirs.cells]
    assert [c.source for c in kept[1:]] == [c.source for c in theirs.cells[1:]]
    for cell in rules.tagged(ours, "solution"):
        if cell.cell_type == "code":
            assert json.dumps(cell.source)[1:-1] not in text
    assert name in theirs.cells[0].source, "the header says what to hand in"
