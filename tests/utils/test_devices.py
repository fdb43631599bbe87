"""Device and dtype choice, the timer, out-of-memory errors and halving."""

import time

import numpy as np
import pytest
import torch

from prompteol_utils.encoder import batching
from prompteol_utils.utils import devices


def test_cpu_stays_in_fp32():
    assert devices.choose_dtype(torch.device("cpu")) is torch.float32
    assert devices.choose_dtype(torch.device("cpu"), "bfloat16") is torch.bfloat16
    with pytest.raises(ValueError, match="allowed: float32, bfloat16, float16"):
        devices.choose_dtype(torch.device("cpu"), "int4")


def test_gpu_gets_half_precision(monkeypatch):
    """torch says yes for a T4 as well, which has to emulate bf16."""
    for native, expected in ((True, torch.bfloat16), (False, torch.float16)):

        def supported(including_emulation=True, native=native):
            return native or including_emulation

        monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
        assert devices.choose_dtype(torch.device("cuda")) is expected


def test_pool_of_torch_counts_as_free(monkeypatch):
    """Two cards of 80 GB; on one a model of 35 GB was freed, and torch keeps its memory."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda card: ((45, 80)[card], 80))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda card: (35, 0)[card])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda card: (5, 0)[card])
    assert devices.available_memory(torch.device("cuda:0")) == 75
    assert devices.available_memory(torch.device("cuda")) == 155
    assert devices.memory_in_use(torch.device("cuda")) == 5


def test_missing_gpu_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.choose_device() == torch.device("cpu")
    with pytest.raises(ValueError, match="asked for, but torch sees"):
        devices.choose_device("cuda")
    with pytest.raises(ValueError, match="unknown device 'gpu7'"):
        devices.choose_device("gpu7")


def test_memory_and_timer():
    before = devices.memory_in_use()
    block = np.ones(40_000_000)
    assert devices.memory_in_use() - before > 0.9 * block.nbytes
    assert devices.peak_memory() >= devices.memory_in_use() * 0.9
    with devices.Timer() as timer:
        time.sleep(0.05)
    assert 0.05 <= timer.seconds < 5


def test_halving_keeps_order_and_gives_up_on_one():
    def run(batch):
        if sum(batch) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [10 * item for item in batch]

    parts = batching.halve_on_oom(run, [1, 2, 3, 4, 5, 6])
    assert [item for rows, _ in parts for item in rows] == [1, 2, 3, 4, 5, 6]
    assert [item for _, result in parts for item in result] == [10, 20, 30, 40, 50, 60]
    with pytest.raises(torch.OutOfMemoryError):
        batching.halve_on_oom(run, [1, 9])


def test_other_errors_pass_through():
    calls = []

    def run(batch):
        calls.append(batch)
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        batching.halve_on_oom(run, [1, 2, 3, 4])
    assert len(calls) == 1


def test_real_allocation_failure_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert devices.is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("MPS backend out of memory (MPS allocated: 18 GB)"),
        RuntimeError("std::bad_alloc"),
        MemoryError(),
        devices.NotEnoughMemoryError("opt-66b needs 130 GB"),
    ],
)
def test_every_kind_of_out_of_memory_is_recognised(error):
    assert devices.is_out_of_memory(error)
    assert not devices.is_out_of_memory(ValueError(str(error)))
    assert not devices.is_out_of_memory(RuntimeError("shape mismatch"))


def test_machine_names_what_a_timing_needs():
    machine = devices.machine()
    assert machine["cores"] >= 1 and machine["ram_gb"] > 0.1 and machine["cpu"]


@pytest.mark.gpu
def test_gpu_timer_and_peak():
    device = torch.device("cuda")
    devices.reset_peak_memory(device)
    with devices.Timer(device) as timer:
        block = torch.ones(8192, 8192, device=device)
        (block @ block).sum()
    assert timer.seconds > 1e-4 and devices.peak_memory(device) >= 2 * block.nbytes
