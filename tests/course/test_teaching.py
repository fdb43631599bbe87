"""The instructor's kit names cells that are there, and every lesson has its part."""

import pytest

from tools import site
from tools.notebooks import rules

PAGES = sorted((rules.ROOT / "docs" / "teaching").glob("*.md"))
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


@pytest.mark.parametrize("lesson", sorted({lesson for lesson, _ in site.CELL.findall(TEXT)}))
def test_each_cell_that_is_named_is_there(lesson):
    (path,) = rules.find([lesson])
    there = {cell.id for cell in rules.read(path).cells}
    named = {cell for number, cell in site.CELL.findall(TEXT) if number == lesson}
    assert named <= there, f"not in {path.stem}: {sorted(named - there)}"
    assert len(named) >= 4
    part = TEXT.partition(f"\n## {lesson} ")[2].partition("\n## ")[0]
    for heading in ("**Goal**", "misconception", "**To discuss**", "**Projects**"):
        assert heading in part
