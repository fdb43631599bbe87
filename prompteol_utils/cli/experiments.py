"""Subcommands `grid` (models x precisions x prompts x tasks) and `reverse-dictionary`."""

import argparse

from prompteol_utils.cli import options as shared

# What only one of the two ways to use the command reads; the other refuses it.
_OF_PAPER = ("transfer", "tolerance", "weights")
_OF_MODELS = ("model", "prompt", "demonstration", "limit", "batch_tokens", "skip_failed")


def add_commands(subcommand) -> None:
    """Register the subcommands; `subcommand(name, function, text)` makes one."""
    grid = subcommand(
        "grid",
        _grid,
        "measure models x precisions x prompts x tasks, or a system of the paper's tables; "
        "resumable",
    )
    shared.add(grid, "model", required=False, nargs="+", help="names, hub ids or folders")
    shared.add(grid, "adapter")
    grid.add_argument(
        "--paper",
        nargs="*",
        metavar="NAME",
        help="measure a published system again and compare, such as opt-125m or opt-125m-icl; "
        "without a name: list them",
    )
    shared.add(grid, "dtype", "quantization", nargs="+", default=[])
    shared.add(grid, "prompt", nargs="+")
    shared.add(grid, "demonstration", "device", "batch-tokens")
    shared.add(grid, "tasks", default=None, help="STS tasks (default: stsb; --paper: all seven)")
    shared.add(grid, "split", *shared.SAMPLE)
    grid.add_argument(
        "--skip-failed", action="store_true", help="leave cells that failed before as they are"
    )
    paper = grid.add_argument_group("with --paper")
    paper.add_argument(
        "--transfer", action="store_true", help="the seven transfer tasks instead of STS"
    )
    paper.add_argument(
        "--tolerance",
        type=float,
        metavar="POINTS",
        help="allowed difference (default: 0.5; for a transfer task 1.0)",
    )
    paper.add_argument("--weights", metavar="FOLDER", help="the model's weights on disk")
    shared.add(grid, "output", required=True)

    words = subcommand(
        "reverse-dictionary",
        _reverse_dictionary,
        "find words in WordNet by 200 definitions written for this project; resumable",
    )
    shared.add(words, "model", required=False, help="as elsewhere; none: BM25, without a model")
    shared.add(words, *shared.ENCODER[1:], "prompt")
    words.add_argument(
        "--wordnet", metavar="FOLDER", help="(default: where PROMPTEOL_WORDNET, Debian, NLTK say)"
    )
    shared.add(words, "limit", "seed")
    words.add_argument(
        "--vectors", metavar="FOLDER", help="where vectors are kept (default: the cache folder)"
    )
    words.add_argument(
        "--index", action="store_true", help="measure LanceDB's index instead (extra: search)"
    )
    shared.add(words, "output")


def _precisions(options: argparse.Namespace) -> list[str]:
    from prompteol_utils.experiments.sweep import DTYPES

    return [*map(DTYPES.get, options.dtype), *options.quantization] or ["auto"]


def _refuse(options: argparse.Namespace, names: tuple[str, ...], where: str) -> None:
    if given := [name for name in names if getattr(options, name)]:
        raise ValueError(f"--{given[0].replace('_', '-')} has no effect {where}; leave it out")


def _grid(options: argparse.Namespace) -> int:
    if options.paper is not None:
        return _paper(options)
    if not options.model:
        raise ValueError("name the models to measure (--model), or a published system (--paper)")
    _refuse(options, _OF_PAPER, "without --paper")
    from prompteol_utils.experiments import sweep
    from prompteol_utils.prompts import parse_demonstration, with_demonstrations

    demonstrations = [parse_demonstration(text) for text in options.demonstration]
    names = options.prompt or (["prompteol"] if demonstrations else None)
    prompts = names and [with_demonstrations(name, demonstrations) for name in names]
    settings = ("split", "root", "limit", "seed", "device", "batch_tokens", "skip_failed")
    table = sweep.grid(
        options.model,
        options.tasks or ["stsb"],
        options.output,
        precisions=_precisions(options),
        prompts=prompts,
        load_options={name: {"adapter": options.adapter} for name in options.model},
        **{name: getattr(options, name) for name in settings},
    )
    columns = ["model", "adapter", "dtype", "quantization", "prompt", "task", "n", "spearman"]
    shared.print_table(table, [*columns, "seconds", "origin", "reason"])
    return int("kind" in table and bool(table["kind"].eq("failed").any()))


def _paper(options: argparse.Namespace) -> int:
    from prompteol_utils.data import STS_TASKS, TRANSFER_TASKS
    from prompteol_utils.experiments import reproduction

    _refuse(options, _OF_MODELS, "with --paper")
    if not options.paper:
        for table in ("sts", "transfer"):
            for one in reproduction.reproductions(table).values():
                print(f"{table:8}  {one.name:24} {one.system} ({one.group})")
        return 0
    tasks = options.tasks or (TRANSFER_TASKS if options.transfer else STS_TASKS)
    if wrong := [task for task in tasks if task not in (*STS_TASKS, *TRANSFER_TASKS)]:
        known = ", ".join((*STS_TASKS, *TRANSFER_TASKS))
        raise ValueError(f"unknown task {wrong[0]!r}; allowed: {known}")
    sts = [task for task in tasks if task in STS_TASKS]
    transfer = [task for task in tasks if task in TRANSFER_TASKS]
    precision, *more = _precisions(options)
    if more:
        raise ValueError(f"--paper takes one precision, got {precision}, {', '.join(more)}")
    settings = {"precision": precision}
    for name in ("root", "device", "tolerance", "weights"):
        settings[name] = getattr(options, name)
    verdicts: list[str] = []
    for name in options.paper:
        tables = []
        if sts:
            more = {"adapter": options.adapter, "tasks": sts, **settings}
            tables.append(reproduction.reproduce(name, options.output, **more))
        if transfer:
            more = {"tasks": transfer, **settings}
            tables.append(reproduction.reproduce_transfer(name, options.output, **more))
        for table in tables:
            shared.print_table(table)
            verdicts += table["verdict"].tolist()
    return int(set(verdicts) - {"no number"} != {"pass"})


def _reverse_dictionary(options: argparse.Namespace) -> int:
    from prompteol_utils.data import load_definitions, load_dictionary
    from prompteol_utils.experiments import measure_index, search_dictionary
    from prompteol_utils.utils.files import cache_folder

    definitions = load_definitions()
    sample = {"limit": options.limit, "seed": options.seed}
    dictionary = load_dictionary(options.wordnet, keep=definitions, **sample)
    encoder = None
    if options.model:
        loaded, (prompt,) = shared.load(options)
        from prompteol_utils.encoder import Encoder

        encoder = Encoder(loaded, prompt, pooling=options.pooling, layer=options.layer)
    folder = options.vectors or cache_folder() / "reverse_dictionary"
    more = {"output": options.output, "seed": options.seed}
    columns = ["model", "prompt", "method", "n", "accuracy_1", "accuracy_10", "accuracy_100"]
    if not options.index:
        table = search_dictionary(dictionary, encoder, folder, **more)
        shared.print_table(table, [*columns, "median_rank"])
        return 0
    if encoder is None:
        raise ValueError("--index needs a model, whose vectors are put into the index (--model)")
    table = measure_index(dictionary, encoder, folder, **more)
    shared.print_table(table, [*columns, "probes", "refine", "recall", "milliseconds"])
    return 0
