"""The settings of a fine-tuning run."""

import math
from dataclasses import asdict, dataclass, fields


@dataclass(frozen=True)
class FinetuneConfig:
    """How to train. The defaults are the paper's; `CPU` is what two cores do in half an hour.

    Args:
        batch_size: Triplets of a step, over all processes. Each sees the positives and hard negatives of all others.
        epochs: Passes over the triplets; an incomplete last batch is left out, so that every step has as many negatives.
        max_steps: Stop after so many steps instead.
        learning_rate: Of AdamW, at its height.
        warmup_steps: Steps from 0 to that height; afterwards it falls to 0 linearly.
        temperature: τ of the loss. The paper's text says 0.5, the authors' code 0.05.
        rank: r of LoRA, on every linear layer but the head.
        alpha: LoRA's sum is scaled by alpha / rank.
        dropout: Of LoRA's input.
        layers: LoRA sits on the last so many layers only; None takes all. Gradients stop below the first of them.
        max_sentence_tokens: Sentences are cut to so many tokens before they are wrapped.
        weight_decay: Of AdamW.
        max_gradient_norm: Longer gradients are scaled down to it (the trainer's default, which the authors leave).
        chunk_tokens: Tokens whose graph is in memory at a time, padding included. None takes 512 on a CPU and 8,192 on a GPU. It
            does not change what is computed.
        save_every: Steps between checkpoints.
        evaluate_every: Steps between dev scores.
        patience: Stop after so many dev scores in a row without a new best; None never does.
        seed: Of LoRA's initial weights, the order of triplets, and dropout.

    Raises:
        ValueError: A value out of range; the message names it.

    Source: the paper's fine-tuning; train_llm.sh and ft_llm.py of the authors. Built in notebook 04.
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
        least = {"batch_size": 2, "warmup_steps": 0, "weight_decay": 0, "dropout": 0, "seed": 0}
        for field in fields(self):
            value, optional = getattr(self, field.name), "None" in str(field.type)
            if value is None and optional:
                continue
            low, whole = least.get(field.name, 1), "float" not in str(field.type)
            fine = isinstance(value, int | (int if whole else float)) and not isinstance(
                value, bool
            )
            if (
                not fine
                or not math.isfinite(value)
                or (value < low if whole or field.name in least else value <= 0)
            ):
                bound = (
                    f"a whole number from {low}"
                    if whole
                    else ("a number from 0" if field.name in least else "a number above 0")
                )
                raise ValueError(
                    f"{field.name} is {bound}{' or None' if optional else ''}, got {value!r}"
                )
        if self.dropout >= 1:
            raise ValueError(f"dropout is below 1, got {self.dropout!r}")

    def settings(self) -> dict:
        """The values by which a run is known; `layers` only where it is set, so that runs from before there was this field are found."""
        return {
            name: value
            for name, value in asdict(self).items()
            if name != "layers" or value is not None
        }


CPU = FinetuneConfig(
    batch_size=16, max_steps=150, warmup_steps=15, save_every=25, evaluate_every=25
)
