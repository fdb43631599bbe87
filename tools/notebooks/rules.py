"""The form of a notebook: find, read and write them, take out what differs between
machines, refuse what breaks the rules.
"""

import ast
import json
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from prompteol_utils.utils import files

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"

REQUIRED_TAGS = ("header", "setup", "parameters", "exercise", "solution")
COMPARED = (
    "nbval-check-output"  # the tag that nbval looks for: this cell's stored output is compared
)
MAX_LINES, MAX_IMPORTS, MAX_BYTES = 12, 8, 300_000
MIN_ALT = 40  # characters that say what a figure shows

KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
CELL_METADATA = (
    "tags",
    "jupyter",
    "alt",  # what its figure shows, for readers who do not see it
    "wrong_answer",
    "right_answer",
)  # all else (timestamps, papermill, widgets, colab) is taken out
ABSOLUTE_PATH = re.compile(
    r"(?<![\w.:/<~&;=\\})\]])(?:file://|/[A-Za-z_][\w.+-]*/[\w.]|[A-Z]:\\\w)"
)
SECTION = re.compile(r"^## (\d+)\.", re.MULTILINE)
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d")


class NotebookError(ValueError):
    """A notebook, profile or parameter that does not exist or does not fit.

    The message names the allowed ones.
    """


def find(names: Sequence[str | os.PathLike] = (), folder: Path | None = None) -> list[Path]:
    """The notebooks that are meant, in reading order.

    Args:
        names: Paths, file names without ".ipynb", or their first letters ("00"). None given: all of
            them.
        folder: Where the ordered notebooks are; the project's own by default.

    Raises:
        NotebookError: A name fits no notebook, or more than one.
    """
    known = sorted((folder or NOTEBOOKS).glob("[0-9][0-9]_*.ipynb"))
    if not names:
        return known
    found = []
    for name in names:
        path = Path(name)
        fits = (
            [path]
            if path.suffix == ".ipynb" and path.is_file()
            else [nb for nb in known if nb.stem.startswith(path.stem)]
        )
        if len(fits) != 1:
            there = ", ".join(notebook.stem for notebook in known)
            count = len(fits) or "no"
            raise NotebookError(f"{count} notebooks are called {str(name)!r}; there are: {there}")
        found += fits
    return found


def show(path: Path | None) -> str:
    """A path as it is printed: relative to where the reader stands."""
    return os.path.relpath(path, Path.cwd()) if path else "-"


def tagged(nb, tag: str) -> list:
    return [cell for cell in nb.cells if tag in cell.metadata.get("tags", ())]


def assignments(nb) -> Iterator[tuple[str, Any, ast.stmt]]:
    """(name, value, statement) for each line of the parameters cell."""
    cells = tagged(nb, "parameters")
    if len(cells) != 1:
        raise NotebookError(
            f"a notebook has one cell tagged 'parameters', this one has {len(cells)}"
        )
    for node in ast.parse(cells[0].source).body:
        target = (
            node.targets[0]
            if isinstance(node, ast.Assign) and len(node.targets) == 1
            else getattr(node, "target", None)
        )
        try:
            yield target.id, ast.literal_eval(node.value), node
        except (AttributeError, ValueError, TypeError) as error:
            line = ast.unparse(node)
            raise NotebookError(
                f"the parameters cell holds lines NAME = literal and nothing else, not {line!r}"
            ) from error


def parameters(nb) -> dict[str, Any]:
    """Names and default values of a notebook's parameters cell."""
    return {name: value for name, value, _ in assignments(nb)}


def read(path: Path):
    import nbformat

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a missing cell id is `check`'s to report
        return nbformat.read(path, as_version=4)


def write(nb, path: Path) -> None:
    import nbformat

    nb.nbformat, nb.nbformat_minor = 4, max(5, nb.nbformat_minor)  # 4.5 is the first with cell ids
    for cell in nb.cells:
        if "id" not in cell:
            cell["id"] = nbformat.v4.nbbase.random_cell_id()
    text = nbformat.writes(nb).rstrip("\n") + "\n"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        with files.atomic_file(path, "w") as file:
            file.write(text)


def texts(output) -> dict[str, str]:
    """The texts of a cell's output by kind ("text" for a stream, else the MIME type).

    Pictures are left out.
    """
    data = {**output.get("data", {}), **({"text": output["text"]} if "text" in output else {})}
    return {
        kind: text
        for kind, text in data.items()
        if isinstance(text, str) and not kind.startswith("image/")
    }


