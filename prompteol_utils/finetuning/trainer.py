"""Contrastive fine-tuning with LoRA on a frozen model: resumable, on one process or many."""

import hashlib
import json
import logging
import math
import os
from collections.abc import Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, astuple, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from prompteol_utils.data.nli import Triplet
from prompteol_utils.data.sts import Pairs
from prompteol_utils.encoder import batching
from prompteol_utils.encoder.encoder import Encoder
from prompteol_utils.evaluation import sts
from prompteol_utils.finetuning import checkpoints, contrastive, dropout, lora, processes
from prompteol_utils.finetuning.config import FinetuneConfig
from prompteol_utils.finetuning.sampler import BatchSampler, check_triplets
from prompteol_utils.models import adapters
from prompteol_utils.utils import devices, files

CPU_CHUNK, GPU_CHUNK = 512, 8_192  # default tokens whose graph is in memory, padding included
WORKER_CHUNK = 256  # at least so many on each of a CPU's workers
log = logging.getLogger(__name__)


class TrainingDiverged(RuntimeError):
    """The loss or its gradient became NaN or infinite; the last checkpoint is untouched."""


class NothingTrainedError(RuntimeError):
    """The run ended, and LoRA changes nothing: its weights never moved."""


def finetune(
    encoder: Encoder,
    triplets: Sequence[Triplet],
    config: FinetuneConfig,
    out: str | os.PathLike,
    dev: Pairs | None = None,
    *,
    start: str | os.PathLike | None = None,
) -> pd.DataFrame:
    """Train a LoRA adapter so that sentences of the same meaning get near vectors.

    The same call resumes a run that was cut off. With another `max_steps` or `epochs` it goes on
    to so many steps (the learning rate follows the new number from there on, and the adapter's
    record says where); `save_every` may change as well.

    Args:
        encoder: The base model (`quantization="nf4"` for QLoRA) with its prompt; the same when
            this returns. In training the prompt adds no punctuation, as in the authors' code; dev
            scores use it as it is.
        triplets: Training examples.
        config: The settings.
        out: The run's folder: `adapter/` (for `load_model(adapter=out)`; the best so far at each
            checkpoint), the last checkpoint, `history.csv`.
        dev: Graded pairs, not among the training sentences. The adapter with the best score is
            kept; without them, the last one.
        start: An adapter, or its run, to begin with in place of new LoRA weights.

    Returns:
        One line a step: step, loss (before the step's update), learning_rate, gradient_norm,
        tokens, seconds, and dev (Spearman x 100 after so many steps; line 0 is the base; NaN in
        between).

    Raises:
        ValueError: Fewer triplets than a batch, a bad triplet, a batch that the processes do not
            divide, more layers than the model has, an adapter already on the model, `start` of
            another base or with other settings, or a folder with another run.
        TrainingDiverged: The loss is NaN or infinite.
        NothingTrainedError: No weight has moved.
        files.CacheError: A checkpoint cannot be written, or another process is at work in `out`.

    Source: the paper's fine-tuning.
    """
    examples = check_triplets(triplets, config)
    loaded = encoder.loaded
    if loaded.adapter is not None:
        raise ValueError(
            f"the encoder carries the adapter {loaded.adapter} already; load its base model "
            "without one (start=… trains an adapter further)"
        )
    depth = loaded.model.config.get_text_config().num_hidden_layers
    if config.layers is not None and config.layers > depth:
        raise ValueError(
            f"layers={config.layers}, and {loaded.name} has {depth}; None takes all of them"
        )
    processes.join(loaded.device)
    if config.batch_size % processes.count():
        raise ValueError(
            f"batch_size={config.batch_size} cannot be shared equally by {processes.count()} "
            "processes; take a multiple of their number"
        )
    plan = Plan(examples, config)
    run, out = _identity(encoder, examples, config, dev, start), Path(out)
    if start is not None:
        lora.check_start(encoder, config, start)
    if loaded.device == "cpu":
        devices.disable_malloc_trim()
    with ExitStack() as held, torch.random.fork_rng(range(torch.cuda.device_count())):
        processes.on_first(lambda: _take(out, run, held))
        tuned = held.enter_context(lora.lora_encoder(encoder, config, start))
        return _Run(tuned, examples, plan, out, dev).train()


