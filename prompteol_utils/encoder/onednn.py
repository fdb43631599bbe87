"""Linear layers in fp32 on a CPU through oneDNN: the same sums, and up to twice as fast as torch's own choice on some processors.

torch sends fp32 matrix products on x86 to MKL, which keeps its fastest kernels for one maker's processors. oneDNN, which torch ships as
well, chooses by what the processor can do, and can keep a weight in the order its kernel reads. Nothing is rounded to fewer bits.
"""

import threading
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, partial
from types import SimpleNamespace
from weakref import WeakKeyDictionary

import torch
from torch.utils.weak import WeakIdKeyDictionary

from prompteol_utils.encoder.patching import patched

PACKED_BYTES = (
    1 << 30
)  # models whose linear weights are larger are not packed: their copy would cost too much memory
ROWS = 512  # for how many rows at a time a packed weight is laid out; any number can be multiplied
_UNARIES = (
    ("swish", ""),
    ("gelu", "tanh"),
    ("gelu", "none"),
    ("relu", ""),
)  # oneDNN's names of activations

_lock = threading.Lock()
_packed: WeakIdKeyDictionary = (
    WeakIdKeyDictionary()
)  # weight -> (its version and storage, its sample, the packed copy)
_curves: WeakKeyDictionary = (
    WeakKeyDictionary()
)  # activation module -> its name in `_UNARIES`, or None


def fast_linear(body: torch.nn.Module):
    """A context in which a model's linear layers in fp32 on a CPU run through oneDNN; afterwards the model is as it was.

    Args:
        body: The model that will run. Without gradients its weights are packed once where all of its linear layers stay below
            `PACKED_BYTES`, and packed again when the context is entered with other weights; those that are being trained are not.
            4-bit layers that compute in fp32 multiply what they de-quantise to. A feed-forward block that is
            down(activation(gate(x)) * up(x)) activates within the product and multiplies in place.

    Returns:
        A context manager; one that does nothing where torch has no such kernels. It changes no layer on another device or in another dtype.

    Source: the profile in benchmarks/README.md.
    """
    if not _usable():
        return nullcontext()
    layers = [
        module
        for module in body.modules()
        if isinstance(module, torch.nn.Linear) and module.weight.device.type == "cpu"
    ]
    plain = [layer for layer in layers if _plain(layer)]
    pack, forwards = sum(layer.weight.nbytes for layer in plain) <= PACKED_BYTES, []
    for layer in plain:
        _forget_if_changed(layer.weight)
        forwards.append((layer, partial(_forward, pack=pack)))
    forwards += [(layer, _forward_4bit) for layer in layers if hasattr(layer.weight, "quant_state")]
    if plain and not torch.is_grad_enabled():
        forwards += [
            (block, partial(_forward_gated, pack=pack, unary=unary))
            for block in body.modules()
            if (unary := _gate(block))
        ]
    return patched(
        {
            ("forward", id(module)): partial(_replace, module, forward)
            for module, forward in forwards
        }
    )


