"""Grids: models x precisions x prompts x tasks, one row a cell in the store, so that a killed run goes on where it stopped."""

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
from prompteol_utils.models.fingerprint import folder_fingerprint
from prompteol_utils.models.loading import load_model
from prompteol_utils.models.registry import MODELS
from prompteol_utils.prompts import Prompt, get_prompt
from prompteol_utils.results.embedding_cache import EmbeddingCache
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
    retry: bool = False,
    load_options: Mapping[str, dict] | None = None,
) -> pd.DataFrame:
    """Measure every cell of models x precisions x prompts x tasks that the store does not hold yet.

    A cell is a row of the store as soon as it is done, so a run may be killed at any moment and started again. Where memory runs out, the
    encoder halves its batches down to single sentences; if even that does not fit, or the model itself does not, the cell becomes a row of
    kind "failed" with the reason, and the rest go on.

    Args:
        models: Names, hub ids or folders, each as for `load_model`.
        tasks: STS tasks.
        store: Where rows are kept, or the path of its file.
        precisions: Keys of `PRECISIONS`.
        prompts: Prompts (demonstrations included) or their names; None takes each model's own, PromptEOL for a language model.
        split: Of the tasks.
        root: SentEval's folder, as for `load_sts`.
        limit: A seeded sample of so many pairs a task; None takes all.
        seed: Of that sample.
        device: As for `load_model`.
        batch_tokens: As for `Encoder.encode`.
        retry: Try cells again that failed before.
        load_options: More arguments of `load_model` by model, such as {"opt-6.7b": {"weights": folder}}.

    Returns:
        The rows of this grid, old and new, in the grid's order. Beside the STS fields each has sentences (distinct ones that were
        embedded), memory_before (bytes in use before the model was loaded), memory_loaded, memory_peak (while it was embedding), device,
        threads and batch_tokens; a failed one has kind "failed" and reason.

    Raises:
        ValueError: Unknown precision, prompt, task or model.
        OSError: A model could not be fetched; the cells before it are in the store.

    Source: the paper's scaling experiments. Built in notebook 03.
    """
    store = store if isinstance(store, Store) else Store(store)
    if unknown := [name for name in precisions if name not in PRECISIONS]:
        raise ValueError(f"unknown precision {unknown[0]!r}; allowed: {', '.join(PRECISIONS)}")
    prompts = prompts and [get_prompt(prompt) for prompt in prompts]
    pairs = [sts_data.load_sts(task, split, root=root, limit=limit, seed=seed) for task in tasks]
    keys = []
    for model in models:
        own = [get_prompt(MODELS[model].prompt if model in MODELS else "prompteol")]
        for precision in precisions:
            weights = (load_options or {}).get(model, {}).get("weights")
            cells = [
                (
                    prompt,
                    one,
                    planned_key(model, precision, prompt, one, split, seed, device, weights),
                )
                for prompt in prompts or own
                for one in pairs
            ]
            keys += [key for _, _, key in cells]
            todo = [
                cell
                for cell in cells
                if not store.done(cell[2]) and (retry or not store.find(cell[2], failed=True))
            ]
            print(
                f"{model} {precision}: {len(cells) - len(todo)} of {len(cells)} cells done before",
                flush=True,
            )
            if todo:
                _run_cells(
                    model,
                    {
                        "device": device,
                        **PRECISIONS[precision],
                        **(load_options or {}).get(model, {}),
                    },
                    todo,
                    store,
                    batch_tokens,
                )
    return pd.DataFrame([store.find(key) or store.find(key, failed=True) for key in keys])


def by_precision(rows: pd.DataFrame) -> pd.DataFrame:
    """What a cheaper way to store the weights costs: each cell beside the same model's unquantised one.

    Args:
        rows: STS rows of a store, from `grid` or the verb `sts`; those of other prompts, samples or splits are lines of their own.

    Returns:
        model, precision, task, n, spearman, difference (to the same model, set and prompt in fp32; where that was not measured, in 16
        bits), sentences/s, "peak, MB" (above what was in use before the model was loaded), threads, origin and weight_origin; sorted by
        model (as they come), task and precision. What was not measured is NaN, and a cell that is missing or failed has no row.

    Built in notebook 03.
    """
    needed = ["spearman", "sentences", "seconds", "memory_peak", "memory_before", "threads"]
    rows = rows.reindex(columns=[*rows.columns, *(name for name in needed if name not in rows)])
    rows = rows[rows["spearman"].notna()]
    known = rows.astype(object).where(rows.notna(), None).to_dict("records")
    rows = rows.assign(
        cell=[record_identity(row) for row in known],
        pair=[record_identity(row, without=("quantization", "dtype")) for row in known],
    )
    cells = rows.drop_duplicates("cell", keep="last").reset_index(drop=True)
    short = {
        settings["dtype"]: name for name, settings in PRECISIONS.items() if "dtype" in settings
    }
    cells = cells.assign(
        precision=cells["quantization"].where(
            cells["quantization"].notna(), cells["dtype"].replace(short)
        )
    )
    cells["sentences/s"] = cells["sentences"] / cells["seconds"]
    cells["peak, MB"] = (cells["memory_peak"] - cells["memory_before"]) / 1e6
    places = {
        "model": list(dict.fromkeys(cells["model"])),
        "task": list(sts_data.STS_TASKS),
        "precision": list(PRECISIONS),
    }
    order = pd.DataFrame(
        {name: cells[name].map(known.index) for name, known in places.items()}
    ).sort_values(list(places), kind="stable")
    cells = cells.loc[order.index].reset_index(drop=True)
    full = cells[cells["quantization"].isna()].drop_duplicates("pair").set_index("pair")["spearman"]
    cells["difference"] = cells["spearman"] - cells["pair"].map(full)
    columns = [
        "model",
        "precision",
        "task",
        "n",
        "spearman",
        "difference",
        "sentences/s",
        "peak, MB",
        "threads",
        "origin",
        "weight_origin",
    ]
    return cells[columns]


