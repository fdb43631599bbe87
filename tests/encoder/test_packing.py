"""Packed sequences give what each gives alone, behind a prefix; the model is left as it was."""

import threading

import pytest
import torch
import transformers

from prompteol_utils.encoder import Backbone, packing
from prompteol_utils.models import tiny_model

ROWS = [list(range(20, 29)), list(range(40, 49)), list(range(60, 65)), [77, 78, 79, 80, 81], [90]]
PREFIX = [5, 6, 7, 8, 9, 10, 11]


@pytest.fixture(params=["opt", "llama", "mistral", "gemma3", "gpt-neox"])
def body(request):
    return Backbone(tiny_model(request.param).model).module


def alone(body, row, layer):
    with torch.inference_mode():
        out = body(input_ids=torch.tensor([row]), output_hidden_states=True)
    return out.hidden_states[layer][0]


@torch.inference_mode()
def test_rows_are_what_they_are_alone(body):
    prefix = packing.run_prefix(body, PREFIX, [3, 1])
    last, first = packing.run(body, ROWS, prefix, [3, 1])
    for states, layer in ((last, 3), (first, 1)):
        for row, found in zip(ROWS, states.split([len(row) for row in ROWS]), strict=True):
            assert torch.allclose(
                found, alone(body, PREFIX + row, layer)[len(PREFIX) :], atol=1e-4, rtol=1e-4
            )
    assert torch.allclose(prefix.sums[1], alone(body, PREFIX, 1).sum(0), atol=1e-4, rtol=1e-4)
    swapped = packing.run(body, ROWS[1::-1], prefix, [3])[0]
    assert not torch.allclose(swapped, last[: len(swapped)], atol=1e-2), "two different rows differ"


@torch.inference_mode()
@pytest.mark.parametrize("behind", [True, False])
def test_last_tokens_need_no_others_in_the_last_layer(body, behind):
    prefix = packing.run_prefix(body, PREFIX, [3]) if behind else None
    at, seen = torch.tensor([len(row) for row in ROWS]).cumsum(0) - 1, []
    whole = packing.run(body, ROWS, prefix, [3])[0]
    linear = [
        module
        for name, module in body.named_modules()
        if ".2." in name and isinstance(module, torch.nn.Linear)
    ]
    hooks = [
        module.register_forward_hook(lambda module, args, out: seen.append(out.shape[:-1].numel()))
        for module in linear
    ]
    found = packing.run(body, ROWS, prefix, [3], last_token_only=True)[0]
    [hook.remove() for hook in hooks]
    assert torch.allclose(found[at], whole[at], atol=1e-4, rtol=1e-4) and found.shape == whole.shape
    assert seen[-1] == len(ROWS) and sum(seen) < len(linear) * len(whole), (
        "the layer's last product is on the last tokens alone"
    )
    assert torch.equal(packing.run(body, ROWS, prefix, [3])[0], whole), "nothing of it stays behind"


@torch.inference_mode()
def test_a_batchs_masks_are_worked_out_once_for_all_layers(monkeypatch):
    body, found = Backbone(tiny_model("llama").model).module, []
    bias = packing.attention_bias
    monkeypatch.setattr(
        packing, "attention_bias", lambda *args: found.append(bias(*args)) or found[-1]
    )
    packing.run(body, ROWS, packing.run_prefix(body, PREFIX, [3]), [3])
    lengths = len({len(row) for row in ROWS})
    assert len(found) == 3 * (1 + lengths) and len({id(one) for one in found}) == 1 + lengths, (
        "the prefix, and each length of row"
    )


@torch.inference_mode()
def test_the_model_is_left_as_it_was(body):
    def hooks():
        return sum(
            len(module._forward_hooks) + len(module._forward_pre_hooks) for module in body.modules()
        )

    before, hooked = body.config._attn_implementation, hooks()
    for ends in (False, True):
        packing.run(body, ROWS, None, [3], last_token_only=ends)
        with pytest.raises(IndexError):
            packing.run(body, [[10_000]], None, [3], last_token_only=ends)
    assert body.config._attn_implementation == before == "sdpa"
    assert hooks() == hooked
    assert torch.equal(alone(body, ROWS[0], 3), alone(body, ROWS[0], 3))


