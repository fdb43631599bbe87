"""Make build/bench-venv, where benchmarks/encode.py looks for its peers: sentence-transformers and
llama.cpp's Python binding.

    python benchmarks/peers.py                    # with the project's own Python, in its .venv

A virtual environment of their own, so that no peer touches the project's pins; it sees the
project's packages through a .pth file, so that torch and transformers are the same for every
engine. llama-cpp-python comes as source: it needs a C++ compiler and cmake, and some twenty minutes
of one core (CMAKE_BUILD_PARALLEL_LEVEL sets how many it takes); its wheel is kept in
build/bench-wheels. A peer that cannot be installed is said and left out, and benchmarks/encode.py
skips it.
"""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER, WHEELS = ROOT / "build" / "bench-venv", ROOT / "build" / "bench-wheels"
PEERS = {"sentence-transformers": "6.2.0", "llama-cpp-python": "0.3.36"}
IMPORTS = {"sentence-transformers": "sentence_transformers", "llama-cpp-python": "llama_cpp"}


def make(folder: Path = FOLDER) -> Path:
    """Make the environment, or find it made.

    Args:
        folder: Where to.

    Returns:
        Its Python, which also sees the packages of this one.
    """
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not python.exists():
        venv.create(folder, with_pip=True)
    command = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    (site / "project.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return python


def install(python: Path, name: str, version: str) -> bool:
    """Build or fetch one peer's wheel, once, and install it.

    False where that fails or what was installed cannot be imported.
    """
    pin, pip = f"{name}=={version}", [python, "-m", "pip", "--disable-pip-version-check"]
    steps = [
        [*pip, "wheel", "--no-deps", "--find-links", WHEELS, "--wheel-dir", WHEELS, pin],
        [*pip, "install", "--find-links", WHEELS, pin],
        [python, "-c", f"import {IMPORTS[name]}"],
    ]
    return all(subprocess.run(step).returncode == 0 for step in steps)


def main() -> int:
    """Install every peer; the exit code is 1 only where none came."""
    python = make()
    came = {name: install(python, name, version) for name, version in PEERS.items()}
    for name, ok in came.items():
        print(
            f"{name} {PEERS[name]}: "
            f"{'ready' if ok else 'could not be installed; the benchmark runs without it'}"
        )
    return int(not any(came.values()))


if __name__ == "__main__":
    sys.exit(main())
