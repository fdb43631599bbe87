"""Build the course site from the stored outputs: `python -m tools.site` (or `make site`).

Nothing is executed. Solutions are folded, figures get the alternative text of their cell, and
links to files of the repository become links to pages of the site where there is one.
"""

import os
import re
import shutil
import subprocess
import sys

import nbformat

from tools.notebooks import rules

ROOT = rules.ROOT
SOURCE = ROOT / "docs" / "site"
WORK = ROOT / "build" / "site-src"
TARGET = ROOT / "build" / "site"
CELL = re.compile(r"`(\d\d):([\w-]+)`")
REPOSITORY = re.compile(
    r"\[(?P<text>[^\]]*)\]\((?:\.\./)+(?P<path>(?:data|benchmarks|prompteol_utils)[\w./-]*)\)"
)


def prepare() -> None:
    """Copy everything that Sphinx reads into one folder."""
    shutil.rmtree(WORK, ignore_errors=True)
    shutil.copytree(SOURCE, WORK)
    named = set()
    for page in [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "teaching").glob("*.md")]:
        text = _links(page.read_text(encoding="utf-8"))
        named |= set(CELL.findall(text))
        target = WORK / page.relative_to(ROOT / "docs")
        target.parent.mkdir(exist_ok=True)
        target.write_text(CELL.sub(r"[`\1:\2`](#cell-\1-\2)", text), encoding="utf-8")
    for picture in [*(ROOT / "docs").glob("*.png"), *(ROOT / "docs").glob("*.svg")]:
        shutil.copy(picture, WORK)
    for path in rules.find():
        notebook = rules.read(path)
        for cell in notebook.cells:
            _prepare_cell(notebook, cell)
        _mark(notebook, path.stem[:2], named)
        header = notebook.cells[0]
        header.source = f"# {path.stem[:2]} {header.source[2:]}{_elsewhere(path.name)}"
        target = WORK / "notebooks" / path.name
        target.parent.mkdir(exist_ok=True)
        nbformat.write(notebook, target)


def _elsewhere(name: str) -> str:
    """Links that open a lesson in Colab and Binder, where the project's address is known."""
    address = os.environ.get("GITHUB_REPOSITORY")  # owner/name; GitHub's workflows set it
    if not address:
        return ""
    colab = f"https://colab.research.google.com/github/{address}/blob/main/notebooks/{name}"
    binder = f"https://mybinder.org/v2/gh/{address}/main?labpath=notebooks/{name}"
    first = f"!git clone -q --depth 1 https://github.com/{address} course"
    return (
        f"\n\n**Run it elsewhere** (untested): [open in Colab]({colab}) · "
        f"[open in Binder]({binder}). In Colab, run this in a new first cell:\n\n"
        f"```python\n{first}\n!pip install -q -r course/binder/colab.txt\n"
        'import sys\n\nsys.path.insert(0, "course")\n```'
    )


def _mark(notebook, lesson: str, named: set[tuple[str, str]]) -> None:
    """Put a link's target before each cell that a page names as `00:id`."""
    for cell in list(notebook.cells):
        if (lesson, cell.id) in named:
            target = nbformat.v4.new_markdown_cell(f"(cell-{lesson}-{cell.id})=")
            notebook.cells.insert(notebook.cells.index(cell), target)


def _prepare_cell(notebook, cell) -> None:
    if cell.cell_type == "markdown":
        cell.source = _links(cell.source)
        return
    tags = cell.metadata.setdefault("tags", [])
    if "solution" in tags:
        tags.append("hide-cell")
    if "setup" in tags:
        tags.append("hide-input")
    if rules.has_figure(cell):
        cell.metadata["mystnb"] = {"image": {"alt": cell.metadata["alt"]}}


def _links(text: str) -> str:
    """Links to files that are no page of the site become plain text that names the file."""

    def plain(link: re.Match) -> str:
        named = link["path"] in link["text"]
        return f"`{link['path']}`" if named else f"{link['text']} (`{link['path']}`)"

    text = REPOSITORY.sub(plain, text)
    return re.sub(r"\]\(\.\./docs/([\w-]+\.(?:svg|png))\)", r"](../\1)", text)


def build() -> int:
    """Run Sphinx; warnings are errors."""
    options = ["-b", "html", "-q", "--keep-going", "-W"]
    command = [sys.executable, "-m", "sphinx", *options, str(WORK), str(TARGET)]
    return subprocess.run(command).returncode


def main() -> int:
    prepare()
    code = build()
    if code == 0:
        print(f"{TARGET}/index.html")
    return code


if __name__ == "__main__":
    sys.exit(main())
