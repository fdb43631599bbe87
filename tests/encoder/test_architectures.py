"""Models beyond the tiny ones: each gives the reference's vectors, or is clearly refused."""

import numpy as np
import pytest
import torch
import transformers

from prompteol_utils.encoder import Encoder, reference
from prompteol_utils.models.loading import LoadedModel
from prompteol_utils.models.tiny import tiny_tokenizer

TEXTS = [
    "The kettle sings.",
    "Two boats drift past the empty pier, and nobody is there to see where they go. " * 2,
    "A",
    "Rain falls on the harbour.",
    "Two engineers repair the bridge at night, and nobody notices until morning! " * 2,
]
SIZE = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.4,
    "pad_token_id": 0,
}
ROPE = {"rope_theta": 10_000.0}
SHORT = [1.0, 1.1, 1.2, 1.3]
LONG = [4.0, 8.0, 16.0, 32.0]


def load(config, auto=transformers.AutoModelForCausalLM, limit=512) -> LoadedModel:
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer(bos=True)
    tokenizer.model_max_length = limit
    model = auto.from_config(config, dtype=torch.float32).eval()
    return LoadedModel(model, tokenizer, "tiny", "random", "float32", "cpu")


def error(found, expected):
    return (np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)).max()


def phi3(rope, positions=4096):
    options = {**SIZE, "max_position_embeddings": positions, "rope_parameters": {**ROPE, **rope}}
    return transformers.Phi3Config(**options, original_max_position_embeddings=48)


MODELS = {
    "longrope": lambda: phi3(
        {
            "rope_type": "longrope",
            "short_factor": SHORT,
            "long_factor": LONG,
            "original_max_position_embeddings": 48,
        }
    ),
    "dynamic": lambda: transformers.LlamaConfig(
        **{**SIZE, "max_position_embeddings": 48},
        rope_parameters={**ROPE, "rope_type": "dynamic", "factor": 8.0},
    ),
    "mixtral": lambda: transformers.MixtralConfig(
        **SIZE, num_key_value_heads=2, num_local_experts=3
    ),
    "bloom": lambda: transformers.BloomConfig(
        vocab_size=400, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.4
    ),
    "gemma2": lambda: transformers.Gemma2Config(
        **SIZE, num_key_value_heads=2, head_dim=8, sliding_window=12, query_pre_attn_scalar=8
    ),
    "phi": lambda: transformers.PhiConfig(**SIZE),
}


@pytest.mark.parametrize("name", MODELS)
def test_long_and_short_sentences_equal_the_reference(name):
    loaded = load(MODELS[name](), limit=4096)
    expected = reference(loaded, "prompteol", TEXTS)
    assert error(expected[:1], expected[1:2]) > 1e-2, "two sentences differ"
    assert reference(loaded, "prompteol", TEXTS[::-1])[::-1] == pytest.approx(expected, abs=1e-5)
    encoder = Encoder(loaded)
    lengths = [len(ids) for ids in encoder.tokenize(TEXTS)]
    assert min(lengths) < 48 < max(lengths), "both sides of the switch"
    for budget in (1, 100_000):
        assert error(encoder.encode(TEXTS, batch_tokens=budget), expected) < 1e-4
    falling = sorted(range(len(TEXTS)), key=lambda at: -lengths[at])
    one_by_one = np.stack([encoder.encode(TEXTS[at]) for at in falling])
    assert error(one_by_one, expected[falling]) < 1e-4, "a longer one before changes nothing"
    assert encoder.backbone.rescales_positions == (name in ("longrope", "dynamic"))


def test_an_encoder_decoder_is_its_encoder_half():
    sizes = {f"{half}_{name}": value for half in ("encoder", "decoder") for name, value in
             (("layers", 2), ("attention_heads", 4), ("ffn_dim", 64))}  # fmt: skip
    config = transformers.BartConfig(
        vocab_size=400, d_model=32, init_std=0.4, max_position_embeddings=512, **sizes
    )
    loaded = load(config, transformers.AutoModel)
    expected = reference(loaded, "mean", TEXTS)
    assert error(Encoder(loaded, "mean").encode(TEXTS), expected) < 1e-4
    assert (
        error(
            Encoder(loaded, "mean", layer=1).encode(TEXTS),
            reference(loaded, "mean", TEXTS, layer=1),
        )
        < 1e-4
    )
    ids = torch.tensor(loaded.tokenizer([TEXTS[0]])["input_ids"])
    half = loaded.model.get_encoder()(input_ids=ids).last_hidden_state[0].mean(0)
    assert error(half.detach().numpy()[None], expected[:1]) < 1e-4


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        (transformers.RobertaConfig, 512),
        (transformers.MPNetConfig, 512),
        (transformers.BertConfig, 514),
        (transformers.XLMRobertaConfig, 512),
    ],
)
def test_reserved_positions_are_no_place_for_a_sentence(config, positions):
    settings = {**SIZE, "max_position_embeddings": 514, "pad_token_id": 1}
    loaded = load(config(**settings), transformers.AutoModel, limit=10**30)
    loaded.tokenizer.pad_token_id = 1
    encoder = Encoder(loaded, "mean")
    text = " ".join(f"word{n}" for n in range(2_000))
    assert len(encoder.tokenize([text])[0]) in range(positions - 8, positions + 1)
    assert np.isfinite(encoder.encode([text, "A short one."])).all()


def test_nothing_without_its_hidden_states():
    loaded = load(MODELS["bloom"]())
    encoder = Encoder(loaded)
    own = encoder.backbone.module.forward

    def forward(*args, **options):
        out = own(*args, **options)
        return {"logits": out.last_hidden_state}

    encoder.backbone.module.forward = forward
    with pytest.raises(ValueError, match="BloomModel returns no hidden states without its head"):
        encoder.encode(TEXTS)
