"""The contrastive loss, and its exact gradient on a batch of any size in the memory of one chunk, on one process or many.

Every sentence of a batch is a negative for every anchor, so the loss needs all vectors at once, but not all graphs at once. Cached
gradients (Gao et al. 2021) take three steps: embed everything without graphs; get the loss's gradient for each vector; embed chunk by
chunk again, now with a graph, and send that gradient through it. The chunks are sorted by length and padded only to need.

Why not the trainer of sentence-transformers, whose cached loss gives the same gradient? It pads each column of a chunk as it comes,
resumes by replaying its data loader, and under 4-bit cannot restore its best checkpoint. What is needed here fits on these pages.
"""

from collections.abc import Callable, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist

from prompteol_utils.encoder.batching import batches


def contrastive_loss(
    anchor: torch.Tensor,
    positive: torch.Tensor,
    negative: torch.Tensor | None = None,
    temperature: float = 0.05,
) -> torch.Tensor:
    """InfoNCE with in-batch and hard negatives: −log of the positive's share among all positives and negatives of the batch.

    Args:
        anchor: (b, d).
        positive: (b, d); row i belongs to anchor i, and is a negative for every other.
        negative: (m, d), negatives for every anchor, or None.
        temperature: τ. The paper's text says 0.5, its code has 0.05; at 0.5 even a perfect batch has a high loss, because cosines end at 1.

    Returns:
        A scalar, the mean over anchors.

    Raises:
        ValueError: One anchor without any negative: the loss would be 0 whatever the vectors are.

    Source: the paper's loss for fine-tuning; the authors' ft_llm.py. Built in notebook 04.
    """
    candidates = positive if negative is None else torch.cat([positive, negative])
    if len(candidates) < 2:
        raise ValueError(
            "a batch of one pair has nothing to tell its positive from; use a batch of at least 2, or hard negatives"
        )
    unit = torch.nn.functional.normalize
    similarity = unit(anchor, dim=-1) @ unit(candidates, dim=-1).T / temperature
    return torch.nn.functional.cross_entropy(
        similarity, torch.arange(len(anchor), device=anchor.device)
    )


def triplet_loss(vectors: torch.Tensor, temperature: float) -> torch.Tensor:
    """`contrastive_loss` over the global batch, from this process's rows.

    Args:
        vectors: (3b, d): this process's b anchors, then its positives, then its negatives; as many on every process.
        temperature: As in `contrastive_loss`.

    Returns:
        The loss of the global batch, the same on every process. Its gradient reaches this process's own rows; summed over the
        processes, gradients of parameters are those of one process with the whole batch. (The authors' code averages them instead,
        which divides the learning rate by the number of processes.)
    """
    width = vectors.shape[-1]
    parts = (
        gather(vectors).reshape(-1, 3, len(vectors) // 3, width).transpose(0, 1)
    )  # (role, process, b, d)
    anchor, positive, negative = parts.reshape(3, -1, width)
    return contrastive_loss(anchor, positive, negative, temperature)


def gather(vectors: torch.Tensor) -> torch.Tensor:
    """The rows of all processes below each other; gradients flow to one's own. Without other processes, the rows themselves."""
    if processes() == 1:
        return vectors
    parts = [torch.empty_like(vectors) for _ in range(processes())]
    dist.all_gather(parts, vectors.detach().contiguous())
    parts[rank()] = vectors
    return torch.cat(parts)


def sum_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Add up the gradients of all processes, in place; without other processes, nothing to do."""
    if processes() == 1:
        return
    flat = torch.cat([parameter.grad.flatten() for parameter in parameters])
    dist.all_reduce(flat)
    for parameter, part in zip(
        parameters, flat.split([p.numel() for p in parameters]), strict=True
    ):
        parameter.grad.copy_(part.view_as(parameter))


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number among them."""
    return dist.get_rank() if processes() > 1 else 0


def cached_backward(
    embed: Callable[[list[list[int]]], torch.Tensor],
    rows: Sequence[Sequence[int]],
    loss: Callable[[torch.Tensor], torch.Tensor],
    chunk_tokens: int,
    deduplicate: bool = False,
) -> torch.Tensor:
    """Add the gradient of a loss over all rows to the parameters, with the graph of one chunk in memory at a time.

    Equal to one graph over the same chunks, dropout included: the second pass over a chunk starts from the random state of the first.

    Args:
        embed: Token rows to a tensor (k, d) with a graph to the parameters.
        rows: n token rows.
        loss: Takes (n, d) in the order of `rows`, returns a scalar.
        chunk_tokens: Tokens of a chunk, padding included.
        deduplicate: Embed equal rows once. Right only where equal rows have equal vectors: without dropout.

    Returns:
        The loss, detached. If it is not finite, no gradient was added.

    Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup". Built in notebook 04.
    """
    place: dict = {}
    keys = [tuple(row) if deduplicate else number for number, row in enumerate(rows)]
    index = torch.tensor([place.setdefault(key, len(place)) for key in keys])
    firsts = dict(zip(reversed(index.tolist()), reversed(range(len(rows))), strict=True))
    unique = [list(rows[firsts[k]]) for k in range(len(place))]

    chunks = list(batches([len(row) for row in unique], chunk_tokens))
    states, parts = [], []
    for number, chunk in enumerate(chunks):
        states.append(_random_state())
        with torch.set_grad_enabled(
            number == 0
        ):  # the first chunk, the largest, keeps its graph and is not run again
            parts.append(embed([unique[row] for row in chunk]))
    order = torch.tensor([row for chunk in chunks for row in chunk])
    vectors = torch.cat([part.detach() for part in parts])[order.argsort()].requires_grad_()
    value = loss(vectors[index])
    if not torch.isfinite(value):
        return value.detach()
    value.backward()
    for number, chunk in enumerate(chunks):
        if number > 0:
            with _replayed(states[number]):
                parts[number] = embed([unique[row] for row in chunk])
        parts[number].backward(vectors.grad[chunk])
        parts[number] = None  # lets go of the graph before the next one grows
    return value.detach()


def _random_state() -> tuple:
    return (
        torch.get_rng_state(),
        torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    )


def _set_random_state(state: tuple) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])


@contextmanager
def _replayed(state: tuple):
    """The random numbers of an earlier moment, and afterwards those that would have come without it."""
    now = _random_state()
    _set_random_state(state)
    try:
        yield
    finally:
        _set_random_state(now)
