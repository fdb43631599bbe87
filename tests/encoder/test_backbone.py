"""Which models are packed, that this is tried before it is believed, and that order is kept."""

import pytest
import torch

from prompteol_utils.encoder import Backbone, Encoder, backbone, packing, reference
from prompteol_utils.models import tiny_model
from prompteol_utils.models.tiny import ARCHITECTURES

SENTENCES = [
    "The cat sleeps.",
    "Rain falls on the harbour!",
    "A",
    "Two engineers repair the bridge at night.",
]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_which_models_are_packed(architecture):
    forward, both_ways = Backbone(tiny_model(architecture).model), ("bert", "roberta", "t5")
    assert (
        forward.supports_packing
        == forward.last_token_only
        == (architecture not in (*both_ways, "lfm2"))
    )
    assert forward.causal == (architecture not in both_ways)


@pytest.mark.parametrize("architecture", ["llama", "opt", "gemma3"])
def test_a_model_that_packing_gets_wrong_is_padded(monkeypatch, architecture):
    bias = packing.attention_bias
    monkeypatch.setattr(packing, "attention_bias", lambda *args: torch.zeros_like(bias(*args)))
    loaded = tiny_model(architecture)
    encoder = Encoder(loaded)
    assert not encoder.backbone.supports_packing
    assert abs(encoder.encode(SENTENCES) - reference(loaded, "prompteol", SENTENCES)).max() < 1e-3


@pytest.mark.parametrize("architecture", ["llama", "opt", "gemma3"])
def test_a_model_whose_last_layer_cannot_be_cut_runs_it_whole(monkeypatch, architecture):
    last = packing.last_positions
    monkeypatch.setattr(packing, "last_positions", lambda lengths: last(lengths[::-1]))
    loaded = tiny_model(architecture)
    encoder = Encoder(loaded)
    assert encoder.backbone.supports_packing and not encoder.backbone.last_token_only
    assert abs(encoder.encode(SENTENCES) - reference(loaded, "prompteol", SENTENCES)).max() < 1e-3


def test_positions_by_bias_are_padded():
    import transformers

    torch.manual_seed(0)
    config = transformers.BloomConfig(
        vocab_size=400, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.4
    )
    assert not Backbone(transformers.BloomForCausalLM(config).eval()).supports_packing


def test_the_trial_is_made_once_a_model(monkeypatch):
    loaded, runs = tiny_model("llama"), []
    run = packing.run
    monkeypatch.setattr(
        packing, "run", lambda *args, **options: runs.append(1) or run(*args, **options)
    )
    Encoder(loaded), Encoder(loaded, "means")
    assert len(runs) == 4, (
        "prefix and rows, with the last layer whole and cut, for the first encoder only"
    )


@pytest.mark.parametrize("architecture", ["llama", "lfm2"])
def test_states_are_those_of_the_padded_rows(architecture):
    forward = Backbone(tiny_model(architecture).model)
    rows = [[20, 21, 22, 23], [30, 31], [40, 41]]
    with torch.inference_mode():
        padded = forward.padded(rows, (3, 1))
    for found, expected in zip(forward.states(rows, None, (3, 1)), padded, strict=True):
        assert found.shape == (8, 32) and torch.allclose(found, expected, atol=1e-4)


def test_gradients_flow_through_the_encoders_vectors():
    loaded = tiny_model("llama")
    encoder = Encoder(loaded)
    encoder.vectors(encoder.tokenize(SENTENCES[:2])).sum().backward()
    assert loaded.model.model.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0


def test_trained_weights_are_noticed():
    loaded = tiny_model("llama")
    encoder = Encoder(loaded)
    before = encoder.encode(SENTENCES)
    with torch.no_grad():
        loaded.model.model.layers[0].self_attn.k_proj.weight.mul_(1.5)
    after = encoder.encode(SENTENCES)
    assert abs(after - before).max() > 0.1
    assert abs(after - reference(loaded, "prompteol", SENTENCES)).max() < 1e-3


def test_module_names_the_body_below_head_and_adapter():
    loaded = tiny_model("llama")
    assert backbone.find_backbone(loaded.model) is loaded.model.model