def run_folder(
    encoder: Encoder, triplets: Sequence[Triplet], config: FinetuneConfig, dev: Pairs | None = None
) -> Path:
    """Return a folder in the cache for exactly this run: the same arguments find it again."""
    run = _identity(encoder, check_triplets(triplets, config), config, dev)
    name = "".join(c if c.isalnum() or c in ".-" else "-" for c in encoder.loaded.name)
    return files.cache_folder() / "runs" / f"{name}-{_digest([run])}"


class Plan:
    """What a run will do: its steps, its warm-up, its batches.

    Args:
        triplets: Training examples.
        config: The settings.

    Attributes:
        steps: `max_steps`, or the full batches of all epochs.
        warmup: `warmup_steps` where the run is longer than that, else a tenth of its steps: a run
            that ends within its warm-up would never train at the rate that was asked for.
        peak: The highest learning rate of a step.
    """

    def __init__(self, triplets: Sequence[Triplet], config: FinetuneConfig):
        self.config = config
        self.sampler = BatchSampler(triplets, config.batch_size, config.seed)
        self.steps = config.max_steps or sum(
            len(self.sampler.epoch(epoch)) for epoch in range(config.epochs)
        )
        self.warmup = config.warmup_steps
        if self.warmup >= self.steps:
            self.warmup = self.steps // 10
            log.warning(
                "a warm-up of %d steps does not fit a run of %d: it takes %d",
                config.warmup_steps,
                self.steps,
                self.warmup,
            )
        self.peak = max(map(self.learning_rate, range(self.steps)))

    def learning_rate(self, step: int) -> float:
        """Return the rate of a step, counted from 0: linear up, then linear down to 0."""
        if step < self.warmup:
            return self.config.learning_rate * step / self.warmup
        return self.config.learning_rate * (self.steps - step) / (self.steps - self.warmup)

    def __str__(self) -> str:
        return f"{self.steps} steps, peak learning rate {self.peak:.3g}"


def _identity(
    encoder: Encoder,
    examples: list[Triplet],
    config: FinetuneConfig,
    dev: Pairs | None,
    start: str | os.PathLike | None = None,
) -> dict:
    """All that decides the numbers of a run."""
    pairs = (
        None if dev is None else _digest(zip(dev.left, dev.right, dev.gold.tolist(), strict=True))
    )
    run = {
        **config.settings(),
        "encoder": encoder.key,
        "triplets": digest_triplets(examples),
        "dev": pairs,
    }
    run.pop("chunk_tokens")  # does not change what is computed
    if start is not None:
        run["start"] = digest_adapter(start)
    return run


def _take(out: Path, run: dict, held: ExitStack) -> None:
    """Lock the run's folder for this run, until `held` is closed."""
    if out.is_file():
        raise ValueError(f"{str(out)!r} is a file; give the run a folder")
    held.enter_context(files.lock(out / ".run.lock", timeout=5))
    checkpoints.init_run_dir(out, run)
    held.callback(checkpoints.leave, out)


