"""Does the time of `encode` grow with its sentences and nothing else, and what do demonstrations
cost? One process a measurement.

    python benchmarks/scale.py                         # 1k, 10k, 100k sentences; 0 to 8 shots
    python benchmarks/scale.py --sizes 1000 --shots    # only the smallest size
    python benchmarks/scale.py --table                 # what is recorded
    python benchmarks/scale.py --figure FILE.png       # cost by demonstrations, with, without cache

Rows of kind `scale` and `shots_cost` go to data/results/scale.jsonl; those that are there are not
measured again. The sentences are halves of this project's own mini set put together, all different
and short. Memory is what the run takes on top of the loaded, warm model. Whether the time is linear
is read off CPU seconds, which hold where other work runs beside this.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
ROWS = ROOT / "data" / "results" / "scale.jsonl"


def sentences(n: int) -> list[str]:
    """The first n of a fixed order of all beginnings (three words) and ends (four words) of
    the mini set's sentences.
    """
    from prompteol_utils.data import read_records
    from prompteol_utils.utils.files import DATA

    rows = [row for _, row in read_records(DATA / "mini_sts.csv", ("left", "right"))]
    words = [
        text.split()
        for text in dict.fromkeys(row[side] for row in rows for side in ("left", "right"))
    ]
    words = [one for one in words if len(one) >= 7]
    starts, ends = (
        list(dict.fromkeys(" ".join(part) for part in parts))
        for parts in ([w[:3] for w in words], [w[-4:] for w in words])
    )
    pairs = random.Random(0).sample(range(len(starts) * len(ends)), len(starts) * len(ends))
    texts = list(dict.fromkeys(f"{starts[k // len(ends)]} {ends[k % len(ends)]}" for k in pairs))
    if n > len(texts):
        raise ValueError(
            f"the mini set makes {len(texts):,} different sentences, got {n:,}; ask for fewer"
        )
    return texts[:n]


def keys(options) -> list[dict]:
    """What is to be measured: all that makes two measurements the same."""
    shared = {"model": options.model, "round": options.round}
    scale = [{"kind": "scale", **shared, "n": n} for n in options.sizes]
    costs = [(shots, cache) for shots in options.shots for cache in (True, False)]
    return scale + [
        {"kind": "shots_cost", **shared, "n": options.sentences, "shots": k, "prefix_cache": cache}
        for k, cache in costs
    ]


def measure(key: dict) -> dict:
    """One measurement, in this process."""
    import torch

    from prompteol_utils import data, results
    from prompteol_utils.encoder import Encoder, encode_file
    from prompteol_utils.models import load_model
    from prompteol_utils.prompts import with_demonstrations
    from prompteol_utils.utils import devices

    loaded = load_model(key["model"])
    prompt = with_demonstrations("prompteol", data.load_demonstrations()[: key.get("shots", 0)])
    encoder = Encoder(loaded, prompt, prefix_cache=key.get("prefix_cache", True))
    texts, device = sentences(key["n"]), loaded.model.device
    encoder.encode(texts[:64], show_progress_bar=False)
    devices.release_memory()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "in.txt")
        source.write_text("\n".join(texts), encoding="utf-8")
        del texts  # the command does not hold them either
        before = devices.memory_in_use(device)
        devices.reset_peak_memory(device)
        used = time.process_time()
        with devices.Timer(device) as timer:
            encode_file.encode_file(source, Path(folder, "out.npy"), encoder)
        used = time.process_time() - used
        above = devices.peak_memory(device) - before
    return {
        **key,
        **{
            "seconds": timer.seconds,
            "ms_a_sentence": 1000 * timer.seconds / key["n"],
            "memory_above_loaded_mb": above / 1e6,
        },
        **{"cpu_ms_a_sentence": 1000 * used / key["n"]},
        **{
            "origin": "mini",
            "weight_origin": loaded.weight_origin,
            "dtype": loaded.dtype,
            "threads": torch.get_num_threads(),
        },
        **{"machine": devices.machine(), **results.provenance(0)},
    }


def child(options, number: int) -> None:
    """Measure one of `keys` in a process of its own, which adds the row."""
    lists = [
        name
        for group in ("sizes", "shots")
        for name in (f"--{group}", *map(str, getattr(options, group)))
    ]
    rest = [
        "--model",
        options.model,
        "--round",
        str(options.round),
        "--sentences",
        str(options.sentences),
        "--rows",
        options.rows,
    ]
    subprocess.run([sys.executable, __file__, *lists, *rest, "--one", str(number)], check=True)


def bench(options) -> None:
    """Measure what is missing."""
    from prompteol_utils.results import Store

    store = Store(options.rows)
    for number, key in enumerate(keys(options)):
        if not store.done(key):
            print(", ".join(f"{name} {value}" for name, value in key.items()), flush=True)
            child(options, number)


def tables(path) -> dict:
    """The recorded rows: medians over rounds.

    `off_linear` is how far a sentence's CPU time is from that of the smallest size.
    """
    from prompteol_utils.results import Store

    rows, found = Store(path).read(), {}
    for kind, by in (
        ("scale", ["model", "n"]),
        ("shots_cost", ["model", "n", "shots", "prefix_cache"]),
    ):
        here = rows[rows["kind"] == kind] if "kind" in rows else rows[:0]
        if len(here):
            table = (
                here.groupby(by)[
                    ["seconds", "ms_a_sentence", "cpu_ms_a_sentence", "memory_above_loaded_mb"]
                ]
                .median()
                .reset_index()
            )
            if kind == "scale":
                table["off_linear"] = (
                    table["cpu_ms_a_sentence"]
                    / table.groupby("model")["cpu_ms_a_sentence"].transform("first")
                    - 1
                )
            found[kind] = table
    return found


def figure(path, target, model: str) -> None:
    """CPU milliseconds a sentence against demonstrations, with and without the prefix cache."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    rows = tables(path).get("shots_cost")
    if rows is None or not len(rows := rows[rows["model"] == model]):
        raise SystemExit(
            f"{path} has no row of kind shots_cost for {model}; measure them first, without "
            f"--figure"
        )
    picture, axis = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
    for cache, colour, marker in ((False, "#E69F00", "s"), (True, "#0072B2", "o")):
        line = rows[rows["prefix_cache"] == cache].groupby("shots")["cpu_ms_a_sentence"].median()
        axis.plot(
            line.index,
            line,
            color=colour,
            marker=marker,
            label="prefix run once" if cache else "prefix run for each sentence",
        )
    axis.set(
        title=f"What demonstrations cost ({model})",
        xlabel="demonstrations in the prompt",
        ylabel="CPU time per sentence (ms)",
        ylim=(0, None),
    )
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(target, dpi=150)
    plt.close(picture)


def main(arguments=None) -> int:
    """Measure, show or draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument(
        "--sizes",
        nargs="*",
        type=int,
        default=[1_000, 10_000, 100_000],
        help="sentences; none leaves this part out",
    )
    parser.add_argument(
        "--shots",
        nargs="*",
        type=int,
        default=list(range(9)),
        help="demonstrations; none leaves this part out",
    )
    parser.add_argument(
        "--sentences",
        type=int,
        default=200,
        help="for each number of demonstrations (default: %(default)s)",
    )
    parser.add_argument(
        "--round", type=int, default=0, help="another number measures everything anew"
    )
    parser.add_argument("--rows", default=str(ROWS))
    parser.add_argument("--table", action="store_true", help="only show what is recorded")
    parser.add_argument("--figure", metavar="FILE", help="only draw what is recorded")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one is not None:
        from prompteol_utils.results import Store

        Store(options.rows).append(measure(keys(options)[options.one]))
        return 0
    if options.figure:
        figure(options.rows, options.figure, options.model)
        return 0
    if not options.table:
        bench(options)
    for kind, table in tables(options.rows).items():
        print(f"{kind}\n{table.to_string(index=False, float_format='{:.4g}'.format)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
