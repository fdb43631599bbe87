"""Verbs about size: grid, plan, reproduce, states, memory."""

import argparse

from prompteol_utils.cli.options import positive

PRECISIONS = ("auto", "fp32", "bf16", "fp16", "nf4", "int8")


def add_commands(verb) -> None:
    """Add this room's verbs to the command line."""
    grid = verb(
        "grid",
        _grid,
        "score models x precisions x prompts x tasks, one row a cell; cells that are done are skipped",
    )
    grid.add_argument(
        "--models",
        nargs="+",
        required=True,
        metavar="MODEL",
        help="names from `models`, hub ids or folders",
    )
    grid.add_argument(
        "--precisions",
        nargs="+",
        default=["auto"],
        choices=PRECISIONS,
        help="auto: fp32 on a CPU, 16 bits on a GPU",
    )
    grid.add_argument(
        "--prompt", nargs="+", dest="prompts", help="names from PROMPTS (default: each model's own)"
    )
    grid.add_argument(
        "--demonstration",
        action="append",
        default=[],
        metavar='"SENTENCE=>WORD"',
        help="before every prompt; repeat for more",
    )
    grid.add_argument(
        "--tasks",
        nargs="+",
        default=["stsb"],
        metavar="TASK",
        help="sts12 sts13 sts14 sts15 sts16 stsb sickr (default: stsb)",
    )
    grid.add_argument(
        "--split", default="test", help="test (default), dev or train where the set has them"
    )
    grid.add_argument(
        "--root",
        metavar="FOLDER",
        help="SentEval's downstream folder (else PROMPTEOL_SENTEVAL, the hub, the project's set)",
    )
    grid.add_argument(
        "--limit", type=positive, metavar="N", help="a seeded sample of N pairs a set"
    )
    grid.add_argument("--seed", type=int, default=0, help="of that sample (default: %(default)s)")
    grid.add_argument("--device", help="cpu, cuda, cuda:1, mps; by default the GPU if there is one")
    grid.add_argument(
        "--batch-tokens", type=positive, metavar="N", help="tokens in a batch, padding included"
    )
    grid.add_argument("--retry", action="store_true", help="try failed cells again")
    grid.add_argument(
        "--output",
        required=True,
        metavar="FILE",
        help="JSON lines; a row is added as soon as its cell is done",
    )

    plan = verb(
        "plan", _plan, "say which model fits on which card, and how long a million sentences take"
    )
    plan.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help="names from `models`; all language models by default",
    )
    plan.add_argument("--training", action="store_true", help="QLoRA instead of encoding")
    plan.add_argument(
        "--batch-tokens",
        type=positive,
        default=2048,
        metavar="N",
        help="tokens in a batch (default: %(default)s)",
    )

    again = verb(
        "reproduce",
        _reproduce,
        "measure a published row anew, STS or transfer: cost first, then pass or fail per task",
    )
    again.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="such as opt-125m, opt-125m-icl, bert-prompt; none lists all",
    )
    again.add_argument(
        "--tasks",
        nargs="+",
        metavar="TASK",
        help="STS tasks (all seven by default), or mr cr subj mpqa sst2 trec mrpc",
    )
    again.add_argument(
        "--transfer",
        action="store_true",
        help="all seven transfer tasks and their average instead of STS",
    )
    again.add_argument(
        "--precision",
        default="auto",
        choices=PRECISIONS,
        help="auto: fp32 on a CPU, 16 bits on a GPU",
    )
    again.add_argument(
        "--root",
        metavar="FOLDER",
        help="SentEval's downstream folder (else PROMPTEOL_SENTEVAL, the hub)",
    )
    again.add_argument(
        "--device", help="cpu, cuda, cuda:1, mps; by default the GPU if there is one"
    )
    again.add_argument(
        "--tolerance",
        type=float,
        metavar="POINTS",
        help="by which a score may differ (default: 0.5; a transfer task 1.0)",
    )
    again.add_argument(
        "--weights", metavar="FOLDER", help="the model's weights on disk instead of the hub"
    )
    again.add_argument(
        "--adapter", metavar="FOLDER", help="the adapter's weights on disk instead of the hub (STS)"
    )
    again.add_argument(
        "--output",
        default="reproduce.jsonl",
        metavar="FILE",
        help="rows; what is there is not measured again",
    )

    verb("states", _states, "list every system and how far it was run here")

    memory = verb(
        "memory",
        _memory,
        "measure the peak memory of a model in a process of its own, beside the planner's estimate",
    )
    memory.add_argument("models", nargs="+", metavar="MODEL")
    memory.add_argument("--quantization", choices=("nf4", "int8"))
    memory.add_argument("--dtype")
    memory.add_argument("--batch-tokens", type=positive, nargs="+", default=[512], metavar="N")
    memory.add_argument(
        "--output", metavar="FILE", help="append the rows here; what is there is not measured again"
    )