class _Run:
    """One training: what changes from step to step, and how it is kept."""

    def __init__(
        self, tuned: Encoder, triplets: list[Triplet], plan: Plan, out: Path, dev: Pairs | None
    ):
        self.tuned, self.triplets, self.plan, self.out, self.dev = tuned, triplets, plan, out, dev
        self.config, self.model = plan.config, tuned.loaded.model
        loaded, config = tuned.loaded, self.config
        self.reader = Encoder(
            loaded,
            replace(tuned.prompt, punctuation=None),
            pooling=tuned.pooling,
            layer=tuned.layer,
            max_sentence_tokens=config.max_sentence_tokens,
            prefix_cache=False,
        )
        self.parameters = [one for one in self.model.parameters() if one.requires_grad]
        # Other dropout (OPT's) draws from torch's generators, which threads share; bitsandbytes'
        # 8-bit layers keep what they work on in themselves.
        on_cpu = loaded.device == "cpu"
        self.independent = (
            on_cpu and loaded.quantization != "int8" and not _has_other_dropout(self.model)
        )
        self.num_workers = (
            min(torch.get_num_threads(), batching.NUM_WORKERS) if self.independent else 1
        )
        self.chunk_tokens = config.chunk_tokens or (
            max(CPU_CHUNK, WORKER_CHUNK * self.num_workers) if on_cpu else GPU_CHUNK
        )
        # Gradients of cosines of long vectors are below fp16's smallest numbers.
        self.gradient_peak = 1.0 if loaded.dtype == "float16" else None
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.step, self.history, self.best, self.stopped, self.extended = 0, [], None, False, []

    def train(self) -> pd.DataFrame:
        steps = self.plan.steps
        if (state := checkpoints.load(self.out)) is not None:
            self._restore(state)
        if not self.history:
            self.history.append({"step": 0, **self._score()})
        with tqdm(
            total=steps, initial=self.step, unit="step", desc=f"finetune ({self.plan})"
        ) as bar:
            while self.step < steps and not self.stopped:
                self.history.append(self._train_step())
                self.step += 1
                last = self.step == steps
                if self.dev is not None and (last or self.step % self.config.evaluate_every == 0):
                    self.history[-1] |= self._score()
                if last or self.stopped or self.step % self.config.save_every == 0:
                    processes.on_first(self._save)
                bar.update()
                shown = {name: self.history[-1].get(name) for name in ("loss", "dev")}
                bar.set_postfix({k: f"{v:.3g}" for k, v in shown.items() if v is not None})
        if self._is_untrained():
            raise NothingTrainedError(
                f"after {self.step} steps ({self.plan}) every LoRA matrix B is still zero, so the "
                f"adapter changes nothing; look at the losses and norms in {self.out}/checkpoint.pt"
            )
        return processes.on_first(self._finish)

    def _train_step(self) -> dict:
        world = processes.count()
        batch = [self.triplets[position] for position in self.plan.sampler.batch(self.step)]
        mine = batch[processes.rank() :: world]
        sentences = [
            getattr(triplet, part)
            for part in ("anchor", "positive", "negative")
            for triplet in mine
        ]
        rate = self.plan.learning_rate(self.step)
        self.optimizer.param_groups[0]["lr"] = rate
        with devices.Timer(self.model.device) as timer:
            ids = self.reader.tokenize(sentences)
            loss, norm = self._gradient(ids)
            if not math.isfinite(norm):
                self._diverged(loss, norm, rate, batch)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return {
            "step": self.step + 1,
            "loss": loss,
            "learning_rate": rate,
            "gradient_norm": norm,
            "tokens": sum(map(len, ids)) * world,
            "seconds": timer.seconds,
        }

    def _gradient(self, ids: list[list[int]]) -> tuple[float, float]:
        """Loss, and the gradient's norm before clipping; NaN where either is not finite.

        Repeated with half the chunk where memory runs out, and with a smaller scale where fp16
        overflows: the random state is a function of the step.
        """
        while True:
            try:
                loss = self._backward(ids)
            except torch.OutOfMemoryError:
                if self.chunk_tokens <= 16:
                    raise
                loss = None
            if loss is None:
                self.optimizer.zero_grad()
                devices.release_memory()
                self.chunk_tokens //= 2
                log.warning("out of memory: chunks of %d tokens from here on", self.chunk_tokens)
                continue
            if not math.isfinite(loss):
                return loss, math.nan
            processes.sum_gradients(self.parameters)
            norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_gradient_norm)
            if math.isfinite(norm.item()) or not self.gradient_peak or self.gradient_peak < 1e-5:
                return loss, norm.item()
            self.gradient_peak /= 16
            self.optimizer.zero_grad()

    def _backward(self, ids: list[list[int]]) -> float:
        seed = np.random.SeedSequence([self.config.seed, self.step, processes.rank()])
        torch.manual_seed(int(seed.generate_state(1)[0]))
        self.model.train()
        half = self.tuned.loaded.dtype != "float32"
        with lora.lora_in_input_dtype(self.model) if half else nullcontext():
            return contrastive.cached_backward(
                self.reader.vectors,
                ids,
                partial(contrastive.triplet_loss, temperature=self.config.temperature),
                max(1, self.chunk_tokens // self.num_workers),
                parameters=self.parameters,
                num_workers=self.num_workers,
                randomness=partial(self._sentence_masks, ids) if self.independent else None,
                gradient_peak=self.gradient_peak,
            ).item()

    def _sentence_masks(self, ids: list[list[int]], chunk: list[int]):
        """Dropout masks that depend on a sentence's place in the global batch alone."""
        own, world, rank = len(ids) // 3, processes.count(), processes.rank()
        seeds = [
            (self.config.seed, self.step, position // own, position % own * world + rank)
            for position in chunk
        ]
        return dropout.sentence_masks(seeds, [len(ids[position]) for position in chunk])

    def _score(self) -> dict:
        """Dev score now; the best adapter so far goes into the next checkpoint."""
        if self.dev is None:
            return {}
        self.model.eval()
        score = processes.on_first(self._dev_score)
        if self.best is None or score > self.best["dev"]:
            self.best = {"dev": score, "step": self.step, "adapter": self._adapter(), "since": 0}
        else:
            self.best["since"] += 1
            patience = self.config.patience
            self.stopped = patience is not None and self.best["since"] >= patience
        return {"dev": score}

    def _dev_score(self) -> float:
        # A new encoder: an old one keeps keys and values of the prefix, which training changes.
        now = lora.same_reading(self.tuned, self.tuned.loaded)
        encode = partial(now.encode, show_progress_bar=False)
        return float(sts.evaluate_sts(encode, self.dev)["spearman"][0])

    def _adapter(self) -> dict[str, torch.Tensor]:
        from peft import get_peft_model_state_dict

        weights = get_peft_model_state_dict(self.model, save_embedding_layers=False)
        return {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}

    def _is_untrained(self) -> bool:
        matrices = [one for name, one in self.model.named_parameters() if "lora_B" in name]
        return self.step > 0 and not any(matrix.any() for matrix in matrices)

    def _save(self) -> None:
        state = {
            "step": self.step,
            "history": self.history,
            "best": self.best,
            "stopped": self.stopped,
            "steps": self.plan.steps,
            "extended": self.extended,
            "adapter": self._adapter(),
            "optimizer": self.optimizer.state_dict(),
        }
        checkpoints.save(self.out, state)
        with self._best_adapter():
            self._save_adapter(finished=False)

    def _restore(self, state: dict) -> None:
        from peft import set_peft_model_state_dict

        if state["step"] > self.plan.steps:
            raise ValueError(
                f"{str(self.out)!r} holds a run of {state['step']} steps already, and "
                f"{self.plan.steps} were asked for; take at least as many, or another folder"
            )
        set_peft_model_state_dict(self.model, state["adapter"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.history, self.best, self.stopped = (
            state[name] for name in ("step", "history", "best", "stopped")
        )
        self.extended = state.get("extended", [])
        before = state.get("steps", self.plan.steps)
        if before != self.plan.steps:
            log.warning(
                "the run was planned for %d steps; from step %d on it is one of %d",
                before,
                self.step,
                self.plan.steps,
            )
            self.extended = [*self.extended, {"at": self.step, "from": before}]

    def _diverged(self, loss: float, norm: float, rate: float, batch: list[Triplet]) -> None:
        kept = {
            "step": self.step + 1,
            "loss": str(loss),
            "gradient_norm": str(norm),
            "learning_rate": rate,
            "triplets": [asdict(triplet) for triplet in batch],
        }
        where = processes.on_first(lambda: checkpoints.save_batch(self.out, kept))
        raise TrainingDiverged(
            f"step {self.step + 1}: loss {loss}, gradient norm {norm}, at learning rate "
            f"{rate:.3g}; no weight was changed, the batch is in {where}. A lower learning rate, a "
            "longer warm-up or fp32 are the usual cures, in a new folder"
        )

    @contextmanager
    def _best_adapter(self):
        """Put the adapter with the best dev score on the model for a moment."""
        from peft import set_peft_model_state_dict

        if self.best is None:
            yield
            return
        now = self._adapter()
        set_peft_model_state_dict(self.model, self.best["adapter"])
        try:
            yield
        finally:
            set_peft_model_state_dict(self.model, now)

    def _save_adapter(self, finished: bool) -> None:
        record = {name: self.tuned.key[name] for name in ("prompt", "pooling", "layer")} | {
            "config": self.config.settings(),
            "step": self.best["step"] if self.best else self.step,
            "dev": self.best and self.best["dev"],
            "steps": self.step,
            "finished": finished,
        }
        if self.extended:
            record["extended"] = self.extended
        adapters.save(self.tuned.loaded, self.out / "adapter", **record)

    def _finish(self) -> pd.DataFrame:
        if self.best is not None and self.best["step"] == 0:
            log.warning("no dev score was above the base's: the adapter that is kept is untrained")
        with self._best_adapter():
            self._save_adapter(finished=True)
        history = pd.DataFrame(self.history)
        with files.atomic_file(self.out / "history.csv", "w") as file:
            history.to_csv(file, index=False)
        return history


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


def digest_triplets(triplets: Sequence[Triplet]) -> str:
    """Return what tells these training examples, in this order, from any others."""
    return _digest(map(astuple, triplets))


def digest_adapter(adapter: str | os.PathLike) -> str:
    """Return what tells a saved adapter's weights from any others."""
    return files.sha256(adapters.weights_file(adapter))[:16]


def _digest(values) -> str:
    return hashlib.sha256(json.dumps(list(values)).encode()).hexdigest()[:16]
