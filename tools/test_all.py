"""What `make test` runs: every step, even when one fails.

The failures are listed at the end and the exit code says so.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPIES = "build/nbval"
PYTHON = sys.executable
NOISE = "Kernel is running over TCP"
# Tests of a file share what it loads, so a file stays with one worker.
WORKERS = str(min(4, os.cpu_count() or 1))
PARALLEL = ["-n", WORKERS, "--dist", "loadfile"]

STEPS = {
    "ruff check": ["-m", "ruff", "check", "."],
    "ruff format": ["-m", "ruff", "format", "--check", "."],
    "imports": ["-c", "from importlinter.cli import lint_imports_command as main; main()"],
    "notebook rules": ["-m", "tools.notebooks", "check"],
    "pytest": ["-m", "pytest", "--color=no", *PARALLEL],
    "notebooks (smoke)": ["-m", "tools.notebooks", "run", "--profile", "smoke"],
    "copies for nbval": ["-m", "tools.notebooks", "copies", COPIES],
    "nbval": [
        "-m",
        "pytest",
        "--nbval-lax",
        "--nbval-cell-timeout",
        "900",
        "-p",
        "no:cacheprovider",
        "--color=no",
        *PARALLEL,
        COPIES,
    ],
}
SUMMARY = re.compile(
    r"^(=+ )?\d+ (passed|failed|error|skipped|deselected).* in [\d.]+s|^no tests ran"
)
FAILURE = re.compile(r"^(FAILED|ERROR) ")


def step(name: str, command: list[str]) -> tuple[str, float, int, str, list[str]]:
    """Run one step, show its lines as they come, keep its summary line and the names of
    what failed.
    """
    print(f"\n=== {name}", flush=True)
    start, summary, failures = time.perf_counter(), "", []
    env = {"OMP_NUM_THREADS": "1"} if PARALLEL[0] in command else {}
    env |= {
        "TQDM_DISABLE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONUNBUFFERED": "1",
        **os.environ,
    }
    pipes = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "text": True,
        "errors": "replace",
    }
    with subprocess.Popen([PYTHON, *command], cwd=ROOT, env=env, **pipes) as run:
        for line in run.stdout:
            if NOISE in line:
                continue
            print(line, end="", flush=True)
            if SUMMARY.match(line):
                summary = line.strip(" =\n")
            if FAILURE.match(line):
                failures.append(line.strip())
    return name, (time.perf_counter() - start) / 60, run.returncode, summary, failures


def main() -> int:
    done = [step(name, command) for name, command in STEPS.items()]
    print("\n=== summary")
    for name, minutes, code, summary, _ in done:
        print(f"{name:18}  {minutes:5.1f} min  {'FAILED' if code else 'ok':6}  {summary}".rstrip())
    for name, _, code, _, failures in done:
        if code:
            print(
                f"\n{name} failed (exit code {code})" + "".join(f"\n  {line}" for line in failures)
            )
    failed = sum(bool(code) for _, _, code, _, _ in done)
    print(
        f"\n{len(done) - failed} of {len(done)} steps passed, "
        f"{sum(minutes for _, minutes, *_ in done):.1f} minutes"
    )
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
