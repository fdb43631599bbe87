"""Sentences to chunks that are ready to run: checked, deduplicated, tokenised one chunk ahead."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np

from prompteol_utils.encoder.inputs import validate
from prompteol_utils.encoder.tokenization import BadSentenceError, PromptTokenizer


@dataclass
class Chunk:
    """A chunk of checked, tokenised sentences.

    Args:
        start: Position of its first sentence in the input.
        size: Its sentences.
        first: Positions in the chunk of its different sentences.
        source: For each sentence, the position of its first occurrence.
        ids: Token ids of the different sentences' prompts.
        shared: Tokens that all prompts begin with.
    """

    start: int
    size: int
    first: np.ndarray
    source: np.ndarray
    ids: list[list[int]]
    shared: int


def read_chunks(
    sentences: Iterable[str], size: int, tokenize: PromptTokenizer, share_prefix: bool
) -> Iterator[Chunk]:
    """Check and tokenise chunks, each while the one before it is at work.

    Args:
        sentences: Read one chunk ahead.
        size: Sentences of a chunk.
        tokenize: From sentences to the token ids of their prompts.
        share_prefix: Count the tokens that all prompts of a chunk begin with.

    Raises:
        BadSentenceError: A sentence cannot be embedded; the chunks before it come first.
    """
    source = iter(sentences)
    ready, start, failure = None, 0, None
    with ThreadPoolExecutor(1, thread_name_prefix="tokenizer") as pool:
        while True:
            try:
                part = list(islice(source, size))
            except Exception as error:  # raised when what was read before is done
                part, failure = [], error
            coming = None
            if part:
                arguments = part, start, tokenize, share_prefix
                # The first chunk has nothing to run beside.
                coming = pool.submit(_prepare, *arguments) if ready else _prepare(*arguments)
            start += len(part)
            if ready:
                yield ready
                coming = coming and coming.result()
            if failure:
                raise failure
            if not coming:
                return
            ready = coming


def _prepare(
    sentences: list[str], start: int, tokenize: PromptTokenizer, share_prefix: bool
) -> Chunk:
    validate(sentences, start)
    first_of: dict[str, int] = {}
    for position, sentence in enumerate(sentences):
        first_of.setdefault(sentence, position)
    first = np.fromiter(first_of.values(), np.int64, len(first_of))
    source = np.fromiter(map(first_of.__getitem__, sentences), np.int64, len(sentences))
    try:
        ids = tokenize(list(first_of))
    except BadSentenceError as error:
        raise BadSentenceError(start + int(first[error.index]), error.reason) from None
    if [] in ids:
        empty = int(first[ids.index([])])
        reason = f"the tokenizer of {tokenize.loaded.name} finds no token in it"
        raise BadSentenceError(start + empty, reason)
    shared = tokenize.count_shared(ids) if share_prefix else 0
    return Chunk(start, len(sentences), first, source, ids, shared)
