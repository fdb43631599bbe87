"""The public face: every name that a room offers is there, and none hides a file of the room."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

import prompteol_utils

COMMAND_MODULES = [
    module.name for module in pkgutil.iter_modules(prompteol_utils.__path__) if module.ispkg
]
LIGHT = [
    "prompteol_utils",
    "prompteol_utils.prompts",
    "prompteol_utils.models.registry",
    "prompteol_utils.data",
    "prompteol_utils.utils.files",
    "prompteol_utils.cli.main",
]


@pytest.mark.parametrize("room", ["", *COMMAND_MODULES])
def test_every_name_is_there_and_hides_no_file(room):
    package = importlib.import_module(f"prompteol_utils.{room}".rstrip("."))
    names = getattr(package, "__all__", [])
    files = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert not set(names) & files
    for name in names:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = package.no_such_name


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_import_nothing_heavy(module):
    code = (
        f"import sys, {module}; "
        "print([name for name in ('torch', 'transformers', 'peft') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
