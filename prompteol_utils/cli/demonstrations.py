"""Verbs of the demonstrations: build a set, search it, put several together."""

import argparse

from prompteol_utils.cli import options


def add_commands(verb) -> None:
    """Add this room's verbs; `verb(name, function, text)` makes one."""
    search = verb(
        "search",
        _search,
        "rank demonstrations by what they do to a model's score on dev pairs; goes on where it was stopped",
    )
    _sample_options(search)
    search.add_argument(
        "--mode",
        choices=("exact", "halving"),
        default="exact",
        help="halving: at a tenth of the cost (default: exact)",
    )
    search.add_argument(
        "--share",
        type=float,
        default=0.1,
        help="of the exact search's cost that halving may spend (default: %(default)s)",
    )
    search.add_argument(
        "--pairs",
        type=options.positive,
        default=150,
        help="dev pairs, a seeded sample (default: %(default)s)",
    )
    search.add_argument(
        "--step",
        type=options.positive,
        default=10,
        help="pairs between two finished rankings (default: %(default)s)",
    )
    search.add_argument(
        "--top", type=options.positive, default=10, help="how many to print (default: %(default)s)"
    )

    kshot = verb(
        "kshot",
        _kshot,
        "put the best of an exact search together one by one, and compare with other orders and random lists",
    )
    _sample_options(kshot)
    kshot.add_argument(
        "--top",
        type=options.positive,
        default=10,
        help="the best so many of the search are the pool (default: %(default)s)",
    )
    kshot.add_argument(
        "--shots",
        type=options.positive,
        default=8,
        help="how many demonstrations (default: %(default)s)",
    )
    kshot.add_argument(
        "--pairs",
        type=options.positive,
        help="dev pairs that choose (default: those that the search has finished)",
    )
    kshot.add_argument(
        "--held-out",
        type=options.positive,
        default=100,
        help="dev pairs after those, that only report (default: %(default)s)",
    )
    kshot.add_argument(
        "--orders",
        type=options.positive,
        default=12,
        help="orders of the first four to compare (default: %(default)s)",
    )
    kshot.add_argument(
        "--random",
        type=options.positive,
        default=5,
        help="random lists of 1, 2, 4, … to compare (default: %(default)s)",
    )

    build = verb(
        "build",
        _build,
        "make a set of demonstrations: a model labels sentences, a dictionary adds words; goes on where it was stopped",
    )
    build.add_argument(
        "--sentences",
        metavar="FILE",
        help="to label: .txt (a sentence a line), .csv, .tsv, .jsonl or .parquet",
    )
    build.add_argument(
        "--text-column",
        metavar="NAME",
        help="column with the sentences; by default sentence, text or the only one",
    )
    build.add_argument(
        "--endpoint",
        action="store_true",
        help="ask the OpenAI-compatible OPENAI_BASE_URL with OPENAI_API_KEY, not a local model",
    )
    build.add_argument(
        "--model",
        help="local: a name from `models`, a hub id or a folder; --endpoint: its name there (else OPENAI_MODEL)",
    )
    build.add_argument(
        "--examples",
        type=int,
        choices=range(6),
        default=5,
        help="solved examples that the model is shown; 0 asks plainly (default: %(default)s)",
    )
    build.add_argument(
        "--concurrency",
        type=options.positive,
        default=4,
        help="requests at the same time (default: %(default)s)",
    )
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
    build.add_argument(
        "--definitions",
        type=options.positive,
        default=200,
        help="words from it, a seeded sample (default: %(default)s)",
    )
    build.add_argument("--seed", type=int, default=0, help="of that sample (default: %(default)s)")
    build.add_argument(
        "--rows", metavar="FILE", help="answers as they come; what is in it is not asked again"
    )
    build.add_argument(
        "--output", required=True, metavar="FILE.csv", help="the set, for `search --candidates`"
    )


def _sample_options(parser: argparse.ArgumentParser) -> None:
    """The encoder, the candidates, the pairs to choose on, and where finished work is kept."""
    options.encoder_options(parser)
    parser.add_argument(
        "--prompt", default="prompteol", help="a name from PROMPTS (default: %(default)s)"
    )
    parser.add_argument(
        "--candidates",
        metavar="FILE",
        help="CSV with sentence, word, kind, topic (default: the project's 300)",
    )
    parser.add_argument(
        "--task", default="stsb", help="the set to choose on (default: %(default)s)"
    )
    parser.add_argument("--split", default="dev", help="its split (default: %(default)s)")
    parser.add_argument(
        "--root",
        metavar="FOLDER",
        help="SentEval's downstream folder (else PROMPTEOL_SENTEVAL, the hub, the own set)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: %(default)s)")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="rows of finished work; what is in it is not computed again",
    )


