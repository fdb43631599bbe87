"""Dropout on a CPU whose mask is a function of the sentence: not of its chunk, thread or process.

torch draws a CPU mask one number after another from one generator that all threads share: slow,
and different masks whenever the order of work changes. Here every sentence of a step has a
generator of its own, and one 64-bit number decides four elements.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

_LEVELS = 1 << 16  # a probability is rounded to a multiple of 1 / _LEVELS
_current = threading.local()


class SentenceDropout(torch.nn.Dropout):
    """`torch.nn.Dropout`, but within `sentence_masks` each sentence has its own random numbers."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        sentences = getattr(_current, "sentences", None)
        if sentences is None or not self.training or self.p == 0:
            return super().forward(input)
        drop = round(self.p * _LEVELS)
        dropped = _random_levels(input.shape, sentences) < drop - _LEVELS // 2
        return _Masked.apply(input, dropped, _LEVELS / (_LEVELS - drop))


@contextmanager
def sentence_masks(seeds: Sequence[Sequence[int]], lengths: Sequence[int]) -> Iterator[None]:
    """Let every `SentenceDropout` of this thread draw from one generator for each sentence.

    Args:
        seeds: Per sequence of the batch: whole numbers that name it.
        lengths: Tokens of each sequence, without padding.
    """
    _current.sentences = [
        (np.random.Generator(np.random.SFC64(seed)), length)
        for seed, length in zip(seeds, lengths, strict=True)
    ]
    try:
        yield
    finally:
        _current.sentences = None


def use_sentence_dropout(model: torch.nn.Module) -> None:
    """Replace the dropout of a peft model's LoRA layers."""
    for module in model.modules():
        for name, dropout in getattr(module, "lora_dropout", {}).items():
            if type(dropout) is torch.nn.Dropout:
                module.lora_dropout[name] = SentenceDropout(dropout.p)


class _Masked(torch.autograd.Function):
    """Zero what is dropped and scale the rest; keeps one byte an element for the backward pass."""

    @staticmethod
    def forward(ctx, input, dropped, scale):
        ctx.save_for_backward(dropped)
        ctx.scale = scale
        return input.masked_fill(dropped, 0).mul_(scale)

    @staticmethod
    def backward(ctx, gradient):
        (dropped,) = ctx.saved_tensors
        return gradient.masked_fill(dropped, 0).mul_(ctx.scale), None, None


def _random_levels(shape: torch.Size, sentences: list) -> torch.Tensor:
    """Uniform int16 numbers; what is drawn for a sentence does not depend on its padding."""
    levels = np.empty(shape, np.int16)
    padded = levels.size // (len(sentences) * shape[-1])
    if levels.size == len(sentences) * padded * shape[-1]:
        for sentence, (generator, length) in zip(
            levels.reshape(len(sentences), padded, -1), sentences, strict=True
        ):
            sentence[:length] = _draw(generator, length * shape[-1]).reshape(length, -1)
            sentence[length:] = 0
    else:  # not one vector for each token: the experts of a mixture
        levels[...] = _draw(sentences[0][0], levels.size).reshape(shape)
    return torch.from_numpy(levels)


def _draw(generator: np.random.Generator, count: int) -> np.ndarray:
    numbers = generator.integers(0, 1 << 64, size=-(-count // 4), dtype=np.uint64)
    return numbers.view(np.int16)[:count]
