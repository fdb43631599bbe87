"""Subcommands `finetune` and `merge`: train a LoRA adapter, add one to its base for good."""

import argparse
import os
import time
from dataclasses import fields

from prompteol_utils.cli import options as shared
from prompteol_utils.finetuning.config import CPU, FinetuneConfig

_HELP = {
    "batch_size": "triplets in a step",
    "epochs": "passes over the triplets",
    "max_steps": "stop after N steps",
    "learning_rate": "peak, after the warm-up",
    "warmup_steps": "steps of linear warm-up",
    "temperature": "of the contrastive loss",
    "rank": "of LoRA",
    "alpha": "of LoRA",
    "dropout": "of LoRA",
    "layers": "train the last N layers only",
    "max_sentence_tokens": "cut longer sentences",
    "weight_decay": "of AdamW",
    "max_gradient_norm": "clip gradients to this norm",
    "chunk_tokens": "tokens whose graph is in memory at a time",
    "save_every": "steps between checkpoints",
    "evaluate_every": "steps between dev scores",
    "patience": "stop after N dev scores without a new best",
    "seed": "of LoRA's weights, the order of triplets, dropout",
}


def add_commands(subcommand) -> None:
    """Register the subcommands; `subcommand(name, function, text)` makes one."""
    finetune = subcommand("finetune", _finetune, "train a LoRA adapter; resumable")
    shared.add(finetune, "model", "quantization", "dtype", "device", "prompt", "demonstration")
    finetune.add_argument(
        "--triplets",
        nargs="+",
        metavar="SOURCE",
        help="snli, hub, mini, or a file with sent0, sent1, hard_neg (default: what is at hand)",
    )
    shared.add(finetune, "root", "limit")
    finetune.add_argument(
        "--preset", choices=("paper", "cpu"), default="paper", help="settings to start from"
    )
    for field in fields(FinetuneConfig):
        _add_setting(finetune, field)
    finetune.add_argument(
        "--dev-limit", type=int, default=300, metavar="N", help="STS-B dev pairs to score; 0: none"
    )
    shared.add(finetune, "output", required=True, metavar="DIR", help="of the run and its adapter")
    finetune.add_argument(
        "--start", metavar="DIR", help="an adapter, or its run, to train further in a new run"
    )
    finetune.add_argument("--records", metavar="FILE", help="append a JSON line about the run")

    merge = subcommand("merge", _merge, "add an adapter to its base and save a plain model")
    shared.add(merge, "model", "dtype")
    shared.add(merge, "adapter", required=True)
    shared.add(merge, "output", required=True, metavar="DIR", help="a new folder")


def _add_setting(parser: argparse.ArgumentParser, field) -> None:
    paper, cpu = field.default, getattr(CPU, field.name)
    default = f"{paper}" if cpu == paper else f"{paper}; cpu: {cpu}"
    whole = "float" not in str(field.type)
    parser.add_argument(
        f"--{field.name.replace('_', '-')}",
        type=int if whole else float,
        metavar="N" if whole else "X",
        help=f"{_HELP[field.name]} (default: {default})",
    )