def _plan(options: argparse.Namespace) -> int:
    from prompteol_utils.models import memory
    from prompteol_utils.models.registry import get_spec

    for name in options.models:
        get_spec(name)
    table = memory.fitting_table(
        options.models or None, training=options.training, batch_tokens=options.batch_tokens
    )
    for card in ("RTX 4090", "A100", "H100"):
        speed = memory.ASSUMED_MFU * memory.PEAK[card]
        table[f"s per million, {card}"] = [
            memory.seconds_per_million(get_spec(name), speed) for name in table["model"]
        ]
    print(table.to_string(index=False, float_format="{:,.1f}".format))
    print(
        f"Estimates; seconds assume {memory.ASSUMED_MFU:.0%} of a card's peak at 16 bits and 25 tokens a sentence."
    )
    return 0


def _reproduce(options: argparse.Namespace) -> int:
    from prompteol_utils.data import sts as sts_data
    from prompteol_utils.data import transfer as transfer_data
    from prompteol_utils.experiments import reproduction

    if not options.names:
        for table in ("sts", "transfer"):
            print(
                "\n".join(
                    f"{table:8}  {one.name:24} {one.system} ({one.group})"
                    for one in reproduction.reproductions(table).values()
                )
            )
        return 0
    tasks = options.tasks or (
        transfer_data.TRANSFER_TASKS if options.transfer else sts_data.STS_TASKS
    )
    again = dict.fromkeys(sts_data.STS_TASKS, reproduction.reproduce) | dict.fromkeys(
        transfer_data.TRANSFER_TASKS, reproduction.reproduce_transfer
    )
    if wrong := [task for task in tasks if task not in again]:
        raise ValueError(f"unknown task {wrong[0]!r}; allowed: {', '.join(again)}")
    names = ("precision", "root", "device", "tolerance", "weights")
    settings, verdicts = {name: getattr(options, name) for name in names}, []
    for name in options.names:
        for function in dict.fromkeys(map(again.get, tasks)):
            more = {"adapter": options.adapter} if function is reproduction.reproduce else {}
            table = function(
                name,
                options.output,
                tasks=[task for task in tasks if again[task] is function],
                **settings,
                **more,
            )
            print(table.to_string(index=False, float_format="{:.2f}".format))
            verdicts += table["verdict"].tolist()
    return int(set(verdicts) - {"no number"} != {"pass"})


def _states(options: argparse.Namespace) -> int:
    from prompteol_utils.experiments import reproduction

    print(reproduction.reproduction_status().to_string(index=False))
    return 0


def _memory(options: argparse.Namespace) -> int:
    import json

    import memory

    from prompteol_utils.results.store import Store
    from prompteol_utils.utils import devices

    store = Store(options.output) if options.output else None
    dtype = str(devices.choose_dtype(devices.choose_device(), options.dtype)).removeprefix("torch.")
    for model in options.models:
        for batch_tokens in options.batch_tokens:
            asked = {
                "model": model,
                "quantization": options.quantization,
                "dtype": dtype,
                "batch_tokens": batch_tokens,
            }
            if store and store.done({"kind": "memory", **asked}):
                print(f"{model}, {batch_tokens} tokens: done before, in {options.output}")
                continue
            row = memory.measure(**asked)
            print(
                json.dumps(
                    {
                        name: row[name]
                        for name in (
                            "model",
                            "bits",
                            "batch_tokens",
                            "estimate_total",
                            "measured_peak",
                            "ratio",
                        )
                    }
                )
            )
            if store:
                store.append(row)
    return 0


def _grid(options: argparse.Namespace) -> int:
    from prompteol_utils.prompts import parse_demonstration, with_demonstrations

    demonstrations = [parse_demonstration(text) for text in options.demonstration]
    if demonstrations and not options.prompts:
        options.prompts = ["prompteol"]
    prompts = options.prompts and [
        with_demonstrations(name, demonstrations) for name in options.prompts
    ]
    from prompteol_utils.experiments import sweep

    names = ("precisions", "split", "root", "limit", "seed", "device", "batch_tokens", "retry")
    settings = {name: getattr(options, name) for name in names}
    rows = sweep.grid(options.models, options.tasks, options.output, prompts=prompts, **settings)
    columns = [
        "model",
        "dtype",
        "quantization",
        "prompt",
        "task",
        "n",
        "spearman",
        "seconds",
        "origin",
        "reason",
    ]
    print(
        rows.reindex(columns=columns).to_string(
            index=False, float_format="{:.2f}".format, na_rep=""
        )
    )
    return int("kind" in rows and bool(rows["kind"].eq("failed").any()))
