"""bf16 and int8 against fp32 on a CPU: CPU seconds of one thread, side by side in one process, and what the score loses.

    python benchmarks/cpu_modes.py            # rows to data/results/cpu_modes.jsonl, and for each mode: keep or drop

A mode is kept if it is at least 1.4 times as fast as fp32 and within 0.3 points of it on a seeded sample of STS-B dev. bf16 is offered
already (`dtype="bfloat16"`); it pays where the processor has units for it (AVX-512 BF16, AMX) and nowhere else. int8 is torch's own
dynamic quantisation: int8 weights, activations rounded by the range of the batch that they are in.
"""

import argparse
import functools
import time
import warnings

import encode

ROWS = encode.ROOT / "data" / "results" / "cpu_modes.jsonl"
FASTER, POINTS = 1.4, 0.3  # the rule


def encoders(model: str) -> dict:
    """An encoder for each mode, fp32 first."""
    import torch

    from prompteol_utils.encoder import Encoder
    from prompteol_utils.models import load_model

    found = {
        "fp32": Encoder(load_model(model)),
        "bf16": Encoder(load_model(model, dtype="bfloat16")),
    }
    found["int8"] = Encoder(
        load_model(model)
    )  # made before it is rounded, so that rows are laid end to end as in fp32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch points to torchao, which is not among the pins
        torch.ao.quantization.quantize_dynamic(
            found["int8"]._forward.body, {torch.nn.Linear}, dtype=torch.qint8, inplace=True
        )
    return found


def measure(options) -> list[dict]:
    """A row for each mode."""
    import numpy as np
    import torch

    from prompteol_utils import data, evaluation, results
    from prompteol_utils.utils import devices

    torch.set_num_threads(1)
    texts, pairs = (
        encode.sentences(options.sentences),
        data.load_sts("stsb", "dev", limit=options.pairs),
    )
    modes, seconds, vectors = encoders(options.model), {}, {}
    for _ in range(1 + options.rounds):  # the first is the warm-up
        for mode, encoder in modes.items():
            start = time.process_time()
            vectors[mode] = encoder.encode(texts, show_progress_bar=False)
            seconds.setdefault(mode, []).append(time.process_time() - start)
    best = {mode: min(times[1:]) for mode, times in seconds.items()}
    quiet = {
        mode: functools.partial(encoder.encode, show_progress_bar=False)
        for mode, encoder in modes.items()
    }
    score = {
        mode: float(evaluation.evaluate_sts(encode_all, pairs).iloc[0]["spearman"])
        for mode, encode_all in quiet.items()
    }
    unit = {
        mode: found / np.linalg.norm(found, axis=1, keepdims=True)
        for mode, found in vectors.items()
    }
    alone = {mode: encoder.encode(texts[0]) for mode, encoder in modes.items()}
    return [
        {
            **{
                "kind": "cpu_mode",
                "model": options.model,
                "mode": mode,
                "prompt": "prompteol",
                "n": len(texts),
                "rounds": options.rounds,
            },
            **{
                "cpu_seconds": best[mode],
                "times_fp32": best["fp32"] / best[mode],
                "spearman": score[mode],
            },
            **{
                "points_from_fp32": score[mode] - score["fp32"],
                "task": "stsb",
                "split": "dev",
                "n_pairs": len(pairs),
            },
            **{
                "origin": pairs.origin,
                "text_form": pairs.text_form,
                "weight_origin": encoder.loaded.weight_origin,
            },
            "smallest_cosine": float((unit[mode] * unit["fp32"]).sum(1).min()),
            "mates_change_a_vector_by": float(
                np.linalg.norm(alone[mode] - vectors[mode][0]) / np.linalg.norm(alone[mode])
            ),
            **{
                "machine": devices.machine(),
                "units": torch.backends.cpu.get_cpu_capability(),
                **results.provenance(0),
            },
        }
        for mode, encoder in modes.items()
    ]


def verdict(row: dict) -> str:
    """Keep or drop, by the rule above."""
    keep = row["times_fp32"] >= FASTER and abs(row["points_from_fp32"]) <= POINTS
    return f"{row['mode']}: {'keep' if keep else 'drop'} ({row['times_fp32']:.2f}x fp32, {row['points_from_fp32']:+.2f} points)"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--sentences", type=int, default=60)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", default=str(ROWS))
    options = parser.parse_args()
    rows = measure(options)
    from prompteol_utils.results import Store

    Store(options.rows).append(*rows)
    print("\n".join(map(verdict, rows[1:])))


if __name__ == "__main__":
    main()
