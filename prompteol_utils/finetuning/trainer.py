"""Contrastive fine-tuning with LoRA on a frozen, mostly 4-bit model: the paper's recipe, resumable, on one process or many."""

import hashlib
import json
import math
import os
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from tqdm import tqdm

from prompteol_utils.data.nli import Triplet
from prompteol_utils.data.sts import Pairs
from prompteol_utils.encoder import batching
from prompteol_utils.encoder.encoder import Encoder
from prompteol_utils.evaluation import sts
from prompteol_utils.finetuning import checkpoints, contrastive, dropout
from prompteol_utils.finetuning.config import FinetuneConfig
from prompteol_utils.models import adapters
from prompteol_utils.utils import devices, files

CPU_CHUNK, GPU_CHUNK = 512, 8_192  # default tokens of a chunk, padding included


class TrainingDiverged(RuntimeError):
    """The loss or its gradient became NaN or infinite; the batch lies in the run's folder, and the last checkpoint is untouched."""


def finetune(
    encoder: Encoder,
    triplets: Sequence[Triplet],
    config: FinetuneConfig,
    out: str | os.PathLike,
    dev: Pairs | None = None,
) -> pd.DataFrame:
    """Train a LoRA adapter so that sentences of the same meaning get near vectors; a run that was killed goes on where it was.

    Args:
        encoder: The base model (`quantization="nf4"` for QLoRA) with its prompt. It is as before when this returns. In training the
            prompt adds no punctuation, as in the authors' code; dev scores use it as it is.
        triplets: Training examples.
        config: The settings.
        out: The run's folder: `adapter/` (for `load_model(adapter=out)`), the last checkpoint, `history.csv`.
        dev: Graded pairs, not among the training sentences. The adapter with the best score is kept; without them, the last one.

    Returns:
        One row a step: step, loss (before the step's update), learning_rate, gradient_norm, tokens, seconds, and dev (Spearman x 100
        after so many steps; row 0 is the base; NaN in between).

    Raises:
        ValueError: Fewer triplets than a batch, a bad triplet, more layers than the model has, an adapter already on the model, or a
            folder with another run.
        TrainingDiverged: The loss is NaN or infinite.
        files.CacheError: A checkpoint cannot be written, or another process is at work in `out`.

    Source: the paper's fine-tuning. Built in notebook 04.
    """
    rows = _checked(triplets, config)
    if encoder.loaded.adapter is not None:
        raise ValueError(
            f"the encoder carries the adapter {encoder.loaded.adapter} already; load its base model without one"
        )
    depth = encoder.loaded.model.config.get_text_config().num_hidden_layers
    if config.layers is not None and config.layers > depth:
        raise ValueError(
            f"layers={config.layers}, and {encoder.loaded.name} has {depth}; None takes all of them"
        )
    _join_processes(encoder.loaded.device)
    out = Path(out)
    with _alone(out):
        run = _identity(encoder, rows, config, dev)
        if encoder.loaded.device == "cpu":
            devices.disable_malloc_trim()
        with torch.random.fork_rng(), _lora(encoder, config) as tuned:
            return _Run(tuned, rows, config, _claimed(out, run), dev).train()


def run_folder(
    encoder: Encoder, triplets: Sequence[Triplet], config: FinetuneConfig, dev: Pairs | None = None
) -> Path:
    """A folder in the cache for exactly this run: the same arguments find it again, any other get another one.

    Built in notebook 04.
    """
    run = _identity(encoder, _checked(triplets, config), config, dev)
    name = "".join(c if c.isalnum() or c in ".-" else "-" for c in encoder.loaded.name)
    return files.cache_folder() / "runs" / f"{name}-{_digest([run])}"


