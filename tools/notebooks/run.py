"""Run the notebooks in order with papermill, publish their outputs, make the copies that
nbval compares.
"""

import ast
import os
import signal
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prompteol_utils.utils import files
from tools.notebooks.rules import (
    COMPARED,
    NOTEBOOKS,
    ROOT,
    NotebookError,
    answers,
    assignments,
    exercise_check,
    find,
    read,
    show,
    strip_volatile_metadata,
    tagged,
    texts,
    write,
)

BUILD = ROOT / "build"
RESULT_LINES = 40


@dataclass(frozen=True)
class Outcome:
    """What became of one notebook: status is "ok", "failed", "interrupted" or "not run".

    Error is "" when it is ok.
    """

    notebook: str
    minutes: float
    status: str
    copy: Path | None = None
    error: str = ""


def load_profile(profile: str | None, file: Path | None = None) -> dict[str, dict[str, Any]]:
    """Parameters by notebook of one profile of profiles.yml; None is the default profile, which
    overrides nothing.

    Raises:
        NotebookError: There is no such profile.
    """
    if profile in (None, "default"):
        return {}
    import yaml

    file = file or NOTEBOOKS / "profiles.yml"
    profiles = (yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else None) or {}
    if profile not in profiles:
        raise NotebookError(
            f"no profile is called {profile!r}; there are: {', '.join(['default', *profiles])}"
        )
    return profiles[profile] or {}


def check_overrides(nb, overrides: dict[str, Any]) -> None:
    """Refuse what papermill would inject without a word: an unknown parameter, or a value of
    another type.

    An int stands for a float; None is allowed where the line's annotation says so (`LIMIT: int |
    None = 250`) or None is the default.

    Raises:
        NotebookError: Names the parameter and the allowed ones with their types.
    """
    allowed = {
        name: (value, getattr(node, "annotation", None)) for name, value, node in assignments(nb)
    }

    def kind(name):
        value, annotation = allowed[name]
        return ast.unparse(annotation) if annotation else type(value).__name__

    def same(given, value):
        if isinstance(value, list | tuple) and isinstance(given, list | tuple):
            return not value or all(same(item, value[0]) for item in given)
        return type(given) is type(value) or (isinstance(value, float) and type(given) is int)

    listing = ", ".join(f"{name} ({kind(name)})" for name in allowed)
    for name, given in overrides.items():
        if name not in allowed:
            raise NotebookError(f"no parameter is called {name!r}; there are: {listing}")
        value, annotation = allowed[name]
        optional = value is None or (annotation is not None and "None" in ast.unparse(annotation))
        if not (
            same(given, value)
            or (given is None and optional)
            or (value is None and isinstance(given, str | int | float))
        ):
            raise NotebookError(
                f"{name} takes {kind(name)}, not {given!r} ({type(given).__name__}); "
                f"the parameters: {listing}"
            )


