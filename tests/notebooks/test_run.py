"""Runs of small notebooks that are built here: good, failing, interrupted, wrongly parametrised.

Publishing and nbval copies.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools.notebooks import rules, run

EXERCISE = """answer_1 = None

def check_1(answer):
    if answer is None:
        return "not yet"
    assert answer == 4, "add"
    return "right"

check_1(answer_1)"""


def code(source: str, *tags: str, **metadata) -> nbformat.NotebookNode:
    return new_code_cell(source, metadata={**({"tags": list(tags)} if tags else {}), **metadata})


def notebook(
    path: Path, *body, parameters: str = "N = 2  # how many\nRATE = 0.5\nNAME = 'x'"
) -> Path:
    """A notebook that keeps every rule, with more cells in its middle."""
    cells = [
        new_markdown_cell("# A title", metadata={"tags": ["header"]}),
        code("import math", "setup"),
        code(parameters, "parameters"),
        code("{'N': N, 'rate': math.floor(RATE), 'name': NAME}", "result"),
        *body,
        code(EXERCISE, "exercise", wrong_answer={"[5, -4][0]": "add"}, right_answer=["4", "4.0"]),
        code("check_1(2 + 2)", "solution"),
    ]
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": dict(rules.KERNELSPEC)}), path)
    return path


def cells(path: Path) -> list:
    return nbformat.read(path, as_version=4).cells


@pytest.fixture(scope="session")
def published_once(tmp_path_factory) -> Path:
    """A notebook whose outputs were published by the runner.

    One cell's output is compared, one writes to stderr.
    """
    folder = tmp_path_factory.mktemp("published")
    noisy = code("import sys\nprint('noise', file=sys.stderr)\nprint('10%\\r20%\\rdone')")
    path = notebook(folder / "01_good.ipynb", code("sorted([3, 1, 2])", rules.COMPARED), noisy)
    assert [o.status for o in run.run([path], output=folder / "out", publish=True)] == ["ok"]
    return path


@pytest.fixture
def published(published_once, tmp_path) -> Path:
    return Path(shutil.copy(published_once, tmp_path))


def test_failure_does_not_stop_the_others_and_all_are_listed(tmp_path, capfd):
    paths = [
        notebook(tmp_path / "00_bad.ipynb", code("# why\n1 / 0")),
        notebook(tmp_path / "01_good.ipynb"),
        notebook(tmp_path / "02_dead.ipynb", code("import os\nos._exit(3)")),
    ]
    before = [path.read_bytes() for path in paths]
    outcomes = run.run(paths, output=tmp_path / "out")
    assert [o.status for o in outcomes] == ["failed", "ok", "failed"]
    assert (
        "ZeroDivisionError" in outcomes[0].error
        and "# why" in outcomes[0].error
        and "[4]" in outcomes[0].error
    )
    assert "died" in outcomes[2].error.lower()
    assert [path.read_bytes() for path in paths] == before, "a source was written"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [p.name for p in paths], (
        "a partial copy was left"
    )
    text, noise = capfd.readouterr()
    assert (
        text.count("FAILED") == 2
        and "make lab" in text
        and "{'N': 2, 'rate': 0, 'name': 'x'}" in text
    )
    assert re.search(r"01_good +0\.\d +ok +\S+01_good\.ipynb", text)
    assert (
        "TCP" not in noise
        and "Black is not installed" not in noise
        and "Input Notebook" not in noise
    )


def test_overrides_reach_the_notebook(tmp_path):
    path = notebook(tmp_path / "00_a.ipynb")
    (tmp_path / "profiles.yml").write_text("smoke: {00_a: {N: 7, RATE: 3}}\n")
    outcome = run.run(
        [path],
        profile="smoke",
        overrides={"NAME": "y"},
        output=tmp_path / "out",
        profiles=tmp_path / "profiles.yml",
    )[0]
    assert "{'N': 7, 'rate': 3, 'name': 'y'}" in str(cells(outcome.copy))


@pytest.mark.parametrize(
    "overrides, told",
    [
        (
            {"M": 1},
            r"no parameter is called 'M'; there are: N \(int\), RATE \(float\), NAME \(str\)",
        ),
        ({"N": "7"}, r"N takes int, not '7' \(str\)"),
        ({"N": 7.5}, r"N takes int, not 7.5 \(float\)"),
        ({"N": True}, "N takes int, not True"),
        ({"N": None}, "N takes int, not None"),
        ({"NAME": 3}, "NAME takes str"),
        ({"RATE": "fast"}, "RATE takes float"),
    ],
)
def test_wrong_override_is_refused_before_anything_runs(tmp_path, overrides, told):
    good, path = (
        notebook(tmp_path / "00_a.ipynb", parameters="N = 1\nRATE = 1.0\nNAME = ''"),
        notebook(tmp_path / "01_b.ipynb"),
    )
    with pytest.raises(rules.NotebookError, match=told):
        run.run([good, path], overrides=overrides, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_none_and_lists_follow_the_parameters_line(tmp_path):
    nb = rules.read(
        notebook(
            tmp_path / "00_a.ipynb",
            parameters="LIMIT: int | None = 250\nTASKS = ['a']\nDEVICE = None",
        )
    )
    run.check_overrides(nb, {"LIMIT": None, "TASKS": ["b", "c"], "DEVICE": "cpu"})
    for wrong in ({"LIMIT": "all"}, {"TASKS": [1]}, {"TASKS": "b"}, {"DEVICE": ["cpu"]}):
        with pytest.raises(rules.NotebookError):
            run.check_overrides(nb, wrong)


def test_unknown_names_are_told_the_known_ones(tmp_path):
    path = notebook(tmp_path / "00_a.ipynb")
    (tmp_path / "profiles.yml").write_text("smoke: {}\ngpu: {}\n")
    with pytest.raises(
        rules.NotebookError, match="no profile is called 'fast'; there are: default, smoke, gpu"
    ):
        run.run([path], profile="fast", profiles=tmp_path / "profiles.yml")
    with pytest.raises(rules.NotebookError, match="'99'; there are: 00_a"):
        rules.find(["99"], folder=tmp_path)
    with pytest.raises(rules.NotebookError, match="NAME = literal"):
        rules.parameters(rules.read(notebook(tmp_path / "01_b.ipynb", parameters="N = len('abc')")))
    assert [p.stem for p in rules.find(["00"], folder=tmp_path)] == ["00_a"]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_keeps_what_is_finished(tmp_path, signum):
    pid = tmp_path / "kernel.pid"
    slow = code(
        f"import os, pathlib, time\npathlib.Path({str(pid)!r}).write_text(str(os.getpid()))\n"
        "time.sleep(120)"
    )
    names = [
        notebook(tmp_path / "00_a.ipynb"),
        notebook(tmp_path / "01_slow.ipynb", slow),
        notebook(tmp_path / "02_c.ipynb"),
    ]
    command = [
        sys.executable,
        "-m",
        "tools.notebooks",
        "run",
        *map(str, names),
        "--output",
        str(tmp_path / "out"),
    ]
    child = subprocess.Popen(
        command,
        cwd=rules.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a job in the background inherits an ignored SIGINT
    )
    _wait_for(lambda: pid.exists() and pid.read_text())
    child.send_signal(signum)
    text, _ = child.communicate(timeout=60)
    assert child.returncode == 130, text
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["00_a.ipynb"]
    assert re.search(r"01_slow .*interrupted", text) and re.search(r"02_c .*not run", text)
    _wait_for(lambda: not _alive(int(pid.read_text())))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return (
            "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[-1].split()[0]
            if Path("/proc").exists()
            else True
        )
    except OSError:
        return False


def _wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_published_notebook_passes_check_and_holds_nothing_of_this_run(published):
    assert rules.check([published]) == []
    raw = json.loads(published.read_text())
    assert (
        set(raw["metadata"]) == {"kernelspec", "language_info"}
        and "papermill" not in published.read_text()
    )
    text = "".join(str(cell.get("outputs")) for cell in raw["cells"])
    assert "noise" not in text and "20%" not in text and "done" in text
    before = published.read_bytes()
    assert rules.clean([published]) == [] and published.read_bytes() == before
    again = run.run([published], output=published.parent / "out", publish=True)[0]
    assert again.status == "ok" and published.read_bytes() == before, "a second publication differs"


def test_publish_refuses_overrides_and_edits_during_the_run(tmp_path):
    path = tmp_path / "00_a.ipynb"
    notebook(path, code(f"with open({str(path)!r}, 'a') as f:\n    f.write(' ')"))
    with pytest.raises(rules.NotebookError, match="default profile"):
        run.run([path], overrides={"N": 3}, publish=True)
    outcome = run.run([path], output=tmp_path / "out", publish=True)[0]
    assert outcome.status == "failed" and "edited while it ran" in outcome.error
    assert all(not cell.get("outputs") for cell in cells(path))


def test_strip_keeps_ids_and_sources(published):
    before = [(cell.id, cell.source) for cell in cells(published)]
    assert rules.strip([published]) == [published]
    assert [(cell.id, cell.source) for cell in cells(published)] == before
    assert all(
        not cell.get("outputs") and cell.get("execution_count") is None for cell in cells(published)
    )


def _edit(path: Path, change) -> None:
    nb = nbformat.read(path, as_version=4)
    change(nb)
    nbformat.write(nb, path)


def _output(nb, tag=rules.COMPARED):
    return rules.tagged(nb, tag)[0].outputs[0]


BREAKS = [
    (
        "parameter N is used nowhere",
        lambda nb: setattr(rules.tagged(nb, "result")[0], "source", "(math, RATE, NAME)"),
    ),
    (
        "stderr",
        lambda nb: nb.cells[3].outputs.append(new_output("stream", name="stderr", text="warning")),
    ),
    (
        "ended with ValueError",
        lambda nb: nb.cells[3].outputs.append(
            new_output("error", ename="ValueError", evalue="no", traceback=[])
        ),
    ),
    (
        "absolute path in an output",
        lambda nb: _output(nb).data.update({"text/plain": "saved to /home/somebody/x.csv"}),
    ),
    ("absolute path in the source", lambda nb: nb.cells.append(code("open('/data/set/a.txt')"))),
    ("timestamp", lambda nb: _output(nb).data.update({"text/plain": "at 2026-11-23 10:11"})),
    ("execution counts", lambda nb: nb.cells[3].update(execution_count=9)),
    (
        "more than 12",
        lambda nb: nb.cells[4].update(source="\n".join(f"a{i} = {i}" for i in range(13))),
    ),
    ("bytes, more than", lambda nb: _output(nb).data.update({"image/png": "A" * 300_001})),
    ("figure without words", lambda nb: _output(nb).data.update({"image/png": "A"})),
    ("kernelspec", lambda nb: nb.metadata.kernelspec.update(name="my-env")),
    ("not a title", lambda nb: nb.cells[0].update(source="Some text")),
    ("numbered [2]", lambda nb: nb.cells[0].update(source="# Title\n\n## 2. A section")),
    (
        "metadata that differs",
        lambda nb: nb.cells[3].metadata.update(execution={"iopub.execute_input": "now"}),
    ),
    (
        "imports and nothing else",
        lambda nb: rules.tagged(nb, "setup")[0].update(source="import sys\nsys.path.append('..')"),
    ),
    (
        "imports and nothing else",
        lambda nb: rules.tagged(nb, "setup")[0].update(source="%pip install x"),
    ),
    (
        "imports cell has 9",
        lambda nb: rules.tagged(nb, "setup")[0].update(source="import math\n" * 9),
    ),
    ("lacks a function", lambda nb: rules.tagged(nb, "exercise")[0].metadata.pop("wrong_answer")),
    ("calls check_1", lambda nb: rules.tagged(nb, "solution")[0].update(source="4")),
    ("says 'not yet'", lambda nb: _output(nb, "solution").data.update({"text/plain": "'not yet'"})),
    *(
        (f"tagged {tag!r}", lambda nb, tag=tag: rules.tagged(nb, tag)[0].metadata.tags.remove(tag))
        for tag in rules.REQUIRED_TAGS
    ),
]


@pytest.mark.parametrize("told, change", BREAKS)
def test_check_refuses(published, told, change):
    _edit(published, change)
    assert told in "\n".join(rules.check([published]))


def test_check_refuses_missing_ids_and_clean_mends_what_it_names(published):
    raw = json.loads(published.read_text())
    for cell in raw["cells"]:
        del cell["id"]
    raw["nbformat_minor"] = 4
    published.write_text(json.dumps(raw))
    assert any(
        "without an id" in problem and "clean" in problem for problem in rules.check([published])
    )
    rules.clean([published])
    assert rules.check([published]) == []


def test_paths_of_this_machine_are_made_relative_but_words_with_slashes_stay():
    nb = new_notebook(cells=[code("1")])
    nb.cells[0].outputs = [
        new_output(
            "stream",
            text=f"{rules.ROOT}/data/a.csv {Path.home()}/b and/or n/a https://a.org/b/c </td>",
        )
    ]
    scrubbed = rules.strip_volatile_metadata(nb).cells[0].outputs[0].text
    assert scrubbed == "data/a.csv ~/b and/or n/a https://a.org/b/c </td>"
    assert (
        not rules.ABSOLUTE_PATH.search(scrubbed)
        and rules.ABSOLUTE_PATH.search("'/usr/lib'")
        and rules.ABSOLUTE_PATH.search(r"C:\Users")
    )


def _nbval(folder: Path) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--nbval-lax",
        "-p",
        "no:cacheprovider",
        "--color=no",
        "-rf",
        str(folder),
    ]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


def test_nbval_compares_marked_outputs_on_copies_with_smoke_values(published, tmp_path):
    (tmp_path / "profiles.yml").write_text("smoke: {01_good: {N: 7}}\n")
    (copy,) = run.smoke_copies(tmp_path / "copies", [published], profiles=tmp_path / "profiles.yml")
    assert rules.tagged(rules.read(copy), "parameters")[0].source.startswith("N = 7  # how many\n")
    assert sum(bool(cell.get("outputs")) for cell in cells(copy)) == 1, (
        "only the marked cell keeps its output"
    )
    done = _nbval(copy.parent)
    assert done.returncode == 0, done.stdout
    _edit(published, lambda nb: _output(nb).data.update({"text/plain": "[1, 2, 4]"}))
    run.smoke_copies(tmp_path / "copies", [published], profiles=tmp_path / "profiles.yml")
    done = _nbval(copy.parent)
    assert done.returncode == 1 and "[1, 2, 4]" in done.stdout and "1 failed" in done.stdout


SPOILED = {
    "accepts the wrong answer 5": ("assert answer == 4", "assert answer"),
    "refuses the right answer 4.0": ("answer == 4", "answer == 4 and type(answer) is int"),
    "refuses 5 without saying 'add'": ('"add"', '"no"'),
    "does not say 'not yet'": ('"not yet"', '"no"'),
}


@pytest.mark.parametrize("told", SPOILED)
def test_nbval_copy_gives_each_check_wrong_and_right_answers(published, tmp_path, told):
    def spoil(nb):
        cell = rules.tagged(nb, "exercise")[0]
        cell.source = cell.source.replace(*SPOILED[told])

    (tmp_path / "profiles.yml").write_text("smoke: {}\n")
    _edit(published, spoil)
    (copy,) = run.smoke_copies(tmp_path / "copies", [published], profiles=tmp_path / "profiles.yml")
    exercise, *_, test = (cell.source for cell in cells(copy)[-3:])
    names = {}
    exec(exercise, names)
    with pytest.raises(RuntimeError, match=told):
        exec(test, names)


@pytest.mark.parametrize("given", ["5", ["5"], {"5": ""}])
def test_answers_are_one_expression_a_list_or_an_object(given):
    cell = code(EXERCISE, "exercise", wrong_answer=given)
    assert rules.answers(cell, "wrong_answer") == {"5": ""}
    assert rules.answers(cell, "right_answer") == {}
    names = {}
    exec(f"{cell.source}\n{run.exercise_test(cell)}", names)


def test_parameters_are_replaced_in_place(tmp_path):
    nb = rules.read(
        notebook(
            tmp_path / "00_a.ipynb", parameters="A = 'é'; B = [1,\n  2]  # two\nC = 3.0  # three"
        )
    )
    run.set_parameters(nb, {"A": "z", "B": [9], "C": 1})
    assert rules.tagged(nb, "parameters")[0].source == "A = 'z'; B = [9]  # two\nC = 1  # three"
