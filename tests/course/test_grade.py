"""Grading: a made-up lesson and a real one, with hand-ins that are right, half right, hostile."""

import csv
import os
import pickle
import time
from multiprocessing import Pipe
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from prompteol_utils.prompts import Demonstration
from tools.grade import wire
from tools.grade.__main__ import main, read_hand_ins
from tools.grade.lesson import own_cells
from tools.notebooks import rules

SUM = """answer_1 = None


def check_1(answer):
    if answer is None:
        return "not yet"
    assert np.allclose(answer, NUMBERS.sum()), "add them all"
    return "right"


check_1(answer_1)"""
DOUBLE = """answer_2 = None


def check_2(answer):
    if answer is None:
        return "not yet"
    assert np.allclose(answer(NUMBERS), 2 * NUMBERS), "two times each"
    try:
        answer("text")
    except ValueError:
        return "right"
    raise AssertionError("refuse a text with ValueError")


check_2(answer_2)"""
TABLE = """answer_3 = None


def check_3(answer):
    if answer is None:
        return "not yet"
    assert list(answer["n"]) == [1, 2, 3], "the column n"
    return "right"


check_3(answer_3)"""
DOUBLED = """def answer_2(x):
    if isinstance(x, str):
        raise ValueError("numbers only")
    return two * x
"""
RIGHT = {
    1: "answer_1 = NUMBERS.sum()",
    2: f"two = 2\n{DOUBLED}",
    3: "import pandas as pd\nanswer_3 = pd.DataFrame({'n': NUMBERS.astype(int)})",
}
HALF = {1: "answer_1 = 5", 2: f"two = 3\n{DOUBLED}", 3: RIGHT[3]}
SPOIL = """import builtins, pathlib
pathlib.Path({results!r}).mkdir(parents=True, exist_ok=True)
pathlib.Path({results!r}, "points.csv").write_text("student,total\\nhostile,99\\n")
np.allclose = lambda *a, **k: True
check_1 = lambda answer: "right"
builtins.AssertionError = ZeroDivisionError
answer_1 = 99
"""
DAEMON = """import os, pathlib, time
note = pathlib.Path({note!r})
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        note.with_suffix(".new").write_text(str(os.getpid()))
        note.with_suffix(".new").rename(note)
        time.sleep(600)
    os._exit(0)
while not note.exists():
    time.sleep(0.01)
answer_1 = 6
"""


def lesson(path: Path) -> Path:
    tags = {"tags": ["exercise"]}
    cells = [
        new_markdown_cell("# Mini", metadata={"tags": ["header"]}),
        new_code_cell("import numpy as np", metadata={"tags": ["setup"]}),
        new_code_cell("N = 3", metadata={"tags": ["parameters"]}),
        new_code_cell("NUMBERS = np.arange(1.0, N + 1)"),
        *(new_code_cell(source, metadata=tags) for source in (SUM, DOUBLE, TABLE)),
        new_code_cell("check_1(6)", metadata={"tags": ["solution"]}),
    ]
    nbformat.write(new_notebook(cells=cells), path)
    return path


def hand_in(folder: Path, student: str, path: Path, answers: dict[int, str], *more: str) -> None:
    """A copy of a lesson with code in place of `answer_N = None`, and more cells at its head."""
    nb = rules.read(path)
    for cell in rules.tagged(nb, "exercise"):
        for number, code in answers.items():
            cell.source = cell.source.replace(f"answer_{number} = None", code)
    nb.cells[1:1] = [new_code_cell(source) for source in more]
    (folder / student).mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, folder / student / path.name)


def table(folder: Path, name: str = "points.csv") -> dict[str, list[str]]:
    with open(folder / name, encoding="utf-8") as file:
        return {row[0]: row[1:] for row in csv.reader(file)}


def messages(folder: Path, student: str) -> list[str]:
    with open(folder / "messages.csv", encoding="utf-8") as file:
        return [row["message"] for row in csv.DictReader(file) if row["student"] == student]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_no_hand_in_spoils_the_table(tmp_path, monkeypatch):
    path = lesson(tmp_path / "00_mini.ipynb")
    monkeypatch.setattr(rules, "NOTEBOOKS", tmp_path)
    folder, results = tmp_path / "hand-ins", tmp_path / "results"
    hand_in(folder, "a-right", path, RIGHT, "N = 7", "while True: pass")
    hand_in(folder, "b-half", path, HALF)
    spoil = SPOIL.format(results=str(results))
    hand_in(
        folder, "c-checks", path, {1: spoil, 2: "while True: pass", 3: "import os; os._exit(0)"}
    )
    bytes_ = "answer_1 = None\nfor _ in range(100): print('x' * 10**7)"
    killer = {1: bytes_, 2: "answer_2 = np.ones((10**5, 10**5))"}
    hand_in(folder, "d-large", path, killer)
    hand_in(folder, "e-killer", path, RIGHT | {2: "import os; os.kill(os.getppid(), 9)"})
    hand_in(folder, "f-right", path, RIGHT)
    hand_in(folder, "f-stays", path, {1: DAEMON.format(note=str(tmp_path / "pid"))})
    (folder / "g-empty").mkdir()
    (folder / "h-broken").mkdir()
    (folder / "h-broken" / path.name).write_text("{")
    options = ["--seconds", "5", "--memory-gb", "1", "--output", str(results)]
    assert main([str(folder), *options]) == 0
    assert table(results) == {
        "student": ["00.1", "00.2", "00.3", "total"],
        "a-right": ["1", "1", "1", "3"],
        "b-half": ["0", "0", "1", "1"],
        "c-checks": ["0", "0", "0", "0"],
        "d-large": ["0", "0", "0", "0"],
        "e-killer": ["0", "0", "0", "0"],
        "f-right": ["1", "1", "1", "3"],
        "f-stays": ["1", "0", "0", "1"],
        "g-empty": ["0", "0", "0", "0"],
        "h-broken": ["0", "0", "0", "0"],
    }
    assert messages(results, "b-half") == ["wrong: add them all", "wrong: two times each", "right"]
    assert messages(results, "c-checks")[0] == "wrong: add them all"
    assert not alive(int((tmp_path / "pid").read_text())), "a process was left behind"
    assert "MemoryError" in messages(results, "d-large")[1]
    assert set(messages(results, "e-killer")) == {"it ended the grading program"}


