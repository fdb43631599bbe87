"""The pins agree: pyproject.toml, requirements*.lock and environment.yml.

Conda itself is not run here; only its file is compared.
"""

import contextlib
import re
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from samples import load_script

ROOT = Path(__file__).resolve().parent.parent
TORCH = (ROOT / "requirements-torch.lock").read_text()
LOCK = (ROOT / "requirements.lock").read_text()
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HERE = {
    "python_full_version": "3.11.7",
    "python_version": "3.11",
    "sys_platform": "linux",
    "platform_system": "Linux",
}


def tool(name: str):
    """A script of tools/, which is no package."""
    return load_script(ROOT / "tools" / f"{name}.py")


def pins(lines) -> dict[str, str]:
    """Name to version of the requirements that hold on Linux with Python 3.11."""
    found = {}
    for requirement in map(Requirement, lines):
        if requirement.marker is None or requirement.marker.evaluate(HERE):
            (specifier,) = requirement.specifier
            assert specifier.operator == "==", f"{requirement} is no exact pin"
            assert canonicalize_name(requirement.name) not in found, (
                f"{requirement.name} is pinned twice"
            )
            found[canonicalize_name(requirement.name)] = specifier.version
    return found


def lock_lines() -> list[str]:
    return re.findall(r"^([\w.-]+==.*?) \\$", LOCK, re.MULTILINE)


def conda_lines() -> list[str]:
    (pip,) = (part["pip"] for part in CONDA["dependencies"] if isinstance(part, dict))
    return [line for line in pip if not line.startswith("--")]


def test_conda_and_make_install_the_same_versions():
    ours, theirs = {**pins(TORCH.split()), **pins(lock_lines())}, pins(conda_lines())
    assert len(ours) > 50
    assert theirs == ours


def test_environment_file_is_the_one_that_make_lock_writes():
    assert (ROOT / "environment.yml").read_text() == tool("make_lock").environment(TORCH, LOCK)


def test_every_dependency_is_pinned_and_fits():
    ours = {**pins(TORCH.split()), **pins(lock_lines())}
    for text in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]:
        requirement = Requirement(text)
        version = ours.get(canonicalize_name(requirement.name))
        assert version and requirement.specifier.contains(version), (
            f"{text}: the lock has {version}; run make lock"
        )


def test_lock_is_hashed_and_holds_neither_torch_nor_cuda_nor_an_index():
    names = pins(lock_lines())
    assert not [name for name in names if re.match(r"torch$|triton|nvidia|cuda", name)]
    requirements = re.split(
        r"^(?=\S)", re.sub(r"^#.*\n", "", LOCK, flags=re.MULTILINE), flags=re.MULTILINE
    )
    assert all("--hash=sha256:" in text for text in requirements if text)
    assert "://" not in LOCK + TORCH and " @ " not in LOCK
    assert TORCH.strip().startswith("torch==") and "--hash" not in TORCH


def test_python_versions_agree():
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert tuple(map(int, oldest.split("."))) == tool("setup_env").OLDEST
    assert f"python={oldest}" in CONDA["dependencies"]


@pytest.mark.parametrize("installed", ["numpy", "transformers", "papermill", "torch"])
def test_this_environment_is_the_locked_one(installed):
    from importlib.metadata import version

    ours = {**pins(TORCH.split()), **pins(lock_lines())}
    if "311" not in sys.implementation.cache_tag:
        pytest.skip("the comparison is written for Python 3.11's pins")
    assert version(installed).split("+")[0] == ours[installed]


