"""Optional: fp32 linear layers on a CPU through oneDNN, where that is measured to be faster.

On x86 torch multiplies in fp32 with MKL, which keeps its AVX-512 kernels for Intel's CPUs. On other
CPUs with AVX-512, oneDNN (also part of torch) is about 1.5 times as fast. No weight is copied.
"""

import sys
import time
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial

import torch

from prompteol_utils.encoder.patching import patched

MIN_SPEEDUP = 1.15
_FORWARDS = ("torch.nn.modules.linear.Linear.forward", "bitsandbytes.nn.modules.Linear4bit.forward")
_SHAPES = ((192, 576, 576), (192, 576, 1536), (192, 1536, 576))  # tokens, inputs, outputs


def fast_linear(model: torch.nn.Module, enabled: bool | None = None) -> AbstractContextManager:
    """Run a model's frozen fp32 and 4-bit linear layers through oneDNN while the context lasts.

    All else is left to the layer itself: weights or biases that need a gradient, other dtypes and
    devices, autocast, subclasses with a forward of their own, layers whose forward was replaced.
    Hooks are called as usual, and several threads may share the model.

    Args:
        model: The model that will run; it is restored afterwards.
        enabled: None lets `measured_speedup` decide, which is not asked if this is True or False.
    """
    if enabled is None:
        enabled = measured_speedup() >= MIN_SPEEDUP
    if not enabled:
        return nullcontext()
    changes = {}
    for layer in model.modules():
        own = type(layer).forward if isinstance(layer, torch.nn.Linear) else None
        if f"{getattr(own, '__module__', '')}.{getattr(own, '__qualname__', '')}" in _FORWARDS:
            changes["forward", id(layer)] = partial(_replace_forward, layer)
    return patched(changes)


@cache
def measured_speedup() -> float:
    """How many times as fast as torch's own linear layer oneDNN's is here, for typical shapes.

    Takes about 0.3 s once per process. 0.0 where the operator is missing or gives another result.
    """
    # CPU time of this thread, so that other processes do not count; too coarse on Windows.
    clock = time.perf_counter if sys.platform == "win32" else time.thread_time
    new = partial(torch.rand, dtype=torch.float32, device="cpu", generator=torch.Generator())
    ways = (torch.nn.functional.linear, _product)
    layers = [(new(n, i), new(o, i), new(o)) for n, i, o in _SHAPES]
    threads = torch.get_num_threads()
    ratios = []
    try:
        torch.set_num_threads(1)
        with torch.inference_mode():
            for arguments in layers:  # also the warm-up
                if not torch.allclose(*(linear(*arguments) for linear in ways), rtol=1e-4):
                    return 0.0
            for _ in range(12):
                seconds = []
                for linear in ways:
                    start = clock()
                    for arguments in layers:
                        linear(*arguments)
                    seconds.append(clock() - start)
                ratios.append(seconds[0] / seconds[1])
    except (AttributeError, RuntimeError, TypeError):  # a private operator: it may change
        return 0.0
    finally:
        torch.set_num_threads(threads)
    return sorted(ratios)[len(ratios) // 2]


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _replace_forward(layer: torch.nn.Module, undos: list) -> None:
    if "forward" in vars(layer):
        return  # someone else did: accelerate moves weights that way
    forward = partial(_forward, layer)
    undos.append(lambda: vars(layer).get("forward") is forward and delattr(layer, "forward"))
    layer.forward = forward


def _forward(layer: torch.nn.Module, input: torch.Tensor) -> torch.Tensor:
    weight, bias = layer.weight, layer.bias
    state = getattr(weight, "quant_state", None)
    trained = any(parameter.requires_grad for parameter in layer.parameters(recurse=False))
    ready = (
        (_is_fp32(weight) if state is None else state.dtype == torch.float32)
        and getattr(layer, "compute_dtype", None) in (None, torch.float32)
        and not getattr(state, "packing_format_for_cpu", False)
        and (bias is None or (_is_fp32(bias) and bias.is_contiguous()))  # strides are ignored
        and (_is_fp32(input) and input.numel() > 0)
        and not (trained and torch.is_grad_enabled())
        and not torch.is_autocast_enabled("cpu")
    )
    return _Frozen.apply(input, weight, state, bias) if ready else type(layer).forward(layer, input)


def _is_fp32(tensor: torch.Tensor) -> bool:
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter)
    return plain and tensor.dtype == torch.float32 and tensor.device.type == "cpu"


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, state, bias):
        ctx.save_for_backward(weight)
        ctx.state = state
        return _product(x, _dequantize(weight, state), bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        weight = _dequantize(*ctx.saved_tensors, ctx.state)
        return _product(gradient, weight.t(), None), None, None, None


def _dequantize(weight: torch.Tensor, state) -> torch.Tensor:
    if state is None:
        return weight
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.detach(), state)
