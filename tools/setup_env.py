"""Make .venv with the exact pins; a second call finds its stamps and does nothing. Standard library
only.

torch comes first and apart: a lock cannot hold both its CPU and its CUDA build, and on Linux the
plain index gives the CUDA build with several GB of NVIDIA packages. A step that was interrupted has
no stamp, so the next call repairs what it left and runs the step again.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

OLDEST = (3, 11)
if sys.version_info < OLDEST:
    sys.exit(
        "Python 3.11 or later is needed; {} is {}.{}.\n"
        "Install one and name it: make PYTHON=python3.12 (or whatever it is called)".format(
            sys.executable, *sys.version_info[:2]
        )
    )

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMPS = VENV / "setup.json"
TORCH = ROOT / "requirements-torch.lock"
LOCK = ROOT / "requirements.lock"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PIP = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "--no-input", "install"]

# Run by the environment's Python: a distribution without its RECORD, or with a recorded file
# missing, was cut short. Without its
# metadata pip installs it again over what is there.
REPAIR = """
import importlib.metadata as metadata, pathlib, shutil, sysconfig
site = pathlib.Path(sysconfig.get_paths()["purelib"])
for old in site.glob("~*"):
    shutil.rmtree(old, ignore_errors=True)
for info in site.glob("*.dist-info"):
    files = metadata.PathDistribution(info).files
    if not files or not all(f.locate().exists() for f in files if f.suffix != ".pyc"):
        print("  was cut short, installed again:", info.name.split("-")[0], flush=True)
        shutil.rmtree(info)
"""


# Run by the environment's Python on a machine with an NVIDIA GPU: what torch sees of it.
SEES = """
import torch
cuda = torch.version.cuda
if not torch.cuda.is_available():
    why = f"is built for CUDA {cuda}; is the driver too old?" if cuda else "is a CPU build"
    print(f"torch {torch.__version__} sees no GPU: it {why}")
for card in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
    of = torch.cuda.get_device_properties(card)
    with torch.cuda.device(card):
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    print(f"torch sees {of.name}, {of.total_memory / 1e9:.0f} GB, {'bf16' if bf16 else 'no bf16'}")
"""


def say(text):
    print(f"[set-up] {text}", flush=True)


def fail(text):
    sys.exit(f"[set-up] {text}")


def digest(*parts):
    """One hash over the contents of files (Path) and plain text (str)."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part.read_bytes() if isinstance(part, Path) else str(part).encode())
    return total.hexdigest()


def read_stamps():
    try:
        return json.loads(STAMPS.read_text())
    except (OSError, ValueError):
        return {}


def write_stamps(stamps):
    new = STAMPS.with_suffix(".new")
    new.write_text(json.dumps(stamps, indent=1))
    os.replace(new, STAMPS)


def works():
    """Does the environment's Python start, is it new enough, and has it a pip?"""
    if not PYTHON.exists():
        return False
    code = f"import sys, pip; sys.exit(sys.version_info < {OLDEST})"
    return subprocess.run([str(PYTHON), "-c", code], capture_output=True).returncode == 0


def make_venv():
    if works():
        return
    say(f"making .venv with Python {sys.version.split()[0]}")
    if VENV.exists():
        say("the .venv that is there does not work; it is made anew")
    if subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)]).returncode:
        fail(
            "no virtual environment could be made (on Debian and Ubuntu: apt install python3-venv)"
        )


def pip(*arguments):
    """One pip install. pip's hundreds of lines go into .venv/setup.log.

    What is shown is how far it is.
    """
    command = [*PIP, "--progress-bar", "off", *map(str, arguments)]
    pipes = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "text": True,
        "errors": "replace",
    }
    with (
        open(VENV / "setup.log", "a", encoding="utf-8") as log,
        subprocess.Popen(command, cwd=ROOT, **pipes) as run,
    ):
        lines, seen = [], 0
        for line in run.stdout:
            log.write(line)
            lines.append(line)
            if line.startswith(("Collecting ", "Processing ")):
                seen += 1
                if seen % 25 == 0:
                    say(f"  {seen} packages fetched")
            elif line.startswith("Installing collected packages") and seen > 1:
                say(f"  {seen} packages fetched, now being unpacked")
    if run.returncode:
        fail(
            f"pip failed: install {' '.join(map(str, arguments))}\n{''.join(lines[-15:])}"
            "Once the cause is gone, make goes on from here."
        )


