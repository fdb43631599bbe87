"""A training step of this package against a plain peft + transformers loop: seconds and peak
memory, one process a measurement.

    python benchmarks/train.py                      # batches 16, 32 and 64, and 256 once; about 15
    minutes on two free cores python benchmarks/train.py --batches 32 --round 1  # once more, in
    rows of their own

Both train the same LoRA on the same frozen 4-bit weights, on the same triplets cut to the same
tokens, with the same loss. The plain
loop is what one writes first: bitsandbytes' layers as they are, the batch padded together, and
gradient checkpointing on, as `prepare_model_for_kbit_training` sets it; it leaves out the LM head,
which the paper's code computes too. Rows go to data/results/train_bench.jsonl; those that are there
are not measured again.
"""

import argparse
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace

from prompteol_utils import finetuning, results
from prompteol_utils.data import nli
from prompteol_utils.encoder import Encoder
from prompteol_utils.finetuning import triplet_loss
from prompteol_utils.models import LoadedModel, load_model
from prompteol_utils.prompts import PROMPTS
from prompteol_utils.utils import devices
from prompteol_utils.utils.files import DATA

STEPS = 3  # the first of them is not counted; with one step alone, it is


def main() -> None:
    """Measure what is missing, each in a process of its own, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 32, 64, 256])
    parser.add_argument(
        "--round", type=int, default=0, help="another number measures everything anew"
    )
    parser.add_argument("--output", default=str(DATA / "results" / "train_bench.jsonl"))
    parser.add_argument("--one", nargs=2, metavar=("ENGINE", "BATCH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return measure(options, options.one[0], int(options.one[1]))
    store = results.Store(options.output)
    for batch in options.batches:
        for engine in ("chunks", "plain") if batch < 256 else ("chunks",):
            if not store.done(key(options, engine, batch)):
                print(f"{engine}, batch {batch} …", flush=True)
                rest = [
                    "--model",
                    options.model,
                    "--round",
                    str(options.round),
                    "--output",
                    options.output,
                ]
                subprocess.run(
                    [sys.executable, __file__, *rest, "--one", engine, str(batch)], check=True
                )
    rows = store.read()
    rows = rows[rows["round"].eq(options.round) & rows["model"].eq(options.model)]
    table = rows.pivot(index="batch", columns="engine", values=["seconds_a_step", "peak_memory_gb"])
    table["times faster"] = table["seconds_a_step"]["plain"] / table["seconds_a_step"]["chunks"]
    print(table.round(2).to_string())


def key(options: argparse.Namespace, engine: str, batch: int) -> dict:
    """What makes two measurements the same."""
    return {
        "kind": "train_bench",
        "model": options.model,
        "engine": engine,
        "batch": batch,
        "round": options.round,
    }


def measure(options: argparse.Namespace, engine: str, batch: int) -> None:
    """Train a few steps here, and append the row."""
    steps = STEPS if batch < 256 else 1
    config = replace(
        finetuning.CPU, batch_size=batch, max_steps=steps, warmup_steps=1, save_every=steps
    )
    triplets = nli.load_nli(seed=0)
    loaded = load_model(options.model, quantization="nf4")
    seconds, loss, tokens, padded = {"chunks": chunks, "plain": plain}[engine](
        loaded, triplets, config
    )
    counted = sorted(seconds[1:] or seconds)
    row = {
        **key(options, engine, batch),
        "seconds_a_step": counted[len(counted) // 2],
        "seconds": seconds,
        "peak_memory_gb": devices.peak_memory(loaded.model.device) / 1e9,
        "tokens": tokens,
        "padded_tokens": padded,
        "loss": loss,
        "weight_origin": loaded.weight_origin,
        "quantization": loaded.quantization,
        "dtype": loaded.dtype,
        "triplets": triplets.origin,
        "config": asdict(config),
        "machine": devices.machine(),
        **results.provenance(config.seed),
    }
    results.Store(options.output).append(row)


def chunks(
    loaded: LoadedModel, triplets: nli.Triplets, config: finetuning.FinetuneConfig
) -> tuple[list[float], list[float], int, int | None]:
    """This package: seconds and loss of each step, tokens of the last one."""
    with tempfile.TemporaryDirectory() as out:
        history = finetuning.finetune(Encoder(loaded), triplets, config, f"{out}/run").iloc[1:]
    return (
        history["seconds"].tolist(),
        history["loss"].tolist(),
        int(history["tokens"].iloc[-1]),
        None,
    )


def plain(
    loaded: LoadedModel, triplets: nli.Triplets, config: finetuning.FinetuneConfig
) -> tuple[list[float], list[float], int, int | None]:
    """What one writes first: the same for a loop of peft and transformers."""
    import numpy as np
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    reader = Encoder(
        loaded,
        replace(PROMPTS["prompteol"], punctuation=None),
        max_sentence_tokens=config.max_sentence_tokens,
    )
    base = prepare_model_for_kbit_training(loaded.model)
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules="all-linear",
    )
    torch.manual_seed(config.seed)
    model = get_peft_model(base, lora).train()
    body, tokenizer = model.get_base_model().base_model, loaded.tokenizer
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay
    )
    order = np.random.default_rng([config.seed, 0]).permutation(
        len(triplets)
    )  # as `finetune` draws them
    seconds, losses = [], []
    for step in range(config.max_steps):
        batch = [triplets[int(i)] for i in order[step * config.batch_size :][: config.batch_size]]
        with devices.Timer() as timer:
            ids = reader.tokenize(
                [
                    getattr(triplet, part)
                    for part in ("anchor", "positive", "negative")
                    for triplet in batch
                ]
            )
            padded = tokenizer.pad(
                {"input_ids": ids}, padding=True, padding_side="left", return_tensors="pt"
            )
            vectors = body(**padded, use_cache=False).last_hidden_state[:, -1].float()
            loss = triplet_loss(vectors, config.temperature)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, config.max_gradient_norm)
            optimizer.step()
            optimizer.zero_grad()
        seconds.append(timer.seconds)
        losses.append(loss.item())
    return seconds, losses, sum(map(len, ids)), padded["input_ids"].numel()


if __name__ == "__main__":
    main()