def _finetune(options: argparse.Namespace) -> int:
    from dataclasses import replace

    from prompteol_utils.data import nli
    from prompteol_utils.data import sts as sts_data
    from prompteol_utils.finetuning import trainer

    given = {field.name: getattr(options, field.name) for field in fields(FinetuneConfig)}
    config = replace(
        CPU if options.preset == "cpu" else FinetuneConfig(),
        **{k: v for k, v in given.items() if v is not None},
    )
    triplets = nli.load_nli(
        options.triplets, root=options.root, limit=options.limit, seed=config.seed
    )
    dev = (
        sts_data.load_sts("stsb", "dev", root=options.root, limit=options.dev_limit, seed=0)
        if options.dev_limit > 0
        else None
    )
    print(
        f"{len(triplets):,} triplets ({triplets.origin}); left out: {triplets.dropped}", flush=True
    )
    if triplets.not_compared:
        print(
            "not at hand, so their sentences may be among the triplets: "
            f"{', '.join(triplets.not_compared)}",
            flush=True,
        )
    if options.device is None and "LOCAL_RANK" in os.environ:
        import torch

        options.device = f"cuda:{os.environ['LOCAL_RANK']}" if torch.cuda.is_available() else "cpu"
    loaded, (prompt,) = shared.load(options)
    from prompteol_utils.encoder.encoder import Encoder
    from prompteol_utils.results.store import Store, provenance

    encoder, store = Encoder(loaded, prompt), Store(options.records) if options.records else None
    key = _key(encoder, triplets, config, dev, options.start)
    if store and store.done(key):
        print(f"found in {options.records}")
        return 0
    print(f"{trainer.Plan(triplets, config)}", flush=True)
    begun = time.perf_counter()
    history = trainer.finetune(encoder, triplets, config, options.output, dev, start=options.start)
    if int(os.environ.get("RANK", "0")) == 0:
        row = (
            key.record()
            | _outcome(encoder, options.output, history, time.perf_counter() - begun)
            | provenance(config.seed)
        )
        print(
            f"{row['steps']} steps, loss {row['loss'][-1]:.3f}, dev {row['dev_best']}: "
            f"{options.output}/adapter ({row['adapter']})"
        )
        if store:
            store.append(row)
    return 0


def _key(encoder, triplets, config, dev, start):
    from prompteol_utils.data.nli import SOURCES
    from prompteol_utils.finetuning import trainer
    from prompteol_utils.results import MeasurementKey

    names = ("origin", "text_form")
    about = {"n": len(triplets), "dropped": triplets.dropped}
    about |= {name: getattr(triplets, name) for name in names}
    if not set(triplets.origin.split(" + ")) <= set(SOURCES):  # a file of one's own
        about["digest"] = trainer.digest_triplets(triplets)
    if dev is not None:
        about_dev = {"task": dev.name, "split": "dev", "n": len(dev)}
        dev = about_dev | {name: getattr(dev, name) for name in names}
    settings = {"config": config.settings(), "triplets": about, "dev": dev}
    if start is not None:
        settings["start"] = trainer.digest_adapter(start)
    return MeasurementKey.of(encoder, kind="finetune", **settings)


def _outcome(encoder, out, history, seconds: float) -> dict:
    """What a table or figure needs to know about a finished run."""
    from pathlib import Path

    from prompteol_utils.models import adapters
    from prompteol_utils.utils import devices, files

    record, steps = adapters.read(out), history[history["step"] > 0]
    scored = history.dropna(subset=["dev"]) if "dev" in history else history[:0]
    digest = files.sha256(Path(out) / "adapter" / "adapter_model.safetensors")
    return {
        "adapter": f"{Path(out).resolve().name}@{digest[:8]}",
        "dev_steps": scored["step"].tolist(),
        "dev_scores": scored["dev"].round(4).tolist() if len(scored) else [],
        "dev_best": record["dev"],
        "best_step": record["step"],
        "steps": len(steps),
        "loss": steps["loss"].round(5).tolist(),
        "seconds": round(float(steps["seconds"].sum()), 1),
        "seconds_of_this_process": round(seconds, 1),
        "tokens": int(steps["tokens"].sum()),
        # A process that resumed a run, or found it finished, cannot say what training takes.
        "peak_memory": devices.peak_memory(encoder.loaded.model.device)
        if seconds >= steps["seconds"].sum()
        else None,
        "machine": devices.machine(),
    }


def _merge(options: argparse.Namespace) -> int:
    from prompteol_utils.models import adapters
    from prompteol_utils.models.loading import load_model

    loaded = load_model(options.model, dtype=options.dtype, adapter=options.adapter)
    adapters.merge(loaded, options.output)
    print(f"{loaded.name} with {loaded.adapter}: {options.output}")
    return 0
