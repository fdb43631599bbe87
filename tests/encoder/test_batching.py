"""Out of memory: halved, remembered for the call, and no reason to stop packing."""

import numpy as np
import pytest
import torch

from prompteol_utils.encoder import Encoder, packing, reference
from prompteol_utils.encoder.batching import SizeLimit, batches, even_budget, halve_on_oom
from prompteol_utils.models import tiny_model

TEXTS = [f"{'The tide comes in. ' * (n % 5 + 1)}Boat {n} leaves." for n in range(60)]


def test_a_size_that_failed_is_not_tried_again():
    sizes = []
    limit = SizeLimit()

    def run(batch):
        sizes.append(len(batch))
        if len(batch) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sum(batch)

    work = [list(range(16)) for _ in range(10)]
    parts = [part for batch in work for part in halve_on_oom(run, batch, limit)]
    assert [item for batch, _ in parts for item in batch] == list(range(16)) * 10
    assert all(result == sum(batch) for batch, result in parts)
    assert sum(size > 5 for size in sizes) <= 2, sizes


def test_an_encoder_remembers_within_a_call(monkeypatch):
    loaded = tiny_model("llama")
    encoder = Encoder(loaded)
    expected = reference(loaded, "prompteol", TEXTS)
    run = packing.run
    failed = []

    def small(module, sequences, *rest, **options):
        if sum(map(len, sequences)) > 100:
            failed.append(sum(map(len, sequences)))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(module, sequences, *rest, **options)

    monkeypatch.setattr(packing, "run", small)
    found = encoder.encode(TEXTS, batch_tokens=240)
    assert abs(found - expected).max() < 1e-3 < abs(expected[:1] - expected[1:]).max(1).min()
    assert len(failed) <= 3, "a few sizes are learnt, not one failure for each batch"


def test_out_of_memory_in_the_probe_is_no_verdict(monkeypatch):
    loaded = tiny_model("llama")
    with monkeypatch.context() as patch:
        patch.setattr(packing, "run", lambda *_, **__: (_ for _ in ()).throw(
            torch.OutOfMemoryError("CUDA out of memory")))  # fmt: skip
        with pytest.raises(torch.OutOfMemoryError):
            Encoder(loaded)
    assert Encoder(loaded).backbone.supports_packing


def test_copies_of_the_prefix_count_on_a_gpu(monkeypatch):
    encoder = Encoder(tiny_model("llama"))
    sizes = []
    run = encoder.run_batch
    monkeypatch.setattr(
        encoder, "run_batch", lambda ids, *rest: sizes.append(len(ids)) or run(ids, *rest)
    )
    encoder.encode(TEXTS, batch_tokens=200)
    on_cpu = max(sizes)
    sizes.clear()
    object.__setattr__(encoder.loaded, "device", "xpu")
    encoder.encode(TEXTS, batch_tokens=200)
    assert max(sizes) < on_cpu


def test_batches_hold_everything_once_within_the_budget():
    lengths = np.random.default_rng(0).integers(1, 60, 200).tolist()
    for padded in (True, False):
        found = list(batches(lengths, 120, padded))
        assert sorted(index for batch in found for index in batch) == list(range(200))
        for batch in found:
            longest = max(lengths[index] for index in batch)
            tokens = len(batch) * longest if padded else sum(lengths[index] for index in batch)
            assert tokens <= 120
    even = even_budget(lengths, 120, 4)
    rounds = [-(-len(list(batches(lengths, budget, False))) // 4) for budget in (120, even)]
    assert even <= 120 and rounds[0] == rounds[1]
