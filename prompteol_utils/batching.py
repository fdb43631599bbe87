"""Rows of token ids to rectangular batches: sorted by length, cut by a token budget, padded on the right, masked."""

from collections.abc import Iterator, Sequence

import torch


def batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Cut rows into batches of at most `budget` tokens, longest first (out-of-memory shows at once), so that padding stays small.

    Args:
        lengths: Tokens of each row.
        budget: Tokens of a batch, padding included; a single longer row is a batch of its own.

    Yields:
        Positions of the rows of one batch.
    """
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def pad(ids: Sequence[Sequence[int]], pad_id: int, past: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
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
