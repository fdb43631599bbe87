"""Subcommands `build`, `search` and `kshot`: a demonstration set, and what to choose from it."""

import argparse

from prompteol_utils.cli import options as shared

SEARCHES = "searches.jsonl"


def add_commands(subcommand) -> None:
    """Register the subcommands; `subcommand(name, function, text)` makes one."""
    search = subcommand(
        "search", _search, "rank demonstrations by the score they give on dev pairs; resumable"
    )
    _selection(search)
    _number(search, "--pairs", 150, "dev pairs used for selection, a seeded sample")
    search.add_argument(
        "--mode",
        choices=("exact", "halving"),
        default="exact",
        help="every candidate on every pair, or successive halving at a share of the cost",
    )
    search.add_argument(
        "--share", type=float, default=0.1, help="of the exact cost that halving may spend"
    )
    _number(search, "--step", 10, "pairs between two finished rankings")
    _number(search, "--top", 10, "how many to print")

    kshot = subcommand(
        "kshot",
        _kshot,
        "choose several demonstrations greedily among the best of an exact search; compare with "
        "other orders and random lists",
    )
    _selection(kshot)
    kshot.add_argument(
        "--pairs",
        type=shared.positive,
        help="dev pairs used for selection (default: those that the search has finished)",
    )
    _number(kshot, "--held-out", 100, "further dev pairs, used for reporting only")
    _number(kshot, "--top", 10, "the pool: the best of the search")
    _number(kshot, "--shots", 8, "demonstrations at most")
    _number(kshot, "--orders", 12, "orders of the first four to compare")
    _number(kshot, "--random", 5, "random lists of 1, 2, 4, … to compare")

    build = subcommand(
        "build",
        _build,
        "build a demonstration set: a model labels sentences, a dictionary adds words; resumable",
    )
    _build_options(build)


def _build_options(build: argparse.ArgumentParser) -> None:
    build.add_argument(
        "--input", metavar="FILE", help="sentences to label: .txt, .csv, .tsv, .jsonl or .parquet"
    )
    build.add_argument(
        "--text-column",
        metavar="NAME",
        help="column with the sentences (default: sentence, text, or the only one)",
    )
    build.add_argument(
        "--endpoint",
        action="store_true",
        help="ask OPENAI_BASE_URL with OPENAI_API_KEY instead of a local model",
    )
    shared.add(
        build,
        "model",
        required=False,
        help=f"(default: {shared.DEFAULT_MODEL}; with --endpoint its name there, or OPENAI_MODEL)",
    )
    build.add_argument(
        "--examples", type=int, choices=range(6), default=5, help="solved examples in the request"
    )
    _number(build, "--concurrency", 4, "requests at the same time")
    build.add_argument(
        "--price",
        nargs=2,
        type=float,
        default=(0.0, 0.0),
        metavar=("IN", "OUT"),
        help="of a million tokens, for the estimate",
    )
    build.add_argument(
        "--wordnet", metavar="FOLDER", help="a WordNet database, such as /usr/share/wordnet"
    )
    _number(build, "--definitions", 200, "words from it, a seeded sample")
    shared.add(build, "seed")
    build.add_argument(
        "--records",
        metavar="FILE",
        help="JSON lines; answers found there are not asked again (default: OUTPUT.jsonl)",
    )
    shared.add(build, "output", required=True, metavar="FILE.csv", help="for `search --candidates`")


def _number(parser: argparse.ArgumentParser, name: str, default: int, text: str) -> None:
    parser.add_argument(name, type=shared.positive, default=default, metavar="N", help=text)


def _selection(parser: argparse.ArgumentParser) -> None:
    """Add what both kinds of selection need: encoder, candidates, dev pairs, store."""
    shared.add(parser, "prompt", *shared.ENCODER, "root", "seed")
    text = "JSON lines: cosines found there are not computed again (default: {})"
    shared.add(parser, "output", help=text.format(f"{SEARCHES} in the cache folder"))
    shared.add(parser, "tasks", nargs=None, default="stsb")
    shared.add(parser, "split", default="dev")
    parser.add_argument(
        "--candidates",
        metavar="FILE",
        help="CSV with sentence and word (default: the 300 of this project)",
    )


