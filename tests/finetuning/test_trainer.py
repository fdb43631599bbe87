"""A run of training: resumable, the same on two processes, safe against what goes wrong."""

import hashlib
import json
import os
import signal
import socket
import time
from contextlib import nullcontext
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from samples import WORDS

from prompteol_utils import finetuning
from prompteol_utils.data import Triplet, comparable, load_mini_sts
from prompteol_utils.encoder import Encoder
from prompteol_utils.finetuning import (
    BatchSampler,
    FinetuneConfig,
    NothingTrainedError,
    Plan,
    TrainingDiverged,
    checkpoints,
    contrastive,
    finetune,
    lora,
    processes,
    trainer,
)
from prompteol_utils.finetuning.config import CPU
from prompteol_utils.models import adapters, load_model, save_tiny, tiny_model
from prompteol_utils.utils import files

SMALL = {
    "batch_size": 8,
    "warmup_steps": 2,
    "rank": 4,
    "chunk_tokens": 150,
    "save_every": 2,
    "evaluate_every": 3,
    "learning_rate": 3e-3,
}


def triplets(n: int = 40) -> list[Triplet]:
    rng = np.random.default_rng(0)
    return [
        Triplet(*(" ".join(rng.choice(WORDS, int(rng.integers(2, 12)))) for _ in range(3)))
        for _ in range(n)
    ]


def config(**changes) -> FinetuneConfig:
    return FinetuneConfig(**{**SMALL, **changes})


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return str(
        save_tiny(
            "llama",
            tmp_path_factory.mktemp("models") / "tiny-a",
            spread=0.1,
            hidden_size=64,
            intermediate_size=128,
        )
    )


@pytest.fixture(scope="module")
def dev():
    return load_mini_sts("dev", limit=24)


def relative(a, b) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def numbers(history: pd.DataFrame) -> pd.DataFrame:
    return history.drop(columns=["seconds"])


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_the_best_adapter_is_kept_and_comes_back_the_same(
    base, dev, tmp_path, quantization, monkeypatch
):
    encoder = Encoder(load_model(base, quantization=quantization))
    texts, seen, scores = dev.sentences, [], [1.0, 2.0, 9.0, 3.0, 2.0]

    def scored(encode, pairs):
        seen.append(encode(texts))
        return pd.DataFrame({"spearman": [scores[len(seen) - 1]]})

    monkeypatch.setattr(trainer.sts, "evaluate_sts", scored)
    history = finetune(
        encoder, triplets(), config(epochs=2, learning_rate=1e-2), tmp_path / "run", dev
    )
    assert history["step"].tolist() == list(range(11)) and history["loss"][1:].notna().all()
    assert history["dev"].dropna().to_dict() == dict(zip((0, 3, 6, 9, 10), scores, strict=True))
    before, best, last = seen[0], seen[2], seen[4]
    assert min(relative(before, best), relative(last, best)) > 0.01, "three different adapters"
    assert relative(encoder.encode(texts), before) < 1e-6, (
        "the encoder that was given is the base again"
    )
    for place in (tmp_path / "run", tmp_path / "run" / "adapter"):
        tuned = Encoder(load_model(base, quantization=quantization, adapter=place))
        assert relative(tuned.encode(texts), best) < 1e-5 and tuned.loaded.adapter.startswith(
            "run@"
        )
    record = adapters.read(tmp_path / "run")
    assert (
        record["prompt"]["prefix"] == encoder.prompt.prefix
        and record["base"]["quantization"] == quantization
    )
    assert (record["step"], record["dev"]) == (6, 9.0)
    assert (
        json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())[
            "base_model_name_or_path"
        ]
        == "tiny-a"
    )


