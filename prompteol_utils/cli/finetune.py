"""Verbs of the fine-tuning room: `finetune` trains an adapter, `merge` adds one to its base for good."""

import argparse
import os
import time

from prompteol_utils.cli.options import load, positive

_SETTINGS = {  # of FinetuneConfig, by the type that their option takes
    int: "batch_size epochs max_steps warmup_steps rank alpha layers max_sentence_tokens chunk_tokens save_every evaluate_every patience "
    "seed",
    float: "learning_rate temperature dropout weight_decay max_gradient_norm",
}


def add_commands(verb) -> None:
    """Add `finetune` and `merge` to the command line."""
    finetune = verb(
        "finetune",
        _finetune,
        "train a LoRA adapter; the same command goes on with a run that was cut off",
    )
    finetune.add_argument(
        "--model", required=True, help="a name from `models`, a hub id like org/name, or a folder"
    )
    finetune.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="the run's folder; the adapter goes to DIR/adapter",
    )
    finetune.add_argument(
        "--quantization",
        choices=("nf4", "int8"),
        help="nf4 is QLoRA, the paper's; needs bitsandbytes",
    )
    finetune.add_argument(
        "--triplets",
        metavar="SOURCE",
        help="snli, hub, mini, or a CSV with anchor, positive, negative",
    )
    finetune.add_argument(
        "--limit", type=positive, metavar="N", help="a seeded sample of N triplets"
    )
    finetune.add_argument(
        "--root", metavar="FOLDER", help="SentEval's downstream folder (else PROMPTEOL_SENTEVAL)"
    )
    finetune.add_argument(
        "--preset",
        choices=("paper", "cpu"),
        default="paper",
        help="settings to start from (default: %(default)s)",
    )
    for kind, names in _SETTINGS.items():
        for name in names.split():
            finetune.add_argument(
                f"--{name.replace('_', '-')}",
                type=kind,
                metavar="N" if kind is int else "X",
                help="see FinetuneConfig",
            )
    finetune.add_argument(
        "--prompt", default="prompteol", help="a name from PROMPTS (default: %(default)s)"
    )
    finetune.add_argument(
        "--demonstration",
        action="append",
        default=[],
        metavar='"SENTENCE=>WORD"',
        help="in-context example",
    )
    finetune.add_argument(
        "--dev-limit",
        type=int,
        default=300,
        metavar="N",
        help="STS-B dev pairs for the dev score, 0 for none (300)",
    )
    finetune.add_argument(
        "--device",
        help="cpu, cuda, cuda:1; by default the GPU if there is one, one for each process",
    )
    finetune.add_argument(
        "--dtype", help="float32, bfloat16 or float16; by default float32 on a CPU"
    )
    finetune.add_argument("--output", metavar="FILE", help="append one JSON row about the run here")
    merge = verb("merge", _merge, "add an adapter to its base and save a plain model")
    for name, text in (
        ("model", "the base"),
        ("adapter", "its adapter, or the folder of the run that made it"),
        ("out", "a new folder"),
    ):
        merge.add_argument(f"--{name}", required=True, help=text)


def _finetune(options: argparse.Namespace) -> int:
    from dataclasses import replace

    from prompteol_utils.data import nli
    from prompteol_utils.data import sts as sts_data
    from prompteol_utils.finetuning import config, trainer

    given = {name: getattr(options, name) for names in _SETTINGS.values() for name in names.split()}
    config = replace(
        config.CPU if options.preset == "cpu" else config.FinetuneConfig(),
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
    if options.device is None and "LOCAL_RANK" in os.environ:
        import torch

        options.device = f"cuda:{os.environ['LOCAL_RANK']}" if torch.cuda.is_available() else "cpu"
    options.adapter = None
    loaded, (prompt,) = load(options)
    from prompteol_utils.encoder.encoder import Encoder
    from prompteol_utils.results.store import Store, provenance

    encoder, store = Encoder(loaded, prompt), Store(options.output) if options.output else None
    key = _key(encoder, triplets, config, dev)
    if store and store.done(key):
        print(f"done before, in {options.output}")
        return 0
    start = time.perf_counter()
    history = trainer.finetune(encoder, triplets, config, options.out, dev)
    if int(os.environ.get("RANK", "0")) == 0:
        row = (
            key
            | _outcome(encoder, options.out, history, time.perf_counter() - start)
            | provenance(config.seed)
        )
        print(
            f"{row['steps']} steps, loss {row['loss'][-1]:.3f}, dev {row['dev_best']}: {options.out}/adapter ({row['adapter']})"
        )
        if store:
            store.append(row)
    return 0


def _key(encoder, triplets, config, dev) -> dict:
    """What makes two runs the same."""
    loaded = encoder.loaded
    return {
        "kind": "finetune",
        "model": loaded.name,
        "weight_origin": loaded.weight_origin,
        "quantization": loaded.quantization,
        "dtype": loaded.dtype,
        "prompt": encoder.prompt.name,
        "demonstrations": [f"{d.sentence}=>{d.word}" for d in encoder.prompt.demonstrations],
        "config": config.settings(),
        "triplets": {
            "origin": triplets.origin,
            "n": len(triplets),
            "text_form": triplets.text_form,
            "dropped": triplets.dropped,
        },
        "dev": dev
        and {
            "task": dev.name,
            "split": "dev",
            "n": len(dev),
            "origin": dev.origin,
            "text_form": dev.text_form,
        },
    }


def _outcome(encoder, out, history, seconds: float) -> dict:
    """What a table or figure needs to know about a finished run."""
    from pathlib import Path

    from prompteol_utils.models import adapters
    from prompteol_utils.utils import devices, files

    record, steps = adapters.read(out), history[history["step"] > 0]
    scored = history.dropna(subset=["dev"]) if "dev" in history else history[:0]
    return {
        "adapter": f"{Path(out).resolve().name}@{files.sha256(Path(out) / 'adapter' / 'adapter_model.safetensors')[:8]}",
        "dev_steps": scored["step"].tolist(),
        "dev_scores": scored["dev"].round(4).tolist() if len(scored) else [],
        "dev_best": record["dev"],
        "best_step": record["step"],
        "steps": len(steps),
        "loss": steps["loss"].round(5).tolist(),
        "seconds": round(float(steps["seconds"].sum()), 1),
        "seconds_of_this_process": round(seconds, 1),
        "tokens": int(steps["tokens"].sum()),
        # A process that only went on with a run, or found it finished, cannot say what training takes.
        "peak_memory": devices.peak_memory(encoder.loaded.model.device)
        if seconds >= steps["seconds"].sum()
        else None,
        "machine": devices.machine(),
    }


def _merge(options: argparse.Namespace) -> int:
    from prompteol_utils.models import adapters
    from prompteol_utils.models.loading import load_model

    loaded = load_model(options.model, adapter=options.adapter)
    adapters.merge(loaded, options.out)
    print(f"{loaded.name} with {loaded.adapter}: {options.out}")
    return 0