def run(
    notebooks: Sequence[str | os.PathLike] = (),
    profile: str | None = None,
    overrides: dict[str, Any] | None = None,
    output: Path | None = None,
    publish: bool = False,
    profiles: Path | None = None,
) -> list[Outcome]:
    """Execute notebooks one after the other with papermill; one that fails does not stop the
    others.

    Args:
        notebooks: As in `find`.
        profile: None for the values in the notebooks, else a name in profiles.yml.
        overrides: Parameters on top of the profile's.
        output: Folder for the executed copies; build/notebooks/<profile> by default. A copy appears
            when its notebook is finished.
        publish: Write the outputs into the notebooks themselves, scrubbed; only with the default
            profile.
        profiles: Another profiles.yml.

    Returns:
        One Outcome a notebook, in order. After Ctrl-C or SIGTERM the finished ones are kept and the
        rest are "not run".

    Raises:
        NotebookError: Before anything runs: unknown notebook, profile or parameter, a value of
            another type, nothing to run.
    """
    paths, values = find(notebooks), load_profile(profile, profiles)
    if not paths:
        raise NotebookError(f"there are no notebooks in {show(NOTEBOOKS)}")
    if publish and (values or overrides):
        raise NotebookError(
            "publishing runs the default profile without overrides: its outputs are what "
            "a reader sees"
        )
    output = Path(output or BUILD / "notebooks" / (profile or "default"))
    plan = [(path, {**values.get(path.stem, {}), **(overrides or {})}) for path in paths]
    for path, chosen in plan:
        try:
            check_overrides(read(path), chosen)
        except NotebookError as error:
            raise NotebookError(f"{path.stem}: {error}") from None

    outcomes: list[Outcome] = []
    with _sigterm_as_ctrl_c():
        for number, (path, chosen) in enumerate(plan, 1):
            if outcomes and outcomes[-1].status == "interrupted":
                outcomes.append(Outcome(path.stem, 0.0, "not run"))
                continue
            print(f"[{number}/{len(plan)}] {path.stem}", flush=True)
            outcomes.append(_execute(path, chosen, output, publish))
            print(
                f"      {outcomes[-1].status} after {outcomes[-1].minutes:.1f} minutes", flush=True
            )
            if profile is None and outcomes[-1].status == "ok":
                _show_results(read(outcomes[-1].copy))
            if profile is None and number == 1:
                print(
                    "\nTo read and run the notebooks yourself: make lab "
                    "(opens JupyterLab in your browser)\n",
                    flush=True,
                )
    _show_table(outcomes)
    return outcomes


def _execute(path: Path, values: dict[str, Any], output: Path, publish: bool) -> Outcome:
    import logging

    import papermill
    from papermill.exceptions import PapermillExecutionError

    logging.getLogger("papermill").setLevel(logging.ERROR)  # it repeats what the table says
    bar = {"desc": path.stem, "mininterval": 0.1 if sys.stderr.isatty() else 20.0, "leave": False}
    source, copy = path.read_bytes(), output / path.name
    partial = output / f".{path.stem}.{os.getpid()}.ipynb"
    output.mkdir(parents=True, exist_ok=True)
    start, status, problem = time.perf_counter(), "ok", ""
    try:
        papermill.execute_notebook(
            path,
            partial,
            values,
            kernel_name="python3",
            cwd=path.parent,
            progress_bar=bar,
            start_timeout=180,
            extra_arguments=["--log-level=ERROR"],  # the kernel's remark on unencrypted TCP
        )
    except KeyboardInterrupt:
        status, problem = "interrupted", "interrupted"
    except PapermillExecutionError as error:
        first = next((line for line in error.source.splitlines() if line.strip()), "")
        status, problem = (
            "failed",
            f"cell [{error.exec_count}] `{first}`: {error.ename}: {error.evalue}",
        )
    except (
        Exception
    ) as error:  # a dead kernel, a notebook that is no notebook: the others still run
        status, problem = "failed", f"{type(error).__name__}: {error}"
    minutes = (time.perf_counter() - start) / 60
    if status == "interrupted" or not partial.exists():
        with suppress(OSError):
            partial.unlink()
        return Outcome(path.stem, minutes, status, None, problem)
    os.replace(partial, copy)
    if publish and status == "ok":
        if path.read_bytes() != source:
            return Outcome(
                path.stem,
                minutes,
                "failed",
                copy,
                "the notebook was edited while it ran; nothing was published",
            )
        write(strip_volatile_metadata(read(copy)), path)
    return Outcome(path.stem, minutes, status, copy, problem)


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """A SIGTERM then ends the kernel and keeps the finished copies, as Ctrl-C does."""

    def interrupt(*_):
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _show_results(nb) -> None:
    """The text of the cells tagged `result`; figures are in the executed copy."""
    for cell in tagged(nb, "result"):
        shown = [
            texts(output) for output in cell.get("outputs", ()) if output.get("name") != "stderr"
        ]
        parts = [kinds.get("text") or kinds.get("text/plain", "") for kinds in shown]
        lines = "\n".join(
            part.strip("\n") for part in parts if part and not part.startswith("<Figure")
        ).splitlines()
        if lines:
            more = (
                [f"… {len(lines) - RESULT_LINES} more lines in the executed copy"]
                if len(lines) > RESULT_LINES
                else []
            )
            print(
                "\n" + textwrap.indent("\n".join(lines[:RESULT_LINES] + more), "    "), flush=True
            )


