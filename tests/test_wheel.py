"""A wheel, installed outside the checkout, works: its tables are there, its command runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from prompteol_utils import __version__
from prompteol_utils.models import save_tiny

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """An empty folder with nothing in it but this package, from its wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, "."]
    subprocess.run(build, cwd=_copy(folder / "source"), check=True)
    (wheel,) = folder.glob("*.whl")
    assert wheel.stat().st_size < 2e6, "results and adapters do not travel"
    target = folder / "site"
    subprocess.run(
        [*pip, "install", "--no-deps", "--no-index", "--target", target, wheel], check=True
    )
    return target


def _copy(folder: Path) -> Path:
    """What git tracks of the sources: a build must not depend on what else lies around."""
    folder.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "prompteol_utils", "data"):
        subprocess.run(["cp", "-r", ROOT / name, folder], check=True)
    return folder


def outside(installed: Path, *command: str) -> str:
    """Run a command where only the installed copy can be imported."""
    env = {**os.environ, "PYTHONPATH": str(installed), "TQDM_DISABLE": "1"}
    env.pop("PROMPTEOL_SENTEVAL", None)
    done = subprocess.run(command, cwd=installed, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_installed_copy_encodes_and_scores(installed, tmp_path):
    model = save_tiny("llama", tmp_path / "model")
    (tmp_path / "in.txt").write_text("The kettle sings.\nA late bus.\n")
    prompteol = [sys.executable, "-m", "prompteol_utils"]
    where = outside(
        installed, sys.executable, "-c", "import prompteol_utils as p; print(p.__path__)"
    )
    assert str(installed) in where
    files = ["--input", str(tmp_path / "in.txt"), "--output", str(tmp_path / "out.npy")]
    assert "2 sentences" in outside(installed, *prompteol, "encode", "--model", str(model), *files)
    sts = ["sts", "--model", str(model), "--split", "dev", "--limit", "20"]
    assert "stsb" in outside(installed, *prompteol, *sts)
    assert __version__ in outside(installed, *prompteol, "--version")
    assert (installed / "bin" / "prompteol").exists()
