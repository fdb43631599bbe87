"""Grade hand-ins: python -m tools.grade FOLDER.

FOLDER holds one folder a student with the lessons' files, `FOLDER/NAME/00_quickstart.ipynb`. Each
lesson is run once, as it was given out; at each exercise every hand-in's cells are run in a process
of their own, with limits, and the answer is judged by the lesson's own check in another one.
The limits are for accidents and pranks; a hand-in runs with your rights, so grade where nothing
secret lies, in a container, say.
"""

import argparse
import csv
import json
import os
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from prompteol_utils.utils import files
from tools.grade.lesson import graded
from tools.notebooks import rules, run

LARGEST = 20_000_000  # bytes of a hand-in


def read_hand_ins(folder: Path, lesson: str) -> dict[str, list | str]:
    """Id and source of the code cells of each student's file; a string says why there are none."""
    found: dict[str, list | str] = {}
    for student in sorted(path for path in folder.iterdir() if path.is_dir()):
        found[student.name] = _cells(student / lesson)
    return found


def _cells(path: Path) -> list | str:
    try:
        about = path.lstat()
    except OSError:
        return "not handed in"
    if not stat.S_ISREG(about.st_mode):
        return "not a file"
    if about.st_size > LARGEST:
        return f"larger than {LARGEST / 1e6:.0f} MB: clear the outputs"
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        return [[_id(cell), "".join(cell["source"])] for cell in code]
    except (ValueError, KeyError, TypeError, RecursionError, AttributeError):
        return "not a notebook"


def _id(cell: dict) -> str:
    return str(cell.get("id") or cell.get("metadata", {}).get("id", ""))  # Colab: in the metadata


def grade_lesson(
    path: Path, hand_ins: dict[str, list | str], values: dict, seconds: float, memory_gb: float
) -> list[dict]:
    """Points and messages of all hand-ins of one lesson.

    Args:
        path: Our notebook.
        hand_ins: From `read_hand_ins`.
        values: Parameters that replace the lesson's own.
        seconds: Limit of one exercise of one hand-in.
        memory_gb: Memory that it may take on top of the lesson's own, GB.

    Returns:
        One dict a student and exercise: student, lesson, exercise, points (0 or 1), message.

    Raises:
        RuntimeError: The lesson itself does not run here.
    """
    checks = list(graded(rules.read(path)).values())
    verdicts: dict[tuple[str, str], tuple[int, str]] = {}
    waiting = {student: cells for student, cells in hand_ins.items() if isinstance(cells, list)}
    for student, why in hand_ins.items():
        if isinstance(why, str):
            verdicts |= {(student, check): (0, why) for check in checks}
    task = {"lesson": str(path), "values": values, "folder": str(path.parent)}
    task |= {"seconds": seconds, "memory_gb": memory_gb}
    while waiting:
        culprit = _run_once(task | {"hand_ins": waiting}, verdicts)
        if culprit is None:
            break
        del waiting[culprit]  # the others are graded anew without it
        verdicts |= {(culprit, check): (0, "it ended the grading program") for check in checks}
    lesson = path.stem
    return [
        {"student": student, "lesson": lesson, "exercise": check.removeprefix("check_")}
        | dict(zip(("points", "message"), verdicts[student, check], strict=True))
        for student in hand_ins
        for check in checks
    ]


def _run_once(task: dict, verdicts: dict) -> str | None:
    """Run a lesson; the student whose hand-in ended it, or None when it came to its end."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    quiet = {"TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1", "MPLBACKEND": "agg"}
    env = {**os.environ, **threads, **quiet, "CUDA_VISIBLE_DEVICES": ""}  # a fork keeps one thread
    env["PYTHONPATH"] = str(rules.ROOT)
    command = [sys.executable, "-m", "tools.grade.lesson"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "start_new_session": True}
    with subprocess.Popen(command, cwd=rules.ROOT, env=env, **pipes) as child:
        child.stdin.write(json.dumps(task).encode())
        child.stdin.close()
        student = None
        for line in child.stdout:
            event = json.loads(line)
            student = event.get("student", student)
            if event["kind"] == "verdict":
                key = event["student"], event["exercise"]
                verdicts[key] = int(event["right"]), event["message"]
            elif event["kind"] == "failed":
                raise RuntimeError(f"{Path(task['lesson']).stem}: {event['problem']}")
            elif event["kind"] == "done":
                return None
    if student is None:
        raise RuntimeError(f"{Path(task['lesson']).stem} ended by itself before its first exercise")
    return student


def write_tables(rows: list[dict], folder: Path) -> None:
    """points.csv: a line a student, a column an exercise; messages.csv: why."""
    columns = list(dict.fromkeys(_column(row) for row in rows))
    points: dict[str, dict] = {}
    for row in rows:
        points.setdefault(row["student"], {})[_column(row)] = row["points"]
    for name in ("points.csv", "messages.csv"):
        if (folder / name).is_symlink():  # a hand-in's; it would be followed
            (folder / name).unlink()
    with files.atomic_file(folder / "points.csv", "w") as file:
        table = csv.writer(file)
        table.writerow(["student", *columns, "total"])
        for student, of in points.items():
            table.writerow([_cell(student), *(of[c] for c in columns), sum(of.values())])
    with files.atomic_file(folder / "messages.csv", "w") as file:
        table = csv.DictWriter(file, ["student", "lesson", "exercise", "points", "message"])
        table.writeheader()
        table.writerows({name: _cell(value) for name, value in row.items()} for row in rows)


def _column(row: dict) -> str:
    return f"{row['lesson'].partition('_')[0]}.{row['exercise']}"


def _cell(value):
    """A text that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in set("=+-@") else value


def main(arguments: Sequence[str] | None = None) -> int:
    """Grade a folder; returns the exit code, 1 where a lesson does not run here."""
    parser = argparse.ArgumentParser(prog="python -m tools.grade", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folder", type=Path, help="one folder a student, with the lessons' files")
    parser.add_argument("--lesson", nargs="*", default=[], help="00, say; all handed in by default")
    parser.add_argument("--profile", help="in notebooks/profiles.yml; by default the lessons' own")
    parser.add_argument("--seconds", type=float, default=60, help="for one exercise (60)")
    parser.add_argument("--memory-gb", type=float, default=4, help="for one exercise (4)")
    parser.add_argument("--output", type=Path, default=rules.ROOT / "build" / "grades")
    options = parser.parse_args(arguments)
    if not options.folder.is_dir():
        parser.error(f"{options.folder} is no folder")
    profile, rows, code = run.load_profile(options.profile), [], 0
    work = {path: read_hand_ins(options.folder, path.name) for path in rules.find(options.lesson)}
    for path, hand_ins in work.items():
        if not options.lesson and all(why == "not handed in" for why in hand_ins.values()):
            continue
        print(f"{path.stem}: {len(hand_ins)} students", flush=True)
        values = profile.get(path.stem, {})
        try:
            rows += grade_lesson(path, hand_ins, values, options.seconds, options.memory_gb)
        except RuntimeError as error:
            print(f"not graded, {error}", file=sys.stderr)
            code = 1
        write_tables(rows, options.output)
    if not work or not (rows or code):
        names = ", ".join(path.name for path in work)
        parser.error(f"no file FOLDER/NAME/LESSON in {options.folder}; lessons: {names}")
    print(f"{rules.show(options.output)}/points.csv")
    return code


if __name__ == "__main__":
    sys.exit(main())
