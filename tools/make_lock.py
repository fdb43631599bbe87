"""Write requirements.lock anew with uv (exact versions and hashes, without torch and its CUDA
packages), and environment.yml from it.

Versions that are in the lock stay unless pyproject.toml forbids them; `make lock UPGRADE=1` takes
the newest. torch's own pin is changed by hand in requirements-torch.lock, since a lock cannot hold
both its CPU and its CUDA build.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK, WORK = ROOT / "requirements.lock", ROOT / "build" / "lock"
HEADER = (
    "# Exact pins, hashed; made by `make lock`. torch is pinned on its own in "
    "requirements-torch.lock and installed first.\n"
)
CONDA = """\
# For conda users: conda env create -f environment.yml. Made by `make lock` from requirements*.lock,
# which `make` installs; a test compares them. It was never run by conda itself on the machines this
# project is tested on; the packages and versions are those of the locks.
name: prompteol
channels:
  - conda-forge
dependencies:
  - python=3.11
  - pip
  - pip:
      # The next line gives the CPU build. For an NVIDIA GPU take it out: torch then comes with its
      # CUDA packages, several GB.
      - --extra-index-url https://download.pytorch.org/whl/cpu
      - {torch}
{pins}
      - --editable .
"""
LEFT_OUT = re.compile(r"^(torch|triton|nvidia-[\w-]+|cuda-[\w-]+|pytorch-triton)==")


def blocks(text: str) -> list[str]:
    """A lock's requirements, each with its hash lines; comments are dropped."""
    lines = [line for line in text.splitlines(keepends=True) if not line.lstrip().startswith("#")]
    return re.findall(r"^\S.*\n(?:[ \t].*\n)*", "".join(lines), re.MULTILINE)


def environment(torch: str, lock: str) -> str:
    """environment.yml with the lock's pins; hashes are left out, because pip would then ask for
    torch's too.

    Args:
        torch: Text of requirements-torch.lock.
        lock: Text of requirements.lock.
    """
    pins = [block.split(" \\\n")[0] for block in blocks(lock)]
    return CONDA.format(torch=torch.strip(), pins="\n".join(f'      - "{pin}"' for pin in pins))


def main() -> None:
    WORK.mkdir(parents=True, exist_ok=True)
    venv, new = WORK / "uv", WORK / "requirements.lock"
    uv = venv / ("Scripts" if os.name == "nt" else "bin") / "uv"
    if not uv.exists():
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        subprocess.run(
            [uv.with_name("python"), "-m", "pip", "install", "--quiet", "uv"], check=True
        )
    if new.exists():
        new.unlink()
    if not os.environ.get("UPGRADE"):
        shutil.copyfile(LOCK, new)  # uv keeps the versions that it finds in its output file
    command = [uv, "pip", "compile", "pyproject.toml", "--extra", "dev", "--constraint"]
    command += [
        "requirements-torch.lock",
        "--universal",
        "--python-version",
        "3.11",
        "--generate-hashes",
        "--no-annotate",
        "--quiet",
    ]
    command += ["--no-emit-index-url", "--no-emit-find-links", "--output-file", new]
    subprocess.run([str(part) for part in command], cwd=ROOT, check=True)
    kept = [block for block in blocks(new.read_text(encoding="utf-8")) if not LEFT_OUT.match(block)]
    LOCK.write_text(HEADER + "".join(kept), encoding="utf-8")
    torch = (ROOT / "requirements-torch.lock").read_text(encoding="utf-8")
    (ROOT / "environment.yml").write_text(environment(torch, "".join(kept)), encoding="utf-8")
    print(f"{len(kept)} pins in {LOCK.name} and environment.yml")


if __name__ == "__main__":
    main()
