"""Make the student's edition in build/student: a folder and the same as a zip file.

Lessons without solutions, outputs and the answers their checks are tried with; the package, the
data and the set-up that they need. Exercises and solutions are found by their tags.
"""

import shutil
import sys
from pathlib import Path

from prompteol_utils.utils import files
from tools.notebooks import rules

ROOT = rules.ROOT
TARGET = ROOT / "build" / "student"
NAME = "prompteol-course"
HERE = Path(__file__).resolve().parent
COPIED = (
    "prompteol_utils",
    "data",
    "docs/*.md",
    "docs/*.svg",
    "docs/*.png",
    "pyproject.toml",
    "requirements.lock",
    "requirements-torch.lock",
    "environment.yml",
    "LICENSE",
    "tools/setup_env.py",
)
NOTE = (
    "\n\n**Student's edition**: without outputs and without the solutions that the text speaks of. "
    "Put your answers into the exercise cells; their checks tell you at once whether "
    "they are right. Save this file and hand it in under its own name, `{name}`."
)


def student_notebook(nb, name: str):
    """Take out of a lesson, in place, what a student must find: solutions, outputs, answers.

    Args:
        nb: A lesson.
        name: The file's name, said in the header.

    Returns:
        The same notebook.
    """
    nb.cells = [cell for cell in nb.cells if "solution" not in cell.metadata.get("tags", ())]
    for cell in nb.cells:
        cell.metadata.pop("right_answer", None)
        cell.metadata.pop("wrong_answer", None)
    rules.tagged(nb, "header")[0].source += NOTE.format(name=name)
    return rules.clear_outputs(nb)


def make(target: Path = TARGET, lessons: list[Path] | None = None) -> Path:
    """Write the folder and the zip file; what was there is replaced.

    Args:
        target: The folder that holds both.
        lessons: All of them by default.

    Returns:
        The zip file.
    """
    with files.atomic_folder(target) as fresh:
        course = fresh / NAME
        for pattern in COPIED:
            for path in sorted(ROOT.glob(pattern)):
                _copy(path, course / path.relative_to(ROOT))
        for path in sorted((HERE / "files").iterdir()):
            _copy(path, course / path.name)
        (course / "notebooks").mkdir()
        for path in lessons or rules.find():
            nb = student_notebook(rules.read(path), path.name)
            rules.write(nb, course / "notebooks" / path.name)
        shutil.make_archive(str(fresh / NAME), "zip", fresh, NAME)
    return target / f"{NAME}.zip"


def _copy(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    else:
        shutil.copy(path, target)


def main() -> int:
    made = make()
    print(f"{rules.show(made)}: {made.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
