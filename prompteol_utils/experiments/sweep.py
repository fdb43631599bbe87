"""Grids of models x precisions x prompts x tasks: one record a cell, resumable."""

import gc
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from prompteol_utils.data import sts as sts_data
from prompteol_utils.data.transfer import Labelled
from prompteol_utils.encoder.encoder import Encoder
from prompteol_utils.evaluation import sts
from prompteol_utils.evaluation.transfer import features, score
from prompteol_utils.models import adapters
from prompteol_utils.models.fingerprint import folder_fingerprint
from prompteol_utils.models.loading import load_model
from prompteol_utils.models.registry import MODELS, get_spec
from prompteol_utils.prompts import Prompt, get_prompt
from prompteol_utils.results.embedding_cache import CachedEncoder, EmbeddingCache
from prompteol_utils.results.key import (
    UNKNOWN,
    MeasurementKey,
    data_fields,
    prompt_fields,
    record_identity,
)
from prompteol_utils.results.store import Store, provenance
from prompteol_utils.utils import devices

PRECISIONS: dict[str, dict] = {
    "auto": {},  # fp32 on a CPU, 16 bits on a GPU
    "fp32": {"dtype": "float32"},
    "bf16": {"dtype": "bfloat16"},
    "fp16": {"dtype": "float16"},
    "nf4": {"quantization": "nf4"},
    "int8": {"quantization": "int8"},
}
DTYPES = {settings["dtype"]: name for name, settings in PRECISIONS.items() if "dtype" in settings}


def grid(
    models: Iterable[str],
    tasks: Sequence[str],
    store: "Store | str | Path",
    *,
    precisions: Sequence[str] = ("auto",),
    prompts: Sequence["Prompt | str"] | None = None,
    split: str = "test",
    root: "str | Path | None" = None,
    limit: int | None = None,
    seed: int = 0,
    device: str | None = None,
    batch_tokens: int | None = None,
    skip_failed: bool = False,
    load_options: Mapping[str, dict] | None = None,
) -> pd.DataFrame:
    """Measure every cell of models x precisions x prompts x tasks that the store does not hold yet.

    A cell is recorded as soon as it is done. Where memory runs out, the encoder halves its batches
    down to single sentences; if even that does not fit, or the model itself does not, the cell is
    recorded as failed with the reason, and the rest are measured. The next run tries it again.

    Args:
        models: Names, hub ids or folders, each as for `load_model`.
        tasks: STS tasks.
        store: Where records are kept, or the path of its file.
        precisions: Keys of `PRECISIONS`.
        prompts: Prompts (demonstrations included) or their names; None takes each model's own,
            PromptEOL for a language model.
        split: Of the tasks.
        root: SentEval's folder, as for `load_sts`.
        limit: A seeded sample of so many pairs a task; None takes all.
        seed: Of that sample.
        device: As for `load_model`.
        batch_tokens: As for `Encoder.encode`.
        skip_failed: Leave cells that failed before as they are.
        load_options: More arguments of `load_model` by model, such as
            {"opt-6.7b": {"weights": folder}}.

    Returns:
        The records of this grid, old and new, in the grid's order. Beside the STS fields each has
        sentences (distinct ones that were embedded), weight_bytes (of the loaded parameters and
        buffers), device, threads and batch_tokens; a failed one has kind "failed" and reason.

    Raises:
        ValueError: Unknown precision, prompt, task or model; said before any work.
        OSError: A model could not be fetched; the cells before it are in the store.

    Source: the paper's scaling experiments.
    """
    store = store if isinstance(store, Store) else Store(store)
    models = list(models)
    load_options = load_options or {}
    if unknown := [name for name in precisions if name not in PRECISIONS]:
        raise ValueError(f"unknown precision {unknown[0]!r}; allowed: {', '.join(PRECISIONS)}")
    for model in models:
        check_model(model, load_options.get(model, {}).get("weights"))
    prompts = prompts and [get_prompt(prompt) for prompt in prompts]
    pairs = [sts_data.load_sts(task, split, root=root, limit=limit, seed=seed) for task in tasks]
    keys = []
    for model in models:
        own = [get_prompt(MODELS[model].prompt if model in MODELS else "prompteol")]
        more = load_options.get(model, {})
        places = {name: more.get(name) for name in ("weights", "adapter")}
        for precision in precisions:
            cells = []
            for prompt in prompts or own:
                for one in pairs:
                    where = {"split": split, "seed": seed, "device": device, **places}
                    cells.append((prompt, one, planned_key(model, precision, prompt, one, **where)))
            keys += [key for _, _, key in cells]
            todo = [cell for cell in cells if not store.done(cell[2])]
            if skip_failed:
                todo = [cell for cell in todo if not store.find(cell[2], failed=True)]
            done = len(cells) - len(todo)
            print(f"{model} {precision}: {done} of {len(cells)} cells found in {store.path.name}")
            if todo:
                options = {"device": device, **PRECISIONS[precision], **more}
                _run_cells(model, options, todo, store, batch_tokens)
    return pd.DataFrame([store.find(key) or store.find(key, failed=True) for key in keys])