def planned_key(
    model: str,
    precision: str,
    prompt: Prompt,
    data,
    split: str,
    seed: int,
    device: str | None,
    weights: "str | Path | None" = None,
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
    """
    folder, spec = Path(model).expanduser(), MODELS.get(model)
    settings = PRECISIONS[precision]
    dtype = devices.choose_dtype(devices.choose_device(device), settings.get("dtype"))
    name = folder.resolve().name if spec is None and folder.is_dir() else model
    is_adapter = spec is not None and spec.adapter_of
    content = weights or (folder if spec is None and folder.is_dir() else None)
    return MeasurementKey(
        model=spec.adapter_of if is_adapter else name,
        adapter=spec.hub_id if is_adapter else None,
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
    before = devices.memory_in_use(place)
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
        "memory_before": before,
        "memory_loaded": devices.memory_in_use(place),
        "device": machine["gpu"] if place.type == "cuda" else machine["cpu"],
        "threads": machine["threads"],
        "batch_tokens": batch_tokens,
    }
    for prompt, pairs, key in cells:
        _run_cell(Encoder(loaded, prompt), pairs, key.record() | facts, store, place, batch_tokens)


def _run_cell(
    encoder: Encoder,
    pairs: sts_data.Pairs,
    row: dict,
    store: Store,
    place,
    batch_tokens: int | None,
) -> None:
    devices.reset_peak_memory(place)
    start, embedded = time.perf_counter(), []

    def encode(sentences):
        embedded.append(len(sentences))
        return encoder.encode(sentences, batch_tokens=batch_tokens)

    try:
        with devices.Timer(place) as timer:
            scores = sts.evaluate_sts(encode, pairs).iloc[0]
    except (RuntimeError, MemoryError) as error:
        if not devices.is_out_of_memory(error):
            raise
        _fail(store, row, str(error), start)
        return
    measured = {name: float(scores[name]) for name in ("spearman", "spearman_subset_mean")}
    measured |= {
        "sentences": embedded[0],
        "seconds": round(timer.seconds, 2),
        "memory_peak": devices.peak_memory(place),
    }
    store.append(row | measured | provenance(row["seed"]))
    print(
        f"  {row['prompt']} {row['task']}: {measured['spearman']:.2f}, {embedded[0] / timer.seconds:.1f} sentences/s",
        flush=True,
    )


def _fail(store: Store, row: dict, reason: str, start: float) -> None:
    reason = " ".join(reason.split())[:300]
    print(f"  {row['prompt']} {row['task']}: failed: {reason}", flush=True)
    store.append(
        {
            "kind": "failed",
            **row,
            "reason": reason,
            "seconds": round(time.perf_counter() - start, 2),
            **provenance(row["seed"]),
        }
    )


def transfer_settings(
    solver: str, *, folds: int = 10, limit: int | None = None, sample_seed: int | None = None
) -> dict:
    """The settings of a transfer measurement; a sample's seed counts only where there is a limit."""
    drawn = {"limit": limit, "sample_seed": sample_seed if limit else None}
    return {"solver": solver, "folds": folds, **drawn}


def measure(
    encoder,
    task: Labelled,
    keys: Sequence[MeasurementKey],
    store: Store | None = None,
    *,
    folds: int = 10,
    cache: EmbeddingCache | None = None,
) -> list[dict]:
    """Rows for the store: each sentence encoded once, through the embedding cache; a row is kept as soon as it is known.

    Args:
        encoder: An `Encoder`.
        task: What `load_transfer` returned.
        keys: What makes each row this measurement, solver and seed among it. None at all only fills the cache.
        store: Where rows go at once; None keeps none.
        folds: Of the outer and the inner cross-validation.
        cache: None takes the project's.

    Returns:
        The new rows: a key, the fields of `score`, encoded (sentences that the cache had not), encode_seconds, and the provenance.
    """
    counted, start, rows = _Counted(encoder), time.perf_counter(), []
    x = features((cache or EmbeddingCache()).wrap(counted), task)
    encoding = {"encoded": counted.new, "encode_seconds": round(time.perf_counter() - start, 2)}
    name = encoder.prompt.name
    print(
        f"{name} {task.name}: {counted.new:,} of {len(task.sentences):,} sentences encoded",
        flush=True,
    )
    for key in keys:
        solver = key.settings["solver"]
        measured = score(x, task, solver=solver, seed=key.seed, folds=folds) | encoding
        measured = {
            field: None if isinstance(value, float) and math.isnan(value) else value
            for field, value in measured.items()
        }
        rows.append(measured | key.record() | provenance(key.seed))
        print(f"{name} {task.name} {solver} {key.seed}: {measured['accuracy']:.2f}", flush=True)
        if store:
            store.append(rows[-1])
    return rows


class _Counted:
    """An encoder that counts what it is really given: the cache asks it for new sentences only."""

    def __init__(self, encoder):
        self.encoder, self.key, self.new = encoder, encoder.key, 0

    def stream(self, sentences: list[str], **options):
        self.new += len(sentences)
        return self.encoder.stream(sentences, **options)
