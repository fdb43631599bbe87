"""Run one lesson and, at each of its exercises, the hand-ins: started by `tools.grade`.

The lesson is run once, as it was given out. At an exercise the process parts (fork) twice for each
hand-in: one copy runs the hand-in's cells, another runs the lesson's own check on the answer that
comes through a pipe. A hand-in thus never runs where a check runs, and both begin with everything
that the lesson has computed so far.
"""

import ctypes
import json
import os
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
from contextlib import suppress
from multiprocessing import Pipe
from pathlib import Path

from tools.grade import wire
from tools.notebooks import rules, run

OUTPUT_BYTES = 10_000_000
NO_ANSWER = "not answered"


def main() -> int:
    """Read the task from stdin, write one JSON line an event to stdout."""
    task = json.loads(sys.stdin.buffer.read())
    events = os.fdopen(os.dup(1), "w")
    _silence()
    _adopt_orphans()

    def tell(**event) -> None:
        print(json.dumps(event), file=events, flush=True)

    nb = rules.read(Path(task["lesson"]))
    run.set_parameters(nb, task["values"])
    os.chdir(task["folder"])
    shell = _shell()
    exercises = graded(nb)
    for cell in nb.cells:
        if cell.cell_type != "code" or "solution" in cell.metadata.get("tags", ()):
            continue
        result = shell.run_cell(cell.source, store_history=False, silent=True)
        if problem := result.error_before_exec or result.error_in_exec:
            tell(kind="failed", problem=f"{type(problem).__name__}: {problem}"[:500])
            return 1
        if cell.id in exercises:
            check = exercises.pop(cell.id)
            for student, sources in task["hand_ins"].items():
                tell(kind="begin", student=student)
                verdict = grade(shell, check, own_cells(sources, nb, check), task)
                tell(kind="verdict", student=student, exercise=check, **verdict)
        if not exercises:
            break
    tell(kind="done")
    return 0


def graded(nb) -> dict[str, str]:
    """Names of the checks by the ids of the cells that define them."""
    cells = (cell for cell in rules.tagged(nb, "exercise") if cell.cell_type == "code")
    return {cell.id: rules.exercise_check(cell) for cell in cells if rules.exercise_check(cell)}


def own_cells(sources: list[list[str]], nb, check: str) -> tuple[list[str], list[str]]:
    """What a student wrote for an exercise.

    Args:
        sources: Id and source of each code cell of the hand-in, in order.
        nb: The lesson. Its other cells do not count in a hand-in, changed or not.
        check: The exercise's check.

    Returns:
        The student's cells before the exercise, and its own with the new ones that follow at once;
        the second is empty where the exercise's cell is not there.
    """
    given = [cell for cell in nb.cells if cell.cell_type == "code"]
    exercises = graded(nb)
    ids = {cell.id for cell in given if cell.id not in exercises}
    texts = {cell.source.strip() for cell in given if cell.id not in exercises}
    before, own = [], []
    for number, source in sources:
        theirs = number not in ids and source.strip() not in texts
        found = re.search(r"^def (check_\w+)\(", source, re.MULTILINE)
        name = found.group(1) if found else exercises.get(number)
        if own and (name or not theirs):
            break
        if own or name == check:
            own.append(source)
        elif theirs:
            before.append(source)
    return before, own


def grade(shell, check: str, cells: tuple[list[str], list[str]], task: dict) -> dict:
    """One hand-in's exercise: whether it is right, and what is said about it.

    Args:
        shell: Holds everything that the lesson has computed up to the exercise.
        check: The name of the check; `answer_N` belongs to `check_N`.
        cells: From `own_cells`.
        task: Limits: "seconds" and "memory_gb".

    Returns:
        "right" (a bool) and "message".
    """
    if not cells[1]:
        return {"right": False, "message": "its exercise cell is not there"}
    shared = wire.shared_objects(shell.user_ns)
    here, there = Pipe()
    verdicts, verdict = os.pipe()
    scratch, others = tempfile.mkdtemp(prefix="hand-in-"), _children()
    parted = [
        _part(lambda: _answer(shell, check, cells, there, shared, task), there, scratch, task),
        _part(lambda: _check(shell, check, here, verdict, shared), here, scratch, task, verdict),
    ]
    for end in (here, there):
        end.close()
    os.close(verdict)
    try:
        return _read(verdicts, task["seconds"])
    finally:
        for child in parted:
            with suppress(OSError):
                os.killpg(child, signal.SIGKILL)
        while left := (_children() or set(parted)) - others:
            for child in left:
                with suppress(OSError):
                    os.kill(child, signal.SIGKILL)
                with suppress(OSError):
                    os.waitpid(child, 0)
            others |= left
        os.close(verdicts)
        shutil.rmtree(scratch, ignore_errors=True)


