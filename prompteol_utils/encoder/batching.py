"""Sequences of token ids to batches: cut by a token budget, padded, halved, run in parallel."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from prompteol_utils.utils.devices import is_out_of_memory, release_memory

NUM_WORKERS = 8  # batches at once, at most: each holds Python's lock for some of its time


def batches(lengths: Sequence[int], budget: int, padded: bool = True) -> Iterator[list[int]]:
    """Cut sequences into batches, longest first: equal lengths meet, and out-of-memory shows early.

    Args:
        lengths: Tokens of each sequence.
        budget: Tokens of a batch; a single longer sequence is a batch of its own.
        padded: Sequences are filled up to the longest of the batch, and the filling counts.

    Yields:
        Positions of the sequences of one batch.
    """
    batch: list[int] = []
    tokens = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        cost = lengths[batch[0]] if batch and padded else lengths[index]
        if batch and tokens + cost > budget:
            yield batch
            batch = []
            tokens = 0
            cost = lengths[index]
        batch.append(index)
        tokens += cost
    if batch:
        yield batch


def even_budget(lengths: Sequence[int], budget: int, num_workers: int, padded: bool = False) -> int:
    """The smallest budget that needs no more rounds of `num_workers` batches: all end together.

    Args:
        lengths: Tokens of each sequence.
        budget: Tokens of a batch, at most.
        num_workers: Batches that run at once.
        padded: As for `batches`.
    """

    def count(tokens: int) -> int:
        return sum(1 for _ in batches(lengths, tokens, padded))

    allowed = -(-count(budget) // num_workers) * num_workers
    too_small = 0
    enough = budget
    while enough - too_small > 1:
        middle = (too_small + enough) // 2
        if count(middle) <= allowed:
            enough = middle
        else:
            too_small = middle
    return enough


def pad(
    sequences: Sequence[Sequence[int]], pad_id: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fill sequences up to the longest one, on the right, where a causal model cannot see it.

    Args:
        sequences: Token ids.
        pad_id: Any id will do: the mask hides it.

    Returns:
        int64 tokens (n, width), int64 mask (n, width) with 1 for real tokens, int64 lengths (n,).
    """
    lengths = torch.tensor([len(ids) for ids in sequences])
    width = int(lengths.max())
    tokens = torch.tensor([[*ids, *[pad_id] * (width - len(ids))] for ids in sequences])
    return tokens, (torch.arange(width)[None, :] < lengths[:, None]).long(), lengths


def pooling_positions(
    sequences: Sequence[Sequence[int]], pooling: str, mask_id: int | None = None
) -> list[int]:
    """Which token of each sequence gives its vector, for the poolings that read a single one.

    Args:
        sequences: Token ids.
        pooling: "last", "cls" (the first token) or "mask" (the last mask token).
        mask_id: The tokenizer's mask token.

    Raises:
        ValueError: A sequence has no mask token.
    """
    if pooling == "cls":
        return [0] * len(sequences)
    if pooling == "last":
        return [len(ids) - 1 for ids in sequences]
    if not all(mask_id in ids for ids in sequences):
        raise ValueError(
            "the prompt's mask token is not the tokenizer's: write it into the suffix as the "
            "tokenizer does ([MASK], <mask>)"
        )
    return [len(ids) - 1 - ids[::-1].index(mask_id) for ids in sequences]


class SizeLimit:
    """The largest batch worth trying, learnt from those that did not fit.

    Args:
        size: From a batch to its size, such as its tokens.
    """

    def __init__(self, size: Callable[[Sequence], int] = len):
        self.size = size
        self.limit = float("inf")

    def lower(self, batch: Sequence) -> None:
        """Note that a batch ran out of memory: three quarters of it are tried at most."""
        self.limit = min(self.limit, 0.75 * self.size(batch))


def halve_on_oom(
    run: Callable[[Sequence], object], batch: Sequence, limit: SizeLimit | None = None
) -> list[tuple[Sequence, object]]:
    """Run a batch; where memory runs out, run its two halves instead, down to single items.

    Args:
        run: Takes a batch (any sliceable sequence), returns anything.
        batch: At least one item.
        limit: Shared by the batches of a call, so that a size that failed is not tried again.

    Returns:
        (part, result) for each part that ran, in the batch's order.

    Raises:
        torch.OutOfMemoryError: Not even a single item fits.
    """
    limit = limit or SizeLimit()
    if len(batch) == 1 or limit.size(batch) <= limit.limit:
        try:
            return [(batch, run(batch))]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or len(batch) == 1:
                raise
        # Outside the except block: the traceback keeps the failed batch's tensors alive.
        limit.lower(batch)
        release_memory()
    middle = len(batch) // 2
    return halve_on_oom(run, batch[:middle], limit) + halve_on_oom(run, batch[middle:], limit)


def num_workers(batches: int) -> int:
    """How many of these batches to run at once on this CPU: one per thread of torch's.

    Args:
        batches: Their number; 1 is returned where they make less than two rounds.
    """
    workers = min(torch.get_num_threads(), NUM_WORKERS)
    return workers if batches >= 2 * workers else 1


def parallel_map(
    run: Callable[[Sequence], object], batches: Sequence[Sequence], num_workers: int
) -> Iterator[object]:
    """Run batches at once with a share of the CPU's threads each, not in turn on all of them.

    A batch is thousands of short operations, and at the end of each its threads wait for the
    slowest: apart they wait once a batch.

    Args:
        run: Takes a batch; called from several threads.
        batches: Of about the same work.
        num_workers: From `num_workers`; 1 runs one after another on all threads.

    Yields:
        What `run` returned, in the batches' order.

    Source: measured, see benchmarks/README.md.
    """
    if num_workers == 1:
        yield from map(run, batches)
        return
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(
        num_workers, initializer=torch.set_num_threads, initargs=(max(1, threads // num_workers),)
    )
    try:
        yield from pool.map(run, batches)
    finally:
        try:
            pool.shutdown(cancel_futures=True)
        finally:
            # A new thread of torch's gets the number that was set last, in whichever thread.
            torch.set_num_threads(threads)
