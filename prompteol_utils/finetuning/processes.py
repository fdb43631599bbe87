"""Several training processes, as torchrun or `accelerate launch` starts them: one on each card."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist

from prompteol_utils.utils import devices

Result = TypeVar("Result")


def join(device: str) -> None:
    """Meet the other processes, where several were started.

    Args:
        device: This process's: "cpu", or a card with its number, "cuda:1".

    Raises:
        ValueError: The processes would share a card, or FSDP was asked for.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        raise ValueError(
            "finetune keeps the whole model on every card, and FSDP would shard it; start it with "
            "torchrun, or use a trainer that shards for models that do not fit on one card"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return
    if not device.startswith("cuda"):
        dist.init_process_group("gloo")
        return
    place = torch.device(device)
    if place.index is None:
        local = os.environ.get("LOCAL_RANK", "N")
        raise ValueError(
            f"{os.environ['WORLD_SIZE']} processes train together, and each needs a card of its "
            f"own: load this one's model with device='cuda:{local}', got device={device!r}"
        )
    # Without it every process would use cuda:0 for what names no device.
    torch.cuda.set_device(place)
    # Objects travel through gloo, tensors on the cards through NCCL.
    dist.init_process_group("cpu:gloo,cuda:nccl", device_id=place)


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number among them."""
    return dist.get_rank() if count() > 1 else 0


def on_first(run: Callable[[], Result]) -> Result:
    """Run something on the first process only.

    Args:
        run: Without arguments; returns what can be pickled.

    Returns:
        Its result, on every process.

    Raises:
        Exception: What it raised, on the first process.
        RuntimeError: The same message, on the others, which would wait for ever else.
    """
    result, error = None, None
    if rank() == 0:
        try:
            result = run()
        except Exception as problem:
            error = problem
    if count() > 1:
        said = [result, error and f"{type(error).__name__}: {error}"]
        dist.broadcast_object_list(said)
        result = said[0]
        if said[1] and rank() > 0:
            raise RuntimeError(f"the first process failed: {said[1]}")
    if error is not None:
        raise error
    return result


@contextmanager
def share_out_of_memory() -> Iterator[None]:
    """Raise an out-of-memory error of one process in all: the others would wait for it else."""
    message = ""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not devices.is_out_of_memory(error):
            raise
        message = str(error) or "out of memory"
    # Outside the except block, whose traceback keeps the failed chunk's tensors alive.
    if count() > 1:
        messages = [""] * count()
        dist.all_gather_object(messages, message)
        message = next(filter(None, messages), "")
    if message:
        raise torch.OutOfMemoryError(message)


def gather(vectors: torch.Tensor) -> torch.Tensor:
    """Concatenate the vectors of all processes; gradients flow to one's own."""
    if count() == 1:
        return vectors
    parts = [torch.empty_like(vectors) for _ in range(count())]
    dist.all_gather(parts, vectors.detach().contiguous())
    parts[rank()] = vectors
    return torch.cat(parts)


def sum_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Add up the gradients of all processes, in place."""
    if count() == 1:
        return
    flat = torch.cat([parameter.grad.flatten() for parameter in parameters])
    dist.all_reduce(flat)
    sizes = [parameter.numel() for parameter in parameters]
    for parameter, part in zip(parameters, flat.split(sizes), strict=True):
        parameter.grad.copy_(part.view_as(parameter))
