"""The planner's estimate against what a process really takes: a row of kind "memory" for
each model, precision and batch.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from prompteol_utils.data import sts as sts_data
from prompteol_utils.encoder import Encoder
from prompteol_utils.models import MODELS, fetch_model, get_spec, load_model, memory, save_tiny
from prompteol_utils.results import Store, check_row, provenance
from prompteol_utils.utils import devices


def measure(
    model: str, quantization: str | None = None, dtype: str | None = None, batch_tokens: int = 1_024
) -> dict:
    """Load a model in a process of its own, encode a few batches, and set the peak beside the
    estimate.

    Args:
        model: A bundled model.
        quantization: None, "nf4" or "int8".
        dtype: As for `load_model`.
        batch_tokens: Tokens in a batch, padding included.

    Returns:
        A row for `results.Store`: bits, estimate_weights, estimate_total, measured_loaded,
            measured_peak (bytes above what the same process took before, its tokenizer and the
            pages of the file that no parameter uses left out) and ratio (estimate_total /
            measured_peak).

    Raises:
        RuntimeError: The process failed; its last words are in the message.

    Built in notebook 03.
    """
    get_spec(model)
    arguments = f"{model!r}, {quantization!r}, {dtype!r}, {batch_tokens}"
    call = f"from memory import measure_here; measure_here({arguments})"
    here = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, cwd=here)
    if done.returncode:
        said = done.stderr.strip() or f"exit code {done.returncode}"
        raise RuntimeError(f"measuring {model} failed: {said.splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_here(
    model: str, quantization: str | None, dtype: str | None, batch_tokens: int
) -> None:
    """What `measure` runs in the other process: prints the row."""
    from transformers import AutoTokenizer

    spec, place = MODELS[model], devices.choose_device()
    texts = sts_data.load_mini_sts("dev").sentences + sts_data.load_mini_sts("test").sentences
    wide = (
        {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32} if quantization else {}
    )  # 4-bit blocks need some width
    with (
        tempfile.TemporaryDirectory() as folder
    ):  # libraries and kernels are loaded by a tiny model, so that they do not count
        Encoder(
            load_model(
                str(save_tiny(spec.architecture, folder, **wide)),
                quantization=quantization,
                dtype=dtype,
            ),
            spec.prompt,
        ).encode(texts)
    devices.release_memory()
    start = devices.memory_in_use()
    kept = AutoTokenizer.from_pretrained(
        fetch_model(model)
    )  # as large as the vocabulary, and not in the estimate
    devices.release_memory()
    tokenizer = devices.memory_in_use() - start if place.type == "cpu" else 0
    before, files_before = devices.memory_in_use(place) + tokenizer, devices.file_memory()
    loaded = load_model(model, quantization=quantization, dtype=dtype)
    devices.release_memory()
    for parameter in (
        loaded.model.parameters()
    ):  # weights are mapped from the file: only pages that were touched are in memory
        parameter.detach().flatten()[::512].sum()
    # A quantised model leaves its checkpoint mapped; pages that no parameter uses are the system's
    # to take back.
    used = sum(
        parameter.nbytes for parameter in loaded.model.parameters() if parameter.is_floating_point()
    )
    before += max(0, devices.file_memory() - files_before - used) if place.type == "cpu" else 0
    in_use = devices.memory_in_use(place)
    devices.reset_peak_memory(place)
    Encoder(loaded, spec.prompt).encode(
        texts[: max(32, batch_tokens // 4)], batch_tokens=batch_tokens, show_progress_bar=False
    )
    peak = devices.peak_memory(place)
    bits = memory.BITS[quantization] or {"float32": 32}.get(loaded.dtype, 16)
    compute = 32 if loaded.dtype == "float32" else 16
    estimate = memory.estimate_memory(
        spec, bits=bits, batch_tokens=batch_tokens, compute_bits=compute, device=place.type
    )
    row = {
        "kind": "memory",
        "model": model,
        "quantization": quantization,
        "dtype": loaded.dtype,
        "bits": bits,
        "batch_tokens": batch_tokens,
        "prompt": spec.prompt,
        "device": loaded.device,
        "weight_origin": loaded.weight_origin,
        "estimate_weights": estimate.weights,
        "estimate_total": estimate.total,
        "measured_loaded": in_use - before,
        "measured_peak": peak - before,
        "measured_tokenizer": tokenizer,
        "ratio": round(estimate.total / (peak - before), 3),
    }
    del kept
    print(json.dumps(check_row(row | provenance())))


def main() -> None:
    """Measure the named models and append a record for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--quantization", choices=("nf4", "int8"))
    parser.add_argument("--dtype", help="(default: float32 on a CPU)")
    parser.add_argument("--batch-tokens", type=int, nargs="+", default=[512])
    parser.add_argument("--output", help="JSON lines; what is found there is not measured again")
    options = parser.parse_args()
    store = Store(options.output) if options.output else None
    dtype = str(devices.choose_dtype(devices.choose_device(), options.dtype))
    shown = ("model", "bits", "batch_tokens", "estimate_total", "measured_peak", "ratio")
    for model in options.models:
        for tokens in options.batch_tokens:
            asked = {"model": model, "quantization": options.quantization}
            asked |= {"dtype": dtype.removeprefix("torch."), "batch_tokens": tokens}
            if store and store.done({"kind": "memory", **asked}):
                continue
            record = measure(**asked)
            print(json.dumps({name: record[name] for name in shown}), flush=True)
            if store:
                store.append(record)


if __name__ == "__main__":
    main()
