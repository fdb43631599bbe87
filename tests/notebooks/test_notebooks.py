"""The real notebooks: their form, their profiles, and README's table against their headers.

They are executed by `make test`.
"""

import re
from pathlib import Path

import pytest
import yaml

from tools.notebooks import rules, run

README = rules.ROOT / "README.md"
NOTEBOOKS = rules.find()
PROFILES = yaml.safe_load((rules.NOTEBOOKS / "profiles.yml").read_text(encoding="utf-8"))
TIME = re.compile(
    r"^\*\*Time\*\*: about (.+? minutes?) on a 2-core CPU · \*\*Memory\*\*: (.+? GB)"
    r" · \*\*Learning time\*\*: about (.+?) hours?$",
    re.MULTILINE,
)
BEFORE = re.compile(r"^\*\*Read before\*\*: (.+)$", re.MULTILINE)

each_notebook = pytest.mark.parametrize(
    "path", NOTEBOOKS or [pytest.param(None, marks=pytest.mark.skip("no notebook yet"))], ids=str
)


def header(path: Path) -> tuple[str, ...]:
    """Minutes, memory, hours to learn and what to read before, from a notebook's first cell."""
    text = rules.tagged(rules.read(path), "header")[0].source
    time, before = TIME.search(text), BEFORE.search(text)
    assert time and before, (
        f"{path.stem}: its header lacks the two lines that CONTRIBUTING.md shows"
    )
    return *time.groups(), before.group(1)


@each_notebook
def test_keeps_the_rules(path):
    assert rules.check([path]) == []


@each_notebook
def test_has_three_exercises_with_solutions(path):
    nb = rules.read(path)
    checks = [
        rules.exercise_check(cell)
        for cell in rules.tagged(nb, "exercise")
        if cell.cell_type == "code"
    ]
    assert checks == ["check_1", "check_2", "check_3"]


LESSONS = [path for path in NOTEBOOKS if path.stem[:2] in ("00", "01", "02", "06")]  # as yet


@pytest.mark.parametrize("path", LESSONS, ids=str)
def test_each_check_is_tried_with_five_wrong_and_three_right_answers(path):
    for cell in rules.tagged(rules.read(path), "exercise"):
        if name := cell.cell_type == "code" and rules.exercise_check(cell):
            assert len(rules.answers(cell, "wrong_answer")) >= 5, name
            assert len(rules.answers(cell, "right_answer")) >= 3, name


@each_notebook
def test_compares_some_output(path):
    marked = rules.tagged(rules.read(path), rules.COMPARED)
    assert marked and all(cell.outputs for cell in marked), "nbval has nothing to compare"
    assert all(rules.texts(output) for cell in marked for output in cell.outputs), (
        "nbval leaves pictures out"
    )


@each_notebook
@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_profile_names_real_parameters(path, profile):
    run.check_overrides(rules.read(path), (PROFILES[profile] or {}).get(path.stem, {}))


def test_profiles_name_real_notebooks():
    assert {"smoke", "gpu"} <= set(PROFILES)
    for profile, values in PROFILES.items():
        assert set(values or {}) <= {path.stem for path in NOTEBOOKS}, (
            f"{profile} names a notebook that is not there"
        )


def table(text: str) -> dict[str, list[str]]:
    """README's course table: the cells of each row that links a notebook, by the notebook's
    stem.
    """
    rows = {}
    for line in text.splitlines():
        if line.startswith("|") and (link := re.search(r"\(notebooks/(\w+)\.ipynb\)", line)):
            rows[link.group(1)] = [cell.strip() for cell in line.strip("| ").split("|")]
    return rows


def test_readme_lists_every_notebook_in_order():
    assert list(table(README.read_text(encoding="utf-8"))) == [path.stem for path in NOTEBOOKS]


@each_notebook
def test_readme_row_says_what_the_header_says(path):
    """Columns: notebook, question, minutes, memory, read before, hours to learn."""
    minutes, memory, hours, before = header(path)
    row = table(README.read_text(encoding="utf-8"))[path.stem]
    minutes = minutes.removesuffix("s").removesuffix(" minute")
    assert row[2:6] == [minutes, memory, before, hours]


def test_a_wrong_table_is_seen():
    line = "| [00 Quickstart](notebooks/00_quickstart.ipynb) | What is it? | 5 | 1 GB | nothing |"
    assert table(f"text\n|a|\n{line}\n") == {
        "00_quickstart": [
            "[00 Quickstart](notebooks/00_quickstart.ipynb)",
            "What is it?",
            "5",
            "1 GB",
            "nothing",
        ]
    }
    line = "**Time**: about 5 minutes on a 2-core CPU · **Memory**: 1.5 GB"
    assert TIME.search(f"x\n{line} · **Learning time**: about 1 hour\n").groups() == (
        "5 minutes",
        "1.5 GB",
        "1",
    )
    assert not TIME.search(f"x\n{line}\n")
