"""Batches that run at once on a CPU: the same vectors, and nothing left behind."""

import itertools
import threading
import time
import types

import numpy as np
import pytest
import torch

from prompteol_utils.encoder import Encoder, batching, packing, reference
from prompteol_utils.models import tiny_model

SENTENCES = [
    f"{'The tide comes in. ' * (n % 7 + 1)}Boat {n} leaves the harbour." for n in range(48)
]
SMALL = 64  # tokens in a batch: many batches


@pytest.fixture(autouse=True)
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def together(encoder):
    """Let the first four batches wait for each other; returns a thread's name for each batch."""
    barrier, names = threading.Barrier(4), []

    def wait(*_):
        if threading.current_thread() is not threading.main_thread():
            names.append(threading.current_thread().name)
            if len(names) <= 4:
                barrier.wait(timeout=60)

    encoder.backbone.module.register_forward_pre_hook(wait)
    return names


def seen(encoder, vectors):
    """Relative error against the plain loop."""
    expected = reference(encoder.loaded, encoder.prompt, SENTENCES)
    return np.linalg.norm(vectors - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("architecture", ["opt", "llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("prompt", ["prompteol", "mean"])
def test_batches_at_once_give_the_same_vectors(architecture, prompt):
    encoder = Encoder(tiny_model(architecture), prompt)
    names = together(encoder)
    assert seen(encoder, encoder.encode(SENTENCES, batch_tokens=SMALL)) < 1e-4
    assert len(set(names)) == 4 and len(names) > 8


def test_one_batch_for_all_threads_is_seen(monkeypatch):
    encoder = Encoder(tiny_model("llama"))
    names = together(encoder)
    monkeypatch.setattr(packing, "_thread", types.SimpleNamespace(batch=None))
    try:
        wrong = seen(encoder, encoder.encode(SENTENCES, batch_tokens=SMALL)) > 1e-2
    except Exception:  # which one depends on how the threads meet
        wrong = True
    assert wrong
    assert len(names) >= 4


def test_last_tokens_only_and_all_layers_at_once():
    """One thread cuts the last layer to the last tokens, the other reads all of every layer."""
    loaded, found = tiny_model("llama"), {}
    last, means = Encoder(loaded), Encoder(loaded, "mean")
    expected = last.encode(SENTENCES[:12]), means.encode_layers(SENTENCES[:12])

    def keep(name, encode):
        found[name] = [encode(SENTENCES[:12], batch_tokens=SMALL) for _ in range(10)]

    threads = [
        threading.Thread(target=keep, args=args)
        for args in (("last", last.encode), ("means", means.encode_layers))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.allclose(one, expected[0], rtol=1e-4, atol=1e-5) for one in found["last"])
    assert all(np.allclose(one, expected[1], rtol=1e-4, atol=1e-5) for one in found["means"])


def test_nothing_is_left_behind():
    loaded = tiny_model("llama")
    encoder = Encoder(loaded)
    names = together(encoder)
    hooks = sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks)
        for module in loaded.model.modules()
    )
    name = loaded.model.config._attn_implementation
    encoder.encode(SENTENCES, batch_tokens=SMALL)
    assert names
    assert loaded.model.config._attn_implementation == name != packing.NAME
    assert hooks == sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks)
        for module in loaded.model.modules()
    )
    assert torch.get_num_threads() == 4
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start(), thread.join()
    assert later == [4], "a thread that starts later"


def test_a_failing_batch_ends_the_call_and_leaves_nothing_behind(monkeypatch):
    encoder = Encoder(tiny_model("llama"))
    name = encoder.loaded.model.config._attn_implementation
    encoder.encode(SENTENCES)  # the prefix
    run, calls, counter = packing.run, [], itertools.count(1)

    def failing(*args, **options):
        calls.append(number := next(counter))
        if number == 3:
            raise RuntimeError("the third batch")
        if number > 3:
            time.sleep(0.02)  # the call ends while others still wait for their turn
        return run(*args, **options)

    monkeypatch.setattr(packing, "run", failing)
    with pytest.raises(RuntimeError, match="the third batch"):
        encoder.encode(SENTENCES, batch_tokens=8)
    assert len(calls) < len(SENTENCES) and torch.get_num_threads() == 4
    assert encoder.loaded.model.config._attn_implementation == name
    monkeypatch.setattr(packing, "run", run)
    assert seen(encoder, encoder.encode(SENTENCES, batch_tokens=SMALL)) < 1e-4


def test_threads_are_shared_out_and_few_batches_get_all_of_them():
    def parallel_map(run, batches):
        return batching.parallel_map(run, batches, batching.num_workers(len(batches)))

    def run(batch):
        return batch, torch.get_num_threads(), threading.current_thread() is threading.main_thread()

    torch.set_num_threads(5)
    many = list(parallel_map(run, [[n] for n in range(40)]))
    assert many == [([n], 1, False) for n in range(40)]
    assert list(parallel_map(run, [[n] for n in range(9)])) == [([n], 5, True) for n in range(9)]
    torch.set_num_threads(1)
    assert list(parallel_map(run, [[n] for n in range(40)])) == [([n], 1, True) for n in range(40)]
    torch.set_num_threads(batching.NUM_WORKERS * 2)
    assert list(parallel_map(run, [[n] for n in range(40)])) == [([n], 2, False) for n in range(40)]


def test_int8_layers_keep_their_work_in_themselves_and_run_alone(monkeypatch):
    def alone(run, batches, num_workers):
        return map(run, batches) if num_workers == 1 else pytest.fail("several batches at once")

    monkeypatch.setattr(batching, "parallel_map", alone)
    loaded = tiny_model("llama")
    object.__setattr__(loaded, "quantization", "int8")
    assert Encoder(loaded).encode(SENTENCES, batch_tokens=SMALL).shape[0] == len(SENTENCES)
