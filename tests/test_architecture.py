"""Imports point down the table, and no module grows past 400 lines: read from the sources, nothing is imported."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "prompteol_utils"
MAX_LINES = 400

# module: (level, modules of this package that it may import)
HOUSE = {
    "__init__": (0, ""),
    "prompts": (0, ""),
    "cli": (2, "prompts models registry"),
    "files": (0, ""),
    "registry": (0, ""),
    "hardware": (0, ""),
    "batching": (0, ""),
    "contrastive": (0, "batching"),
    "checkpoints": (0, "files"),
    "adapters": (0, "files"),
    "embedding_cache": (0, "files"),
    "results": (0, "files embedding_cache"),
    "tidy": (0, "files"),
    "runner": (0, "files tidy"),
    "sentences": (0, ""),
    "streaming": (0, "files embedding_cache sentences"),
    "senteval": (0, "files"),
    "tables": (0, ""),
    "transfer_data": (1, "tables senteval"),
    "data": (1, "prompts files senteval tables transfer_data"),
    "planner": (1, "hardware registry"),
    "models": (1, "hardware files planner registry adapters"),
    "plots": (1, "results"),
    "tiny": (1, "models"),
    "nli": (2, "data senteval tables"),
    "patches": (0, ""),
    "linear": (0, "patches"),
    "packed": (0, "patches"),
    "forward": (1, "batching packed linear"),
    "encoder": (2, "prompts models hardware registry batching forward linear"),
    "plain": (2, "prompts models"),
    "evaluation": (2, "data results"),
    "finetuning": (
        3,
        "prompts data nli models hardware encoder evaluation results files adapters checkpoints contrastive",
    ),
    "cli_finetuning": (4, "cli data nli models hardware encoder results files adapters finetuning"),
    "cli_scaling": (
        4,
        "cli prompts registry planner hardware data transfer_data results memory experiments reproduction",
    ),
    "reproduction": (
        4,
        "prompts registry planner models hardware data transfer_data encoder results transfer experiments",
    ),
    "memory": (3, "registry planner models tiny encoder data hardware results"),
    "experiments": (4, "prompts registry models encoder data evaluation hardware results"),
    "trials": (3, "prompts data models encoder evaluation results"),
    "search": (3, "prompts data models results trials"),
    "shots": (3, "prompts trials search"),
    "wordnet": (0, ""),
    "labelling": (3, "prompts models"),
    "demonstrations": (3, "prompts files results labelling search"),
    "selection": (3, "prompts trials search"),
    "probes": (0, ""),
    "transfer": (2, "transfer_data probes results evaluation"),
    "cli_transfer": (3, "cli results encoder probes transfer transfer_data"),
    "cli_demonstrations": (
        3,
        "cli prompts data models results sentences trials search shots labelling demonstrations wordnet",
    ),
}
EVERYTHING = "__main__"

# Slow to import or not always there: only inside the function that needs them.
INSIDE = {
    "peft",
    "bitsandbytes",
    "papermill",
    "nbformat",
    "sentence_transformers",
    "mteb",
    "openai",
}
# `--help` and the runner: no torch, no pandas; verbs' modules (cli_*) neither.
LIGHT = {"__init__", "__main__", "cli", "prompts", "files", "registry", "tidy", "runner"}
HEAVY = {
    "torch",
    "transformers",
    "pandas",
    "scipy",
    "sklearn",
    "matplotlib",
    "numpy",
    "pyarrow",
    *INSIDE,
}


def imports(tree: ast.AST) -> list[tuple[str, int]]:
    """(module, line) of each import below a node, inside functions too."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = ".".join(
                part for part in ("prompteol_utils" if node.level else "", node.module) if part
            )
            names = (
                [f"{module}.{alias.name}" for alias in node.names]
                if module == "prompteol_utils"
                else [module]
            )
            found += [(name, node.lineno) for name in names]
    return found


def at_the_top(tree: ast.Module) -> list[tuple[str, int]]:
    """Only the imports that run with the module itself."""
    return [
        found
        for node in tree.body
        if not isinstance(node, ast.FunctionDef | ast.ClassDef)
        for found in imports(node)
    ]


def problems(name: str, source: str) -> list[str]:
    """What a module's source breaks, one line each."""
    tree, found = ast.parse(source), []
    if name != EVERYTHING and name not in HOUSE:
        return [
            f"{name}: a module that the table does not know; add it with its level and what it may import"
        ]
    allowed = set(HOUSE) | {EVERYTHING} if name == EVERYTHING else set(HOUSE[name][1].split())
    for module, line in imports(tree):
        package, _, rest = module.partition(".")
        own = rest.split(".")[0]
        if package == "prompteol_utils" and (PACKAGE / f"{own}.py").exists() and own not in allowed:
            found.append(
                f"{name}.py:{line}: imports {own}; it may import {sorted(allowed) or 'nothing of the package'}"
            )
    for module, line in at_the_top(tree):
        if module.split(".")[0] in (HEAVY if name in LIGHT or name.startswith("cli_") else INSIDE):
            found.append(
                f"{name}.py:{line}: imports {module} at the top; it belongs inside the function that needs it"
            )
    if (lines := source.count("\n")) > MAX_LINES:
        found.append(f"{name}.py: {lines} lines, more than {MAX_LINES}")
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.stem)
def test_module_keeps_to_the_table(path):
    assert problems(path.stem, path.read_text(encoding="utf-8")) == []


def test_the_table_itself_points_down():
    for name, (level, allowed) in HOUSE.items():
        for other in allowed.split():
            assert HOUSE[other][0] <= level, f"{name} may import {other}, which is above it"
    assert not _cycle({name: allowed.split() for name, (_, allowed) in HOUSE.items()})


def _cycle(graph: dict[str, list[str]]) -> bool:
    while leaves := [name for name, targets in graph.items() if not set(targets) & set(graph)]:
        for name in leaves:
            del graph[name]
    return bool(graph)


@pytest.mark.parametrize(
    "name, source",
    [
        ("prompts", "from prompteol_utils import models\n"),
        ("prompts", "def f():\n    from prompteol_utils.models import load_model\n"),
        ("prompts", "import prompteol_utils.models\n"),
        ("prompts", "from . import models\n"),
        ("prompts", "from .models import load_model\n"),
        ("files", "import torch\n"),
        ("models", "try:\n    import peft\nexcept ImportError:\n    pass\n"),
        ("prompts", "x = 1\n" * 401),
        ("helpers", "x = 1\n"),
    ],
)
def test_a_broken_module_is_seen(name, source):
    assert problems(name, source)


def test_help_loads_nothing_heavy():
    show_help = "import sys; from prompteol_utils import __main__; __main__._parser().format_help()"
    code = f"{show_help}; print(set({sorted(HEAVY)}) & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "set()", run.stderr
