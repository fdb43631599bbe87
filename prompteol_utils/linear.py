"""Linear layers in fp32 on a CPU through oneDNN: the same sums, and up to twice as fast as torch's own choice on some processors.

torch sends fp32 matrix products on x86 to MKL, which keeps its fastest kernels for one maker's processors. oneDNN, which torch ships as
well, chooses by what the processor can do, and can keep a weight in the order its kernel reads. Nothing is rounded to fewer bits.
"""

import threading
from contextlib import nullcontext
from types import MethodType

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

PACKED_BYTES = 1 << 30  # models whose linear weights are larger are not packed: their copy would cost too much memory
ROWS = 512  # for how many rows at a time a packed weight is laid out; any number can be multiplied

_lock = threading.Lock()
_packed: WeakIdKeyDictionary = WeakIdKeyDictionary()  # weight -> (its version, its storage, the packed copy)


def fast_linear(body: torch.nn.Module):
    """A context in which `torch.nn.functional.linear` on fp32 CPU tensors runs through oneDNN; it changes no module.

    Args:
        body: The model that will run. Without gradients its weights are packed once where all of its linear layers stay below
            `PACKED_BYTES`, and packed again when a weight has changed; those that are being trained are not.

    Returns:
        A context manager; one that does nothing where torch has no such kernels, or the model is not in fp32 on a CPU.

    Source: measured, see benchmarks/README.md.
    """
    weights = [module.weight for module in body.modules() if isinstance(module, torch.nn.Linear) and _suits(module.weight)]
    if not _usable() or not weights:
        return nullcontext()
    return _OneDNN(pack=sum(weight.nbytes for weight in weights) <= PACKED_BYTES)


def fast_4bit(model: torch.nn.Module) -> None:
    """Let a model's 4-bit layers multiply through oneDNN where they compute in fp32 on a CPU; what they de-quantise to stays the same.

    A context cannot do it: bitsandbytes multiplies inside an operator of its own.

    Args:
        model: On a CPU; its Linear4bit layers are changed for good.
    """
    for module in model.modules() if _usable() else ():
        if isinstance(module, torch.nn.Linear) and hasattr(module.weight, "quant_state"):
            module.forward = MethodType(_forward_4bit, module)


def _usable() -> bool:
    mkl, mkldnn = torch.backends.mkl.is_available(), torch.backends.mkldnn.is_available()
    return mkl and mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _suits(tensor: torch.Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu"


def _product(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")


class _OneDNN(TorchFunctionMode):
    def __init__(self, pack: bool):
        super().__init__()
        self.pack = pack

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.nn.functional.linear and not kwargs and len(args) > 1 and _suits(args[0]) and _suits(args[1]):
            rows, weight, bias = (*args, None)[:3]
            if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in (rows, weight, bias)):
                return _Linear.apply(rows, weight, bias)
            lasting = torch.is_inference_mode_enabled() or not weight.requires_grad  # not one that the next step changes
            if self.pack and lasting and isinstance(weight, torch.nn.Parameter):
                weight = _pack(weight)
            return _product(rows, weight, bias)
        return function(*args, **(kwargs or {}))


class _Linear(torch.autograd.Function):
    """A linear layer with its gradient."""

    @staticmethod
    def forward(ctx, rows, weight, bias):
        ctx.save_for_backward(rows if ctx.needs_input_grad[1] else None, weight)
        return _product(rows, weight, bias)

    @staticmethod
    def backward(ctx, gradient):
        rows, weight = ctx.saved_tensors
        flat, found = gradient.flatten(0, -2), [None, None, None]
        if ctx.needs_input_grad[0]:
            found[0] = _product(gradient, weight.t())
        if ctx.needs_input_grad[1]:
            found[1] = flat.t() @ rows.flatten(0, -2)
        if ctx.needs_input_grad[2]:
            found[2] = flat.sum(0)
        return tuple(found)


class _Linear4bit(torch.autograd.Function):
    """A linear layer on a frozen 4-bit weight, which is de-quantised for the moment, and once more for the gradient."""

    @staticmethod
    def forward(ctx, rows, packed, state, bias):
        ctx.packed, ctx.state = packed, state
        return _product(rows, _dequantized(packed, state), bias)

    @staticmethod
    def backward(ctx, gradient):
        bias = gradient.flatten(0, -2).sum(0) if ctx.needs_input_grad[3] else None
        return _product(gradient, _dequantized(ctx.packed, ctx.state).t()) if ctx.needs_input_grad[0] else None, None, None, bias


def _dequantized(packed: torch.Tensor, state) -> torch.Tensor:
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(packed, state).to(torch.float32)


def _forward_4bit(layer, rows: torch.Tensor) -> torch.Tensor:
    state, bias = layer.weight.quant_state, layer.bias
    ready = state is not None and not getattr(state, "packing_format_for_cpu", False) and layer.compute_dtype in (None, torch.float32)
    if ready and _suits(rows) and rows.numel() and (bias is None or _suits(bias)):
        return _Linear4bit.apply(rows, layer.weight.detach(), state, bias)
    return type(layer).forward(layer, rows)


def _pack(weight: torch.nn.Parameter) -> torch.Tensor:
    state = (0 if weight.is_inference() else weight._version, weight.data_ptr())
    found = _packed.get(weight)
    if found is None or found[0] != state:
        with _lock:  # two threads that come together would pack it twice
            found = _packed.get(weight)
            if found is None or found[0] != state:
                found = _packed[weight] = (state, torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS))
    return found[1]
