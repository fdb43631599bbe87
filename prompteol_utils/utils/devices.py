"""Device and dtype, memory in use, at peak and free, a synchronised timer, out-of-memory errors."""

import contextlib
import ctypes
import gc
import os
import platform
import sys
import time
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")  # Linux
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Tokens in a batch by default: on a CPU what its caches hold (benchmarks/README.md).
BATCH_TOKENS = {"cpu": 512, "mps": 4_096, "cuda": 16_384}


def choose_device(device: "str | torch.device | None" = None) -> torch.device:
    """Return the device asked for, else the GPU if there is one, else the CPU.

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
    instead = "use device='cpu' or leave it out"
    if device.type == "cuda":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= found:
            raise ValueError(
                f"device {str(device)!r} was asked for, but torch sees {found} CUDA GPUs here; "
                f"{instead}"
            )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(
            "device 'mps' was asked for, but this machine has no Apple GPU that torch can use; "
            f"{instead}"
        )
    return device


def choose_dtype(device: torch.device, dtype: "str | torch.dtype | None" = None) -> torch.dtype:
    """Return the dtype asked for, else fp32 on a CPU, and on a GPU bf16, or fp16 on older cards.

    Without hardware units bf16 is several times slower than fp32 (CPU) or fp16 (T4, V100), so it
    is not chosen there, although torch emulates it.

    Args:
        device: Where the model will run.
        dtype: "float32", "bfloat16", "float16", a torch.dtype, or None to choose.

    Raises:
        ValueError: Unknown dtype.
    """
    if dtype is None:
        if device.type != "cuda":
            return torch.float32
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    dtype = DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if dtype not in DTYPES.values():
        raise ValueError(f"unknown dtype {dtype!r}; allowed: {', '.join(DTYPES)}")
    return dtype


def _cards(device: torch.device) -> list[int]:
    """Return the numbers of the cards that a device means: all, where none was given."""
    return list(range(torch.cuda.device_count())) if device.index is None else [device.index]


def memory_in_use(device: torch.device | None = None) -> int:
    """Return bytes in use now: the process's resident memory, or torch's allocated GPU memory."""
    if device is not None and device.type == "cuda":
        return sum(torch.cuda.memory_allocated(card) for card in _cards(device))
    if device is not None and device.type == "mps":
        return torch.mps.current_allocated_memory()
    import psutil

    return psutil.Process().memory_info().rss


def available_memory(device: torch.device | None = None) -> int:
    """Return the bytes that a model could take now: free on the GPU (on all if none was named).

    What torch keeps in its own pool after a model was freed counts as free. On a CPU a container's
    limit counts where it is lower than what the machine has.
    """
    if device is not None and device.type == "cuda":
        return sum(free_on_card(card) for card in _cards(device))
    if device is not None and device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    import psutil

    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        statistics = (group / "memory.stat").read_text().splitlines()
        cached = next(int(line.split()[1]) for line in statistics if line.startswith("file "))
    except (OSError, ValueError, StopIteration):  # no such file, or no limit ("max")
        return free
    return min(free, max(limit - used + cached, 0))  # cached files make room when they have to


def free_on_card(card: int) -> int:
    """Return a card's free bytes, unused blocks of torch's own pool included."""
    pool = torch.cuda.memory_reserved(card) - torch.cuda.memory_allocated(card)
    return torch.cuda.mem_get_info(card)[0] + pool


def peak_memory(device: torch.device | None = None) -> int:
    """Return the peak bytes since `reset_peak_memory`: torch's on a GPU, else the process's."""
    if device is not None and device.type == "cuda":
        return sum(torch.cuda.max_memory_allocated(card) for card in _cards(device))
    if _STATUS.exists():  # getrusage's peak also counts the process that started this one
        return _status("VmHWM:")
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # elsewhere it counts in KiB


def _status(field: str) -> int:
    lines = _STATUS.read_text(encoding="utf8").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), 0)


def file_memory() -> int:
    """Return the bytes of mapped files in memory (Linux; elsewhere 0), which can be taken back."""
    return _status("RssFile:") if _STATUS.exists() else 0


def reset_peak_memory(device: torch.device | None = None) -> None:
    """Start the peak anew; a process's own peak can be reset on Linux only."""
    if device is not None and device.type == "cuda":
        for card in _cards(device):
            torch.cuda.reset_peak_memory_stats(card)
    elif _STATUS.exists():
        Path("/proc/self/clear_refs").write_text("5", encoding="utf8")


def release_memory() -> None:
    """Give freed memory back to the system: Python's garbage, torch's pool, glibc's free blocks."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def disable_malloc_trim() -> None:
    """Ask glibc to keep big freed blocks for the next training step: a tenth of its time.

    Elsewhere than on Linux it does nothing.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD, as high as glibc lets it be
            libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


class Timer:
    """Seconds of a `with` block; on a GPU it waits for the queued work.

    Attributes:
        seconds: Wall-clock seconds, set when the block ends.
    """

    def __init__(self, device: torch.device | None = None):
        self.device = device
        self.seconds = float("nan")

    def _now(self) -> float:
        if self.device is not None and self.device.type in ("cuda", "mps"):
            getattr(torch, self.device.type).synchronize()
        return time.perf_counter()

    def __enter__(self):
        self._start = self._now()
        return self

    def __exit__(self, *exc):
        self.seconds = self._now() - self._start


class NotEnoughMemoryError(RuntimeError):
    """A model does not fit, said before it is loaded: what is needed, what is free, what fits."""


_NO_MEMORY = (
    "out of memory",  # "CUDA error: out of memory", "CUDA out of memory", "MPS backend out of …"
    "can't allocate memory",
    "cannot allocate memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "std::bad_alloc",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that the device's (or the machine's) memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError | NotEnoughMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _NO_MEMORY)


def machine() -> dict:
    """Return what a timing's reader needs to know: processor, cores, GB, GPU, torch threads."""
    import psutil

    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = models[0].split(":", 1)[1].strip() if models else name
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "cpu": name,
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "ram_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
    }