def has_figure(cell) -> bool:
    """Whether a code cell's outputs hold a picture."""
    return any("image/png" in output.get("data", {}) for output in cell.outputs)


def strip_volatile_metadata(nb):
    """Take out of a notebook, in place, what differs between two runs or machines: metadata,
    stderr, progress bars, paths.

    Returns:
        The same notebook. Sources, cell ids, results and execution counts stay.
    """
    nb.metadata = {"kernelspec": dict(KERNELSPEC), "language_info": {"name": "python"}}
    places = [
        (re.escape(str(ROOT)) + r"(/|(?![\w.-]))", ""),
        (re.escape(str(Path.home())) + "(?=/)", "~"),
    ]
    for cell in nb.cells:
        cell.metadata = {key: cell.metadata[key] for key in CELL_METADATA if cell.metadata.get(key)}
        if cell.cell_type != "code":
            continue
        cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
        for output in cell.outputs:
            for kind, text in texts(output).items():
                text = re.sub(
                    r"^.*\r(?!\n)", "", text, flags=re.MULTILINE
                )  # a progress bar on stdout
                for place, name in places:
                    text = re.sub(place, name, text)
                (output if kind == "text" else output.data)[kind] = text
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = _smaller(output.data["image/png"])
    return nb


def _smaller(png: str) -> str:
    """A figure with a palette of 128 colours instead of all of them: it looks the same and
    takes a third of the room in git.
    """
    import base64
    import io

    from PIL import Image

    image, out = Image.open(io.BytesIO(base64.b64decode(png))), io.BytesIO()
    if image.mode == "P":  # done before
        return png
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A") if image.mode == "RGBA" else None)
    white.quantize(128).save(out, "png", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def clean(names: Sequence[str | os.PathLike] = ()) -> list[Path]:
    """Scrub notebooks in place; returns those that changed."""
    return _rewrite(names, strip_volatile_metadata)


def strip(names: Sequence[str | os.PathLike] = ()) -> list[Path]:
    """Scrub notebooks in place and take their outputs out; returns those that changed."""

    return _rewrite(names, lambda nb: strip_volatile_metadata(clear_outputs(nb)))


def clear_outputs(nb):
    """Take the outputs out of a notebook, in place; returns it."""
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return nb


def _rewrite(names, change) -> list[Path]:
    changed = []
    for path in find(names):
        before = path.read_bytes()
        write(change(read(path)), path)
        changed += [path] * (path.read_bytes() != before)
    return changed


def check(names: Sequence[str | os.PathLike] = ()) -> list[str]:
    """What is wrong with notebooks, by the rules of CONTRIBUTING.md.

    Returns:
        One line a problem, "notebook: where: what; how to mend it". Empty when all is well.
    """
    return [f"{path.stem}: {problem}" for path in find(names) for problem in _problems(path)]


def _problems(path: Path) -> Iterator[str]:
    nb, raw = read(path), path.read_text(encoding="utf-8")
    mend = f"fix: python -m tools.notebooks clean {path.stem}"
    publish = f"fix: python -m tools.notebooks run --publish {path.stem}"
    if len(raw.encode()) > MAX_BYTES:
        yield f"{len(raw.encode()):,} bytes, more than {MAX_BYTES:,}: fewer or smaller figures"
    if nb.metadata.get("kernelspec", {}).get("name") != "python3":
        found = nb.metadata.get("kernelspec", {}).get("name")
        yield f"the kernelspec is {found!r}, not 'python3'; {mend}"
    if '"id"' not in raw or any("id" not in cell for cell in json.loads(raw)["cells"]):
        yield f"cells without an id; {mend}"
    if (
        not nb.cells
        or nb.cells[0].cell_type != "markdown"
        or not nb.cells[0].source.startswith("# ")
    ):
        yield "the first cell is not a title ('# …')"
    for tag in REQUIRED_TAGS:
        if not tagged(nb, tag):
            yield f"no cell is tagged {tag!r}"
    text = "\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")
    numbers = [int(number) for number in SECTION.findall(text)]
    if numbers != list(range(1, len(numbers) + 1)):
        yield f"its sections are numbered {_short(numbers)}, not 1, 2, 3, …"
    code = [cell for cell in nb.cells if cell.cell_type == "code" and cell.source.strip()]
    counts = [cell.execution_count for cell in code]
    if counts != list(range(1, len(code) + 1)):
        yield f"not executed once from top to bottom (execution counts {_short(counts)}); {publish}"
    for number, cell in enumerate(nb.cells):
        for problem in _cell_problems(cell, mend):
            yield f"cell {number}: {problem}"
    if tagged(nb, "setup"):
        yield from _setup_problems(tagged(nb, "setup")[0].source)
    if tagged(nb, "parameters"):
        yield from _parameter_problems(nb)
    yield from _exercise_problems(nb)


