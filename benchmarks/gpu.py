"""The encoder on a GPU: random weights in the shapes of OPT, bf16, beside sentence-transformers on
the same model, in turn.

    python benchmarks/gpu.py                        # OPT-1.3B, 6.7B, 13B, where they fit
    python benchmarks/gpu.py --models opt-2.7b --shots 0 4
    python benchmarks/gpu.py --device cpu --layers 1 --sentences 40 --models opt-125m   # a try
    python benchmarks/gpu.py --table                # what is recorded

Speed hardly depends on what the weights are, so nothing is downloaded but the small bundled model,
whose tokenizer reads the sentences. A row is one engine in one round, in data/results/gpu.jsonl:
sentences a second, share of the card's GEMM peak in the same dtype (measured here and now; useful
work as benchmarks/encode.py counts it), memory, and the smallest cosine between the two engines'
vectors.
"""

import argparse
import sys

import encode

ROWS = encode.ROOT / "data" / "results" / "gpu.jsonl"
ENGINES = ("ours", "sentence-transformers")
MODELS = ("opt-1.3b", "opt-6.7b", "opt-13b")


def gemm_peak(device, dtype, size: int = 8192, repeats: int = 10) -> float:
    """The best GFLOP/s of products of `size` rows and columns."""
    import torch

    from prompteol_utils.utils.devices import Timer

    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(repeats):
        with Timer(device) as timer:
            a @ b
        best = max(best, 2 * size**3 / timer.seconds / 1e9)
    return best


def random_model(name: str, device, dtype, layers: int | None):
    """A registry row's shape with random weights, made on the device itself, and the
    bundled model's tokenizer.
    """
    import torch
    import transformers

    from prompteol_utils.models import LoadedModel, fetch_model, get_spec

    shape = get_spec(name).shape
    if shape is None or not name.startswith("opt"):
        raise ValueError(
            f"{name} is not an OPT size of the registry; allowed are opt-125m to opt-66b"
        )
    tokenizer = transformers.AutoTokenizer.from_pretrained(fetch_model(encode.MODELS[0]))
    if len(tokenizer) > shape.vocab:
        raise ValueError(
            f"the tokenizer's {len(tokenizer):,} tokens do not fit into {name}'s {shape.vocab:,}"
        )
    config = transformers.OPTConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        num_hidden_layers=layers or shape.layers,
        ffn_dim=shape.ffn,
        num_attention_heads=shape.heads,
        max_position_embeddings=shape.positions,
        word_embed_proj_dim=shape.embedding,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation="sdpa"
        ).eval()
    return LoadedModel(
        model, tokenizer, f"random-{name}", "random", str(dtype).removeprefix("torch."), str(device)
    )


def sentence_transformers(loaded, prompt):
    """Its modules around the same model object: whole prompts, last-token pooling, the
    fastest of its batch sizes.
    """
    import tempfile

    from prompteol_utils.models import tiny_model

    with (
        tempfile.TemporaryDirectory() as folder
    ):  # a small model to load, whose place the real one takes
        tiny_model("opt").model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        model = encode.sentence_transformer(folder, loaded.device, loaded.model.base_model)
    best: list[int] = []

    def run(texts):
        prompts = [prompt.render(text) for text in texts]
        if not best:  # the warm-up chooses: twice the rows for as long as that is faster, and fits
            best.append(
                _fastest(
                    lambda size: model.encode(prompts, batch_size=size, show_progress_bar=False),
                    loaded.model.device,
                )
            )
        return model.encode(prompts, batch_size=best[0], show_progress_bar=False)

    return run


def _fastest(run, device, size: int = 16) -> int:
    """The fastest of 16, 32, 64, … rows a batch."""
    from prompteol_utils.utils import devices

    run(size)  # warm
    before = None
    while True:
        try:
            with devices.Timer(device) as timer:
                run(size)
        except Exception as error:
            if before is None or not devices.is_out_of_memory(error):
                raise
            devices.release_memory()
            return size // 2
        if before is not None and timer.seconds > before:
            return size // 2
        size, before = 2 * size, timer.seconds


def smallest_cosine(left, right) -> float:
    """Between vectors of the same sentences, after their mean is taken off: a random
    model's are nearly alike for all sentences.
    """
    import numpy as np

    left, right = (one - one.mean(0) for one in (np.float64(left), np.float64(right)))
    return float(
        ((left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)).min()
    )