def test_merged_model_needs_no_peft(base, tmp_path):
    finetune(Encoder(load_model(base)), triplets(), config(learning_rate=1e-2), tmp_path / "run")
    tuned = load_model(base, adapter=tmp_path / "run")
    expected = Encoder(tuned).encode(["A cat.", "A dog sings."])
    adapters.merge(tuned, tmp_path / "merged")
    merged = load_model(str(tmp_path / "merged"))
    modes = {file.stat().st_mode & 0o777 for file in (tmp_path / "merged").iterdir()}
    assert modes == {(tmp_path / "merged").stat().st_mode & 0o666}
    assert not any("lora" in name for name, _ in merged.model.named_parameters())
    assert relative(Encoder(merged).encode(["A cat.", "A dog sings."]), expected) < 1e-5
    assert relative(Encoder(load_model(base)).encode(["A cat.", "A dog sings."]), expected) > 1e-3
    with pytest.raises(ValueError, match="is not empty"):
        adapters.merge(load_model(base, adapter=tmp_path / "run"), tmp_path / "merged")
    with pytest.raises(ValueError, match="not quantised"):
        adapters.merge(
            load_model(base, adapter=tmp_path / "run", quantization="nf4"), tmp_path / "other"
        )


def test_training_reads_sentences_without_added_punctuation_cut_before_they_are_wrapped(
    base, tmp_path, monkeypatch
):
    read, vectors = [], Encoder.vectors
    monkeypatch.setattr(
        Encoder, "vectors", lambda self, ids: read.extend(ids) or vectors(self, ids)
    )
    encoder = Encoder(load_model(base))
    run = config(max_steps=1, batch_size=2, max_sentence_tokens=5)
    finetune(encoder, triplets(2), run, tmp_path / "run")
    tokenizer = encoder.loaded.tokenizer
    seen = {tokenizer.decode(ids, skip_special_tokens=True) for ids in read}
    assert len(seen) == 6
    for text in seen:
        inside = text.removeprefix('This sentence : "').removesuffix('" means in one word:"')
        assert len(text) - len(inside) == 38, "the whole prompt, before and after the sentence"
        tokens = tokenizer(inside, add_special_tokens=False)["input_ids"]
        assert not inside.endswith(".") and len(tokens) <= 5


def test_the_papers_recipe_is_the_default():
    paper = FinetuneConfig()
    assert (paper.batch_size, paper.learning_rate, paper.warmup_steps, paper.epochs) == (
        256,
        5e-4,
        100,
        1,
    )
    assert (
        paper.rank,
        paper.alpha,
        paper.dropout,
        paper.temperature,
        paper.max_sentence_tokens,
    ) == (64, 16, 0.05, 0.05, 32)
    assert CPU.batch_size == 16 and CPU.max_steps == 150


