"""The verb `transfer`: accuracies on classification tasks as rows, each computed once."""

import argparse

from prompteol_utils.cli import options


def add_commands(verb) -> None:
    """Add this room's verb; `verb(name, function, text)` makes one."""
    transfer = verb(
        "transfer",
        _transfer,
        "score a model on classification: a linear classifier on its embeddings (accuracy x 100)",
    )
    options.encoder_options(transfer)
    transfer.add_argument(
        "--prompt",
        nargs="+",
        default=["prompteol"],
        dest="prompts",
        help="names from PROMPTS (default: prompteol)",
    )
    transfer.add_argument(
        "--tasks", nargs="+", metavar="TASK", help="mr cr subj mpqa sst2 trec mrpc (default: all)"
    )
    transfer.add_argument(
        "--solvers",
        nargs="+",
        default=["senteval", "lbfgs"],
        metavar="SOLVER",
        help="senteval, lbfgs (default: %(default)s)",
    )
    transfer.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=[1111],
        help="of folds and classifier (default: SentEval's, 1111)",
    )
    transfer.add_argument(
        "--folds", type=options.positive, default=10, help="outer and inner (default: %(default)s)"
    )
    transfer.add_argument(
        "--root",
        metavar="FOLDER",
        help="SentEval's downstream folder (else PROMPTEOL_SENTEVAL, the hub, the set of the project)",
    )
    transfer.add_argument(
        "--limit",
        type=options.positive,
        metavar="N",
        help="a seeded sample of at most N sentences of each split",
    )
    transfer.add_argument(
        "--seed", type=int, default=0, help="of that sample (default: %(default)s)"
    )
    transfer.add_argument(
        "--output",
        metavar="FILE",
        help="append one JSON row a task, solver and seed; rows that are there are kept",
    )
    transfer.add_argument(
        "--encode-only",
        action="store_true",
        help="only fill the embedding cache, for a classifier run later",
    )


def _transfer(options: argparse.Namespace) -> int:
    from prompteol_utils.data import transfer as transfer_data
    from prompteol_utils.evaluation import probes, transfer
    from prompteol_utils.experiments import sweep
    from prompteol_utils.results.store import Store

    if wrong := [solver for solver in options.solvers if solver not in probes.SOLVERS]:
        raise ValueError(f"unknown solver {wrong[0]!r}; allowed: {', '.join(probes.SOLVERS)}")
    names = options.tasks or transfer_data.TRANSFER_TASKS
    tasks = [
        transfer_data.load_transfer(name, root=options.root, limit=options.limit, seed=options.seed)
        for name in names
    ]
    store = Store(options.output) if options.output else None
    loaded, prompts = options.load(options)
    from prompteol_utils.encoder.encoder import Encoder

    rows = []
    for prompt in prompts:
        encoder = Encoder(loaded, prompt, pooling=options.pooling, layer=options.layer)
        for task in tasks:
            keys = [
                _key(encoder, task, options, solver, seed)
                for solver in options.solvers
                for seed in options.seeds
            ]
            todo = [key for key in keys if not (store and store.done(key))]
            if not todo and not options.encode_only:
                print(f"{prompt.name} {task.name}: done before, in {options.output}")
                continue
            rows += sweep.measure(
                encoder, task, [] if options.encode_only else todo, store, folds=options.folds
            )
    if rows:
        import pandas

        columns = ["model", "prompt", "task", "solver", "seed", "accuracy", "fold_std", "n_train", "n_test", "origin", "encode_seconds",
                   "classifier_seconds"]  # fmt: skip
        table = pandas.DataFrame(rows)
        print(table[columns].to_string(index=False, float_format="{:.2f}".format))
        if table["seed"].nunique() > 1:
            print("over the seeds of this run:")
            print(
                transfer.spread(table, ("prompt", "task", "solver")).to_string(
                    float_format="{:.2f}".format
                )
            )
    return 0


def _key(encoder, task, options: argparse.Namespace, solver: str, seed: int) -> dict:
    """What makes a row the same measurement."""
    from prompteol_utils.evaluation import transfer
    from prompteol_utils.experiments import sweep

    settings = argparse.Namespace(
        layer=options.layer, reference=False, split=transfer.reported_split(task), seed=seed
    )
    cell = options.row_key(encoder, task.name, task, settings)
    return sweep.row_key(
        cell, solver, folds=options.folds, limit=options.limit, sample_seed=options.seed
    )
