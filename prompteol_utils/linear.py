"""Linear layers in fp32 on a CPU through oneDNN: the same sums, an eighth to a fifth faster than torch's own choice on some processors.

torch sends fp32 matrix products on x86 to MKL, which keeps its fastest kernels for one maker's processors. oneDNN, which torch ships as
well, chooses by what the processor can do, and can keep a weight in the order its kernel reads. Nothing is rounded to fewer bits.
"""

import threading
from contextlib import nullcontext

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
        body: The model that will run, in inference mode. Its weights are packed once where all of its linear layers stay below
            `PACKED_BYTES`, and packed again when a weight has changed.

    Returns:
        A context manager; one that does nothing where torch has no such kernels, or the model is not in fp32 on a CPU.

    Source: measured, see benchmarks/README.md.
    """
    usable = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    weights = [module.weight for module in body.modules() if isinstance(module, torch.nn.Linear) and _suits(module.weight)]
    if not usable or not weights:
        return nullcontext()
    return _OneDNN(pack=sum(weight.nbytes for weight in weights) <= PACKED_BYTES)


def _suits(tensor: torch.Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu"


class _OneDNN(TorchFunctionMode):
    def __init__(self, pack: bool):
        super().__init__()
        self.pack = pack

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.nn.functional.linear and not kwargs and len(args) > 1 and _suits(args[0]) and _suits(args[1]):
            rows, weight, bias = (*args, None)[:3]
            if self.pack and isinstance(weight, torch.nn.Parameter):
                weight = _pack(weight)
            return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
        return function(*args, **(kwargs or {}))


def _pack(weight: torch.nn.Parameter) -> torch.Tensor:
    state = (0 if weight.is_inference() else weight._version, weight.data_ptr())
    found = _packed.get(weight)
    if found is None or found[0] != state:
        with _lock:  # two threads that come together would pack it twice
            found = _packed.get(weight)
            if found is None or found[0] != state:
                found = _packed[weight] = (state, torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS))
    return found[1]