def _scores(options: argparse.Namespace):
    """Make the scores to search in; wrong input is refused before a model is loaded.

    Returns:
        The candidates, the `DemonstrationScores`, and the demonstrations before each candidate.
    """
    from prompteol_utils.data import load_demonstrations, load_sts
    from prompteol_utils.demonstrations import DemonstrationScores, check_candidates
    from prompteol_utils.models.adapters import check_prompt
    from prompteol_utils.prompts import get_prompt
    from prompteol_utils.utils import files

    candidates = load_demonstrations(*([options.candidates] if options.candidates else []))
    check_candidates(candidates)
    dev = load_sts(options.tasks, options.split, root=options.root)
    loaded, (prompt,) = shared.load(options)
    check_prompt(loaded, prompt)
    scores = DemonstrationScores.live(
        loaded,
        dev,
        prompt=get_prompt(options.prompt or "prompteol"),
        store=options.output or files.cache_folder() / SEARCHES,
        pooling=options.pooling,
        layer=options.layer,
        seed=options.seed,
    )
    return candidates, scores, prompt.demonstrations


def _search(options: argparse.Namespace) -> int:
    from prompteol_utils.demonstrations import search

    candidates, scores, chosen = _scores(options)
    pairs = min(options.pairs, len(scores))
    shown = {"chosen": chosen, "show_progress_bar": True}
    if options.mode == "halving":
        table = search.halving(scores, candidates, pairs, share=options.share, **shown)
    else:
        for stop in [*range(options.step, pairs, options.step), pairs]:
            table = search.exact(scores, candidates, stop, step=options.step, **shown)
            best = table.iloc[0]
            helps = (table["gain"] > 0).mean()
            print(
                f"{stop} pairs: best {best['word']} {best['spearman']:.2f} "
                f"({best['gain']:+.2f}); {helps:.0%} help",
                flush=True,
            )
    shared.print_table(table.head(options.top))
    cost = search.count_encoded_sentences(table)
    print(f"{cost:,} sentences encoded for {len(candidates)} candidates")
    return 0


def _kshot(options: argparse.Namespace) -> int:
    from prompteol_utils.demonstrations import analysis, search

    candidates, scores, chosen = _scores(options)
    if chosen:
        raise ValueError("kshot chooses all its demonstrations itself; leave --demonstration out")
    table = search.rank(scores, candidates, options.pairs)
    pool = search.demonstrations_of(table.head(options.top), candidates)
    pairs = int(table["n"].iloc[0])
    stop = min(pairs + options.held_out, len(scores))
    print(f"the best {len(pool)} of {len(candidates)} on {pairs} pairs; {stop - pairs} held out")
    shots = min(options.shots, len(pool))
    greedy = search.greedy_shots(scores, pool, shots, pairs, held_out=stop - pairs)
    shared.print_table(greedy)
    first = search.demonstrations_of(greedy[1:5], pool)
    if len(first) > 1:
        limits = {"limit": options.orders, "seed": options.seed}
        shared.print_table(analysis.orders(scores, first, pairs, **limits))
    counts = [k for k in (1, 2, 4, 8) if k <= min(options.shots, len(candidates))]
    lists = analysis.random_shots(
        scores, candidates, counts, options.random, stop, start=pairs, seed=options.seed
    )
    shared.print_table(
        lists.groupby("shots", as_index=False)["spearman"].agg(["mean", "min", "max"])
    )
    return 0


def _build(options: argparse.Namespace) -> int:
    import numpy as np

    from prompteol_utils.data import read_sentences
    from prompteol_utils.demonstrations import (
        build_demonstrations,
        read_wordnet,
        save_demonstrations,
    )

    texts = []
    if options.input:
        texts = list(read_sentences(options.input, options.text_column))
    pairs = list(read_wordnet(options.wordnet)) if options.wordnet else []
    if len(pairs) > options.definitions:
        draw = np.random.default_rng(options.seed)
        kept = draw.choice(len(pairs), options.definitions, replace=False)
        pairs = [pairs[i] for i in sorted(kept)]
    label = _labeller(options, texts) if texts else None
    records = options.records or f"{options.output}.jsonl"
    table = build_demonstrations(label, texts, definitions=pairs, store=records)
    for reason, n in table["reject"][table["reject"] != ""].value_counts().items():
        print(f"rejected, {reason}: {n}")
    kept = save_demonstrations(table, options.output)
    print(f"{kept} demonstrations of {len(table)}: {options.output}")
    return 0


def _labeller(options: argparse.Namespace, texts: list[str]):
    from prompteol_utils.demonstrations import labelling

    examples = labelling.EXAMPLES[: options.examples]
    if options.endpoint:
        label = labelling.endpoint_labeller(
            model=options.model, concurrency=options.concurrency, examples=examples
        )
        cost = labelling.estimate_cost(texts, *options.price)
        print("at most: " + ", ".join(f"{name} {value:,.4g}" for name, value in cost.items()))
        return label
    from prompteol_utils.models import load_model

    return labelling.local_labeller(
        load_model(options.model or shared.DEFAULT_MODEL), examples=examples
    )
