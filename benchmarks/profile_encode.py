"""Where the encoder's time goes, and what a change brought: CPU seconds of one thread, the least of
alternating rounds.

    python benchmarks/profile_encode.py                           # this checkout, by operator
    python benchmarks/profile_encode.py --revisions main~3 main~2 # those commits and this, in turn
    python benchmarks/profile_encode.py --table                   # what is recorded

CPU seconds hold where other work runs beside this, up to what it takes of the caches. GFLOP/s are
useful work as benchmarks/encode.py counts it, all layers and tokens alike: an encoder that leaves
out what nobody reads comes out faster, not smaller. (Not called profile.py: beside a running script
that name would hide Python's own module.)
"""

import argparse
import io
import json
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import encode

ROWS = encode.ROOT / "data" / "results" / "profile.jsonl"
REPEATS = 2  # in each process; the least counts
KINDS = {  # of operators, by what their names hold; the first that fits
    "matrix products": ("linear", "addmm", "::mm", "matmul"),
    "attention": ("scaled_dot_product", "bmm", "softmax"),
    "copies": ("copy", "cat", "clone", "index", "gather", "fill", "zero", "embedding"),
    "element by element": ("::",),
}


def shares(profiler, seconds: float) -> dict[str, float]:
    """Share of the seconds (by the clock) by kind of operator.

    The rest is Python, the tokenizer and the profiler itself.
    """
    found = dict.fromkeys((*KINDS, "outside operators"), 0.0)
    for event in profiler.key_averages():
        kind = next(
            (kind for kind, parts in KINDS.items() if any(part in event.key for part in parts)),
            None,
        )
        if kind:
            found[kind] += event.self_cpu_time_total / 1e6 / seconds
    return found | {"outside operators": 1 - sum(found.values())}


def cpu_seconds(encoder, texts: list[str]) -> float:
    """Of one call."""
    start = time.process_time()
    encoder.encode(texts, show_progress_bar=False)
    return time.process_time() - start


def measure(options) -> list[dict]:
    """One round of one package, in this process: a dict for each number of demonstrations."""
    sys.path.insert(0, options.package)
    import prompteol_utils

    assert Path(prompteol_utils.__file__).parent.parent == Path(options.package), (
        "another copy of the package was imported"
    )
    import torch

    from prompteol_utils.encoder import Encoder
    from prompteol_utils.models import load_model
    from prompteol_utils.prompts import with_demonstrations

    torch.set_num_threads(1)
    loaded, texts, found = load_model(options.model), encode.sentences(options.sentences), []
    for shots in options.shots:
        encoder = Encoder(loaded, with_demonstrations("prompteol", encode.demonstrations(shots)))
        encoder.encode(texts[:20], show_progress_bar=False)
        seconds = min(cpu_seconds(encoder, texts) for _ in range(REPEATS))
        tokens, macs = encode.useful(encoder, texts)
        row = {"shots": shots, "cpu_seconds": seconds, "work": 2 * tokens * macs / 1e9}
        if options.round == 0:
            with torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CPU]
            ) as profiler:
                start = time.perf_counter()
                encoder.encode(texts, show_progress_bar=False)
                wall = time.perf_counter() - start
            row["shares"] = shares(
                profiler, wall
            )  # the profiler counts by the clock, for all that its times are called CPU
        found.append(row)
    return found


def package(revision: str) -> Path:
    """The package and its data as they were at a commit, in a folder of their own."""
    folder = encode.WORK / revision
    if not folder.exists():
        archive = subprocess.run(
            ["git", "-C", str(encode.ROOT), "archive", revision, "prompteol_utils", "data"],
            capture_output=True,
            check=True,
        )
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
            tar.extractall(folder)  # of this repository; filter= would need Python 3.11.4
    return folder


def compare(options) -> None:
    """The commits in turn, round after round.

    A row for each of them and each number of demonstrations.
    """
    from prompteol_utils import results
    from prompteol_utils.utils import devices

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(encode.ROOT), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    encode.WORK.mkdir(parents=True, exist_ok=True)
    wanted = [git("rev-parse", revision) for revision in options.revisions]
    places = {revision: package(revision) for revision in wanted} | {
        results.provenance()["commit"]: encode.ROOT
    }
    rounds: dict = {revision: [] for revision in places}
    for number in range(options.rounds):
        for revision, place in places.items():
            out = encode.WORK / "profile.json"
            command = [
                sys.executable,
                __file__,
                "--one",
                str(out),
                "--package",
                str(place),
                "--round",
                str(number),
            ]
            command += [
                "--model",
                options.model,
                "--sentences",
                str(options.sentences),
                "--shots",
                *map(str, options.shots),
            ]
            subprocess.run(command, check=True)
            rounds[revision].append(json.loads(out.read_text()))
    for revision, found in rounds.items():
        subject = git(
            "log", "-1", "--format=%s", revision.removesuffix("+dirty"), "--", "prompteol_utils"
        )  # the package's last change
        for first, *others in zip(*found, strict=True):
            seconds = min(one["cpu_seconds"] for one in (first, *others))
            row = {
                **{
                    "kind": "profile",
                    "model": options.model,
                    "shots": first["shots"],
                    "n": options.sentences,
                    "rounds": options.rounds,
                },
                **{"revision": revision, "subject": subject},
                **{
                    "cpu_seconds": seconds,
                    "gflops": first["work"] / seconds,
                    "shares": first["shares"],
                    "machine": devices.machine(),
                },
            }
            results.Store(options.rows).append({**row, **results.provenance()})


def table(path):
    """A line for each row: seconds, GFLOP/s, shares in per cent."""
    import pandas as pd

    from prompteol_utils.results import Store

    rows = Store(path).read()
    percent = pd.DataFrame(rows["shares"].tolist()).mul(100).round(1)
    front = rows[["model", "shots", "revision", "subject", "cpu_seconds", "gflops"]]
    return pd.concat([front.assign(revision=front["revision"].str[:7]), percent], axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--revisions", nargs="*", default=[], help="commits to measure beside this checkout"
    )
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--shots", nargs="+", type=int, default=list(encode.SHOTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sentences", type=int, default=60)
    parser.add_argument("--rows", default=str(ROWS))
    parser.add_argument("--table", action="store_true", help="only show what is recorded")
    parser.add_argument("--one", metavar="FILE", help=argparse.SUPPRESS)
    parser.add_argument("--package", help=argparse.SUPPRESS)
    parser.add_argument("--round", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        Path(options.one).write_text(json.dumps(measure(options)))
        return
    if not options.table:
        compare(options)
    print(table(options.rows).to_string(index=False, float_format="{:.2f}".format))


if __name__ == "__main__":
    main()
