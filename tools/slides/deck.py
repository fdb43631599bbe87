"""From docs/slides/NN.md to a Marp deck: what a slide shows comes from the lesson at every build.

A line `![kind options](cell:ID)` stands for a part of the lesson's cell with that id:

| kind | becomes |
|---|---|
| `figure number=1` | the stored pictures, or one, with the alternative text of their cell |
| `table rows=5 columns=model,spearman` | the stored table, or a part of it |
| `output` | the stored text |
| `code` | the cell's source |
| `list` | the first list of a text cell |
| `paragraph number=2` | one paragraph of a text cell |
| `exercise number=1` | an exercise's text; of all exercise cells, so any id will do |
| `question number=1` | a question with its choices, from a cell with folded answers |
"""

import html
import re
from collections.abc import Iterator
from pathlib import Path

from tools.notebooks import rules

SOURCES = rules.ROOT / "docs" / "slides"
REFERENCE = re.compile(r"^!\[(?P<kind>\w+)(?P<options>[^\]]*)\]\(cell:(?P<id>[\w-]+)\)$", re.M)
NUMBER = re.compile(r"[-+±\d.,%e\s]*|NaN|–")
OPTION = re.compile(r'(\w+)=("[^"]*"|\S+)')
FRONT = """---
marp: true
theme: course
math: mathjax
paginate: true
footer: {title}
---

"""


class SlideError(ValueError):
    """A slide refers to something that the lesson does not hold."""


def decks() -> list[tuple[Path, Path]]:
    """(deck, lesson) for each file in docs/slides, in order."""
    return [(path, rules.find([path.stem])[0]) for path in sorted(SOURCES.glob("[0-9][0-9].md"))]


def build(deck: Path, lesson: Path) -> str:
    """The deck as Marp reads it.

    Raises:
        SlideError: A reference does not resolve; the message names it.
    """
    nb = rules.read(lesson)
    title = nb.cells[0].source.splitlines()[0].removeprefix("# ").partition(":")[0]
    text = deck.read_text(encoding="utf-8")
    filled = REFERENCE.sub(lambda found: _resolve(nb, found, deck.name), text)
    if left := re.search(r"\]\(cell:[^)]*\)", filled):
        raise SlideError(f"{deck.name}: a reference stands alone on its line, not {left.group()!r}")
    return FRONT.format(title=title) + filled


def _resolve(nb, found: re.Match, name: str) -> str:
    options = {key: value.strip('"') for key, value in OPTION.findall(found["options"])}
    cell = next((cell for cell in nb.cells if cell.id == found["id"]), None)
    if cell is None:
        raise SlideError(f"{name}: no cell {found['id']!r} in the lesson: {found.group()}")
    kinds = {
        "figure": _figure,
        "table": _table,
        "output": _output,
        "code": lambda cell, _: f"```python\n{cell.source}\n```",
        "list": _list,
        "paragraph": _paragraph,
        "exercise": lambda _, options: _exercise(nb, options),
        "question": _question,
    }
    if found["kind"] not in kinds:
        raise SlideError(f"{name}: {found['kind']!r} is none of {', '.join(kinds)}")
    shown = kinds[found["kind"]](cell, options)
    if not shown:
        raise SlideError(f"{name}: the cell {cell.id!r} holds no such thing: {found.group()}")
    return shown


def _data(cell, kind: str) -> Iterator[str]:
    for output in cell.get("outputs", ()):
        if kind in output.get("data", {}):
            yield output.data[kind]


def _figure(cell, options: dict) -> str:
    alt = html.escape(cell.metadata.get("alt", ""), quote=True)
    pictures = [f"data:image/png;base64,{png.strip()}" for png in _data(cell, "image/png")]
    if number := int(options.get("number", 0)):
        pictures = pictures[number - 1 : number]
    return "\n".join(f'<img class="figure" alt="{alt}" src="{png}">' for png in pictures)


def _output(cell, options: dict) -> str:
    texts = [output.text for output in cell.get("outputs", ()) if output.get("name") == "stdout"]
    texts += _data(cell, "text/plain")
    return f"```text\n{''.join(texts).rstrip()}\n```" if texts else ""


def _table(cell, options: dict) -> str:
    """The stored table without pandas' decoration; `rows` and `columns` cut it."""
    for stored in _data(cell, "text/html"):
        head, _, body = stored.partition("</thead>")
        header, rows = _cells(head), _cells(body)
        if "columns" in options:
            wanted = options["columns"].split(",")
            names = [re.sub("<.*?>", "", one) for one in header[-1]]
            keep = [i for i, name in enumerate(names) if name in wanted or i == 0]
            if len(keep) != len(wanted) + 1 or any(len(row) != len(names) for row in rows):
                raise SlideError(f"the columns {wanted} are not all in {names[1:]}")
            header, rows = (
                [[row[i] for i in keep] for row in part] for part in (header[-1:], rows)
            )
        rows = rows[: int(options.get("rows", len(rows)))]
        lines = ["".join(row) for row in [*header, *rows]]
        return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"
    return ""


def _cells(part: str) -> list[list[str]]:
    """The cells of each row, with their spans and nothing else of their attributes."""
    return [
        [_cell(*cell) for cell in re.findall(r"<(t[hd])(.*?)>(.*?)</t[hd]>", row, re.S)]
        for row in re.findall(r"<tr.*?>(.*?)</tr>", part, re.S)
    ]


def _cell(tag: str, given: str, text: str) -> str:
    kept = re.findall(r'(?:col|row)span="\d+"', given)
    kept += [] if NUMBER.fullmatch(text) else ["class=text"]
    return f"<{' '.join([tag, *kept])}>{text.strip()}</{tag}>"


def _plain(text: str) -> str:
    """One line a paragraph; links to files of the project lead nowhere from a slide."""
    text = re.sub(r"\[([^\]]*)\]\((?!https?:)[^)]*\)", r"\1", text)
    return re.sub(r"(?<=\S)\n(?=\S)", " ", text)


def _list(cell, options: dict) -> str:
    """The first list of a text cell."""
    items: list[str] = []
    for line in cell.source.splitlines():
        if re.match(r"(?:[-*]|\d+\.) ", line):
            items.append(line)
        elif items and line.startswith(" "):
            items[-1] += f" {line.strip()}"
        elif items and line:
            break
    return "\n".join(map(_plain, items))


def _paragraph(cell, options: dict) -> str:
    parts = [part for part in cell.source.split("\n\n") if not part.startswith("#")]
    number = int(options.get("number", 1))
    return _plain(parts[number - 1]) if 0 < number <= len(parts) else ""


def _exercise(nb, options: dict) -> str:
    number = options.get("number", "1")
    for cell in rules.tagged(nb, "exercise"):
        found = re.search(rf"^\*\*(?:Exercise )?{number}\b.*", cell.source, re.M | re.S)
        if cell.cell_type == "markdown" and found:
            text = re.sub(r"Replace `None`[^.]*\.\s*", "", found.group())
            return _plain(text.partition("\n\n**")[0])
    return ""


def _question(cell, options: dict) -> str:
    questions = re.findall(r"<summary>(.*?)</summary>", cell.source, re.S)
    number = int(options.get("number", 1))
    if not 0 < number <= len(questions):
        return ""
    first, _, choices = questions[number - 1].partition("<br>")
    lines = re.split(r"\s+(?=\([b-z]\) )", choices.strip())
    return "\n\n".join([first.strip(), *(line.strip() for line in lines)])
