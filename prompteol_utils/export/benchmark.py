"""MTEB on an exported folder: on its own data sets, or on local files where there is no hub."""

import os
from collections.abc import Sequence

import pandas as pd

from prompteol_utils.data import load_sts

MISSING = "this needs the package mteb: pip install prompteol-utils[export]"
# MTEB's classes by the names of this project.
CLASSES = {
    "sts12": "STS12STS",
    "sts13": "STS13STS",
    "sts14": "STS14STS",
    "sts15": "STS15STS",
    "sts16": "STS16STS",
    "stsb": "STSBenchmarkSTS",
}


def hub_names(names: Sequence[str]) -> list[str]:
    """MTEB's names of tasks: those of this project are translated, others stay as they are."""
    return [CLASSES[name].removesuffix("STS") if name in CLASSES else name for name in names]


def local_tasks(names: Sequence[str], *, root: str | os.PathLike | None = None) -> list:
    """MTEB's STS tasks on the pairs that `load_sts` finds.

    The pairs are SentEval's: a year's subsets are one flat split, as in MTEB, so its Spearman is
    the "all" of the paper. SICK-R is left out: MTEB takes 9,927 pairs, SentEval its 4,927 test
    pairs. STSBenchmark is MTEB's first version, the one that the paper reports.

    Args:
        names: "sts12" … "sts16", "stsb".
        root: As for `load_sts`.

    Raises:
        ImportError: mteb is not installed.
        ValueError: Another name.
    """
    try:
        import datasets
        import mteb
    except ImportError as error:
        raise ImportError(MISSING) from error
    made = []
    for name in names:
        if name not in CLASSES:
            raise ValueError(f"unknown task {name!r}; allowed: {', '.join(CLASSES)}")
        pairs = load_sts(name, "test", root=root)
        base = getattr(mteb.tasks, CLASSES[name])
        columns = {"sentence1": pairs.left, "sentence2": pairs.right, "score": pairs.gold}
        split = datasets.Dataset.from_dict({key: list(value) for key, value in columns.items()})
        made.append(_local(base, name, datasets.DatasetDict({"test": split}))())
    return made


def _local(base: type, name: str, data) -> type:
    """A subclass of an MTEB task that reads its pairs from memory."""

    class Local(base):
        metadata = base.metadata.model_copy(
            update={
                "name": f"{base.metadata.name}Local",
                "dataset": {"path": f"local/{name}", "revision": "local"},
                "eval_splits": ["test"],
            }
        )

        def load_data(self, *args, **options) -> None:
            self.dataset = data
            self.data_loaded = True

    return Local


def evaluate_mteb(model, tasks: Sequence) -> pd.DataFrame:
    """Run MTEB tasks on a model.

    Args:
        model: The folder of an export, or a `SentenceTransformer`.
        tasks: From `local_tasks`, or names that MTEB knows, whose data come from the hub.

    Returns:
        task, main_score (x 100).
    """
    try:
        import mteb
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ImportError(MISSING) from error
    if isinstance(model, str | os.PathLike):
        model = SentenceTransformer(str(model))
    named = [task for task in tasks if isinstance(task, str)]
    given = [task for task in tasks if not isinstance(task, str)]
    chosen = [*given, *(mteb.get_tasks(tasks=named) if named else [])]
    results = mteb.evaluate(model, tasks=chosen, cache=None, show_progress_bar=False)
    found = [(one.task_name, 100 * one.get_score()) for one in results.task_results]
    return pd.DataFrame(found, columns=["task", "main_score"])
