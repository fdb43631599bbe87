"""The methods after PromptEOL on the same pairs: each at every layer, with what it costs.

    python benchmarks/followups.py --model smollm2-135m-instruct    # goes on where it was
    python benchmarks/followups.py --model gemma3-270m --methods metaeol
    python benchmarks/followups.py --model gemma3-270m --tasks sts13 --test 250

Records go to data/results/followups.jsonl: kind `followup` (a method's scores at all layers) and
`followup_difference` (paired intervals against PromptEOL). The layer is chosen on a sample of STS-B
dev. Seconds are of whole passes that keep all layers; compare CPU seconds, which hold where other
work runs beside this. The cosines of pairs stay in build/followups.
"""

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
ROWS = ROOT / "data" / "results" / "followups.jsonl"
STS_ROWS = ROOT / "data" / "results" / "sts.jsonl"
WORK = ROOT / "build" / "followups"
FITTED = ("few-shot", "whitening")  # beside the names of METHODS


def shots(model: str) -> list:
    """The demonstrations of this project's longest recorded list of at most five for a model."""
    from prompteol_utils.prompts import parse_demonstration
    from prompteol_utils.results import Store

    lists = [
        row["demonstrations"]
        for row in Store(STS_ROWS).rows()
        if row["model"] == model and len(row["demonstrations"]) <= 5
    ]
    return [parse_demonstration(one) for one in max(lists, key=len, default=[])]


def main(arguments=None) -> int:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument(
        "--methods", nargs="+", default=["cheap"], help="names, or cheap: up to 3 passes"
    )
    parser.add_argument("--tasks", nargs="+", default=["stsb"])
    parser.add_argument("--dev", type=int, default=100, help="pairs of STS-B dev")
    parser.add_argument("--test", type=int, default=200, help="pairs of each test set")
    parser.add_argument("--train", type=int, default=400, help="sentences for whitening")
    parser.add_argument("--rewrite-with", metavar="MODEL", help="GenEOL, with this generator")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--root", help="SentEval's folder")
    parser.add_argument("--rows", default=str(ROWS))
    options = parser.parse_args(arguments)

    from prompteol_utils.data import load_sts
    from prompteol_utils.experiments.followups import METHODS, few_shot, measuring, whitened
    from prompteol_utils.models import load_model
    from prompteol_utils.results import Store

    store = Store(options.rows)
    loaded = load_model(options.model, dtype=options.dtype)
    plain = METHODS["prompteol"]
    plain.encode_layers(loaded, ["The kettle sings.", "Rain falls on the harbour."])  # warm-up
    tests = [load_sts(task, root=options.root, limit=options.test) for task in options.tasks]
    if options.rewrite_with:
        return rewriting(options, loaded, tests, store)
    names = options.methods
    if names == ["cheap"]:
        names = [name for name, one in METHODS.items() if one.passes <= 3] + list(FITTED)
    methods = [METHODS[name] for name in names if name not in FITTED]
    if "few-shot" in names and (found := shots(options.model)):
        methods.append(few_shot(found))
    if "whitening" in names:
        train = load_sts("stsb", "train", root=options.root, limit=options.train)
        states = plain.encode_layers(loaded, train.sentences[: options.train])
        methods.append(whitened(plain, loaded, states, size=options.train // 3))
    settings = {"store": store, "work": WORK}
    dev = load_sts("stsb", "dev", root=options.root, limit=options.dev)
    measuring.measure(loaded, methods, dev, split="dev", **settings)
    for test in tests:
        measuring.measure(loaded, methods, test, split="test", **settings)
        measuring.differences(loaded, methods, test, baseline=plain, **settings)
    return 0


def rewriting(options, loaded, tests, store) -> int:
    """GenEOL with two and four versions, beside what it is built on."""
    from prompteol_utils.experiments.followups import KINDS, METHODS, geneol, measuring, rewrite
    from prompteol_utils.models import load_model

    generator = load_model(options.rewrite_with, dtype=options.dtype)
    settings = {"store": store, "work": WORK}
    for test in tests:
        start = time.process_time()
        versions = [rewrite(generator, test.sentences, kind) for kind in KINDS]
        seconds = round(time.process_time() - start, 1)
        kept = sum(
            one == text for kind in versions for one, text in zip(test.sentences, kind, strict=True)
        )
        about = {"generator": options.rewrite_with, "rewriting_cpu_seconds": seconds}
        print(f"{seconds} s for {4 * len(test.sentences)} versions, {kept} of them unchanged")
        plain = [METHODS["prompteol"], METHODS["knowledge"]]
        measuring.measure(loaded, plain, test, split="test", **settings)
        # The second half of the kinds is used with four versions only.
        made = [
            geneol(test.sentences, (versions[0], versions[3])),
            geneol(test.sentences, versions),
        ]
        measuring.measure(loaded, made, test, split="test", **settings, **about)
        for baseline in plain:
            measuring.differences(
                loaded, made, test, baseline=baseline, layer_from="knowledge", **settings
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