@pytest.mark.parametrize(
    "platform, gpu, offered, calls",
    [
        ("linux", False, "here", ["try --no-deps torch==2.13.0+cpu"]),
        (
            "linux",
            False,
            "web",
            ["try --no-deps torch==2.13.0+cpu", "try --index-url torch==2.13.0+cpu"],
        ),
        (
            "linux",
            False,
            "",
            [
                "try --no-deps torch==2.13.0+cpu",
                "try --index-url torch==2.13.0+cpu",
                "warn",
                "pip -r",
            ],
        ),
        ("linux", True, "here", ["pip -r"]),
        ("darwin", False, "", ["pip --no-deps"]),
    ],
)
def test_cuda_packages_come_only_to_a_gpu_or_after_a_warning(
    monkeypatch, platform, gpu, offered, calls
):
    setup, made = tool("setup_env"), []

    def try_pip(*arguments):
        where = "--index-url" if "--index-url" in arguments else "--no-deps"
        assert "--no-deps" in arguments and (where == "--no-deps" or setup.CPU_INDEX in arguments)
        made.append(f"try {where} {arguments[-1]}")
        return offered == ("web" if where == "--index-url" else "here")

    monkeypatch.setattr(setup, "try_pip", try_pip)
    monkeypatch.setattr(setup, "pip", lambda *arguments: made.append(f"pip {arguments[0]}"))
    monkeypatch.setattr(setup, "warn_of_cuda", lambda *_: made.append("warn"))
    monkeypatch.setattr(setup, "has_nvidia_gpu", lambda: gpu)
    monkeypatch.setattr(setup.sys, "platform", platform)
    setup.install_torch()
    assert made == calls


def test_the_warning_names_what_comes_and_how_to_stop_it(capsys):
    tool("setup_env").warn_of_cuda("torch==2.13.0", seconds=0)
    told = capsys.readouterr().err
    assert (
        "no NVIDIA GPU" in told
        and "several GB" in told
        and "Ctrl-C" in told
        and "20 packages" in told
    )


def test_set_up_says_what_torch_sees_of_a_gpu(monkeypatch, capsys):
    code = tool("setup_env").SEES
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    exec(code, {})
    assert (
        "sees no GPU: it is built for CUDA 13.0; is the driver too old?" in capsys.readouterr().out
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    card = type("Card", (), {"name": "Tesla T4", "total_memory": 15.8e9})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: card)
    monkeypatch.setattr(torch.cuda, "device", lambda number: contextlib.nullcontext())
    supported = lambda including_emulation=True: including_emulation  # noqa: E731
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    exec(code, {})
    assert "torch sees Tesla T4, 16 GB, no bf16" in capsys.readouterr().out


def test_set_up_repeats_only_the_steps_that_changed_or_were_cut_short(monkeypatch, tmp_path):
    setup, made = tool("setup_env"), []
    for name in ("TORCH", "LOCK", "STAMPS", "PYTHON"):
        monkeypatch.setattr(setup, name, tmp_path / name)
        (tmp_path / name).write_text("")
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    (tmp_path / "pyproject.toml").write_text("a")
    monkeypatch.setattr(setup, "make_venv", lambda: None)
    monkeypatch.setattr(setup, "has_nvidia_gpu", lambda: False)
    monkeypatch.setattr(
        setup.subprocess, "run", lambda *_, **__: type("Done", (), {"returncode": 0})
    )
    monkeypatch.setattr(setup, "install_torch", lambda: made.append("torch"))
    monkeypatch.setattr(setup, "pip", lambda *arguments: made.append(arguments[-1]))

    def steps() -> list[str]:
        made.clear()
        setup.main()
        return [*made]

    assert steps() == ["torch", "LOCK", "."]
    assert steps() == []
    (tmp_path / "pyproject.toml").write_text("b")
    assert steps() == ["."]
    for after in (
        "",
        "c",
    ):  # an attempt that fails half-way leaves a mixture, so going back to the old lock is work too
        (tmp_path / "LOCK").write_text("c")
        monkeypatch.setattr(setup, "pip", lambda *_: setup.fail("no network"))
        with pytest.raises(SystemExit):
            steps()
        monkeypatch.setattr(setup, "pip", lambda *arguments: made.append(arguments[-1]))
        (tmp_path / "LOCK").write_text(after)
        assert steps() == ["LOCK"]
    (tmp_path / "STAMPS").write_text("{ torn")
    assert steps() == ["torch", "LOCK", "."]