def _show_table(outcomes: list[Outcome]) -> None:
    rows = [("notebook", "minutes", "status", "executed copy")]
    rows += [(o.notebook, f"{o.minutes:.1f}", o.status, show(o.copy)) for o in outcomes]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    print()
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
    for outcome in outcomes:
        if outcome.status == "failed":
            print(f"\nFAILED {outcome.notebook}: {outcome.error}")
    sys.stdout.flush()


EXERCISE_TEST = """
for _wrong, _rule in [{wrong}]:
    try:
        {name}(_wrong)
    except AssertionError as _error:
        if _rule in str(_error):
            continue
        raise RuntimeError(f"{name} refuses {{_wrong!r}} without saying {{_rule!r}}: {{_error}}")
    raise RuntimeError(f"{name} accepts the wrong answer {{_wrong!r}}")
for _right in [{right}]:
    try:
        _said = {name}(_right)
    except AssertionError as _error:
        raise RuntimeError(f"{name} refuses the right answer {{_right!r}}: {{_error}}")
    if _said == "not yet":
        raise RuntimeError(f"{name} says 'not yet' to the right answer {{_right!r}}")
if {name}(None) != "not yet":
    raise RuntimeError("{name}(None) does not say 'not yet'")
"""


def exercise_test(cell) -> str:
    """Code that gives an exercise's check its wrong answers, its right ones and None."""
    wrong = (f"(({given}), {rule!r})" for given, rule in answers(cell, "wrong_answer").items())
    right = (f"({given})" for given in answers(cell, "right_answer"))
    tried = {"wrong": ", ".join(wrong), "right": ", ".join(right)}
    return EXERCISE_TEST.format(name=exercise_check(cell), **tried).strip()


def smoke_copies(
    folder: Path,
    notebooks: Sequence[str | os.PathLike] = (),
    profile: str = "smoke",
    profiles: Path | None = None,
) -> list[Path]:
    """Copies for nbval: the profile's values in the parameters cell, committed outputs kept only
    where they are compared.

    Each copy ends with cells that give every exercise's check its wrong answers, its right ones
    and None.

    Args:
        folder: Where the copies go; it is made anew.
        notebooks: As in `find`.
        profile: A name in profiles.yml.
        profiles: Another profiles.yml.

    Returns:
        The copies' paths.
    """
    import nbformat

    values = load_profile(profile, profiles)
    with files.atomic_folder(folder) as fresh:
        for path in find(notebooks):
            nb, chosen = read(path), values.get(path.stem, {})
            check_overrides(nb, chosen)
            set_parameters(nb, chosen)
            for cell in nb.cells:
                if cell.cell_type == "code" and COMPARED not in cell.metadata.get("tags", ()):
                    cell.outputs, cell.execution_count = [], None
            for cell in tagged(nb, "exercise"):
                if cell.cell_type == "code" and exercise_check(cell):
                    nb.cells.append(nbformat.v4.new_code_cell(exercise_test(cell)))
            write(nb, fresh / path.name)
    return sorted(Path(folder).glob("*.ipynb"))


def set_parameters(nb, values: dict[str, Any]) -> None:
    """Put values into the parameters cell itself, in place; its comments stay."""
    cell = tagged(nb, "parameters")[0]
    lines = cell.source.splitlines()
    for name, _, node in reversed(list(assignments(nb))):
        if name in values:
            first, last = node.value.lineno - 1, node.value.end_lineno - 1
            before = (
                lines[first].encode()[: node.value.col_offset].decode()
            )  # the offsets count bytes
            after = lines[last].encode()[node.value.end_col_offset :].decode()
            lines[first : last + 1] = [f"{before}{values[name]!r}{after}"]
    cell.source = "\n".join(lines)
