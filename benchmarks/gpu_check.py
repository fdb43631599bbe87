"""One run that shows whether the GPU paths are right, fit and are fast: `make gpu-check`.

    python benchmarks/gpu_check.py                    # some ten minutes on a large card
    python benchmarks/gpu_check.py --models opt-1.3b --minutes 4
    python benchmarks/gpu_check.py --tiny             # tiny models on the CPU: only that it runs

Weights are random, in the shapes of OPT, so nothing is downloaded but the offline model whose
tokenizer reads the sentences. The parts, for each model from the smallest:

exactness   `encode` beside the reference (a batch of one, no cache), bf16, fp16, NF4 and int8, with
            and without the states of the shared prefix; of the first model only. It passes where
            the error is below a tenth of the distance between two sentences (int8: a half, since
            its vectors depend on the batch).
training    two QLoRA steps (NF4, batch of 256): the peak of the memory beside the plan.
speed       sentences a second on texts not seen before, beside the card's GEMM peak, and beside
            sentence-transformers where it is installed; 16 bits.

Each part's record is appended to `--output` as soon as it is there. A part that fails, or for which
no time is left, says so, and the next one begins.
"""

import argparse
import contextlib
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import encode
import gpu
import numpy as np

OUTPUT = encode.ROOT / "data" / "results" / "gpu_check.jsonl"
MODELS = ("opt-1.3b", "opt-2.7b", "opt-6.7b", "opt-13b")
PRECISIONS = ("bfloat16", "float16", "nf4", "int8")
TRAINED = ("opt-2.7b", "opt-6.7b")
COMPARED = 40  # sentences beside the reference


class OutOfTimeError(Exception):
    """A part took longer than what was left."""


def make(name: str, options, dtype):
    """A model with random weights on the device; a tiny one with --tiny."""
    if not options.tiny:
        return gpu.random_model(name, options.device, dtype, None)
    from prompteol_utils.models import tiny_model

    sizes = {"hidden_size": 64, "ffn_dim": 128, "word_embed_proj_dim": 64}
    loaded = tiny_model("opt", seed=len(name), spread=0.1, **sizes)
    loaded.model.to(dtype)
    return loaded


@contextlib.contextmanager
def saved(name: str, options) -> Iterator[str]:
    """A folder with such a model, so that it is quantised as any other: while it is loaded."""
    import torch

    from prompteol_utils.utils import devices, files

    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        loaded = make(name, options, torch.float32 if options.tiny else torch.float16)
        bytes_ = sum(weight.nbytes for weight in loaded.model.parameters())
        files.need_space(folder, bytes_)
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        del loaded
        devices.release_memory()
        yield folder


def exactness(folder: str, precision: str, options) -> dict:
    """How far `encode` is from the reference, with the shared prefix and without."""
    from prompteol_utils.encoder import Encoder, reference
    from prompteol_utils.models import load_model

    kind = "quantization" if precision in ("nf4", "int8") else "dtype"
    loaded = load_model(folder, device=options.device, **{kind: precision})
    texts = encode.sentences(COMPARED if not options.tiny else 6)
    expected = reference(loaded, "prompteol", texts)
    length = np.linalg.norm(expected, axis=1)
    pairs = np.linalg.norm(expected[:, None] - expected[None], axis=-1) / length
    apart = float(np.median(pairs[~np.eye(len(texts), dtype=bool)]))
    record = {"n": len(texts), "apart": apart, "dtype": loaded.dtype}
    for prefix in (True, False):
        vectors = Encoder(loaded, prefix_cache=prefix).encode(texts)
        error = float((np.linalg.norm(vectors - expected, axis=1) / length).max())
        record["error_with_prefix" if prefix else "error_without_prefix"] = error
    worst = max(record["error_with_prefix"], record["error_without_prefix"])
    return record | {"passed": worst < apart * (0.5 if precision == "int8" else 0.1)}


