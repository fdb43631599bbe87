"""Slides: each reference leads to something the lesson stores, and no result is typed by hand."""

import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools.notebooks import rules
from tools.slides import deck

DECKS = deck.decks()
TABLE = """<table><thead><tr style="x"><th></th><th>a</th><th>b</th></tr></thead>
<tbody><tr><th>0</th><td>1.5</td><td>cat</td></tr><tr><th>1</th><td>2.5</td><td>dog</td></tr>
</tbody></table>"""


def test_each_deck_belongs_to_a_lesson():
    lessons = [lesson for _, lesson in DECKS]
    assert lessons and set(lessons) <= set(rules.find()) and len(set(lessons)) == len(lessons)


@pytest.mark.parametrize("path, lesson", DECKS, ids=lambda path: path.stem)
def test_every_reference_resolves(path, lesson):
    text = deck.build(path, lesson)
    assert "cell:" not in re.sub(r"```.*?```", "", text, flags=re.S)
    assert not re.search(r'alt=""|alt="Figure of the cell above"', text)
    assert 8 <= len(re.split(r"^---$", path.read_text(encoding="utf-8"), flags=re.M)) <= 15


@pytest.mark.parametrize("path, lesson", DECKS, ids=lambda path: path.stem)
def test_no_result_is_typed_by_hand(path, lesson):
    text = deck.REFERENCE.sub("", path.read_text(encoding="utf-8"))
    assert not re.findall(r"\d+\.\d+|\d+ ?%", text)


@pytest.fixture
def lesson(tmp_path):
    table = new_output("display_data", data={"text/html": TABLE, "text/plain": "a b"})
    picture = new_output("display_data", data={"image/png": "QUJD"})
    text = "# T: sub\n\nWhy, [here](01_x.ipynb)?\n\n- one\n  more\n- two\n\n**Next**\n\n- three"
    cells = [
        new_markdown_cell(text, id="header"),
        new_code_cell("x = 1", id="table", outputs=[table]),
        new_code_cell("x", id="picture", outputs=[picture], metadata={"alt": "Two <b>"}),
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / "00_x.ipynb")
    return tmp_path / "00_x.ipynb"


def built(lesson, text: str) -> str:
    path = lesson.parent / "00.md"
    path.write_text(text, encoding="utf-8")
    return deck.build(path, lesson).partition("footer: T\n---\n")[2].strip()


def test_what_a_reference_becomes(lesson):
    assert built(lesson, "![list](cell:header)") == "- one more\n- two"
    assert built(lesson, "![paragraph](cell:header)") == "Why, here?"
    assert built(lesson, "![code](cell:table)") == "```python\nx = 1\n```"
    assert built(lesson, "![output](cell:table)") == "```text\na b\n```"
    figure = built(lesson, "![figure](cell:picture)")
    assert 'alt="Two &lt;b&gt;"' in figure and "base64,QUJD" in figure
    assert built(lesson, "![figure number=1](cell:picture)") == figure
    table = built(lesson, "![table rows=1 columns=b](cell:table)")
    assert "cat" in table and "dog" not in table and "1.5" not in table and "style" not in table


@pytest.mark.parametrize(
    "text, told",
    [
        ("![figure](cell:gone)", "no cell 'gone'"),
        ("![figure](cell:table)", "holds no such thing"),
        ("![figure number=2](cell:picture)", "holds no such thing"),
        ("![picture](cell:table)", "none of figure"),
        ("![table columns=c](cell:table)", "'c'"),
        ("![paragraph number=9](cell:header)", "holds no such thing"),
        ("see ![table](cell:table)", "stands alone"),
    ],
)
def test_a_reference_that_leads_nowhere_is_named(lesson, text, told):
    with pytest.raises(deck.SlideError, match=re.escape(told)):
        built(lesson, text)