def _cell_problems(cell, mend: str) -> Iterator[str]:
    if extra := set(cell.metadata) - set(CELL_METADATA):
        yield f"metadata that differs between runs ({', '.join(sorted(extra))}); {mend}"
    if path := ABSOLUTE_PATH.search(cell.source):
        yield f"an absolute path in the source: {_around(cell.source, path)}"
    if cell.cell_type != "code":
        return
    lines = [line for line in cell.source.splitlines() if line.strip()]
    if len(lines) > MAX_LINES:
        yield (
            f"{len(lines)} lines of code, more than {MAX_LINES}: move plumbing into the package, "
            "or tell it in two steps"
        )
    if has_figure(cell) and len(cell.metadata.get("alt", "")) < MIN_ALT:
        yield "a figure without words: say what it shows in the cell's metadata, as `alt`"
    for output in cell.outputs:
        if output.get("name") == "stderr":
            yield f"an stderr output; {mend}"
        if output.output_type == "error":
            yield f"it ended with {output.ename}: {output.evalue}"
        for text in texts(output).values():
            if path := ABSOLUTE_PATH.search(text):
                yield f"an absolute path in an output: {_around(text, path)}; {mend}"
            if stamp := TIMESTAMP.search(text):
                yield f"a timestamp in an output: {_around(text, stamp)}"


def _setup_problems(source: str) -> Iterator[str]:
    lines = [line for line in source.splitlines() if line.strip()]
    if len(lines) > MAX_IMPORTS:
        yield f"the imports cell has {len(lines)} lines, more than {MAX_IMPORTS}"
    try:
        imports = all(
            isinstance(node, ast.Import | ast.ImportFrom) for node in ast.parse(source).body
        )
    except SyntaxError:  # "%pip install", "!pip install"
        imports = False
    if not imports:
        yield "the imports cell holds imports and nothing else: no pip, no sys.path"


def _parameter_problems(nb) -> Iterator[str]:
    try:
        names = parameters(nb)
    except NotebookError as error:
        yield str(error)
        return
    used = set()
    for cell in nb.cells:
        if cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", ()):
            with suppress(SyntaxError):
                used |= {
                    node.id
                    for node in ast.walk(ast.parse(cell.source))
                    if isinstance(node, ast.Name)
                }
    for name in names:
        if name not in used:
            yield f"the parameter {name} is used nowhere"


def _exercise_problems(nb) -> Iterator[str]:
    for cell in tagged(nb, "exercise"):
        if cell.cell_type != "code":
            continue
        name = exercise_check(cell)
        if name is None or not cell.metadata.get("wrong_answer"):
            first = cell.source.splitlines()[0]
            yield (
                f"the exercise {first!r} lacks a function check_N(answer) "
                "or the metadata 'wrong_answer'"
            )
            continue
        solved = [solution for solution in tagged(nb, "solution") if f"{name}(" in solution.source]
        if not solved:
            yield f"no cell tagged 'solution' calls {name}"
        elif any(
            "not yet" in text
            for solution in solved
            for output in solution.outputs
            for text in texts(output).values()
        ):
            yield f"the solution of {name} says 'not yet'"


def answers(cell, kind: str) -> dict[str, str]:
    """The answers that an exercise's check is tried with.

    Args:
        cell: An exercise cell. Its metadata hold one expression, a list of them, or an object that
            gives each wrong expression the words that the check's message must contain.
        kind: "wrong_answer" or "right_answer".

    Returns:
        The expressions, each with the words that the message must contain ("": any message).
    """
    given = cell.metadata.get(kind) or []
    if isinstance(given, str):
        given = [given]
    return dict(given) if isinstance(given, dict) else dict.fromkeys(given, "")


def exercise_check(cell) -> str | None:
    """The name of the function check_N that an exercise cell defines."""
    found = re.search(r"^def (check_\w+)\(", cell.source, re.MULTILINE)
    return found.group(1) if found else None


def _around(text: str, found: re.Match) -> str:
    return repr(text[max(0, found.start() - 10) : found.end() + 30])


def _short(counts: list) -> str:
    return f"{counts}" if len(counts) < 12 else f"{counts[:10]} …".replace("]", "")