def speed(name: str, options) -> dict:
    """Sentences a second on texts that nothing was prepared for."""
    from prompteol_utils.encoder import Encoder
    from prompteol_utils.prompts import get_prompt
    from prompteol_utils.utils import devices

    device = devices.choose_device(options.device)
    dtype = devices.choose_dtype(device, None)
    texts = encode.sentences(12 if options.tiny else 8_000)
    warm_up, texts = texts[: len(texts) // 2], texts[len(texts) // 2 :]
    loaded = make(name, options, dtype)
    encoder = Encoder(loaded)
    engines = {"ours": lambda texts: encoder.encode(texts, show_progress_bar=False)}
    try:
        engines["sentence-transformers"] = gpu.sentence_transformers(
            loaded, get_prompt("prompteol")
        )
    except ImportError as missing:
        print(f"  sentence-transformers is left out: {missing}", flush=True)
    tokens, macs = encode.useful(encoder, texts)
    peak = gpu.gemm_peak(device, dtype, 256 if options.tiny else 8192)
    record = {"n": len(texts), "dtype": loaded.dtype, "gemm_peak_gflops": peak, "tokens": tokens}
    for engine, run in engines.items():
        run(warm_up)
        devices.reset_peak_memory(device)
        with devices.Timer(device) as timer:
            run(texts)
        record[f"sentences_per_second, {engine}"] = len(texts) / timer.seconds
        record[f"share_of_peak, {engine}"] = 2 * tokens * macs / timer.seconds / 1e9 / peak
        record[f"peak_memory, {engine}"] = devices.peak_memory(device)
    return record


def training(folder: str, options) -> dict:
    """Two steps of QLoRA; the second one's seconds, and the memory beside the plan."""
    from prompteol_utils.data import Triplet
    from prompteol_utils.encoder import Encoder
    from prompteol_utils.finetuning import FinetuneConfig, finetune, trainer
    from prompteol_utils.models import load_model, memory
    from prompteol_utils.utils import devices

    batch = 4 if options.tiny else 256
    chunk = options.chunk_tokens or (256 if options.tiny else trainer.GPU_CHUNK)
    device = devices.choose_device(options.device)
    loaded = load_model(folder, quantization="nf4", device=options.device)
    texts = encode.sentences(3 * batch)
    triplets = [Triplet(*texts[k : k + 3]) for k in range(0, len(texts), 3)]
    config = FinetuneConfig(batch_size=batch, max_steps=2, warmup_steps=0, chunk_tokens=chunk)
    devices.reset_peak_memory(device)
    with tempfile.TemporaryDirectory(prefix="gpu-check-run-") as out:
        history = finetune(Encoder(loaded), triplets, config, out)
    settings = {"bits": 4, "batch_tokens": chunk, "training": True}
    settings |= {"compute_bits": 32, "device": "cpu"} if device.type == "cpu" else {}
    plan = memory.estimate_memory(memory.shape_of(loaded.model.config), **settings)
    peak = devices.peak_memory(device)
    return {
        "batch": batch,
        "chunk_tokens": chunk,
        "dtype": loaded.dtype,
        "seconds_a_step": float(history["seconds"].iloc[-1]),
        "planned_memory": plan.total,
        "peak_memory": peak,
        "planned_to_peak": plan.total / peak,
    }


def parts(options) -> Iterator[tuple[str, dict, Callable[[], dict]]]:
    """What to do, in order: a line to print, the record's first fields, and the work."""
    for number, name in enumerate(options.models):
        if number == 0 or name in TRAINED:
            with saved(name, options) as folder:
                for precision in PRECISIONS if number == 0 else ():
                    about = {"part": "exactness", "precision": precision}
                    yield name, about, lambda p=precision, f=folder: exactness(f, p, options)
                if name in TRAINED or options.tiny:
                    yield name, {"part": "training"}, lambda f=folder: training(f, options)
        yield name, {"part": "speed"}, lambda name=name: speed(name, options)


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Interrupt the block after so many seconds, where the system has alarms."""

    def ring(*_):
        raise OutOfTimeError("no time was left for it")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def main() -> int:
    """Run the parts; 1 where one failed, 2 where there is no card."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=MODELS, help="OPT sizes, rising")
    parser.add_argument("--minutes", type=float, default=10, help="for all parts together")
    parser.add_argument("--chunk-tokens", type=int, help="of training (default: the trainer's)")
    parser.add_argument("--tiny", action="store_true", help="tiny models on the CPU")
    parser.add_argument("--output", default=str(OUTPUT), help="JSON lines")
    options = parser.parse_args()
    from prompteol_utils.results import Store, provenance
    from prompteol_utils.utils import devices

    options.device = "cpu" if options.tiny else "cuda"
    try:
        devices.choose_device(options.device)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    store, machine = Store(options.output), devices.machine()
    end = time.monotonic() + 60 * options.minutes
    failed = 0
    work = parts(options)
    while True:
        try:
            with at_most(end - time.monotonic()):
                part = next(work, None)  # this is where a model is saved
        except Exception as error:
            failed += 1
            print(f"stopped while a model was prepared: {one_line(error)}", flush=True)
            break
        if part is None:
            break
        name, about, run = part
        start = time.perf_counter()
        try:
            with at_most(end - time.monotonic()):
                record = run()
        except Exception as error:
            record = {"failed": one_line(error)}
        failed += "failed" in record or not record.get("passed", True)
        record |= {"seconds": round(time.perf_counter() - start, 2)}
        about = {"kind": "gpu_check", "model": name, **about, "tiny": options.tiny}
        store.append(about | record | {"machine": machine} | provenance())
        shown = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in record.items()}
        label = about.get("precision", "")
        print(name, about["part"], label, *(f"{k}={v}" for k, v in shown.items()), flush=True)
        devices.release_memory()
    work.close()
    print(f"{failed} failed; records in {options.output}")
    return int(failed > 0)


def one_line(error: Exception) -> str:
    """Kind and text, for a record."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


if __name__ == "__main__":
    sys.exit(main())