def _trials(options: argparse.Namespace):
    """The candidates, the live trials, and the demonstrations that stand before each candidate; wrong input is said first."""
    from prompteol_utils.data import bundled
    from prompteol_utils.data import sts as sts_data
    from prompteol_utils.demonstrations import scores, search
    from prompteol_utils.prompts import get_prompt

    candidates = (
        bundled.load_demonstrations(options.candidates)
        if options.candidates
        else bundled.load_demonstrations()
    )
    search.check_candidates(candidates)
    dev = sts_data.load_sts(options.task, options.split, root=options.root)
    loaded, (prompt,) = options.load(options)
    live = scores.DemonstrationScores.live(
        loaded,
        dev,
        prompt=get_prompt(options.prompt),
        store=options.output,
        pooling=options.pooling,
        layer=options.layer,
        seed=options.seed,
    )
    return candidates, live, prompt.demonstrations


def _show(table, columns: list[str] | None = None) -> None:
    print(table.to_string(index=False, float_format="{:.2f}".format, columns=columns), flush=True)


def _search(options: argparse.Namespace) -> int:
    from prompteol_utils.demonstrations import search

    candidates, trials, chosen = _trials(options)
    pairs = min(options.pairs, len(trials))
    if options.mode == "halving":
        table = search.halving(
            trials, candidates, pairs, share=options.share, chosen=chosen, show_progress_bar=True
        )
    else:
        for stop in [*range(options.step, pairs, options.step), pairs]:
            table = search.exact(
                trials, candidates, stop, chosen=chosen, step=options.step, show_progress_bar=True
            )
            best, helps = table.iloc[0], 100 * (table["gain"] > 0).mean()
            print(
                f"{stop} pairs: best {best['word']} {best['spearman']:.2f} ({best['gain']:+.2f}); {helps:.0f}% help",
                flush=True,
            )
    _show(table.head(options.top))
    print(
        f"{search.count_encoded_sentences(table):,} sentences encoded for {len(candidates)} candidates"
    )
    return 0


def _kshot(options: argparse.Namespace) -> int:
    from prompteol_utils.demonstrations import analysis, search

    candidates, trials, chosen = _trials(options)
    if chosen:
        raise ValueError("kshot chooses all its demonstrations itself; leave --demonstration out")
    table = search.rank(trials, candidates, options.pairs)
    pool = search.demonstrations_of(table.head(options.top), candidates)
    pairs, stop = (
        int(table["n"].iloc[0]),
        min(int(table["n"].iloc[0]) + options.held_out, len(trials)),
    )
    print(
        f"the best {len(pool)} of {len(candidates)} on {pairs} pairs; reported on {stop - pairs} more",
        flush=True,
    )
    greedy = search.greedy_shots(
        trials, pool, min(options.shots, len(pool)), pairs, held_out=stop - pairs
    )
    _show(greedy)
    first = search.demonstrations_of(greedy[1:5], pool)
    if len(first) > 1:
        _show(analysis.orders(trials, first, pairs, limit=options.orders, seed=options.seed))
    counts = [k for k in (1, 2, 4, 8) if k <= min(options.shots, len(candidates))]
    lists = analysis.random_shots(
        trials, candidates, counts, options.random, stop, start=pairs, seed=options.seed
    )
    _show(lists.groupby("shots", as_index=False)["spearman"].agg(["mean", "min", "max"]))
    return 0


def _build(options: argparse.Namespace) -> int:
    import numpy as np

    from prompteol_utils.data import sentences
    from prompteol_utils.demonstrations import build, wordnet

    texts = (
        list(sentences.read_sentences(options.sentences, options.text_column))
        if options.sentences
        else []
    )
    pairs = list(wordnet.read_wordnet(options.wordnet)) if options.wordnet else []
    if len(pairs) > options.definitions:
        pairs = [
            pairs[i]
            for i in sorted(
                np.random.default_rng(options.seed).choice(
                    len(pairs), options.definitions, replace=False
                )
            )
        ]
    table = build.build_demonstrations(
        _labeller(options, texts), texts, definitions=pairs, store=options.rows
    )
    for reason, n in table["reject"][table["reject"] != ""].value_counts().items():
        print(f"rejected, {reason}: {n}")
    print(
        f"{build.save_demonstrations(table, options.output)} demonstrations of {len(table)}: {options.output}"
    )
    return 0


def _labeller(options: argparse.Namespace, texts: list[str]):
    """The labelling function; None where there is nothing to label."""
    from prompteol_utils.demonstrations import labelling

    if not texts:
        return None
    examples = labelling.EXAMPLES[: options.examples]
    if options.endpoint:
        label = labelling.endpoint_labeller(
            model=options.model, concurrency=options.concurrency, examples=examples
        )
        cost = labelling.estimate_cost(texts, *options.price)
        print(
            "at most: " + ", ".join(f"{name} {value:,.4g}" for name, value in cost.items()),
            flush=True,
        )
        return label
    from prompteol_utils.models.loading import load_model

    return labelling.local_labeller(
        load_model(options.model or options.DEFAULT_MODEL), examples=examples
    )