def check_model(model: str, weights: "str | Path | None" = None) -> None:
    """Refuse a model's name that cannot be loaded, without loading or asking the hub.

    Args:
        model: As for `load_model`.
        weights: As for `load_model`.

    Raises:
        ValueError: Unknown name (the nearest are given), or a folder without a model.
    """
    folder = Path(weights or model).expanduser()
    if weights is None and model in MODELS:
        return
    if (weights is not None or folder.is_dir()) and not (folder / "config.json").is_file():
        raise ValueError(f"{str(folder)!r} holds no saved model: config.json is missing")
    if weights is not None or (not folder.is_dir() and model.count("/") != 1):
        get_spec(model)


def by_precision(rows: pd.DataFrame) -> pd.DataFrame:
    """Each cell beside the same model's unquantised one: what cheaper weights cost.

    Args:
        rows: STS records, from `grid` or the command `sts`; those of other prompts, samples or
            splits are lines of their own.

    Returns:
        model, precision, task, n, spearman, difference (to the same model, set and prompt in fp32;
        where that was not measured, in 16 bits), sentences/s, "weights, MB", threads, origin and
        weight_origin; sorted by model (as they come), task and precision. What was not measured is
        NaN; a failed cell has no line.
    """
    needed = ["spearman", "sentences", "seconds", "weight_bytes", "threads"]
    needed += ["quantization", "dtype", "model", "task", "n", "origin", "weight_origin"]
    rows = rows.reindex(columns=[*rows.columns, *(name for name in needed if name not in rows)])
    rows = rows[rows["spearman"].notna()]
    known = rows.astype(object).where(rows.notna(), None).to_dict("records")
    rows = rows.assign(
        cell=[record_identity(row) for row in known],
        pair=[record_identity(row, without=("quantization", "dtype")) for row in known],
    )
    cells = rows.drop_duplicates("cell", keep="last").reset_index(drop=True)
    cells["precision"] = cells["quantization"].fillna(cells["dtype"].replace(DTYPES))
    cells["sentences/s"] = cells["sentences"] / cells["seconds"]
    cells["weights, MB"] = cells["weight_bytes"] / 1e6
    orders = {
        "model": list(dict.fromkeys(cells["model"])),
        "task": list(sts_data.STS_TASKS),
        "precision": list(PRECISIONS),
    }
    places = {name: cells[name].map(known.index) for name, known in orders.items()}
    order = pd.DataFrame(places).sort_values(list(orders), kind="stable").index
    cells = cells.loc[order].reset_index(drop=True)
    full = cells[cells["quantization"].isna()].drop_duplicates("pair").set_index("pair")["spearman"]
    cells["difference"] = cells["spearman"] - cells["pair"].map(full)
    columns = ["model", "precision", "task", "n", "spearman", "difference", "sentences/s"]
    return cells[[*columns, "weights, MB", "threads", "origin", "weight_origin"]]


def planned_key(
    model: str,
    precision: str,
    prompt: Prompt,
    data,
    *,
    split: str,
    seed: int = 0,
    device: str | None = None,
    weights: "str | Path | None" = None,
    adapter: "str | Path | None" = None,
) -> MeasurementKey:
    """A cell's key, as far as it is known before its model is loaded.

    Args:
        model: As for `load_model`.
        precision: A key of `PRECISIONS`.
        prompt: Demonstrations included.
        data: `Pairs` or `Labelled`.
        split: Of the data.
        seed: Of the sample or the classifier.
        device: As for `load_model`.
        weights: As for `load_model`.
        adapter: As for `load_model`.
    """
    folder, spec = Path(model).expanduser(), MODELS.get(model)
    settings = PRECISIONS[precision]
    dtype = devices.choose_dtype(devices.choose_device(device), settings.get("dtype"))
    name, content = model, weights
    if spec is None and folder.is_dir():
        name, content = folder.resolve().name, folder
    label = None
    if spec is not None and spec.adapter_of:
        name, label = spec.adapter_of, spec.hub_id
    if adapter is not None:
        place = Path(adapters.find(adapter))
        label = adapters.name_of(place) if place.is_dir() else str(adapter)
    return MeasurementKey(
        model=name,
        adapter=label,
        model_commit=folder_fingerprint(content) if content else UNKNOWN,
        quantization=settings.get("quantization"),
        dtype=str(dtype).removeprefix("torch."),
        pooling=prompt.pooling,
        **prompt_fields(prompt),
        **data_fields(data),
        split=split,
        seed=seed,
    )


