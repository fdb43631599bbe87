"""Device and dtype choice, the timer, out-of-memory halving, seeds."""

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
    for has_bf16, expected in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has_bf16=has_bf16: has_bf16)
        assert devices.choose_dtype(torch.device("cuda")) is expected


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


def test_seed_fixes_every_generator():
    def draw():
        import random

        return random.random(), np.random.rand(), torch.rand(1).item()

    devices.set_seed(3)
    first = draw()
    devices.set_seed(3)
    assert draw() == first != draw()


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
