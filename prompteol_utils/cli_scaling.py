"""Verbs about size: grid."""

import argparse

from prompteol_utils.cli import positive

PRECISIONS = ("auto", "fp32", "bf16", "fp16", "nf4", "int8")


def add_verbs(verb) -> None:
    """Add this room's verbs to the command line."""
    grid = verb("grid", _grid, "score models x precisions x prompts x tasks, one row a cell; cells that are done are skipped")
    grid.add_argument("--models", nargs="+", required=True, metavar="MODEL", help="names from `models`, hub ids or folders")
    grid.add_argument("--precisions", nargs="+", default=["auto"], choices=PRECISIONS, help="auto: fp32 on a CPU, 16 bits on a GPU")
    grid.add_argument("--prompt", nargs="+", default=["prompteol"], dest="prompts", help="names from PROMPTS (default: prompteol)")
    grid.add_argument(
        "--demonstration", action="append", default=[], metavar='"SENTENCE=>WORD"', help="before every prompt; repeat for more"
    )
    grid.add_argument(
        "--tasks", nargs="+", default=["stsb"], metavar="TASK", help="sts12 sts13 sts14 sts15 sts16 stsb sickr (default: stsb)"
    )
    grid.add_argument("--split", default="test", help="test (default), dev or train where the set has them")
    grid.add_argument("--root", metavar="FOLDER", help="SentEval's downstream folder (else PROMPTEOL_SENTEVAL, the hub, the project's set)")
    grid.add_argument("--limit", type=positive, metavar="N", help="a seeded sample of N pairs a set")
    grid.add_argument("--seed", type=int, default=0, help="of that sample (default: %(default)s)")
    grid.add_argument("--device", help="cpu, cuda, cuda:1, mps; by default the GPU if there is one")
    grid.add_argument("--batch-tokens", type=positive, metavar="N", help="tokens in a batch, padding included")
    grid.add_argument("--retry", action="store_true", help="try failed cells again")
    grid.add_argument("--output", required=True, metavar="FILE", help="JSON lines; a row is added as soon as its cell is done")


def _grid(options: argparse.Namespace) -> int:
    from prompteol_utils.prompts import parse_demonstration, with_demonstrations

    demonstrations = [parse_demonstration(text) for text in options.demonstration]
    prompts = [with_demonstrations(name, demonstrations) for name in options.prompts]
    from prompteol_utils import experiments

    names = ("precisions", "split", "root", "limit", "seed", "device", "batch_tokens", "retry")
    settings = {name: getattr(options, name) for name in names}
    rows = experiments.grid(options.models, options.tasks, options.output, prompts=prompts, **settings)
    columns = ["model", "dtype", "quantization", "prompt", "task", "n", "spearman", "seconds", "origin", "reason"]
    print(rows.reindex(columns=columns).to_string(index=False, float_format="{:.2f}".format, na_rep=""))
    return int("kind" in rows and bool(rows["kind"].eq("failed").any()))
