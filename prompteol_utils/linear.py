"""Linear layers in fp32 on a CPU through oneDNN: the same sums, and up to twice as fast as torch's own choice on some processors.

torch sends fp32 matrix products on x86 to MKL, which keeps its fastest kernels for one maker's processors. oneDNN, which torch ships as
well, chooses by what the processor can do, and can keep a weight in the order its kernel reads. Nothing is rounded to fewer bits.
"""

import threading
from collections.abc import Callable
from functools import partial
from types import MethodType
from weakref import WeakKeyDictionary

import torch
from torch.utils.weak import WeakIdKeyDictionary

from prompteol_utils.patches import patched

PACKED_BYTES = 1 << 30  # models whose linear weights are larger are not packed: their copy would cost too much memory
ROWS = 512  # for how many rows at a time a packed weight is laid out; any number can be multiplied

_lock = threading.Lock()
_packed: WeakIdKeyDictionary = WeakIdKeyDictionary()  # weight -> (its version, its storage, the packed copy)
_gates: WeakKeyDictionary = WeakKeyDictionary()  # gated block -> its activation's name in oneDNN, or None


def fast_linear(body: torch.nn.Module):
    """A context in which a model's linear layers in fp32 on a CPU run through oneDNN; afterwards the model is as it was.

    Args:
        body: The model that will run. Without gradients its weights are packed once where all of its linear layers stay below
            `PACKED_BYTES`, and packed again when a weight has changed; those that are being trained are not. A gated feed-forward
            block, down(activation(gate(x)) * up(x)), then multiplies and activates in the products themselves.

    Returns:
        A context manager; one that does nothing where torch has no such kernels, or the model is not in fp32 on a CPU.

    Source: measured, see benchmarks/README.md.
    """
    layers = [module for module in body.modules() if _plain(module)] if _usable() else []
    pack = sum(layer.weight.nbytes for layer in layers) <= PACKED_BYTES
    changes = {("forward", id(layer)): partial(_replace, layer, partial(_forward, pack=pack)) for layer in layers}
    if layers and not torch.is_grad_enabled():
        for block in body.modules():
            if unary := _gate(block):
                changes["forward", id(block)] = partial(_replace, block, partial(_forward_gated, pack=pack, unary=unary))
    return patched(changes)


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


def _plain(module: torch.nn.Module) -> bool:
    return type(module).forward is torch.nn.Linear.forward and _suits(module.weight)


def _replace(module: torch.nn.Module, forward: Callable) -> Callable[[], None]:
    """Give a module another forward, unless somebody else has already (accelerate does, to move weights)."""
    if "forward" in vars(module):
        return lambda: None
    module.forward = partial(forward, module)
    return lambda: vars(module).pop("forward")


def _forward(layer: torch.nn.Linear, rows: torch.Tensor, pack: bool) -> torch.Tensor:
    weight, bias = layer.weight, layer.bias
    if not _suits(rows):
        return torch.nn.functional.linear(rows, weight, bias)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in (rows, weight, bias)):
        return _Linear.apply(rows, weight, bias)
    return _product(rows, _ready(weight, pack), bias)


def _forward_gated(block: torch.nn.Module, rows: torch.Tensor, pack: bool, unary: tuple[str, str]) -> torch.Tensor:
    if torch.is_grad_enabled() or not _suits(rows):
        return type(block).forward(block, rows)
    gate, up, down = ((_ready(layer.weight, pack), layer.bias) for layer in (block.gate_proj, block.up_proj, block.down_proj))
    opened = torch.ops.mkldnn._linear_pointwise(rows, *gate, unary[0], [], unary[1])
    return _product(torch.ops.mkldnn._linear_pointwise.binary(rows, opened, *up, "mul"), *down)


def _gate(block: torch.nn.Module) -> tuple[str, str] | None:
    """oneDNN's name for the activation of a gated feed-forward block, where the formula above holds: tried on the block, once."""
    layers = [getattr(block, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    if not hasattr(block, "act_fn") or not all(isinstance(layer, torch.nn.Linear) and _plain(layer) for layer in layers):
        return None
    if any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers):  # somebody looks on
        return None
    if block not in _gates:
        _gates[block] = _try_gate(block, layers[0])
    return _gates[block]


def _try_gate(block: torch.nn.Module, gate: torch.nn.Linear) -> tuple[str, str] | None:
    points, one = torch.linspace(-10, 10, 501)[:, None], torch.ones(1, 1)
    rows = torch.randn(8, gate.in_features, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        curve, right = block.act_fn(points), type(block).forward(block, rows)
        for unary in (("swish", ""), ("gelu", "tanh"), ("gelu", "none"), ("relu", "")):
            found = torch.ops.mkldnn._linear_pointwise(points, one, None, unary[0], [], unary[1])
            if torch.allclose(found, curve, rtol=1e-5, atol=1e-5):
                found = _forward_gated(block, rows, False, unary)
                return unary if torch.allclose(found, right, rtol=1e-3, atol=1e-4 * float(right.abs().max())) else None
    return None


def _ready(weight: torch.Tensor, pack: bool) -> torch.Tensor:
    """The weight as the kernel reads it best, if it lasts: not one that the next step of a training changes."""
    lasting = torch.is_inference_mode_enabled() or not weight.requires_grad
    return _pack(weight) if pack and lasting and isinstance(weight, torch.nn.Parameter) else weight


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