def test_lora_sits_on_every_linear_layer_but_the_head(base):
    encoder = Encoder(load_model(base, quantization="nf4"))
    with lora.lora_encoder(encoder, config()) as tuned:
        names = [
            name for name, module in tuned.loaded.model.named_modules() if name.endswith("lora_A")
        ]
        assert len(names) == 7 * 3 and not any("lm_head" in name for name in names)
        trained = [p.dtype for p in tuned.loaded.model.parameters() if p.requires_grad]
        assert set(trained) == {torch.float32} and len(trained) == 2 * len(names)


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_lora_on_the_last_layers_only(base, dev, tmp_path, quantization):
    encoder, texts = Encoder(load_model(base, quantization=quantization)), dev.sentences
    with lora.lora_encoder(encoder, config(layers=2)) as tuned:
        placed = {
            name.partition(".layers.")[2][:2]
            for name, _ in tuned.loaded.model.named_modules()
            if name.endswith("lora_A")
        }
        assert placed == {"1.", "2."}, "the last two of three"
        flows = []
        for layer in tuned.loaded.model.base_model.model.model.layers:
            layer.register_forward_hook(
                lambda module, inputs, output: flows.append(output.requires_grad)
            )
        tuned.loaded.model(torch.tensor([[1, 2, 3]]))
        assert flows == [False, True, True], (
            "no gradient is computed below the first layer that is trained"
        )
    before = encoder.encode(texts)
    finetune(
        encoder, triplets(), config(layers=2, learning_rate=1e-2, max_steps=4), tmp_path / "run"
    )
    tuned = load_model(base, quantization=quantization, adapter=tmp_path / "run")
    assert {
        name.partition(".layers.")[2][:2]
        for name, _ in tuned.model.named_modules()
        if name.endswith("lora_A")
    } == {"1.", "2."}
    assert relative(Encoder(tuned).encode(texts), before) > 0.01
    first, second = (Encoder(loaded, layer=1).encode(texts) for loaded in (tuned, encoder.loaded))
    assert relative(first, second) < 1e-6, "what the first layer gives is the base's"
    assert adapters.read(tmp_path / "run")["config"]["layers"] == 2
    with pytest.raises(ValueError, match="layers=4, and tiny-a has 3"):
        finetune(encoder, triplets(), config(layers=4), tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("architecture", ["opt-350m", "gpt2", "gpt-neox", "gemma3"])
def test_all_layers_counted_from_the_last_are_all_layers(architecture):
    """Only projections outside the layers (OPT-350M has two) make the difference."""

    def places(layers):
        tuned = adapters.add_lora(
            tiny_model(architecture).model, rank=2, alpha=4, dropout=0.0, layers=layers
        )
        return {name for name, _ in tuned.named_modules() if name.endswith("lora_A")}

    depth = tiny_model(architecture).model.config.num_hidden_layers
    everywhere, counted, last = places(None), places(depth), places(1)
    assert {name.split(".")[-2] for name in everywhere - counted} == (
        {"project_in", "project_out"} if architecture == "opt-350m" else set()
    )
    assert counted <= everywhere and 0 < len(last) * depth == len(counted)


def test_four_bit_weights_are_not_repacked_by_inference(base):
    # Where a CPU has bf16 units, bitsandbytes would repack them at the first `encode`, and then
    # no gradient passes.
    loaded = load_model(base, quantization="nf4")
    Encoder(loaded).encode(["A cat."])
    layers = [module for module in loaded.model.modules() if type(module).__name__ == "Linear4bit"]
    assert layers and not any(
        getattr(layer.weight.quant_state, "packing_format_for_cpu", False) for layer in layers
    )


# Killed, and on two processes


@pytest.fixture
def one_thread():
    """A forked process may not use its parent's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def start(base, out, changes, dev, **environment) -> int:
    """Train in a fork (importing torch takes longer than this training); return its id."""
    if process := os.fork():
        return process
    status = 1
    try:
        os.environ |= environment
        finetune(Encoder(load_model(base)), triplets(), config(**changes), out, dev)
        status = 0
    finally:
        os._exit(status)


def test_killed_run_goes_on_with_the_same_losses(base, dev, tmp_path, one_thread):
    changes = {"max_steps": 12, "dropout": 0.1}
    whole = finetune(
        Encoder(load_model(base)), triplets(), config(**changes), tmp_path / "whole", dev
    )
    run, step = start(base, tmp_path / "cut", changes, dev), 0
    while step < 4:
        assert os.waitpid(run, os.WNOHANG) == (0, 0), "it ended by itself"
        time.sleep(0.02)
        step = (checkpoints.load(tmp_path / "cut") or {"step": 0})["step"]
    os.kill(run, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(run, 0)[1]) == signal.SIGKILL
    assert checkpoints.load(tmp_path / "cut")["step"] < 12
    cut = finetune(Encoder(load_model(base)), triplets(), config(**changes), tmp_path / "cut", dev)
    pd.testing.assert_frame_equal(numbers(cut), numbers(whole), check_exact=True)
    weights = [
        (tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes()
        for name in ("whole", "cut")
    ]
    assert weights[0] == weights[1]


def test_a_run_killed_before_its_first_checkpoint_leaves_its_folder_free(
    base, tmp_path, one_thread, caplog
):
    """Free for other settings; not while its process lives, and not once there is a checkpoint."""
    slow = {"batch_size": 2, "save_every": 1_000, "max_steps": 1_000}
    encoder, out = Encoder(load_model(base)), tmp_path / "run"
    run = start(base, out, slow, None)
    while not (out / "run.json").is_file():
        assert os.waitpid(run, os.WNOHANG) == (0, 0), "it ended by itself"
        time.sleep(0.02)
    try:
        with pytest.raises(files.CacheError, match=f"still in use by process {run}"):
            finetune(encoder, triplets(), config(max_steps=2), out)
    finally:
        os.kill(run, signal.SIGKILL)
        os.waitpid(run, 0)
    assert [file.name for file in out.iterdir() if file.suffix != ".lock"] == ["run.json"]
    finetune(encoder, triplets(), config(max_steps=2), out)
    assert "ended before its first checkpoint" in caplog.text
    assert adapters.read(out)["finished"]
    with pytest.raises(ValueError, match="holds another run"):
        finetune(encoder, triplets(), config(max_steps=2, learning_rate=0.1), out)


def test_a_resume_that_forgets_the_optimiser_is_seen(base, tmp_path, monkeypatch):
    """The comparison above can tell: it fails for a run whose optimiser starts anew."""
    encoder = Encoder(load_model(base))
    whole = finetune(encoder, triplets(), config(max_steps=6), tmp_path / "whole")
    batch = BatchSampler.batch

    def cut(self, step):
        if step == 4:
            raise KeyboardInterrupt
        return batch(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(BatchSampler, "batch", cut)
        with pytest.raises(KeyboardInterrupt):
            finetune(encoder, triplets(), config(max_steps=6), tmp_path / "cut")
    monkeypatch.setattr(torch.optim.AdamW, "load_state_dict", lambda self, state: None)
    forgot = finetune(encoder, triplets(), config(max_steps=6), tmp_path / "cut")
    with pytest.raises(AssertionError):
        pd.testing.assert_frame_equal(numbers(forgot), numbers(whole), check_exact=True)


def adapter_weights(out: Path) -> torch.Tensor:
    from safetensors.torch import load_file

    return torch.cat(
        [
            tensor.flatten()
            for _, tensor in sorted(
                load_file(out / "adapter" / "adapter_model.safetensors").items()
            )
        ]
    )


def test_two_processes_train_as_one_with_the_same_global_batch(base, dev, tmp_path, one_thread):
    changes = {"max_steps": 4, "dropout": 0.1, "warmup_steps": 0}
    one = finetune(Encoder(load_model(base)), triplets(), config(**changes), tmp_path / "one", dev)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    meet = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    runs = [
        start(base, tmp_path / "two", changes, dev, RANK=str(rank), LOCAL_RANK=str(rank), **meet)
        for rank in range(2)
    ]
    assert [os.waitpid(run, 0)[1] for run in runs] == [0, 0]
    two = pd.read_csv(tmp_path / "two" / "history.csv")
    assert np.allclose(two["loss"][1:], one["loss"][1:], rtol=1e-5)
    assert np.allclose(two["gradient_norm"][1:], one["gradient_norm"][1:], rtol=1e-4)
    assert (
        relative(
            adapter_weights(tmp_path / "two").numpy(), adapter_weights(tmp_path / "one").numpy()
        )
        < 1e-4
    )


def test_gathered_gradients_are_those_of_the_whole_batch(monkeypatch):
    """Both processes played in turn: own vectors carry the gradient."""
    torch.manual_seed(0)
    whole = torch.randn(2, 3, 4, 16)  # process, role, row, dimension
    roles = whole.transpose(0, 1).reshape(3, 8, 16).clone().requires_grad_()
    contrastive.contrastive_loss(*roles, temperature=0.05).backward()
    expected = roles.grad.reshape(3, 2, 4, 16).transpose(0, 1)
    monkeypatch.setattr(processes, "count", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(
            processes.dist,
            "all_gather",
            lambda parts, mine: [
                part.copy_(w.reshape(12, 16)) for part, w in zip(parts, whole, strict=True)
            ],
        )
        own = whole[rank].reshape(12, 16).clone().requires_grad_()
        contrastive.triplet_loss(own, 0.05).backward()
        assert relative(own.grad.numpy(), expected[rank].reshape(12, 16).numpy()) < 1e-5


# Trouble


def test_a_diverging_loss_stops_with_its_batch(base, tmp_path, monkeypatch):
    encoder, cached = Encoder(load_model(base)), contrastive.cached_backward
    calls = []

    def poisoned(embed, rows, loss, *rest, **options):
        calls.append(1)
        wrong = (lambda v: loss(v) * float("nan")) if len(calls) == 4 else loss
        return cached(embed, rows, wrong, *rest, **options)

    monkeypatch.setattr(contrastive, "cached_backward", poisoned)
    with pytest.raises(TrainingDiverged, match="step 4: loss nan"):
        finetune(encoder, triplets(), config(), tmp_path / "run")
    batch = json.loads((tmp_path / "run" / "bad_batch.json").read_text())
    assert (
        batch["step"] == 4
        and len(batch["triplets"]) == 8
        and set(batch["triplets"][0]) == {"anchor", "positive", "negative"}
    )
    assert checkpoints.load(tmp_path / "run")["step"] == 2
    assert not adapters.read(tmp_path / "run")["finished"]
    assert all(
        torch.isfinite(tensor).all()
        for tensor in checkpoints.load(tmp_path / "run")["adapter"].values()
    )


def test_a_full_disk_keeps_the_last_good_checkpoint(base, tmp_path, monkeypatch):
    encoder, save = Encoder(load_model(base)), torch.save

    def full(state, file):
        if state["step"] == 4:
            file.write(b"half a checkpoint")
            raise OSError(28, "No space left on device")
        save(state, file)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        files.CacheError, match=r"step 4 could not be written .* the one of step 2 is whole"
    ):
        finetune(encoder, triplets(), config(), tmp_path / "run")
    monkeypatch.setattr(torch, "save", save)
    assert checkpoints.load(tmp_path / "run")["step"] == 2
    assert finetune(encoder, triplets(), config(), tmp_path / "run")["loss"].count() == 5
    assert not list((tmp_path / "run").glob(".checkpoint*tmp*"))


def test_early_stop(base, dev, tmp_path, monkeypatch):
    scores = iter([1.0, 3.0, 2.0, 2.5, 9.0])
    monkeypatch.setattr(
        trainer.sts,
        "evaluate_sts",
        lambda encode, pairs: pd.DataFrame({"spearman": [next(scores)]}),
    )
    history = finetune(
        Encoder(load_model(base)),
        triplets(),
        config(max_steps=20, evaluate_every=2, patience=2),
        tmp_path / "run",
        dev,
    )
    assert history["step"].max() == 6 and adapters.read(tmp_path / "run")["step"] == 2


@pytest.mark.parametrize(
    "rows, message",
    [
        ([], "0 triplets do not fill one batch of 8"),
        (triplets(1), "1 triplets do not fill one batch"),
        ([*triplets(9), ("a", "b", "B .")], "triplet 9: positive and negative are the same"),
        ([*triplets(9), ("a", " ", "c")], "triplet 9: the positive of a triplet is a sentence"),
        ([*triplets(9), ("a", "b")], "triplet 9: "),
    ],
)
def test_bad_triplets_are_refused_before_anything_is_written(base, tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        finetune(Encoder(load_model(base)), rows, config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"batch_size": 1}, "batch_size is a whole number from 2"),
        ({"batch_size": 8.0}, "batch_size"),
        ({"temperature": 0}, "temperature is a number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"dropout": 1.0}, "dropout is below 1"),
        ({"max_steps": 0}, "max_steps is a whole number from 1 or None"),
        ({"rank": True}, "rank"),
        ({"layers": 0}, "layers is a whole number from 1 or None"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_sharding_is_refused_and_not_ignored(base, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="FSDP would shard it"):
        finetune(Encoder(load_model(base)), triplets(), config(), tmp_path / "run")


def test_a_run_folder_is_found_again_by_the_same_run_only(base, dev):
    encoder = Encoder(load_model(base))
    first = finetuning.run_folder(encoder, triplets(), config(), dev)
    assert finetuning.run_folder(encoder, triplets(), config(chunk_tokens=99), dev) == first, (
        "chunks do not change what is computed"
    )
    others = [
        (triplets(39), config(), dev),
        (triplets(), config(seed=1), dev),
        (triplets(), config(), None),
    ]
    others += [(triplets(), config(layers=2), dev)]
    assert len({first, *(finetuning.run_folder(encoder, *other) for other in others)}) == 5


def test_runs_from_before_there_were_layers_are_found_again():
    """A run is known by its settings: this digest was computed before the field came."""

    def digest(config):
        return hashlib.sha256(json.dumps([config.settings()]).encode()).hexdigest()[:16]

    assert digest(FinetuneConfig()) == "02d6968abe5d9de1" != digest(FinetuneConfig(layers=8))
    assert digest(FinetuneConfig(batch_size=np.int64(256))) == "02d6968abe5d9de1"


def test_a_folder_with_something_else_is_left_alone(base, tmp_path):
    encoder = Encoder(load_model(base))
    finetune(encoder, triplets(), config(max_steps=2), tmp_path / "run")
    kept = {
        file: file.read_bytes()
        for file in (tmp_path / "run").rglob("*")
        if file.is_file() and ".lock" not in file.name
    }
    with pytest.raises(ValueError, match=r"holds another run \(learning_rate was 0.003, now 0.1\)"):
        finetune(encoder, triplets(), config(max_steps=2, learning_rate=0.1), tmp_path / "run")
    with pytest.raises(ValueError, match=r"holds another run \(triplets was"):
        finetune(encoder, triplets(39), config(max_steps=2), tmp_path / "run")
    with pytest.raises(ValueError, match="a run of 2 steps already, and 1 were asked for"):
        finetune(encoder, triplets(), config(max_steps=1), tmp_path / "run")
    assert all(f.read_bytes() == content for f, content in kept.items() if f.name != "run.json")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds files that are no training run"):
        finetune(encoder, triplets(), config(), tmp_path / "notes")
    with pytest.raises(ValueError, match="is a file"):
        finetune(encoder, triplets(), config(), tmp_path / "notes" / "diary.txt")
    with pytest.raises(ValueError, match="carries the adapter run@"):
        finetune(
            Encoder(load_model(base, adapter=tmp_path / "run")),
            triplets(),
            config(),
            tmp_path / "new",
        )


def test_an_adapter_of_another_base_is_refused(base, tmp_path):
    finetune(
        Encoder(load_model(base)),
        triplets(),
        config(max_steps=1, learning_rate=1e-2),
        tmp_path / "run",
    )
    other = save_tiny(
        "llama", tmp_path / "tiny-b", seed=5, spread=0.1, hidden_size=64, intermediate_size=128
    )
    with pytest.raises(ValueError, match="trained on other weights than those of tiny-b"):
        load_model(str(other), adapter=tmp_path / "run")
    narrow = save_tiny("llama", tmp_path / "tiny-c", spread=0.1)
    with pytest.raises(ValueError, match="trained on other weights than those of tiny-c"):
        load_model(str(narrow), adapter=tmp_path / "run")
    (
        tmp_path / "run" / "adapter" / adapters.RECORD
    ).unlink()  # an adapter from elsewhere: only its shapes can tell
    with pytest.raises(ValueError, match="does not fit tiny-c"):
        load_model(str(narrow), adapter=tmp_path / "run")
    moved = tmp_path / "moved"
    Path(base).rename(moved)
    try:
        assert load_model(str(moved), adapter=tmp_path / "run").adapter.startswith("run@")
    finally:
        moved.rename(base)
    for wrong, message in (
        (tmp_path / "tiny-b", "holds no adapter"),
        ("nowhere", "is no folder, and no hub id"),
    ):
        with pytest.raises(ValueError, match=message):
            load_model(base, adapter=wrong)


# What a run plans


def test_no_sentence_twice_in_a_batch():
    plain = triplets(40)
    order = np.random.default_rng([3, 1]).permutation(40).tolist()
    slices = [order[i : i + 8] for i in range(0, 40, 8)]
    assert BatchSampler(plain, 8, 3).epoch(1) == slices, "nothing to avoid: the shuffled order"
    twice = [
        *plain,
        *(Triplet(one.anchor.upper() + " .", f"{n} a", f"{n} b") for n, one in enumerate(plain)),
    ]
    sampler = BatchSampler(twice, 8, 0)
    assert [sampler.batch(step) for step in range(len(sampler.epoch(0)))] == sampler.epoch(0)
    assert sampler.batch(len(sampler.epoch(0))) == sampler.epoch(1)[0] != sampler.epoch(0)[0]
    for epoch in range(5):
        batches = sampler.epoch(epoch)
        assert len(batches) >= 9 and all(len(batch) == 8 for batch in batches)
        used = [position for batch in batches for position in batch]
        assert len(used) == len(set(used))
        for batch in batches:
            texts = [comparable(text) for n in batch for text in astuple(twice[n])]
            assert len(texts) == len(set(texts)) == 24
    shuffled = np.random.default_rng([0, 0]).permutation(80) % 40
    assert any(len(set(shuffled[k : k + 8])) < 8 for k in range(0, 80, 8)), (
        "plain slices hold such pairs, or this test tells nothing"
    )
    same = [Triplet("one premise", f"{n} yes", f"{n} no") for n in range(20)]
    with pytest.raises(ValueError, match="in which no sentence occurs twice"):
        BatchSampler(same, 2, 0)


def test_a_warm_up_longer_than_the_run_is_shortened_and_said(caplog):
    plan = Plan(triplets(), config(batch_size=2, warmup_steps=100))
    assert (plan.steps, plan.warmup) == (20, 2) and plan.peak == SMALL["learning_rate"]
    assert "warm-up of 100 steps does not fit a run of 20: it takes 2" in caplog.text
    assert str(plan) == "20 steps, peak learning rate 0.003"
    one = Plan(triplets(), config(max_steps=1))
    assert one.learning_rate(0) == one.peak == SMALL["learning_rate"], "not a step at rate 0"


def test_the_schedule_is_that_of_transformers():
    from transformers import get_linear_schedule_with_warmup

    plan = Plan(triplets(), config(max_steps=9, warmup_steps=3))
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=SMALL["learning_rate"])
    schedule = get_linear_schedule_with_warmup(optimizer, 3, 9)
    for step in range(9):
        assert plan.learning_rate(step) == pytest.approx(schedule.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        schedule.step()


def test_a_run_that_moved_nothing_is_an_error(base, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: None)
    with pytest.raises(NothingTrainedError, match="every LoRA matrix B is still zero"):
        finetune(Encoder(load_model(base)), triplets(), config(max_steps=1), tmp_path / "run")


def test_a_finished_run_takes_more_steps_and_an_adapter_is_trained_further(base, tmp_path):
    encoder = Encoder(load_model(base))
    first = finetune(encoder, triplets(), config(max_steps=2), tmp_path / "run")
    more = finetune(encoder, triplets(), config(max_steps=4, save_every=1), tmp_path / "run")
    pd.testing.assert_frame_equal(numbers(more[:3]), numbers(first), check_exact=True)
    assert more["learning_rate"].tolist()[3:] == [
        Plan(triplets(), config(max_steps=4)).learning_rate(step) for step in (2, 3)
    ]
    record = adapters.read(tmp_path / "run")
    assert record["extended"] == [{"at": 2, "from": 2}] and record["steps"] == 4
    further = finetune(
        encoder, triplets(), config(max_steps=1), tmp_path / "new", start=tmp_path / "run"
    )
    assert further["loss"][1] < first["loss"][1]
    moved = relative(adapter_weights(tmp_path / "new"), adapter_weights(tmp_path / "run"))
    assert 0 < moved < 0.5
    with pytest.raises(ValueError, match=r"holds another run \(start was"):
        finetune(encoder, triplets(), config(max_steps=1), tmp_path / "new")
    with pytest.raises(ValueError, match="give the rank"):
        finetune(encoder, triplets(), config(rank=2), tmp_path / "b", start=tmp_path / "run")


# The base, and what a step needs


@pytest.mark.parametrize("dtype, quantization", [("bfloat16", "nf4"), ("float16", None)])
def test_a_16_bit_base_is_the_same_afterwards_and_scores_as_it_will_be_loaded(
    base, dev, tmp_path, dtype, quantization
):
    loaded = load_model(base, dtype=dtype, quantization=quantization)
    encoder, texts = Encoder(loaded), dev.sentences
    loaded.model.gradient_checkpointing_enable()
    before = encoder.encode(texts)
    flags = [(p.dtype, p.requires_grad) for p in loaded.model.parameters()]
    run = config(max_steps=3, warmup_steps=0, learning_rate=1e-2, evaluate_every=3)
    history = finetune(encoder, triplets(), run, tmp_path / "run", dev)
    assert np.isfinite(history["gradient_norm"][1:]).all()
    assert [(p.dtype, p.requires_grad) for p in loaded.model.parameters()] == flags
    assert loaded.model.is_gradient_checkpointing
    assert np.array_equal(encoder.encode(texts), before)
    tuned = Encoder(
        load_model(base, dtype=dtype, quantization=quantization, adapter=tmp_path / "run")
    )
    record = adapters.read(tmp_path / "run")
    score = trainer.sts.evaluate_sts(tuned.encode, dev)["spearman"][0]
    assert score == record["dev"] == max(history["dev"].dropna())
    if record["step"]:
        assert not np.array_equal(tuned.encode(texts), before)


def dev_sentences() -> list[str]:
    return [" ".join(WORDS[k:]) for k in range(8)]


def test_lora_in_16_bits_has_the_gradient_of_fp32_even_where_fp16_underflows(base):
    ids = Encoder(load_model(base)).tokenize(dev_sentences())

    def faint(vectors):  # not their length, which the last norm fixes
        return 1e-9 * (vectors @ torch.linspace(-1, 1, vectors.shape[1])).sum()

    def gradient(dtype, **options):
        encoder = Encoder(load_model(base, dtype=dtype))
        with lora.lora_encoder(encoder, config(dropout=0.0)) as tuned:
            model = tuned.loaded.model
            parameters = [p for p in model.parameters() if p.requires_grad]
            torch.manual_seed(0)
            for p in parameters:
                p.data.normal_(0, 0.05)
            with lora.lora_in_input_dtype(model) if dtype != "float32" else nullcontext():
                contrastive.cached_backward(
                    tuned.vectors, ids, faint, 60,
                    parameters=parameters, **options,
                )  # fmt: skip
            return torch.cat([p.grad.flatten() for p in parameters]).numpy()

    exact = gradient("float32")
    assert relative(gradient("float16", gradient_peak=1.0), exact) < 0.05
    assert relative(gradient("bfloat16"), exact) < 0.2
    assert relative(gradient("float16"), exact) > 0.2, "without scaling it underflows"


def test_out_of_memory_halves_the_chunk_and_changes_nothing(base, tmp_path, monkeypatch, caplog):
    run = config(max_steps=2, dropout=0.1, chunk_tokens=1000)
    whole = finetune(Encoder(load_model(base)), triplets(), run, tmp_path / "whole")
    vectors = Encoder.vectors

    def small(self, ids):
        if sum(map(len, ids)) > 200:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return vectors(self, ids)

    monkeypatch.setattr(Encoder, "vectors", small)
    cut = finetune(Encoder(load_model(base)), triplets(), run, tmp_path / "cut")
    assert "out of memory: chunks of" in caplog.text
    assert np.allclose(cut["loss"][1:], whole["loss"][1:], rtol=1e-4)
    assert np.allclose(cut["gradient_norm"][1:], whole["gradient_norm"][1:], rtol=1e-4)


# Several processes


def test_processes_take_their_own_card_and_send_objects_over_gloo(monkeypatch):
    calls = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(device))
    monkeypatch.setattr(
        processes.dist, "init_process_group", lambda *args, **options: calls.append((args, options))
    )
    processes.join("cuda:1")
    card = torch.device("cuda:1")
    assert calls == [card, (("cpu:gloo,cuda:nccl",), {"device_id": card})]
    with pytest.raises(ValueError, match="device='cuda:1', got device='cuda'"):
        processes.join("cuda")


def test_a_batch_that_the_processes_do_not_divide_is_refused(base, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 3)
    with pytest.raises(ValueError, match="batch_size=8 cannot be shared equally by 3 processes"):
        finetune(Encoder(load_model(base)), triplets(), config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_error_of_the_first_process_reaches_the_others(monkeypatch):
    sent = []

    def broadcast(said):
        if processes.rank() == 0:
            sent[:] = said
        said[:] = sent

    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes.dist, "broadcast_object_list", broadcast)
    for rank, kind in ((0, ZeroDivisionError), (1, RuntimeError)):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        with pytest.raises(kind, match="division by zero"):
            processes.on_first(lambda: 1 / 0)
