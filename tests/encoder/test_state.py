"""What decides a vector besides its sentence is noticed between calls, and left as it was."""

import copy
import types

import numpy as np
import pytest
import torch

from prompteol_utils.encoder import Encoder, packing, reference
from prompteol_utils.models import tiny_model

TEXTS = ["The kettle sings.", "Two boats drift past the empty pier.", "A", "Rain at noon, again."]


def error(found, expected):
    return (np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)).max()


def assert_follows(change, loaded=None):
    """After a change of its model, an encoder that has run gives the changed model's vectors."""
    loaded = loaded or tiny_model("llama", hidden_size=64, num_attention_heads=4)
    encoder = Encoder(loaded)
    before = encoder.encode(TEXTS)
    change(loaded.model)
    expected = reference(loaded, "prompteol", TEXTS)
    assert error(before, expected) > 1e-3, "the change matters"
    assert error(encoder.encode(TEXTS), expected) < 1e-4
    assert error(Encoder(loaded).encode(TEXTS), expected) < 1e-4


def key_weight(model):
    return model.model.layers[0].self_attn.k_proj.weight


def edit(where, value):
    def change(model):
        key_weight(model).data[where] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        edit(5, 0.0),  # a row of a weight whose width is a multiple of 64
        edit((slice(None), slice(1, 33)), 0.0),
        edit((slice(None), 7), 3.0),
        lambda model: key_weight(model).data.mul_(2),
        lambda model: key_weight(model).detach().numpy().__setitem__((slice(3, 22)), 0.0),
        lambda model: model.model.rotary_emb.inv_freq.mul_(0.5),  # a buffer
    ],
    ids=["row", "columns", "column", "data", "numpy", "buffer"],
)
def test_edits_are_noticed(change):
    assert_follows(change)


def test_a_single_number_is_forgotten_on_request():
    loaded = tiny_model("llama", hidden_size=64)
    encoder = Encoder(loaded)
    encoder.encode(TEXTS)
    weight = loaded.model.model.embed_tokens.weight
    token = loaded.tokenizer(encoder.prompt.prefix)["input_ids"][2]
    weight.data[token, 1] += 5
    encoder.forget()
    assert error(encoder.encode(TEXTS), reference(loaded, "prompteol", TEXTS)) < 1e-4


def test_hooks_and_what_they_read_are_noticed():
    scale = types.SimpleNamespace(value=0.5)

    def hook(module, args, out):
        return out * scale.value

    def register(model):
        model.model.layers[0].mlp.register_forward_hook(hook)

    loaded = tiny_model("llama")
    assert_follows(register, loaded)
    encoder = Encoder(loaded)
    encoder.encode(TEXTS)
    scale.value = 2.0
    assert error(encoder.encode(TEXTS), reference(loaded, "prompteol", TEXTS)) < 1e-4


def test_pruning_is_noticed():
    from torch.nn.utils import prune

    assert_follows(
        lambda model: prune.ln_structured(
            model.model.layers[0].mlp.down_proj, "weight", amount=0.5, n=2, dim=0
        )
    )


def test_autocast_is_noticed():
    loaded = tiny_model("llama")
    encoder = Encoder(loaded)
    first = encoder.encode(TEXTS)
    with torch.autocast("cpu", torch.bfloat16):
        inside = encoder.encode(TEXTS)
        fresh = Encoder(loaded).encode(TEXTS)
    assert error(inside, first) > 1e-3, "autocast matters"
    assert error(inside, fresh) < 1e-6
    assert error(encoder.encode(TEXTS), first) < 1e-6


def test_a_model_in_training_is_in_eval_for_the_call():
    loaded = tiny_model("opt", dropout=0.5)
    encoder = Encoder(loaded)
    expected = reference(loaded, "prompteol", TEXTS)
    loaded.model.train()
    loaded.model.model.decoder.layers[1].eval()
    modes = [module.training for module in loaded.model.modules()]
    assert error(encoder.encode(TEXTS), expected) < 1e-4
    assert error(reference(loaded, "prompteol", TEXTS), expected) < 1e-4
    assert [module.training for module in loaded.model.modules()] == modes
    assert encoder.vectors(encoder.tokenize(TEXTS)).requires_grad


def test_a_switched_off_adapter_has_the_keys_of_the_base():
    from dataclasses import replace

    from peft import LoraConfig, get_peft_model

    loaded = tiny_model("llama")
    base = Encoder(loaded).key
    model = get_peft_model(loaded.model, LoraConfig(target_modules=["q_proj"])).eval()
    encoder = Encoder(replace(loaded, model=model, adapter="lora@1"))
    assert encoder.key == {**base, "adapter": "lora@1"}
    with model.disable_adapter():
        assert encoder.key == base


def test_an_encode_from_inside_a_forward_hook():
    loaded = tiny_model("llama")
    encoder = Encoder(loaded)
    inner = Encoder(loaded, "means")
    expected = reference(loaded, "prompteol", TEXTS), reference(loaded, "means", TEXTS)
    seen = []

    def hook(module, args, out):
        if not seen:
            seen.append(None)
            seen[0] = inner.encode(TEXTS)

    handle = loaded.model.model.layers[1].self_attn.register_forward_hook(hook)
    outer = encoder.encode(TEXTS)
    handle.remove()
    assert error(outer, expected[0]) < 1e-4 and error(seen[0], expected[1]) < 1e-4
    assert error(encoder.encode(TEXTS), expected[0]) < 1e-4, "nothing wrong was kept"


def test_an_interrupt_leaves_the_model_as_it_was(monkeypatch):
    loaded = tiny_model("llama")
    encoder = Encoder(loaded)
    expected = encoder.encode(TEXTS)
    before = loaded.model.config._attn_implementation
    handle = loaded.model.model.layers[1].register_forward_hook(
        lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        encoder.encode(TEXTS)
    handle.remove()
    assert loaded.model.config._attn_implementation == before != packing.NAME
    assert error(encoder.encode(TEXTS), expected) < 1e-6


def test_a_copy_of_the_model_is_not_the_model():
    loaded = tiny_model("llama")
    encoder = Encoder(loaded)
    encoder.encode(TEXTS)
    other = copy.deepcopy(loaded.model)
    key_weight(other).data.mul_(3)
    expected = reference(loaded, "prompteol", TEXTS)
    assert error(encoder.encode(TEXTS), expected) < 1e-4
