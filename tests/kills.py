"""Run a verb of the command line and kill it, again and again, when its file of finished
work has so many lines (or bytes).
"""

import json
import subprocess
import sys
from pathlib import Path

# One process imports what is slow to import; every attempt is a fork of it, and gets a real
# SIGKILL.
SCRIPT = """
import json, os, signal, sys, time
import torch, transformers, scipy.stats, pandas
from prompteol_utils import encoder
from prompteol_utils.__main__ import main
verb, file, moments, unit = json.loads(sys.argv[1])
lines = lambda: open(file, "rb").read().count(b"\\n")
count = {"lines": lines, "bytes": lambda: os.path.getsize(file)}[unit]
lines = lambda: count() if os.path.exists(file) else 0
for moment in moments:
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(main(verb))
    while lines() < moment and not os.waitpid(child, os.WNOHANG)[0]:
        time.sleep(0.0005)
    os.kill(child, signal.SIGKILL)
    killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    print(json.dumps([killed, lines()]), flush=True)
"""


def kill_at(verb: list[str], file: Path, moments: list[int], unit: str = "lines") -> list[int]:
    """Lines (or bytes) in `file` after each kill; fails where an attempt had ended by itself."""
    job = [sys.executable, "-c", SCRIPT, json.dumps([verb, str(file), sorted(moments), unit])]
    run = subprocess.run(job, capture_output=True, text=True, timeout=600)
    told = [json.loads(line) for line in run.stdout.splitlines()]
    assert (
        run.returncode == 0 and len(told) == len(moments) and all(killed for killed, _ in told)
    ), run.stderr
    return [lines for _, lines in told]
