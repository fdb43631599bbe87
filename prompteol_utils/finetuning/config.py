"""The settings of a fine-tuning run."""

import math
import numbers
from dataclasses import asdict, dataclass, fields

_LEAST = {"batch_size": 2, "warmup_steps": 0, "weight_decay": 0, "dropout": 0, "seed": 0}


@dataclass(frozen=True)
class FinetuneConfig:
    """How to train. The defaults are the paper's; `CPU` is for an hour on two cores.

    Args:
        batch_size: Triplets of a step, over all processes. Each anchor is compared with the
            positives and hard negatives of all.
        epochs: Passes over the triplets; what does not fill a last batch is left out.
        max_steps: Stop after so many steps instead.
        learning_rate: Of AdamW, at its peak.
        warmup_steps: Steps from 0 to the peak; afterwards the rate falls to 0 linearly. A tenth of
            the steps where the run is not longer than that.
        temperature: τ of the loss. The paper's text says 0.5, the authors' code 0.05.
        rank: r of LoRA, on every linear layer but the head.
        alpha: LoRA's product is scaled by alpha / rank.
        dropout: Of LoRA's input.
        layers: LoRA sits on the last so many layers only; None takes all. Gradients stop below
            the first of them.
        max_sentence_tokens: Sentences are cut to so many tokens before they are wrapped.
        weight_decay: Of AdamW.
        max_gradient_norm: Longer gradients are scaled down to it (the trainer's default, which the
            authors leave).
        chunk_tokens: Tokens whose graph is in memory at a time, padding and all workers included.
            None takes 512 on a CPU (at least 256 a core) and 8,192 on a GPU, halved where memory
            runs out. It does not change what is computed.
        save_every: Steps between checkpoints.
        evaluate_every: Steps between dev scores.
        patience: Stop after so many dev scores in a row without a new best; None never does.
        seed: Of LoRA's initial weights, the order of triplets, and dropout.

    Raises:
        ValueError: A value out of range; the message names it.

    Source: the paper's fine-tuning; train_llm.sh and ft_llm.py of the authors.
    """

    batch_size: int = 256
    epochs: int = 1
    max_steps: int | None = None
    learning_rate: float = 5e-4
    warmup_steps: int = 100
    temperature: float = 0.05
    rank: int = 64
    alpha: int = 16
    dropout: float = 0.05
    layers: int | None = None
    max_sentence_tokens: int = 32
    weight_decay: float = 0.0
    max_gradient_norm: float = 1.0
    chunk_tokens: int | None = None
    save_every: int = 50
    evaluate_every: int = 50
    patience: int | None = None
    seed: int = 42

    def __post_init__(self):
        for field in fields(self):
            value, optional = getattr(self, field.name), "None" in str(field.type)
            if hasattr(value, "item"):  # a NumPy number
                value = value.item()
                object.__setattr__(self, field.name, value)
            if value is None and optional:
                continue
            whole = "float" not in str(field.type)
            least = _LEAST.get(field.name, 1 if whole else None)  # None: above 0
            kind = numbers.Integral if whole else numbers.Real
            fine = isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
            if not fine or (value <= 0 if least is None else value < least):
                number = "a whole number" if whole else "a number"
                bound = "above 0" if least is None else f"from {least}"
                raise ValueError(
                    f"{field.name} is {number} {bound}{' or None' if optional else ''}, "
                    f"got {value!r}"
                )
        if self.dropout >= 1:
            raise ValueError(f"dropout is below 1, got {self.dropout!r}")

    def settings(self) -> dict:
        """Return the values by which a run is known.

        `layers` is left out where it is not set: runs from before the field existed are found.
        """
        return {
            name: value
            for name, value in asdict(self).items()
            if name != "layers" or value is not None
        }


CPU = FinetuneConfig(
    batch_size=16, max_steps=150, warmup_steps=15, save_every=25, evaluate_every=25
)
