"""The command line: python -m prompteol_utils VERB. Each verb imports what it needs, so that --help is there at once."""

import argparse
import ast
import importlib
import json
import os
import sys
import time
from collections.abc import Sequence

from prompteol_utils.cli import DEFAULT_MODEL, encoder_options, load, positive, row_key

# Modules that bring verbs of their own: each has add_verbs(verb), and imports what is heavy inside.
ROOMS: tuple[str, ...] = (
    "cli_demonstrations",
    "cli_finetuning",
    "cli_scaling",
    "cli_transfer",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        arguments: As on the command line, without the program's name; None takes them from there.

    Returns:
        The exit code: 0, 1 where a run, a notebook or a check failed, 2 for wrong input, 130 after Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    for variable in ("HF_HUB_DISABLE_PROGRESS_BARS", "TRANSFORMERS_NO_ADVISORY_WARNINGS"):
        os.environ.setdefault(variable, "1")
    try:
        return options.verb(options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output (head, say) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if options.debug:
            raise
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 2


def _one_line(error: Exception) -> str:
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.filename and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    return " ".join(text.split())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m prompteol_utils", description="Sentence embeddings from language models (PromptEOL).")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name, function, text):
        made = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", parents=[common])
        made.set_defaults(verb=function)
        return made

    run = verb("run", _run, "execute notebooks in order; the copies go to build/notebooks")
    run.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="a file, a name or its first letters (00); all of them by default")
    run.add_argument("--profile", help="a name in notebooks/profiles.yml; by default the values in the notebooks")
    run.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="override one parameter")
    run.add_argument("--output", metavar="FOLDER", help="where the executed copies go")
    run.add_argument("--publish", action="store_true", help="write the outputs of the default profile into notebooks/")

    encode = verb("encode", _encode, "embed the sentences of a file; a run that was cut off goes on where it was")
    encode.add_argument("--input", required=True, metavar="FILE", help=".txt (a sentence a line), .csv, .tsv, .jsonl or .parquet")
    encode.add_argument("--output", required=True, metavar="FILE", help=".npy or .parquet")
    encode.add_argument("--text-column", metavar="NAME", help="column with the sentences; by default sentence, text or the only one")
    encoder_options(encode)
    encode.add_argument("--prompt", help="a name from PROMPTS (default: the model's own, prompteol for a language model)")

    sts = verb("sts", _sts, "score a model on semantic textual similarity (Spearman x 100)")
    encoder_options(sts)
    sts.add_argument(
        "--prompt", nargs="+", dest="prompts", help="names from PROMPTS (default: the model's own, prompteol for a language model)"
    )
    sts.add_argument(
        "--tasks", nargs="+", default=["stsb"], metavar="TASK", help="sts12 sts13 sts14 sts15 sts16 stsb sickr (default: stsb)"
    )
    sts.add_argument("--split", default="test", help="test (default), dev or train where the set has them")
    sts.add_argument(
        "--root", metavar="FOLDER", help="SentEval's downstream folder (else PROMPTEOL_SENTEVAL, the hub, the set of the project)"
    )
    sts.add_argument("--limit", type=positive, metavar="N", help="a seeded sample of N pairs a set")
    sts.add_argument("--seed", type=int, default=0, help="of that sample (default: %(default)s)")
    sts.add_argument("--output", metavar="FILE", help="append one JSON row a task here; rows that are there are not computed again")
    sts.add_argument("--reference", action="store_true", help="the plain loop, one sentence at a time, to compare with")

    for name, function, text in (
        ("check", _check, "say what breaks the rules for notebooks"),
        ("clean", _clean, "take out of notebooks what differs between machines; outputs stay"),
        ("strip", _clean, "clean, and take the outputs out too"),
    ):
        verb(name, function, text).add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="all of them by default")
        verbs.choices[name].set_defaults(change=name)
    fetch = verb("fetch", _fetch, "download and convert a bundled model, so that later runs need no network")
    fetch.add_argument("models", nargs="*", metavar="MODEL", help=f"default: {DEFAULT_MODEL}")
    verb("models", _models, "list the models that have a name here")
    for room in ROOMS:
        importlib.import_module(f"prompteol_utils.{room}").add_verbs(verb)
    return parser


