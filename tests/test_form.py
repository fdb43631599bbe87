"""The form of the package's files: their length, and what an installed copy must carry."""

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "prompteol_utils").rglob("*.py"))
MAX_LINES = 500


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_one_idea_a_file(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MAX_LINES, "more than one idea: split it"
    assert max(map(len, lines), default=0) <= 100


def test_every_subpackage_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {path.parent.relative_to(ROOT) for path in FILES}
    named = set(project["tool"]["setuptools"]["packages"]) - {"prompteol_utils._data"}
    assert named == {".".join(folder.parts) for folder in folders}
