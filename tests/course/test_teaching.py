"""The instructor's kit names cells and sections that are there, and every lesson has its part."""

import re

import pytest

from tools import site
from tools.notebooks import rules

PAGES = sorted((rules.ROOT / "docs" / "teaching").glob("*.md"))
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


LESSONS = [path.stem[:2] for path in rules.find()]


def part(lesson: str) -> str:
    """What the kit says of a lesson."""
    return TEXT.partition(f"\n## {lesson} ")[2].partition("\n## ")[0]


def read(lesson: str):
    return rules.read(rules.find([lesson])[0])


@pytest.mark.parametrize("lesson", LESSONS)
def test_each_cell_that_is_named_is_there(lesson):
    there = {cell.id for cell in read(lesson).cells}
    named = {cell for number, cell in site.CELL.findall(TEXT) if number == lesson}
    assert named <= there, f"not in lesson {lesson}: {sorted(named - there)}"
    assert len(named) >= 4
    for heading in ("Goal", "To discuss", "To transfer", "Projects"):
        assert f"**{heading}**" in part(lesson)
    assert "misconception" in part(lesson)


@pytest.mark.parametrize("lesson", LESSONS)
def test_the_minutes_are_of_the_lessons_sections(lesson):
    nb = read(lesson)
    text = "\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")
    titles = dict(re.findall(r"^## (\d+)\. (.*)", text, re.MULTILINE))
    rows = re.findall(r"^\| (.+) \| (\d+) \|$", part(lesson), re.MULTILINE)
    timed, exercises = [], []
    for item in ", ".join(cells for cells, _ in rows).split(", "):
        if several := re.match(r"(\d+) to (\d+)", item):
            timed += map(str, range(int(several[1]), int(several[2]) + 1))
        elif section := re.match(r"(\d+) ([^(?]+)", item):
            timed.append(section[1])
            assert section[2].strip().lower() in titles[section[1]].lower().replace(",", "")
        elif item.startswith("exercise"):
            exercises += re.findall(r"\d", item)
    assert timed == list(titles), "each section once, in order"
    assert exercises == ["1", "2", "3"]
    alone = 60 * float(re.search(r"Learning time\*\*: about ([\d.]+) hour", text)[1])
    assert alone <= sum(int(minutes) for _, minutes in rows) <= 1.6 * alone