def bench(name: str, options, store) -> None:
    """All that is missing of one shape, in this process: the model is the same for both engines."""
    from prompteol_utils import results
    from prompteol_utils.encoder import Encoder
    from prompteol_utils.prompts import with_demonstrations
    from prompteol_utils.utils import devices

    device = devices.choose_device(options.device)
    dtype = devices.choose_dtype(device, options.dtype)
    texts = encode.sentences(2 * options.sentences)
    if len(texts) < 2 * options.sentences:
        raise ValueError(
            f"{2 * options.sentences:,} different sentences are needed (half of them to warm up), "
            f"there are {len(texts):,}: set PROMPTEOL_SENTEVAL or ask for fewer with --sentences"
        )
    # Another half, so that nothing is ready that new texts would have to wait for.
    warm_up = texts[options.sentences :]
    texts = texts[: options.sentences]
    machine = devices.machine()
    about = {
        "kind": "gpu_bench",
        "model": name,
        "dtype": str(dtype).removeprefix("torch."),
        "device": device.type,
        "n": len(texts),
    }
    about |= {"layers": options.layers, "origin": encode.origin(), "gpu": machine["gpu"]}
    loaded = None
    for shots in options.shots:
        wanted = [
            {**about, "engine": engine, "shots": shots, "round": number}
            for number in range(options.rounds)
            for engine in ENGINES
        ]
        wanted = [key for key in wanted if not store.done(key)]
        if not wanted:
            continue
        loaded = loaded or random_model(name, device, dtype, options.layers)
        prompt = with_demonstrations("prompteol", encode.demonstrations(shots))
        encoder = Encoder(loaded, prompt)
        engines = {
            "ours": lambda texts, encoder=encoder: encoder.encode(texts, show_progress_bar=False)
        }
        try:
            engines["sentence-transformers"] = sentence_transformers(loaded, prompt)
        except ImportError as missing:
            print(
                f"sentence-transformers is left out: {missing}; see benchmarks/README.md",
                flush=True,
            )
        tokens, macs = encode.useful(encoder, texts)
        vectors = [run(warm_up) for run in engines.values()]
        cosine = smallest_cosine(*vectors) if len(vectors) > 1 else None
        for key in wanted:
            if (run := engines.get(key["engine"])) is None:
                continue
            peak = gemm_peak(device, dtype, 8192 if device.type == "cuda" else 1024)
            devices.reset_peak_memory(device)  # the allocator keeps its blocks, as in a long run
            with devices.Timer(device) as timer:
                run(texts)
            gflops = 2 * tokens * macs / timer.seconds / 1e9
            row = {
                **key,
                **{
                    "weight_origin": "random",
                    "seconds": timer.seconds,
                    "sentences_per_second": len(texts) / timer.seconds,
                },
                **{
                    "gflops": gflops,
                    "gemm_peak_gflops": peak,
                    "share": gflops / peak,
                    "smallest_cosine": cosine,
                },
                **{"peak_memory_mb": devices.peak_memory(device) / 1e6, "machine": machine},
                **results.provenance(0),
            }
            store.append(row)
            speed = f"{len(texts) / timer.seconds:.1f} sentences/s, {gflops / peak:.0%} of peak"
            print(f"{name} {shots} shots {key['engine']}: {speed}", flush=True)


def table(path):
    """Medians over rounds, and how many times faster ours was in the same round.

    Nothing measured elsewhere is mixed in.
    """
    from prompteol_utils.results import Store

    rows = Store(path).read()
    if not len(rows):
        return rows
    if (wrong := rows["smallest_cosine"] < 0.99).any():
        raise ValueError(
            f"{int(wrong.sum())} rows are of engines that do not agree (smallest_cosine below "
            f"0.99): they compare nothing"
        )
    rows = rows.fillna({"gpu": "none", "layers": "all"})
    keys = ["gpu", "device", "dtype", "model", "layers", "n", "origin", "shots", "engine"]
    side = [*keys[:-1], "round"]
    ours = rows[rows["engine"] == "ours"].set_index(side)["sentences_per_second"].rename("ours")
    rows["ours_is_faster"] = rows.join(ours, on=side).eval("ours / sentences_per_second")
    columns = [
        "sentences_per_second",
        "ours_is_faster",
        "share",
        "gemm_peak_gflops",
        "peak_memory_mb",
        "smallest_cosine",
    ]
    return rows.groupby(keys, sort=False)[columns].median().reset_index()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models", nargs="+", default=list(MODELS), help="OPT sizes of the registry"
    )
    parser.add_argument("--shots", nargs="+", type=int, default=list(encode.SHOTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sentences", type=int, default=4000)
    parser.add_argument("--layers", type=int, help="build only so many layers (default: all)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", help="default: bf16 on a GPU that has it, fp32 on a CPU")
    parser.add_argument("--rows", default=str(ROWS))
    parser.add_argument("--table", action="store_true", help="only show what is recorded")
    options = parser.parse_args()
    if not options.table:
        from prompteol_utils import results
        from prompteol_utils.utils import devices

        try:
            devices.choose_device(options.device)
        except ValueError as error:
            print(error, file=sys.stderr)
            return 2
        for name in options.models:
            try:
                bench(name, options, results.Store(options.rows))
            except Exception as error:
                if not devices.is_out_of_memory(error):
                    raise
                print(f"{name} does not fit on this device: {error}", flush=True)
            finally:
                devices.release_memory()
    print(table(options.rows).to_string(index=False, float_format="{:.4g}".format))
    return 0


if __name__ == "__main__":
    sys.exit(main())