def test_a_lesson_that_does_not_run_is_said(tmp_path, monkeypatch, capsys):
    path = lesson(tmp_path / "00_mini.ipynb")
    nb = rules.read(path)
    nb.cells[3].source = "NUMBERS = 1 / 0"
    nbformat.write(nb, path)
    monkeypatch.setattr(rules, "NOTEBOOKS", tmp_path)
    hand_in(tmp_path / "hand-ins", "a", path, RIGHT)
    assert main([str(tmp_path / "hand-ins"), "--output", str(tmp_path / "results")]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_folder_without_hand_ins_is_said(tmp_path, capsys):
    (tmp_path / "00_quickstart.ipynb").write_text("{}")
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert "FOLDER/NAME/LESSON" in capsys.readouterr().err


@pytest.mark.bundled
def test_a_real_lesson(tmp_path):
    (path,) = rules.find(["00"])
    exercises = rules.tagged(rules.read(path), "exercise")
    right = {}
    for cell in exercises:
        if cell.cell_type == "code":
            number = rules.exercise_check(cell).removeprefix("check_")
            right[number] = f"answer_{number} = {next(iter(rules.answers(cell, 'right_answer')))}"
    hand_in(tmp_path / "in", "all", path, right)
    hand_in(tmp_path / "in", "none", path, {})
    options = ["--lesson", "00", "--profile", "smoke", "--output", str(tmp_path / "out")]
    assert main([str(tmp_path / "in"), *options]) == 0
    assert table(tmp_path / "out")["all"][-1] == str(len(right))
    assert table(tmp_path / "out")["none"][-1] == "0"


def test_own_cells_are_found_without_ids_and_changes_to_the_lesson_do_not_count(tmp_path):
    nb = rules.read(lesson(tmp_path / "00_mini.ipynb"))
    given = [[cell.id, cell.source] for cell in nb.cells if cell.cell_type == "code"]
    changed = [[number, source.replace("N = 3", "N = 9")] for number, source in given]
    changed.insert(3, ["new", "helper = 1"])
    changed.insert(5, ["below", "answer_1 = 6"])
    before, own = own_cells(changed, nb, "check_1")
    assert before == ["helper = 1"]
    assert own == [SUM, "answer_1 = 6"]
    assert own_cells(changed, nb, "check_2")[0] == ["helper = 1", SUM, "answer_1 = 6"]
    unnamed = [["", source] for _, source in given]
    assert own_cells(unnamed, nb, "check_3") == ([SUM, DOUBLE], [TABLE])
    assert own_cells(unnamed[:3], nb, "check_3")[1] == []


def test_links_and_large_files_are_not_read(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.ipynb").symlink_to("/dev/zero")
    (tmp_path / "b").mkdir()
    with open(tmp_path / "b" / "x.ipynb", "wb") as file:
        file.truncate(30_000_000)
    assert read_hand_ins(tmp_path, "x.ipynb") == {
        "a": "not a file",
        "b": "larger than 20 MB: clear the outputs",
    }


VALUES = [
    3.5,
    "text",
    [np.float32(2), {"a": (1, None)}],
    np.arange(6.0).reshape(2, 3),
    torch.ones(2, 3),
    pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}, index=["p", "q"]),
    pd.Series([1, 2], name="s"),
    Demonstration("A cat sleeps.", "Nap"),
    {1, 2},
]


class _Loopback:
    """Both ends of a pipe in one process: what `serve` sends is what `receive` reads."""

    def __init__(self, first: bytes | None = None):
        self.first = first
        self.sent: list[bytes] = []

    def send_bytes(self, message: bytes) -> None:
        self.sent.append(message)

    def recv_bytes(self, *_) -> bytes:
        if self.first is None:
            raise EOFError
        return self.first


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_arrive_as_they_were(value):
    hand_in_side = _Loopback()
    wire.serve(hand_in_side, value, {})
    found = wire.receive(_Loopback(hand_in_side.sent[0]), {})
    assert type(found) is type(value)
    if isinstance(value, pd.DataFrame | pd.Series):
        assert found.equals(value)
    elif isinstance(value, np.ndarray | torch.Tensor):
        assert (found == value).all() and found.dtype == value.dtype
    else:
        assert found == value


class Bomb:
    def __reduce__(self):
        return time.sleep, (60,)


@pytest.mark.parametrize(
    "payload",
    [Bomb(), time.sleep, pd.read_pickle, np.load],
    ids=["call", "time", "pandas", "numpy"],
)
def test_an_answer_runs_no_code_where_the_check_runs(payload):
    message = pickle.dumps(("value", payload))
    with pytest.raises(wire.HandInError, match="may not hold"):
        wire.receive(_Loopback(message), {})


def test_what_the_lesson_made_goes_by_its_name():
    here, there = Pipe()
    thing = object()
    there.close()
    side = _Loopback()
    wire.serve(side, [thing], {"encoder": thing})
    other = object()
    assert wire.receive(_Loopback(side.sent[0]), {"encoder": other}) == [other]
    here.close()