def _identity(
    encoder: Encoder, rows: list[Triplet], config: FinetuneConfig, dev: Pairs | None
) -> dict:
    """All that decides the numbers of a run."""
    pairs = (
        None if dev is None else _digest(zip(dev.left, dev.right, dev.gold.tolist(), strict=True))
    )
    run = {
        **config.settings(),
        "encoder": encoder.key,
        "triplets": _digest(map(astuple, rows)),
        "dev": pairs,
    }
    run.pop("chunk_tokens")  # does not change what is computed
    return run


class _Run:
    """One training: what changes from step to step, and how it is kept."""

    def __init__(
        self, tuned: Encoder, rows: list[Triplet], config: FinetuneConfig, out, dev: Pairs | None
    ):
        from transformers import get_linear_schedule_with_warmup

        self.tuned, self.rows, self.config, self.out, self.dev = tuned, rows, config, out, dev
        self.model = tuned.loaded.model
        plain = replace(tuned.prompt, punctuation=None)
        self.reader = Encoder(
            tuned.loaded,
            plain,
            pooling=tuned.pooling,
            layer=tuned.layer,
            max_sentence_tokens=config.max_sentence_tokens,
            prefix_cache=False,
        )
        self.parameters = [
            parameter for parameter in self.model.parameters() if parameter.requires_grad
        ]
        dropout.use_sentence_dropout(self.model)
        # Other dropout (OPT's) draws from torch's generators, which threads share; bitsandbytes'
        # 8-bit layers keep what they work on in themselves.
        self.independent = (
            tuned.loaded.device == "cpu"
            and tuned.loaded.quantization != "int8"
            and not _has_other_dropout(self.model)
        )
        self.num_workers = (
            min(torch.get_num_threads(), batching.NUM_WORKERS) if self.independent else 1
        )
        self.chunk = config.chunk_tokens or (
            GPU_CHUNK if tuned.loaded.device.startswith("cuda") else CPU_CHUNK
        )
        self.per_epoch = len(rows) // config.batch_size
        self.steps = config.max_steps or config.epochs * self.per_epoch
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.schedule = get_linear_schedule_with_warmup(
            self.optimizer, config.warmup_steps, self.steps
        )
        self.step, self.history, self.best, self.stopped = 0, [], None, False

    def train(self) -> pd.DataFrame:
        if (state := checkpoints.load(self.out)) is not None:
            self._restore(state)
        if not self.history:
            self.history.append({"step": 0, **self._score()})
        with tqdm(total=self.steps, initial=self.step, unit="step", desc="finetune") as bar:
            while self.step < self.steps and not self.stopped:
                self.history.append(self._train_step())
                self.step += 1
                last = self.step == self.steps
                if self.dev is not None and (last or self.step % self.config.evaluate_every == 0):
                    self.history[-1] |= self._score()
                if last or self.stopped or self.step % self.config.save_every == 0:
                    self._save()
                bar.update()
                bar.set_postfix(
                    {
                        name: f"{self.history[-1][name]:.3g}"
                        for name in ("loss", "dev")
                        if name in self.history[-1]
                    }
                )
        return self._finish()

    def _train_step(self) -> dict:
        config, world = self.config, contrastive.processes()
        batch = [self.rows[i] for i in self._positions()]
        mine = batch[contrastive.rank() :: world]
        sentences = [
            getattr(triplet, part)
            for part in ("anchor", "positive", "negative")
            for triplet in mine
        ]
        rate = self.schedule.get_last_lr()[0]
        with devices.Timer(self.model.device) as timer:
            # The random state of a step is a function of its number, so a checkpoint needs no more than that.
            torch.manual_seed(
                int(
                    np.random.SeedSequence(
                        [config.seed, self.step, contrastive.rank()]
                    ).generate_state(1)[0]
                )
            )
            self.model.train()
            ids = self.reader.tokenize(sentences)
            loss_of = partial(contrastive.triplet_loss, temperature=config.temperature)
            loss = contrastive.cached_backward(
                self.reader.vectors,
                ids,
                loss_of,
                self.chunk,
                parameters=self.parameters,
                num_workers=self.num_workers,
                randomness=partial(self._sentence_masks, ids) if self.independent else None,
            ).item()
            norm = math.nan
            if math.isfinite(loss):
                contrastive.sum_gradients(self.parameters)
                norm = torch.nn.utils.clip_grad_norm_(
                    self.parameters, config.max_gradient_norm
                ).item()
            if not math.isfinite(norm):
                self._diverged(loss, norm, rate, batch)
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
        tokens = sum(map(len, ids)) * world
        return {
            "step": self.step + 1, "loss": loss, "learning_rate": rate, "gradient_norm": norm, "tokens": tokens, "seconds": timer.seconds,
        }  # fmt: skip

    def _sentence_masks(self, ids: list[list[int]], chunk: list[int]):
        """Dropout masks that depend on a sentence's place in the global batch alone."""
        world, own = contrastive.processes(), len(ids) // 3
        seeds = [
            (
                self.config.seed,
                self.step,
                position // own,
                position % own * world + contrastive.rank(),
            )
            for position in chunk
        ]
        return dropout.sentence_masks(seeds, [len(ids[position]) for position in chunk])

    def _positions(self) -> list[int]:
        epoch, place = divmod(self.step, self.per_epoch)
        order = np.random.default_rng([self.config.seed, epoch]).permutation(len(self.rows))
        return order[place * self.config.batch_size :][: self.config.batch_size].tolist()

    def _score(self) -> dict:
        """Dev score now; the best adapter so far is kept in memory, and goes into the next checkpoint."""
        if self.dev is None:
            return {}
        score = [None]
        if contrastive.rank() == 0:
            self.model.eval()
            tuned = self.tuned  # a new encoder each time: it keeps keys and values of the prefix, which training changes
            fresh = Encoder(
                tuned.loaded,
                tuned.prompt,
                pooling=tuned.pooling,
                layer=tuned.layer,
                max_sentence_tokens=tuned.max_sentence_tokens,
            )
            score = [
                float(
                    sts.evaluate_sts(partial(fresh.encode, show_progress_bar=False), self.dev)[
                        "spearman"
                    ][0]
                )
            ]
        if contrastive.processes() > 1:
            dist.broadcast_object_list(score)
        if self.best is None or score[0] > self.best["dev"]:
            self.best = {"dev": score[0], "step": self.step, "adapter": self._adapter(), "since": 0}
        else:
            self.best["since"] += 1
            self.stopped = (
                self.config.patience is not None and self.best["since"] >= self.config.patience
            )
        return {"dev": score[0]}

    def _adapter(self) -> dict[str, torch.Tensor]:
        from peft import get_peft_model_state_dict

        weights = get_peft_model_state_dict(self.model, save_embedding_layers=False)
        return {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}

    def _save(self) -> None:
        if contrastive.rank() > 0:
            return
        state = {
            "step": self.step,
            "history": self.history,
            "best": self.best,
            "stopped": self.stopped,
            "adapter": self._adapter(),
        }
        checkpoints.save(
            self.out,
            state
            | {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict()},
        )

    def _restore(self, state: dict) -> None:
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(self.model, state["adapter"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.step, self.history, self.best, self.stopped = (
            state[name] for name in ("step", "history", "best", "stopped")
        )

    def _diverged(self, loss: float, norm: float, rate: float, batch: list[Triplet]) -> None:
        kept = {
            "step": self.step + 1,
            "loss": str(loss),
            "gradient_norm": str(norm),
            "learning_rate": rate,
        }
        where = self.out
        if contrastive.rank() == 0:
            where = checkpoints.save_batch(
                self.out, kept | {"triplets": [asdict(triplet) for triplet in batch]}
            )
        raise TrainingDiverged(
            f"step {self.step + 1}: loss {loss}, gradient norm {norm}, at learning rate {rate:.3g}; no weight was changed, the batch is in "
            f"{where}. A lower learning rate, a longer warm-up or fp32 are the usual cures, in a new folder"
        )

    def _finish(self) -> pd.DataFrame:
        from peft import set_peft_model_state_dict

        if self.best is not None:
            set_peft_model_state_dict(self.model, self.best["adapter"])
        history = pd.DataFrame(self.history)
        if contrastive.rank() == 0:
            facts = {name: self.tuned.key[name] for name in ("prompt", "pooling", "layer")} | {
                "config": self.config.settings()
            }
            facts |= {
                "step": self.best["step"] if self.best else self.step,
                "dev": self.best and self.best["dev"],
            }
            adapters.save(self.tuned.loaded, self.out / "adapter", **facts)
            with files.atomic_file(self.out / "history.csv", "w") as file:
                history.to_csv(file, index=False)
        return history


@contextmanager
def _lora(encoder: Encoder, config: FinetuneConfig):
    """The encoder with fresh LoRA weights on its model, the same on every process; they are taken off again at the end."""
    from peft import prepare_model_for_kbit_training

    loaded = encoder.loaded
    base = loaded.model
    if (
        loaded.quantization
    ):  # before get_peft_model; chunks keep memory small, so layers need not be run twice
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    torch.manual_seed(config.seed)
    tuned = adapters.add_lora(
        base, rank=config.rank, alpha=config.alpha, dropout=config.dropout, layers=config.layers
    )
    for parameter in tuned.parameters():
        if parameter.requires_grad and contrastive.processes() > 1:
            dist.broadcast(parameter.data, 0)
    try:
        yield Encoder(
            replace(loaded, model=tuned, adapter="in training"), encoder.prompt, pooling=encoder.pooling, layer=encoder.layer,
            max_sentence_tokens=encoder.max_sentence_tokens,
        )  # fmt: skip
    finally:
        tuned.unload()
        base.eval()


def _checked(triplets: Sequence[Triplet], config: FinetuneConfig) -> list[Triplet]:
    rows = []
    for number, triplet in enumerate(triplets):
        try:
            rows.append(triplet if isinstance(triplet, Triplet) else Triplet(*triplet))
        except (TypeError, ValueError) as error:
            raise ValueError(f"triplet {number}: {error}") from None
    if len(rows) < config.batch_size:
        raise ValueError(
            f"{len(rows)} triplets do not fill one batch of {config.batch_size}; add some, or lower batch_size (at least 2)"
        )
    return rows


def _has_other_dropout(model) -> bool:
    """Whether more than LoRA's dropout draws random numbers in training."""
    names = ("dropout", "attention_dropout", "activation_dropout", "p")
    values = (
        getattr(module, name, 0)
        for module in model.modules()
        if not isinstance(module, dropout.SentenceDropout)
        for name in names
    )
    return any(isinstance(value, float) and value > 0 for value in values)


def _claimed(out: Path, run: dict) -> Path:
    """The first process takes the folder; the others go on once it has."""
    refused = [None]
    if contrastive.rank() == 0:
        try:
            checkpoints.init_run_dir(out, run)
        except ValueError as error:
            refused = [str(error)]
    if contrastive.processes() > 1:
        dist.broadcast_object_list(refused)
    if refused[0]:
        raise ValueError(refused[0])
    return out


def _digest(rows) -> str:
    return hashlib.sha256(json.dumps(list(rows)).encode()).hexdigest()[:16]


def _join_processes(device: str) -> None:
    """Meet the other processes, where torchrun or `accelerate launch` has started several."""
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        raise ValueError(
            "finetune keeps the whole model on every card, and FSDP would shard it: see configs/fsdp_qlora.yaml for what can"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")


@contextmanager
def _alone(out: Path):
    """One run in a folder at a time; the first process holds it for all."""
    if out.is_file():
        raise ValueError(f"{str(out)!r} is a file; give the run a folder")
    if contrastive.rank() > 0:
        yield
    else:
        with files.lock(out / ".run.lock", timeout=5):
            yield