def _run_cells(
    model: str, options: dict, cells: list, store: Store, batch_tokens: int | None
) -> None:
    """Load a model once and measure its cells; the model is gone from memory at the end."""
    place = devices.choose_device(options["device"])
    gc.collect()
    start = time.perf_counter()
    try:
        loaded = load_model(model, **options)
    except (RuntimeError, MemoryError) as error:
        if not devices.is_out_of_memory(error):
            raise
        for _, _, key in cells:
            _fail(store, key.record(), f"loading: {error}", start)
        return
    machine = devices.machine()
    facts = {
        "weight_origin": loaded.weight_origin,
        "model_commit": loaded.commit,
        "weight_bytes": loaded.model.get_memory_footprint(),
        "device": machine["gpu"] if place.type == "cuda" else machine["cpu"],
        "threads": machine["threads"],
        "batch_tokens": batch_tokens,
    }
    for prompt, pairs, key in cells:
        _run_cell(Encoder(loaded, prompt), pairs, key.record() | facts, store, place)


def _run_cell(encoder: Encoder, pairs: sts_data.Pairs, row: dict, store: Store, place) -> None:
    start = time.perf_counter()
    embedded: list[int] = []

    def encode(sentences):
        embedded.append(len(sentences))
        return encoder.encode(sentences, batch_tokens=row["batch_tokens"])

    try:
        with devices.Timer(place) as timer:
            scores = sts.evaluate_sts(encode, pairs).iloc[0]
    except (RuntimeError, MemoryError) as error:
        if not devices.is_out_of_memory(error):
            raise
        _fail(store, row, str(error), start)
        return
    measured = {name: _number(scores[name]) for name in ("spearman", "spearman_subset_mean")}
    measured |= {"sentences": embedded[0], "seconds": round(timer.seconds, 2)}
    store.append(row | measured | provenance(row["seed"]))
    speed = f"{embedded[0] / timer.seconds:.1f} sentences/s"
    print(f"  {row['prompt']} {row['task']}: {measured['spearman']:.2f}, {speed}", flush=True)


def _number(value: float) -> float | None:
    """NaN, which JSON does not know, becomes None."""
    return None if math.isnan(value) else float(value)


def _fail(store: Store, row: dict, reason: str, start: float) -> None:
    reason = " ".join(reason.split())[:300]
    print(f"  {row['prompt']} {row['task']}: failed: {reason}", flush=True)
    facts = {"reason": reason, "seconds": round(time.perf_counter() - start, 2)}
    store.append({**row, "kind": "failed", **facts, **provenance(row["seed"])})


def transfer_settings(
    solver: str, *, folds: int = 10, limit: int | None = None, sample_seed: int | None = None
) -> dict:
    """The settings of a transfer measurement; a sample's seed counts only with a limit."""
    drawn = {"limit": limit, "sample_seed": sample_seed if limit else None}
    return {"solver": solver, "folds": folds, **drawn}


def measure(
    encoder: Encoder,
    task: Labelled,
    keys: Sequence[MeasurementKey],
    store: Store | None = None,
    *,
    folds: int = 10,
    cache: EmbeddingCache | None = None,
) -> list[dict]:
    """Measure accuracies; each sentence is encoded once, and a record kept as soon as it is known.

    Args:
        encoder: An `Encoder`.
        task: What `load_transfer` returned.
        keys: One for each record. None at all only fills the embedding cache.
        store: Where records go at once; None keeps none.
        folds: Of the outer and the inner cross-validation.
        cache: None takes the project's.

    Returns:
        The new records: a key, the fields of `score`, encoded (sentences that the cache had not),
        encode_seconds, and the provenance.
    """
    encode = CachedEncoder(encoder, cache)
    start = time.perf_counter()
    x = features(encode, task)
    encoding = {"encoded": encode.new, "encode_seconds": round(time.perf_counter() - start, 2)}
    name = f"{encoder.prompt.name} {task.name}"
    print(f"{name}: {encode.new:,} of {len(task.sentences):,} sentences encoded", flush=True)
    records = []
    for key in keys:
        solver = key.settings["solver"]
        measured = score(x, task, solver=solver, seed=key.seed, folds=folds)
        measured["fold_std"] = _number(measured["fold_std"])
        records.append(measured | encoding | key.record() | provenance(key.seed))
        print(f"{name} {solver} {key.seed}: {measured['accuracy']:.2f}", flush=True)
        if store:
            store.append(records[-1])
    return records
