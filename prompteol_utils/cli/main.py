"""The command line: python -m prompteol_utils VERB. Each verb imports what it needs, so that --help is there at once."""

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Sequence

from prompteol_utils.cli.options import DEFAULT_MODEL, encoder_options, load, positive, row_key

# Modules that bring verbs of their own: each has add_commands(verb), and imports what is heavy inside.
COMMAND_MODULES: tuple[str, ...] = ("demonstrations", "finetune", "experiments", "evaluate")


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
    parser = argparse.ArgumentParser(
        prog="python -m prompteol_utils",
        description="Sentence embeddings from language models (PromptEOL).",
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name, function, text):
        made = verbs.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".", parents=[common]
        )
        made.set_defaults(verb=function)
        return made

    encode = verb(
        "encode",
        _encode,
        "embed the sentences of a file; a run that was cut off goes on where it was",
    )
    encode.add_argument(
        "--input",
        required=True,
        metavar="FILE",
        help=".txt (a sentence a line), .csv, .tsv, .jsonl or .parquet",
    )
    encode.add_argument("--output", required=True, metavar="FILE", help=".npy or .parquet")
    encode.add_argument(
        "--text-column",
        metavar="NAME",
        help="column with the sentences; by default sentence, text or the only one",
    )
    encoder_options(encode)
    encode.add_argument(
        "--prompt",
        help="a name from PROMPTS (default: the model's own, prompteol for a language model)",
    )

    sts = verb("sts", _sts, "score a model on semantic textual similarity (Spearman x 100)")
    encoder_options(sts)
    sts.add_argument(
        "--prompt",
        nargs="+",
        dest="prompts",
        help="names from PROMPTS (default: the model's own, prompteol for a language model)",
    )
    sts.add_argument(
        "--tasks",
        nargs="+",
        default=["stsb"],
        metavar="TASK",
        help="sts12 sts13 sts14 sts15 sts16 stsb sickr (default: stsb)",
    )
    sts.add_argument(
        "--split", default="test", help="test (default), dev or train where the set has them"
    )
    sts.add_argument(
        "--root",
        metavar="FOLDER",
        help="SentEval's downstream folder (else PROMPTEOL_SENTEVAL, the hub, the set of the project)",
    )
    sts.add_argument("--limit", type=positive, metavar="N", help="a seeded sample of N pairs a set")
    sts.add_argument("--seed", type=int, default=0, help="of that sample (default: %(default)s)")
    sts.add_argument(
        "--output",
        metavar="FILE",
        help="append one JSON row a task here; rows that are there are not computed again",
    )
    sts.add_argument(
        "--reference",
        action="store_true",
        help="the plain loop, one sentence at a time, to compare with",
    )

    fetch = verb(
        "fetch", _fetch, "download and convert a bundled model, so that later runs need no network"
    )
    fetch.add_argument("models", nargs="*", metavar="MODEL", help=f"default: {DEFAULT_MODEL}")
    verb("models", _models, "list the models that have a name here")
    for room in COMMAND_MODULES:
        importlib.import_module(f"prompteol_utils.cli.{room}").add_commands(verb)
    return parser


def _encode(options: argparse.Namespace) -> int:
    from prompteol_utils.data import sentences
    from prompteol_utils.encoder import encode_file

    encode_file.check_target(options.output)
    for _ in sentences.read_sentences(options.input, options.text_column):
        break  # a file that is not there is said before a model is loaded
    loaded, (prompt,) = load(options)
    from prompteol_utils.encoder.encoder import Encoder

    encoder = Encoder(loaded, prompt, pooling=options.pooling, layer=options.layer)
    start = time.perf_counter()
    n = encode_file.encode_file(options.input, options.output, encoder, options.text_column)
    print(
        f"{n:,} sentences x {encoder.dimension} in {time.perf_counter() - start:.1f} s: {options.output}"
    )
    return 0


def _sts(options: argparse.Namespace) -> int:
    from prompteol_utils.data import sts as sts_data
    from prompteol_utils.results.store import Store

    pairs = [
        sts_data.load_sts(
            task, options.split, root=options.root, limit=options.limit, seed=options.seed
        )
        for task in options.tasks
    ]
    store = Store(options.output) if options.output else None
    loaded, prompts = load(options)
    from prompteol_utils.encoder.encoder import Encoder

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

        columns = [
            "model",
            "prompt",
            "task",
            "split",
            "n",
            "spearman",
            "spearman_subset_mean",
            "origin",
            "text_form",
            "seconds",
        ]
        print(pandas.DataFrame(rows)[columns].to_string(index=False, float_format="{:.2f}".format))
    return 0


def _score(encoder, pairs, key: dict, options: argparse.Namespace) -> dict:
    from prompteol_utils.encoder.baselines import reference
    from prompteol_utils.evaluation import sts
    from prompteol_utils.results.store import provenance

    def plain(sentences):
        from tqdm import tqdm

        bar = tqdm(sentences, desc="reference", unit="sentence", leave=False, mininterval=1)
        return reference(
            encoder.loaded, encoder.prompt, bar, pooling=options.pooling, layer=options.layer
        )

    start = time.perf_counter()
    scores = json.loads(
        sts.evaluate_sts(plain if options.reference else encoder.encode, pairs)
        .iloc[0]
        .to_json(double_precision=10)
    )
    measured = {name: scores[name] for name in ("spearman", "spearman_subset_mean")}
    return {
        **key,
        **measured,
        "seconds": round(time.perf_counter() - start, 2),
        **provenance(options.seed),
    }


def _fetch(options: argparse.Namespace) -> int:
    from prompteol_utils.models import download

    for name in options.models or [DEFAULT_MODEL]:
        download.fetch_model(name)
        print(f"{name} is in the cache folder", flush=True)
    return 0


def _models(options: argparse.Namespace) -> int:
    from prompteol_utils.models.registry import MODELS

    rows = [("name", "hub id", "weights", "licence")] + [
        (s.name, s.hub_id, s.weight_origin, s.licence) for s in MODELS.values()
    ]
    for row in rows:
        print(
            "  ".join(
                cell.ljust(max(len(r[i]) for r in rows)) for i, cell in enumerate(row)
            ).rstrip()
        )
    return 0