def _run(options: argparse.Namespace) -> int:
    from prompteol_utils import runner

    outcomes = runner.run(
        options.notebooks,
        profile=options.profile,
        overrides={name: _literal(value) for name, value in options.parameter},
        output=options.output,
        publish=options.publish,
    )
    if any(outcome.status == "interrupted" for outcome in outcomes):
        return 130
    return int(any(outcome.status != "ok" for outcome in outcomes))


def _literal(text: str):
    """A value as Python writes it; a word without quotes is a string."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _encode(options: argparse.Namespace) -> int:
    from prompteol_utils import sentences, streaming

    streaming.check_target(options.output)
    for _ in sentences.read_sentences(options.input, options.text_column):
        break  # a file that is not there is said before a model is loaded
    loaded, (prompt,) = load(options)
    from prompteol_utils.encoder import Encoder

    encoder = Encoder(loaded, prompt, pooling=options.pooling, layer=options.layer)
    start = time.perf_counter()
    n = streaming.encode_file(options.input, options.output, encoder, options.text_column)
    print(f"{n:,} sentences x {encoder.dimension} in {time.perf_counter() - start:.1f} s: {options.output}")
    return 0


def _sts(options: argparse.Namespace) -> int:
    from prompteol_utils import data, results

    pairs = [data.load_sts(task, options.split, root=options.root, limit=options.limit, seed=options.seed) for task in options.tasks]
    store = results.Store(options.output) if options.output else None
    loaded, prompts = load(options)
    from prompteol_utils.encoder import Encoder

    rows = []
    for prompt in prompts:
        encoder = Encoder(loaded, prompt, pooling=options.pooling, layer=options.layer)
        for task, one in zip(options.tasks, pairs, strict=True):
            key = row_key(encoder, task, one, options)
            if store and store.done(key):
                print(f"{prompt.name} {task} {options.split}: done before, in {options.output}")
                continue
            rows.append(_score(encoder, one, key, options))
            print(f"{prompt.name} {task} {options.split}: {rows[-1]['spearman']:.2f}", flush=True)
            if store:
                store.append(rows[-1])
    if rows:
        import pandas

        columns = ["model", "prompt", "task", "split", "n", "spearman", "spearman_subset_mean", "origin", "text_form", "seconds"]
        print(pandas.DataFrame(rows)[columns].to_string(index=False, float_format="{:.2f}".format))
    return 0


def _score(encoder, pairs, key: dict, options: argparse.Namespace) -> dict:
    from prompteol_utils import evaluation, results
    from prompteol_utils.plain import reference

    def plain(sentences):
        from tqdm import tqdm

        bar = tqdm(sentences, desc="reference", unit="sentence", leave=False, mininterval=1)
        return reference(encoder.loaded, encoder.prompt, bar, pooling=options.pooling, layer=options.layer)

    start = time.perf_counter()
    scores = json.loads(evaluation.evaluate_sts(plain if options.reference else encoder.encode, pairs).iloc[0].to_json(double_precision=10))
    measured = {name: scores[name] for name in ("spearman", "spearman_subset_mean")}
    return {**key, **measured, "seconds": round(time.perf_counter() - start, 2), **results.provenance(options.seed)}


def _check(options: argparse.Namespace) -> int:
    from prompteol_utils import tidy

    paths, problems = tidy.find(options.notebooks), tidy.check(options.notebooks)
    for problem in problems:
        print(problem)
    print(f"{len(paths)} notebooks, {len(problems)} problems")
    return int(bool(problems))


def _clean(options: argparse.Namespace) -> int:
    from prompteol_utils import tidy

    changed = getattr(tidy, options.change)(options.notebooks)
    print("\n".join([*map(tidy.show, changed), f"{len(changed)} notebooks changed"]))
    return 0


def _fetch(options: argparse.Namespace) -> int:
    from prompteol_utils import models

    for name in options.models or [DEFAULT_MODEL]:
        models.fetch_model(name)
        print(f"{name} is in the cache folder", flush=True)
    return 0


def _models(options: argparse.Namespace) -> int:
    from prompteol_utils.registry import MODELS

    rows = [("name", "hub id", "weights", "licence")] + [(s.name, s.hub_id, s.weight_origin, s.licence) for s in MODELS.values()]
    for row in rows:
        print("  ".join(cell.ljust(max(len(r[i]) for r in rows)) for i, cell in enumerate(row)).rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
