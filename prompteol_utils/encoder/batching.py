"""Rows of token ids to batches: sorted by length, cut by a token budget, and, where they must be rectangular, padded on the right."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from prompteol_utils.utils.devices import is_out_of_memory


def batches(lengths: Sequence[int], budget: int, padded: bool = True) -> Iterator[list[int]]:
    """Cut rows into batches of at most `budget` tokens, longest first: out-of-memory shows at once, and rows of one length stand together.

    Args:
        lengths: Tokens of each row.
        budget: Tokens of a batch; a single longer row is a batch of its own.
        padded: Rows are filled up to the longest of the batch, and the filling counts.

    Yields:
        Positions of the rows of one batch.
    """
    batch: list[int] = []
    tokens = 0
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        cost = lengths[batch[0]] if batch and padded else lengths[row]
        if batch and tokens + cost > budget:
            yield batch
            batch, tokens, cost = [], 0, lengths[row]
        batch.append(row)
        tokens += cost
    if batch:
        yield batch


def even_budget(lengths: Sequence[int], budget: int, num_workers: int, padded: bool = False) -> int:
    """The smallest budget, up to `budget`, that makes no more batches, but for a last round of as many as run at once: all end together.

    Args:
        lengths: Tokens of each row.
        budget: Tokens of a batch, at most.
        num_workers: Batches that run at once.
        padded: As for `batches`.
    """

    def count(tokens: int) -> int:
        return sum(1 for _ in batches(lengths, tokens, padded))

    wanted = -(-count(budget) // num_workers) * num_workers
    low, high = 0, budget  # too little, enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if count(middle) <= wanted else (middle, high)
    return high


def pad(
    ids: Sequence[Sequence[int]], pad_id: int, past: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fill rows up to the longest one, on the right, where a causal model cannot see it.

    Args:
        ids: Token ids, one row a sentence.
        pad_id: Any id will do: the mask hides it.
        past: Tokens before these that all rows have in a cache.

    Returns:
        int64 tokens (rows, width), int64 mask (rows, past + width) with 1 for what a row really holds, int64 lengths (rows,).
    """
    lengths = torch.tensor([len(row) for row in ids])
    width = int(lengths.max())
    tokens = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in ids])
    return tokens, (torch.arange(past + width)[None, :] < past + lengths[:, None]).long(), lengths


def pooling_positions(
    ids: Sequence[Sequence[int]], pooling: str, mask_id: int | None = None
) -> list[int]:
    """Where each row's vector stands, for the poolings that read a single token.

    Args:
        ids: Token ids, one row a sentence.
        pooling: "last", "cls" (the first token) or "mask" (the mask token; the last one, should a sentence hold another).
        mask_id: The tokenizer's mask token.

    Raises:
        ValueError: A row has no mask token.
    """
    if pooling == "cls":
        return [0] * len(ids)
    if pooling == "last":
        return [len(row) - 1 for row in ids]
    if not all(mask_id in row for row in ids):
        raise ValueError(
            "the prompt's mask token is not the tokenizer's: write it into the suffix as the tokenizer does ([MASK], <mask>)"
        )
    return [len(row) - 1 - row[::-1].index(mask_id) for row in ids]


NUM_WORKERS = (
    8  # at most so many batches at once: each holds Python's lock for some hundredths of its time
)


def halve_on_oom(
    run: Callable[[Sequence], object], batch: Sequence
) -> list[tuple[Sequence, object]]:
    """Run a batch; where memory runs out, run its two halves instead, down to single items.

    Args:
        run: Takes a batch (any sliceable sequence), returns anything.
        batch: At least one item.

    Returns:
        (part, result) for each part that ran, in the batch's order.

    Raises:
        torch.OutOfMemoryError: Not even a single item fits.
    """
    try:
        return [(batch, run(batch))]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or len(batch) == 1:
            raise
    # Outside the except block: the traceback keeps the failed batch's tensors alive until it is gone.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = len(batch) // 2
    return halve_on_oom(run, batch[:middle]) + halve_on_oom(run, batch[middle:])


def num_workers(batches: int) -> int:
    """How many of these to run at once on this CPU: one a thread of torch's, up to `NUM_WORKERS`; 1 where that makes less than two rounds."""
    most = min(torch.get_num_threads(), NUM_WORKERS)
    return most if batches >= 2 * most else 1


def parallel_map(
    run: Callable[[Sequence], object], batches: Sequence[Sequence], num_workers: int
) -> Iterator[object]:
    """Run batches on a CPU's threads, several at a time with a share of the threads each, and not one after another on all of them.

    A batch is thousands of short operations, and at the end of each its threads wait for the slowest: apart they wait once a batch.

    Args:
        run: Takes a batch; called from several threads at once.
        batches: Of about the same work.
        num_workers: How many at once, from `num_workers`; 1 runs one after another on all threads.

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
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(
            threads
        )  # torch gives a new thread the number that was set last, anywhere: one that began before this has less
