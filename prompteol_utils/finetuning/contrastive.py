"""The contrastive loss, and its exact gradient for any batch in the memory of a few sentences.

Every sentence of a batch is a negative for every anchor, so the loss needs all vectors at once,
but not all graphs at once. Cached gradients (Gao et al. 2021) take three steps: embed everything
without graphs; get the loss's gradient for each vector; embed chunk by chunk again, now with a
graph, and send that gradient through it. Chunks are sorted by length, padded only to need, and
on a CPU run side by side, each on one thread.

The cached loss of sentence-transformers gives the same gradient; it does not sort by length,
resumes by replaying its data loader, and under 4-bit cannot restore its best checkpoint.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import torch

from prompteol_utils.encoder.batching import batches, even_budget, parallel_map
from prompteol_utils.finetuning import processes


def contrastive_loss(
    anchor: torch.Tensor,
    positive: torch.Tensor,
    negative: torch.Tensor | None = None,
    temperature: float = 0.05,
) -> torch.Tensor:
    """Compute InfoNCE with in-batch and hard negatives.

    For each anchor: −log of its positive's share among all positives and negatives of the batch.

    Args:
        anchor: (b, d).
        positive: (b, d); each belongs to the anchor of its index, and is a negative for the others.
        negative: (m, d), negatives for every anchor, or None.
        temperature: τ. The paper's text says 0.5, its code has 0.05; cosines end at 1, so at 0.5
            even a perfect batch has a high loss.

    Returns:
        A scalar, the mean over anchors.

    Raises:
        ValueError: One anchor without any negative: the loss would be 0 whatever the vectors are.

    Source: the paper's loss for fine-tuning; the authors' ft_llm.py.
    """
    candidates = positive if negative is None else torch.cat([positive, negative])
    if len(candidates) < 2:
        raise ValueError(
            "a batch of one pair has nothing to tell its positive from; "
            "use a batch of at least 2, or hard negatives"
        )
    unit = torch.nn.functional.normalize
    similarity = unit(anchor, dim=-1) @ unit(candidates, dim=-1).T / temperature
    return torch.nn.functional.cross_entropy(
        similarity, torch.arange(len(anchor), device=anchor.device)
    )


def triplet_loss(vectors: torch.Tensor, temperature: float) -> torch.Tensor:
    """Compute `contrastive_loss` over the global batch, from this process's vectors.

    Args:
        vectors: (3b, d): this process's b anchors, then its positives, then its negatives; as many
            on every process.
        temperature: As in `contrastive_loss`.

    Returns:
        The loss of the global batch, the same on every process. Its gradient reaches this process's
        own vectors; *summed* over the processes, gradients of parameters are those of one process
        with the whole batch. (DistributedDataParallel averages instead: a smaller gradient, which
        matters for clipping and not for AdamW.)
    """
    width = vectors.shape[-1]
    # (process, role, b, d) -> (role, process, b, d)
    parts = processes.gather(vectors).reshape(-1, 3, len(vectors) // 3, width).transpose(0, 1)
    anchor, positive, negative = parts.reshape(3, -1, width)
    return contrastive_loss(anchor, positive, negative, temperature)


def cached_backward(
    embed: Callable[[list[Sequence[int]]], torch.Tensor],
    sequences: Sequence[Sequence[int]],
    loss: Callable[[torch.Tensor], torch.Tensor],
    chunk_tokens: int,
    *,
    parameters: Sequence[torch.nn.Parameter] = (),
    num_workers: int = 1,
    randomness: Callable[[list[int]], AbstractContextManager] | None = None,
    gradient_peak: float | None = None,
) -> torch.Tensor:
    """Add the gradient of a loss over all sequences to the parameters.

    The graphs of `num_workers` chunks are in memory at a time. Equal to one graph over everything,
    dropout included: both passes over a chunk draw the same masks.

    Args:
        embed: Token sequences to a tensor (k, d) with a graph to the parameters.
        sequences: n token sequences.
        loss: Takes (n, d) in the order of `sequences`, returns a scalar.
        chunk_tokens: Tokens of a chunk, padding included.
        parameters: Those that are trained; needed for several workers and for `gradient_peak`.
        num_workers: Chunks side by side, each on its share of a CPU's threads. Gradients are added
            in the order of the chunks, so the sum is the same in every run.
        randomness: Takes the positions of a chunk's sequences; within the context that it returns,
            `embed` draws its masks. None seeds torch's generators for each chunk, which threads
            share: not for several workers with dropout.
        gradient_peak: Loss scaling for fp16 layers: the vectors' gradients pass through them
            multiplied by a power of two that makes the largest element about this. Parameters'
            gradients, None before the call, come out unscaled.

    Returns:
        The loss, detached. If it is not finite, no gradient was added.

    Raises:
        torch.OutOfMemoryError: A chunk was too large, in this process or in another one.

    Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited
    Setup".
    """
    randomness = randomness or partial(_seeded, int(torch.randint(2**62, ())))
    lengths = [len(sequence) for sequence in sequences]
    if num_workers > 1:
        chunk_tokens = even_budget(lengths, chunk_tokens, num_workers, padded=True)
    chunks = list(batches(lengths, chunk_tokens))
    graphs: dict[int, torch.Tensor] = {}

    def embed_chunk(number: int, with_graph: bool) -> torch.Tensor:
        with torch.set_grad_enabled(with_graph), randomness(chunks[number]):
            return embed([sequences[position] for position in chunks[number]])

    def first_pass(number: int) -> torch.Tensor:
        if number >= num_workers:
            return embed_chunk(number, with_graph=False)
        # As many graphs as fit at once are kept; these chunks, the largest, are not run again.
        graphs[number] = embed_chunk(number, with_graph=True)
        return graphs[number].detach()

    def second_pass(number: int) -> Sequence[torch.Tensor | None]:
        output = graphs.pop(number, None)
        if output is None:
            output = embed_chunk(number, with_graph=True)
        gradient = vectors.grad[chunks[number]]
        if num_workers == 1:
            output.backward(gradient)
            return ()
        return torch.autograd.grad(output, parameters, gradient, allow_unused=True)

    with processes.share_out_of_memory():
        parts = list(parallel_map(first_pass, range(len(chunks)), num_workers))
    order = torch.tensor([position for chunk in chunks for position in chunk])
    vectors = torch.cat(parts)[order.argsort()].requires_grad_()
    value = loss(vectors)
    if not torch.isfinite(value):
        return value.detach()
    value.backward()
    scale = 1.0
    if gradient_peak is not None and (largest := float(vectors.grad.abs().max())) > 0:
        scale = 2.0 ** round(math.log2(gradient_peak / largest))
        vectors.grad *= scale
    with processes.share_out_of_memory():
        for gradients in parallel_map(second_pass, range(len(chunks)), num_workers):
            _add(parameters, gradients)
    if scale != 1:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad /= scale
    return value.detach()


def _add(
    parameters: Sequence[torch.nn.Parameter], gradients: Sequence[torch.Tensor | None]
) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=False):
        if gradient is None:
            continue
        if parameter.grad is None:
            parameter.grad = gradient
        else:
            parameter.grad.add_(gradient)


@contextmanager
def _seeded(seed: int, chunk: list[int]) -> Iterator[None]:
    """Seed torch's generators for a chunk, and give back their state afterwards."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed + min(chunk))
        yield
