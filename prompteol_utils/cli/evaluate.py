"""Subcommands `sts` and `transfer`: a score per task, each measured once."""

import argparse
import json
import time
from collections.abc import Iterator

from prompteol_utils.cli import options as shared

_MODEL = ["model", "prompt", "adapter", "quantization", "dtype"]


def add_commands(subcommand) -> None:
    """Register the subcommands; `subcommand(name, function, text)` makes one."""
    sts = subcommand("sts", _sts, "score a model on semantic textual similarity (Spearman x 100)")
    shared.add(sts, *shared.ENCODER, "tasks", "split", *shared.SAMPLE, "output")
    shared.add(sts, "prompt", nargs="+", default=[None])
    sts.add_argument(
        "--reference",
        action="store_true",
        help="one sentence at a time, without cache or packing: the ground truth of the tests",
    )

    transfer = subcommand(
        "transfer",
        _transfer,
        "score a model on classification: a linear probe on its embeddings (accuracy x 100)",
    )
    shared.add(transfer, *shared.ENCODER, *shared.SAMPLE, "output")
    shared.add(transfer, "prompt", nargs="+", default=[None])
    shared.add(
        transfer,
        "tasks",
        default=None,
        help="mr cr subj mpqa sst2 trec mrpc, or a file with text, label (default: all seven)",
    )
    transfer.add_argument(
        "--solvers",
        nargs="+",
        default=["senteval", "lbfgs"],
        choices=("senteval", "lbfgs"),
        help="SentEval's classifier, scikit-learn's logistic regression",
    )
    transfer.add_argument(
        "--seeds", nargs="+", type=int, default=[1111], help="of folds and classifier"
    )
    transfer.add_argument("--folds", type=_folds, default=10, help="outer and inner folds")
    transfer.add_argument(
        "--encode-only", action="store_true", help="only fill the embedding cache"
    )


def _folds(text: str) -> int:
    if shared.positive(text) < 2:
        raise argparse.ArgumentTypeError(f"at least 2 folds are needed, not {text}")
    return int(text)


def _cells(options: argparse.Namespace, sets: list) -> Iterator[tuple]:
    """Load the model; an encoder for each prompt, each set, and the store if there is one."""
    from prompteol_utils.results import Store

    store = Store(options.output) if options.output else None
    loaded, prompts = shared.load(options)
    from prompteol_utils.encoder import Encoder

    for prompt in prompts:
        encoder = Encoder(loaded, prompt, pooling=options.pooling, layer=options.layer)
        yield from ((encoder, one, store) for one in sets)


def _sts(options: argparse.Namespace) -> int:
    from prompteol_utils.data import load_sts

    sample = {name: getattr(options, name) for name in shared.SAMPLE}
    pairs = [load_sts(task, options.split, **sample) for task in options.tasks]
    records = []
    for encoder, one, store in _cells(options, pairs):
        key = _sts_key(encoder, one, options)
        name = f"{encoder.prompt.name} {one.name} {options.split}"
        if store and store.done(key):
            print(f"{name}: found in {options.output}")
            continue
        records.append(_score(encoder, one, key, options))
        print(f"{name}: {records[-1]['spearman']:.2f}", flush=True)
        if store:
            store.append(records[-1])
    columns = [*_MODEL, "task", "split", "n", "spearman", "spearman_subset_mean"]
    _print_records(records, [*columns, "origin", "text_form", "seconds"])
    return 0


def _print_records(records: list[dict], columns: list[str]) -> None:
    import pandas as pd

    if records:
        shared.print_table(pd.DataFrame(records), columns)


def _score(encoder, pairs, key, options: argparse.Namespace) -> dict:
    from tqdm import tqdm

    from prompteol_utils.encoder import reference
    from prompteol_utils.evaluation import evaluate_sts
    from prompteol_utils.results import CachedEncoder, provenance

    def one_by_one(sentences):
        bar = tqdm(sentences, desc="reference", unit="sentence", leave=False, mininterval=1)
        where = {"pooling": options.pooling, "layer": options.layer}
        return reference(encoder.loaded, encoder.prompt, bar, **where)

    start = time.perf_counter()
    encode = one_by_one if options.reference else CachedEncoder(encoder)
    scores = json.loads(evaluate_sts(encode, pairs).iloc[0].to_json(double_precision=10))
    measured = {name: scores[name] for name in ("spearman", "spearman_subset_mean")}
    measured["seconds"] = round(time.perf_counter() - start, 2)
    if not options.reference:  # seconds are those of these sentences; the others were kept before
        measured["encoded"] = encode.new
    return {**key.record(), **measured, **provenance(options.seed)}


def _sts_key(encoder, pairs, options: argparse.Namespace):
    from prompteol_utils.results import MeasurementKey

    engine = "reference" if options.reference else "encoder"
    where = {"seed": options.seed, "layer": options.layer, "engine": engine}
    return MeasurementKey.of(encoder, pairs, options.split, **where)


def _transfer(options: argparse.Namespace) -> int:
    from prompteol_utils.data import TRANSFER_TASKS, load_transfer
    from prompteol_utils.experiments import measure

    sample = {name: getattr(options, name) for name in shared.SAMPLE}
    tasks = [load_transfer(name, **sample) for name in options.tasks or TRANSFER_TASKS]
    records = []
    for encoder, task, store in _cells(options, tasks):
        keys = [
            _transfer_key(encoder, task, options, solver, seed)
            for solver in options.solvers
            for seed in options.seeds
        ]
        todo = [key for key in keys if not (store and store.done(key))]
        if not todo and not options.encode_only:
            print(f"{encoder.prompt.name} {task.name}: found in {options.output}")
            continue
        todo = [] if options.encode_only else todo
        records += measure(encoder, task, todo, store, folds=options.folds)
    columns = [*_MODEL, "task", "solver", "seed", "accuracy", "fold_std", "n_train", "n_test"]
    _print_records(records, [*columns, "origin", "encode_seconds", "classifier_seconds"])
    if len({record["seed"] for record in records}) > 1:
        _print_spread(records)
    return 0


def _print_spread(records: list[dict]) -> None:
    import pandas as pd

    from prompteol_utils.evaluation import spread

    print("over the seeds of this run:")
    by = ("prompt", "task", "solver")
    shared.print_table(spread(pd.DataFrame(records), by).reset_index())


def _transfer_key(encoder, task, options: argparse.Namespace, solver: str, seed: int):
    from prompteol_utils.evaluation import reported_split
    from prompteol_utils.experiments import transfer_settings
    from prompteol_utils.results import MeasurementKey

    sample = {"limit": options.limit, "sample_seed": options.seed}
    settings = transfer_settings(solver, folds=options.folds, **sample)
    where = {"kind": "transfer", "seed": seed, "layer": options.layer}
    return MeasurementKey.of(encoder, task, reported_split(task), **where, **settings)