def try_pip(*arguments):
    """The same, where "no such wheel" is an answer and anything else (a full disk, say) is
    an error.
    """
    run = subprocess.run(
        [*PIP, "--quiet", *map(str, arguments)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    if run.returncode and "No matching distribution" not in run.stderr:
        fail(f"pip failed: install {' '.join(map(str, arguments))}\n{run.stderr.strip()}")
    return run.returncode == 0


def has_nvidia_gpu():
    tool = shutil.which("nvidia-smi")
    try:
        return (
            bool(tool)
            and subprocess.run([tool, "-L"], capture_output=True, timeout=60).returncode == 0
        )
    except (OSError, subprocess.TimeoutExpired):
        return False


def install_torch():
    """CPU build where there is no NVIDIA GPU, the index's own build elsewhere.

    "+cpu" is asked for by name instead of looking at what pip would install: older pips download
    the whole wheel before they can say.
    """
    pin = TORCH.read_text().split()[-1]
    if not sys.platform.startswith("linux"):
        pip(
            "--no-deps",
            pin,
            # the macOS and Windows wheels on the index hold no CUDA; torch's own needs are in
            # requirements.lock
        )
    elif has_nvidia_gpu():
        say(f"an NVIDIA GPU is here: {pin} with its CUDA packages (several GB)")
        pip("-r", TORCH)
    elif try_pip("--no-deps", f"{pin}+cpu"):
        say(f"{pin}: CPU build, from pip's own sources")
    elif try_pip(
        "--no-deps", "--timeout", 10, "--retries", 1, "--index-url", CPU_INDEX, f"{pin}+cpu"
    ):
        say(f"{pin}: CPU build, from {CPU_INDEX}")
    else:
        warn_of_cuda(pin)
        pip("-r", TORCH)


def warn_of_cuda(pin, seconds=15):
    line = "!" * 100
    print(
        f"{line}\nNo CPU build of {pin} was found: neither where pip looks, nor at {CPU_INDEX}.\n"
        "What comes next is the CUDA build from pip's index although there is no NVIDIA GPU\n"
        "here: a wheel of about 0.5 GB and about 20 packages of CUDA libraries, several GB in\n"
        "all. It works on a CPU too; it is only large.\n"
        f"To stop: Ctrl-C within {seconds} seconds. Then put a CPU wheel of torch into a folder\n"
        "and run\n"
        f"  PIP_FIND_LINKS=that/folder make tutorial\n{line}",
        file=sys.stderr,
        flush=True,
    )
    time.sleep(seconds)


def main():
    wanted = {
        "torch": digest(TORCH),
        "packages": digest(TORCH, LOCK),
        "project": digest(
            ROOT / "pyproject.toml", str(ROOT)
        ),  # an editable install holds the folder's name
    }
    stamps = read_stamps() if PYTHON.exists() else {}
    if stamps == wanted:
        return
    start = time.perf_counter()
    make_venv()
    steps = {
        "torch": install_torch,
        "packages": lambda: pip("--no-deps", "--require-hashes", "-r", LOCK.name),
        "project": lambda: pip("--no-deps", "--no-build-isolation", "--editable", "."),
    }
    if subprocess.run([str(PYTHON), "-c", REPAIR]).returncode:
        fail(
            "the packages in .venv could not be looked through; remove the folder .venv and run "
            "make again"
        )
    for name, step in steps.items():
        if stamps.get(name) == wanted[name]:
            continue
        say(
            f"installing {name}"
            + {"torch": " (about 200 MB for a CPU)", "packages": " (a few minutes)"}.get(name, "")
        )
        write_stamps({key: value for key, value in stamps.items() if key != name})
        step()
        stamps[name] = wanted[name]
        write_stamps(stamps)
    say(f"ready after {(time.perf_counter() - start) / 60:.1f} minutes")
    if has_nvidia_gpu():
        seen = subprocess.run([str(PYTHON), "-c", SEES], capture_output=True, text=True)
        lines = (seen.stdout if seen.returncode == 0 else seen.stderr).strip().splitlines()
        say("; ".join(lines) if seen.returncode == 0 else f"torch cannot be used: {lines[-1:]}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        fail("stopped; run the same make command again: it goes on where it was")
