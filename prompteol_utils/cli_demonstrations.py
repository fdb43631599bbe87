"""Verbs of the demonstrations: search them."""

import argparse

from prompteol_utils import cli


def add_verbs(verb) -> None:
    """Add this room's verbs; `verb(name, function, text)` makes one."""
    search = verb("search", _search, "rank demonstrations by what they do to a model's score on dev pairs; goes on where it was stopped")
    cli.encoder_options(search)
    search.add_argument("--prompt", default="prompteol", help="a name from PROMPTS (default: %(default)s)")
    search.add_argument("--candidates", metavar="FILE", help="CSV with sentence, word, kind, topic (default: the project's 300)")
    search.add_argument("--pairs", type=cli.positive, default=150, help="dev pairs, a seeded sample (default: %(default)s)")
    search.add_argument("--step", type=cli.positive, default=10, help="pairs between two finished rankings (default: %(default)s)")
    _sample_options(search)
    search.add_argument("--top", type=cli.positive, default=10, help="how many to print (default: %(default)s)")


def _sample_options(parser: argparse.ArgumentParser) -> None:
    """The pairs to choose on, and where finished work is kept."""
    parser.add_argument("--task", default="stsb", help="the set to choose on (default: %(default)s)")
    parser.add_argument("--split", default="dev", help="its split (default: %(default)s)")
    parser.add_argument("--root", metavar="FOLDER", help="SentEval's downstream folder (else PROMPTEOL_SENTEVAL, the hub, the own set)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: %(default)s)")
    parser.add_argument("--output", metavar="FILE", help="rows of finished work; what is in it is not computed again")


def _trials(options: argparse.Namespace):
    from prompteol_utils import data, trials
    from prompteol_utils.prompts import get_prompt

    dev = data.load_sts(options.task, options.split, root=options.root)
    loaded, (prompt,) = cli.load(options)
    live = trials.Trials.live(
        loaded,
        dev,
        prompt=get_prompt(options.prompt),
        store=options.output,
        pooling=options.pooling,
        layer=options.layer,
        seed=options.seed,
    )
    return live, prompt.demonstrations


def _candidates(options: argparse.Namespace) -> list:
    from prompteol_utils import data, search

    candidates = data.load_demonstrations(options.candidates) if options.candidates else data.load_demonstrations()
    search.check_candidates(candidates)
    return candidates


def _search(options: argparse.Namespace) -> int:
    from prompteol_utils import search

    candidates = _candidates(options)
    trials, chosen = _trials(options)
    pairs = min(options.pairs, len(trials))
    for stop in [*range(options.step, pairs, options.step), pairs]:
        table = search.exact(trials, candidates, stop, chosen=chosen, step=options.step, show_progress_bar=True)
        best = table.iloc[0]
        helps = 100 * (table["gain"] > 0).mean()
        print(f"{stop} pairs: best {best['word']} {best['spearman']:.2f} ({best['gain']:+.2f}); {helps:.0f}% help", flush=True)
    print(table.head(options.top).to_string(index=False, float_format="{:.2f}".format))
    return 0