def _adopt_orphans() -> None:
    """On Linux, processes that a hand-in leaves behind become this one's, to be ended."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def _children() -> set[int]:
    try:
        return set(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))
    except OSError:
        return set()


def _read(pipe: int, seconds: float) -> dict:
    ready, _, _ = select.select([pipe], [], [], 2 * seconds + 2)  # the cells' own limit comes first
    line = os.read(pipe, 65536) if ready else b""
    if not ready:
        return {"right": False, "message": f"no answer within {seconds:g} seconds"}
    if not line:
        return {"right": False, "message": "the check itself ended: more memory than allowed?"}
    return json.loads(line)


def _part(work, pipe, scratch: str, task: dict, *kept: int) -> int:
    """Run `work` in a copy of this process with limits and without this one's files."""
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        keep = {0, 1, 2, pipe.fileno(), *kept}
        for name in os.listdir("/dev/fd"):
            if int(name) not in keep:
                with suppress(OSError):
                    os.close(int(name))
        os.chdir(scratch)
        _limit(task)
        work()
    finally:
        os._exit(0)


def _limit(task: dict) -> None:
    seconds = int(2 * task["seconds"]) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (OUTPUT_BYTES, OUTPUT_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write then fails with OSError
    with suppress(OSError, ValueError):  # macOS keeps no such account
        pages = int(Path("/proc/self/statm").read_text().split()[5])  # data and stack
        allowed = pages * resource.getpagesize() + int(task["memory_gb"] * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))


def _answer(shell, check: str, cells: tuple, pipe, shared: dict, task: dict) -> None:
    """In the hand-in's process: run its cells, send the answer, serve its functions."""
    name = check.replace("check", "answer", 1)
    before, own = cells
    for source in before:  # what another exercise does must not cost this one its point
        with suppress(BaseException):
            _run_for(shell, source, task["seconds"] / 2 / len(before))
    shell.user_ns.pop(name, None)
    problems = [_run_for(shell, source, task["seconds"]) for source in own]
    answer = shell.user_ns.get(name)
    if answer is None and any(problems):
        wire.send_error(pipe, next(filter(None, problems)))
        return
    wire.serve(pipe, answer, shared)


def _run_for(shell, source: str, seconds: float):
    def late(*_):
        raise TimeoutError(f"more than {seconds:g} seconds")

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        result = shell.run_cell(source, store_history=False, silent=True)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return result.error_before_exec or result.error_in_exec


def _check(shell, check: str, pipe, verdict: int, shared: dict) -> None:
    """In the check's process: the lesson's own function on the answer."""
    right, message = False, ""
    try:
        said = shell.user_ns[check](wire.receive(pipe, shared))
        right, message = said != "not yet", "right" if said != "not yet" else NO_ANSWER
    except AssertionError as error:
        message = f"wrong: {error}"
    except Exception as error:
        kind = "" if isinstance(error, wire.HandInError) else f"{type(error).__name__}: "
        message = f"error: {kind}{error}"
    message = " ".join(message.split())[:300]
    os.write(verdict, json.dumps({"right": right, "message": message}).encode())


def _shell():
    """Cells run as in Jupyter, without history; figures are drawn and not shown."""
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    settings = Config()
    settings.HistoryManager.enabled = False
    return InteractiveShell.instance(config=settings)


def _silence() -> None:
    """Nothing that a cell prints is kept."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)


if __name__ == "__main__":
    sys.exit(main())