def test_threads_share_a_model():
    body = Backbone(tiny_model("llama").model).module
    expected, wrong = packing.run(body, ROWS, None, [3])[0].detach(), []

    def work(rows):
        with torch.inference_mode():
            for _ in range(20):
                found = packing.run(body, rows, None, [3])[0]
                if not torch.allclose(found, expected[: len(found)], atol=1e-4):
                    wrong.append(len(rows))

    threads = [threading.Thread(target=work, args=(ROWS[:n],)) for n in (1, 2, 5)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert wrong == []


def meanwhile(body, work):
    """What `work` returns, or the error it raises, in another thread while this one encodes."""
    found = []

    def inside(*_):
        if threading.current_thread() is threading.main_thread():
            found.append(elsewhere(work))

    hook = body.register_forward_pre_hook(inside)
    packing.run(body, ROWS[:2], None, [3], last_token_only=True)
    hook.remove()
    return found[0]


def elsewhere(work):
    found = []

    def run():
        try:
            with torch.inference_mode():
                found.append(work())
        except RuntimeError as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


@torch.inference_mode()
def test_meanwhile_another_thread_calls_the_model_as_it_is(body):
    expected = alone(body, ROWS[0], 3)
    found = meanwhile(body, lambda: alone(body, ROWS[0], 3))
    assert torch.allclose(found, expected, atol=1e-5) and not torch.allclose(
        found, expected.roll(1, 0), atol=1e-2
    )


@torch.inference_mode()
def test_an_attention_out_of_reach_is_said():
    body = Backbone(tiny_model("llama").model).module
    body.set_attn_implementation("eager")
    found = meanwhile(body, lambda: alone(body, ROWS[0], 3))
    assert isinstance(found, RuntimeError) and "another thread is encoding with this model" in str(
        found
    )


@torch.inference_mode()
def test_an_attention_with_more_to_it_is_refused():
    """Gemma 2 caps its scores; its sliding window alone would be no obstacle."""
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
    size |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 400}
    body = transformers.Gemma2Model(transformers.Gemma2Config(**size, sliding_window=12))
    with pytest.raises(packing.CannotPackError, match=r"attention with softcap$"):
        packing.run(body, ROWS, None, [2])


def varlen(query, key, value, starts_q, starts_k, max_q, max_k, **options):
    """What torch's kernel computes on a GPU, one sequence after the other."""
    assert options["window_size"] == (-1, 0) and starts_q.dtype == starts_k.dtype == torch.int32
    assert (starts_q.diff().max(), starts_k.diff().max()) == (max_q, max_k)
    parts = []
    for q, q_end, k, k_end in zip(starts_q, starts_q[1:], starts_k, starts_k[1:], strict=False):
        queries, keys, values = (
            states.transpose(0, 1) for states in (query[q:q_end], key[k:k_end], value[k:k_end])
        )
        seen = torch.ones(queries.shape[1], keys.shape[1], dtype=torch.bool)
        out = torch.nn.functional.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=seen.tril(keys.shape[1] - queries.shape[1]),
            scale=options["scale"],
            enable_gqa=options["enable_gqa"],
        )
        parts.append(out.transpose(0, 1))
    return torch.cat(parts)


@torch.inference_mode()
@pytest.mark.parametrize("only_last", [False, True])
def test_one_kernel_call_for_all_lengths(body, monkeypatch, only_last):
    prefix = packing.run_prefix(body, PREFIX, [3])
    read = packing.last_positions(list(map(len, ROWS))) if only_last else slice(None)
    expected = packing.run(body, ROWS, prefix, [3], last_token_only=only_last)[0][read]
    calls = []
    monkeypatch.setattr(
        packing, "_varlen", lambda _: lambda *args, **more: calls.append(1) or varlen(*args, **more)
    )
    prefix = packing.run_prefix(body, PREFIX, [3])
    found = packing.run(body, ROWS, prefix, [3], last_token_only=only_last)[0][read]
    assert torch.allclose(found, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found.roll(1, 0), expected, atol=1e-2)
    windows = body.config.model_type in ("mistral", "gemma3_text")  # a mask beyond causal
    assert len(calls) == (6 if not windows else len(calls)) and (windows or calls)
