"""What callers pass in: settings as plain Python values, sentences that can be embedded."""

import operator
from collections.abc import Iterable, Mapping

import numpy as np

from prompteol_utils.data.readers import text_problem
from prompteol_utils.encoder.tokenization import BadSentenceError

QUIET_BELOW = 256  # sentences for which no progress bar is shown


def integer(name: str, value, least: int | None = None) -> int | None:
    """A Python int of whatever kind of integer was given (the key must be JSON)."""
    if value is None:
        return None
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} is an integer, got {value!r}") from None
    if least is not None and number < least:
        raise ValueError(f"{name} is at least {least}, got {number}")
    return number


def boolean(name: str, value) -> bool:
    """A Python bool, also of numpy's."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} is True or False, got {value!r}")
    return bool(value)


def sentence_iterable(sentences) -> Iterable[str]:
    """Refuse what iterates over something else than its sentences."""
    if isinstance(sentences, str | bytes):
        raise ValueError("a list of sentences is needed, got a single string; write [sentence]")
    if isinstance(sentences, Mapping):
        raise ValueError("a list of sentences is needed, got a dict; pass list(it.values())")
    if hasattr(sentences, "columns") or getattr(sentences, "ndim", 1) != 1:
        raise ValueError(
            f"a list of sentences is needed, got {type(sentences).__name__}; pass one column of it"
        )
    return sentences


def validate(sentences: Iterable[str], start: int = 0) -> None:
    """Refuse what cannot be embedded, by its index."""
    for index, sentence in enumerate(sentences, start):
        if problem := text_problem(sentence):
            raise BadSentenceError(index, problem)


def check_finite(vectors: np.ndarray, start: int) -> None:
    """Refuse NaN and infinity in float32 (layers, n, d), by the index of the first sentence."""
    finite = np.isfinite(vectors).all(axis=(0, 2))
    if not finite.all():
        raise BadSentenceError(
            start + int(np.argmin(finite)),
            f"its vector holds NaN or infinity, as do {int((~finite).sum()) - 1} others of its "
            "chunk; if the model runs in float16, load it with dtype 'bfloat16' or 'float32'",
        )