def sample(weight: torch.Tensor) -> float:
    """A number that tells whether a weight was changed, by ways that torch does not count too (`weight.data`, as peft merges).

    Args:
        weight: Of any dtype and device.
    """
    if weight.device.type == "meta" or not weight.numel():
        return 0.0
    flat = weight.detach().reshape(-1)
    return float(flat[:: max(1, flat.numel() // 64)].double().sum())


def _usable() -> bool:
    mkl, mkldnn = torch.backends.mkl.is_available(), torch.backends.mkldnn.is_available()
    return mkl and mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _suits(tensor: torch.Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu"


def _product(
    rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")


def _plain(module: torch.nn.Module) -> bool:
    return type(module).forward is torch.nn.Linear.forward and _suits(module.weight)


class _Ours(partial):
    """A forward that this module put in place of a layer's own."""


def _replace(module: torch.nn.Module, forward: Callable) -> Callable[[], None]:
    """Give a module another forward, unless somebody else has already (accelerate does, to move weights)."""
    if "forward" in vars(module):
        return lambda: None
    ours = module.forward = _Ours(forward, module)

    def undo() -> None:
        if vars(module).get("forward") is ours:
            del module.forward

    return undo


def _forward(layer: torch.nn.Linear, input: torch.Tensor, pack: bool) -> torch.Tensor:
    weight, bias = layer.weight, layer.bias
    if not _suits(input):
        return torch.nn.functional.linear(input, weight, bias)
    if torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (input, weight, bias)
    ):
        return _Linear.apply(input, weight, bias)
    return _product(input, _ready(weight, pack), bias)


def _forward_gated(
    block: torch.nn.Module, *inputs, pack: bool, unary: tuple[str, str], **options
) -> torch.Tensor:
    layers = block.gate_proj, block.up_proj, block.down_proj
    if (
        torch.is_grad_enabled()
        or options
        or len(inputs) != 1
        or not _suits(inputs[0])
        or _watched(*layers, block.act_fn)
    ):
        return type(block).forward(block, *inputs, **options)
    gate, up, down = ((_ready(layer.weight, pack), layer.bias) for layer in layers)
    opened = torch.ops.mkldnn._linear_pointwise(inputs[0], *gate, unary[0], [], unary[1])
    return _product(
        _product(inputs[0], *up).mul_(opened), *down
    )  # multiplying within the product is slower (benchmarks/README.md)


def _watched(*modules: torch.nn.Module) -> bool:
    """Whether somebody looks on, or has put something in a module's place: then it must be called."""
    everywhere = torch.nn.modules.module
    if everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks:
        return True
    for module in modules:
        own = vars(module).get("forward")
        if (
            module._forward_hooks
            or module._forward_pre_hooks
            or not (own is None or isinstance(own, _Ours))
        ):
            return True
    return False


def _gate(block: torch.nn.Module) -> tuple[str, str] | None:
    """oneDNN's name for the activation of a gated feed-forward block, or None where a module is no such block."""
    layers = [getattr(block, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    act = getattr(block, "act_fn", None)
    if not isinstance(act, torch.nn.Module) or not all(
        isinstance(layer, torch.nn.Linear) and _plain(layer) for layer in layers
    ):
        return None
    if not _is_gated(type(block).forward):
        return None
    if act not in _curves:
        _curves[act] = _activation(act)
    return _curves[act]


class _Term:
    """What a block's forward writes down when it is given this in place of numbers."""

    def __init__(self, text: str):
        self.text = text

    def __mul__(self, other: "_Term") -> "_Term":
        return _Term(f"{self.text} * {other.text}")


@cache
def _is_gated(forward: Callable) -> bool:
    """Whether a class's forward is the formula above and nothing else: no clamp, no dropout, no look at a configuration."""
    names = ("gate_proj", "up_proj", "down_proj", "act_fn")
    parts = SimpleNamespace(
        **{name: (lambda term, name=name: _Term(f"{name}({term.text})")) for name in names}
    )
    try:
        said = forward(parts, _Term("x")).text
    except Exception:  # whatever else it does, a term cannot
        return False
    gate, up = "act_fn(gate_proj(x))", "up_proj(x)"
    return said in (f"down_proj({gate} * {up})", f"down_proj({up} * {gate})")


def _activation(act: torch.nn.Module) -> tuple[str, str] | None:
    points = torch.linspace(-10, 10, 501, dtype=torch.float32, device="cpu")[:, None]
    one = torch.ones(1, 1, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        try:
            curve = type(act).forward(act, points)  # not a call: nobody's hooks
        except Exception:  # one that asks for more than numbers
            return None
        for unary in _UNARIES:
            found = torch.ops.mkldnn._linear_pointwise(points, one, None, unary[0], [], unary[1])
            if torch.allclose(found, curve, rtol=1e-5, atol=1e-5):
                return unary
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
        return (
            _product(gradient, _dequantized(ctx.packed, ctx.state).t())
            if ctx.needs_input_grad[0]
            else None,
            None,
            None,
            bias,
        )


def _dequantized(packed: torch.Tensor, state) -> torch.Tensor:
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(packed, state).to(torch.float32)


def _forward_4bit(layer, rows: torch.Tensor) -> torch.Tensor:
    state, bias = layer.weight.quant_state, layer.bias
    ready = (
        state is not None
        and not getattr(state, "packing_format_for_cpu", False)
        and layer.compute_dtype in (None, torch.float32)
    )
    if ready and _suits(rows) and rows.numel() and (bias is None or _suits(bias)):
        return _Linear4bit.apply(rows, layer.weight.detach(), state, bias)
    return type(layer).forward(layer, rows)


def _state(weight: torch.nn.Parameter) -> tuple:
    return (0 if weight.is_inference() else weight._version, weight.data_ptr())


def _pack(weight: torch.nn.Parameter) -> torch.Tensor:
    found = _packed.get(weight)
    if found is None or found[0] != _state(weight):
        with _lock:  # two threads that come together would pack it twice
            found = _packed.get(weight)
            if found is None or found[0] != _state(weight):
                copy = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
                found = _packed[weight] = (_state(weight), sample(weight), copy)
    return found[2]


def _forget_if_changed(weight: torch.nn.Parameter) -> None:
    with _lock:
        if (found := _packed.get(weight)) is not None and found[1] != sample(weight):
            _packed.pop(weight, None)
