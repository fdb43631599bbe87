"""The machine: device and dtype, memory in use and at peak, a synchronised timer, halving on out-of-memory, batches side by side, seeds."""

import contextlib
import ctypes
import gc
import os
import platform
import random
import sys
import time
from pathlib import Path

import torch

_STATUS = "/proc/self/status"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(device: "str | torch.device | None" = None) -> torch.device:
    """Return the device to compute on: the one asked for, else the GPU if there is one, else the CPU.

    Args:
        device: "cpu", "cuda", "cuda:1", "mps", a torch.device, or None to choose.

    Raises:
        ValueError: The device is unknown or this machine does not have it.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise ValueError(
            f"unknown device {device!r}; allowed: 'cpu', 'cuda', 'cuda:N', 'mps'"
        ) from error
    if device.type == "cuda" and (
        not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()
    ):
        found = torch.cuda.device_count()
        raise ValueError(
            f"device {str(device)!r} was asked for, but torch sees {found} CUDA GPUs here; use device='cpu' or leave it out"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(
            "device 'mps' was asked for, but this machine has no Apple GPU that torch can use; use device='cpu' or leave it out"
        )
    return device


def choose_dtype(device: torch.device, dtype: "str | torch.dtype | None" = None) -> torch.dtype:
    """Return the dtype of the weights: the one asked for, else fp32 on a CPU, bf16 (or fp16 on older cards) on a GPU.

    bf16 without hardware units is several times slower than fp32, so a CPU never gets it unasked.

    Args:
        device: Where the model will run.
        dtype: "float32", "bfloat16", "float16", a torch.dtype, or None to choose.

    Raises:
        ValueError: Unknown dtype.
    """
    if dtype is None:
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    dtype = DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if dtype not in DTYPES.values():
        raise ValueError(f"unknown dtype {dtype!r}; allowed: {', '.join(DTYPES)}")
    return dtype


def memory_in_use(device: torch.device | None = None) -> int:
    """Return bytes in use now: the process's resident memory on a CPU, torch's allocated memory on a GPU."""
    if device is not None and device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    import psutil

    return psutil.Process().memory_info().rss


def available_memory(device: torch.device | None = None) -> int:
    """Return the bytes that a model could take now: free on the GPU (on all of them if no number was given), else the machine's.

    A container's limit counts where it is lower than what the machine has.
    """
    if device is not None and device.type == "cuda":
        numbers = range(torch.cuda.device_count()) if device.index is None else [device.index]
        return sum(torch.cuda.mem_get_info(number)[0] for number in numbers)
    import psutil

    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        cached = next(
            int(line.split()[1])
            for line in (group / "memory.stat").read_text().splitlines()
            if line.startswith("file ")
        )
    except (OSError, ValueError, StopIteration):  # no such file, or no limit ("max")
        return free
    return min(free, max(limit - used + cached, 0))  # cached files make room when they have to


def peak_memory(device: torch.device | None = None) -> int:
    """Return the peak bytes since `reset_peak_memory`: torch's on a GPU, else the process's (where it can be reset: Linux)."""
    if device is not None and device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if os.path.exists(_STATUS):
        with open(
            _STATUS, encoding="utf8"
        ) as lines:  # not getrusage, whose peak also counts the process that started this one
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def release_memory() -> None:
    """Give freed memory back to the system: Python's garbage, and on Linux what the C library keeps of freed blocks."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def file_memory() -> int:
    """Return the bytes of mapped files in memory (Linux; elsewhere 0). The system can take back those that nothing uses."""
    if not os.path.exists(_STATUS):
        return 0
    with open(_STATUS, encoding="utf8") as lines:
        return next(
            (int(line.split()[1]) * 1024 for line in lines if line.startswith("RssFile:")), 0
        )


def reset_peak_memory(device: torch.device | None = None) -> None:
    """Start the peak anew. Outside Linux a process's own peak cannot be reset: measure it in a process of its own."""
    if device is not None and device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif os.path.exists(_STATUS):
        with open("/proc/self/clear_refs", "w", encoding="utf8") as control:
            control.write("5")


def disable_malloc_trim() -> None:
    """Ask glibc to keep big freed blocks for the next training step: giving them back and taking them again costs a tenth of its time.

    Elsewhere than on Linux it does nothing.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD, as high as glibc lets it be
            libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


class Timer:
    """Seconds of a `with` block; on a GPU it waits for the queued work, without which only the launch is timed.

    Attributes:
        seconds: Wall-clock seconds, set when the block ends.
    """

    def __init__(self, device: torch.device | None = None):
        self.device, self.seconds = device, float("nan")

    def _now(self) -> float:
        if self.device is not None and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def __enter__(self):
        self._start = self._now()
        return self

    def __exit__(self, *exc):
        self.seconds = self._now() - self._start


class NotEnoughMemoryError(RuntimeError):
    """A model that will not fit, said before it is loaded: what is needed, what is there, what would fit."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that the device's (or the machine's) memory ran out."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError | NotEnoughMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in text
    )


def set_seed(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices)."""
    import numpy as np

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def machine() -> dict:
    """Return what a timing's reader needs to know: processor, cores, memory in GB, GPU name or None, torch threads."""
    import psutil

    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf8") as lines:
            name = next(
                (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
                name,
            )
    return {
        "cpu": name,
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "ram_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
    }
