"""Subcommands `encode`, `fetch` and `models`."""

import argparse
import time

from prompteol_utils.cli import options as shared

_TEXT_COLUMN = "column with the sentences (default: sentence, text, or the only one)"


def add_commands(subcommand) -> None:
    """Register the subcommands; `subcommand(name, function, text)` makes one."""
    encode = subcommand("encode", _encode, "embed the sentences of a file; resumable")
    encode.add_argument(
        "--input",
        required=True,
        metavar="FILE",
        help=".txt (a sentence a line), .csv, .tsv, .jsonl or .parquet",
    )
    shared.add(encode, "output", required=True, help=".npy or .parquet")
    encode.add_argument("--text-column", metavar="NAME", help=_TEXT_COLUMN)
    shared.add(encode, "prompt", *shared.ENCODER)

    fetch = subcommand(
        "fetch", _fetch, "download and convert offline models, so that later runs need no network"
    )
    fetch.add_argument(
        "models",
        nargs="*",
        default=[shared.DEFAULT_MODEL],
        metavar="MODEL",
        help=f"(default: {shared.DEFAULT_MODEL})",
    )

    models = subcommand("models", _models, "list the models that have a name here")
    models.add_argument("names", nargs="*", metavar="MODEL", help="(default: all)")
    models.add_argument("--memory", action="store_true", help="what fits which card, and how fast")
    models.add_argument("--training", action="store_true", help="the same for QLoRA training")
    models.add_argument("--status", action="store_true", help="which have been measured here")
    shared.add(models, "batch-tokens", default=2048)


def _encode(options: argparse.Namespace) -> int:
    from prompteol_utils.data import read_sentences
    from prompteol_utils.encoder import encode_file

    encode_file.check_target(options.output)
    next(iter(read_sentences(options.input, options.text_column)), None)  # refused before loading
    loaded, (prompt,) = shared.load(options)
    from prompteol_utils.encoder import Encoder

    encoder = Encoder(loaded, prompt, pooling=options.pooling, layer=options.layer)
    start = time.perf_counter()
    n = encode_file.encode_file(options.input, options.output, encoder, options.text_column)
    seconds = time.perf_counter() - start
    print(f"{n:,} sentences x {encoder.dimension} in {seconds:.1f} s: {options.output}")
    return 0


def _fetch(options: argparse.Namespace) -> int:
    from prompteol_utils.models import fetch_model

    for name in options.models:
        fetch_model(name)
        print(f"{name} is in the cache folder", flush=True)
    return 0


def _models(options: argparse.Namespace) -> int:
    import pandas as pd

    from prompteol_utils.models import MODELS, get_spec

    if options.status:
        from prompteol_utils.experiments import reproduction_status

        shared.print_table(reproduction_status())
        return 0
    if options.memory or options.training:
        return _memory(options)
    specs = [get_spec(name) for name in options.names] or MODELS.values()
    table = pd.DataFrame(
        [(spec.name, spec.hub_id, spec.weight_origin, spec.licence) for spec in specs],
        columns=["name", "hub id", "weights", "licence"],
    )
    print(table.to_string(index=False, justify="left"))
    return 0


def _memory(options: argparse.Namespace) -> int:
    from prompteol_utils.models import MODELS, find_spec, memory

    specs = {spec.name: spec for spec in map(find_spec, options.names)}
    table = memory.fitting_table(
        specs.values(), training=options.training, batch_tokens=options.batch_tokens
    )
    for card in ("RTX 4090", "A100", "H100"):
        speed = memory.ASSUMED_MFU * memory.PEAK[card]
        table[f"s per million, {card}"] = [
            memory.seconds_per_million((MODELS | specs)[name], speed) for name in table["model"]
        ]
    print(table.to_string(index=False, float_format="{:,.1f}".format))
    print(
        f"Estimates; seconds assume {memory.ASSUMED_MFU:.0%} of a card's peak at 16 bits "
        "and 25 tokens a sentence."
    )
    return 0
