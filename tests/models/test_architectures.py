"""Architectures beyond the registry's: `encode` equals the reference, or one sentence refuses."""

import numpy as np
import pytest
import torch
import transformers

from prompteol_utils.encoder import Encoder, reference
from prompteol_utils.models import load_model
from prompteol_utils.models.tiny import tiny_tokenizer

SIZE = {
    "vocab_size": 400,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
GATED = {**SIZE, "intermediate_size": 64, "num_key_value_heads": 2}
BERT = {**SIZE, "intermediate_size": 64}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "original_max_position_embeddings": 48,
    "factor": 4.0,
}
DECODERS = {
    "bloom": ("BloomConfig", {"vocab_size": 400, "hidden_size": 32, "n_layer": 3, "n_head": 4}),
    "mpt": (
        "MptConfig",
        {"vocab_size": 400, "d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 512},
    ),
    "gptj": (
        "GPTJConfig",
        {"vocab_size": 400, "n_embd": 32, "n_layer": 3, "n_head": 4, "rotary_dim": 4},
    ),
    "gpt-neo": (
        "GPTNeoConfig",
        {
            "vocab_size": 400,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 12,
            "max_position_embeddings": 512,
        },
    ),
    "gemma2": (
        "Gemma2Config",
        {**GATED, "head_dim": 8, "sliding_window": 12, "query_pre_attn_scalar": 8},
    ),
    "gpt-oss": (
        "GptOssConfig",
        {
            **GATED,
            "head_dim": 8,
            "sliding_window": 12,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "phi3": ("Phi3Config", {**GATED, "rope_parameters": LONGROPE}),
    "mixtral": ("MixtralConfig", {**GATED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "mamba": ("MambaConfig", {"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2}),
    "jamba": (
        "JambaConfig",
        {
            **GATED,
            "num_hidden_layers": 4,
            "attn_layer_offset": 1,
            "attn_layer_period": 2,
            "expert_layer_offset": 1,
            "expert_layer_period": 2,
            "num_experts": 2,
            "mamba_d_state": 4,
            "mamba_d_conv": 2,
            "use_mamba_kernels": False,
        },
    ),
    "zamba2": (
        "Zamba2Config",
        {
            **SIZE,
            "intermediate_size": 64,
            "num_hidden_layers": 4,
            "mamba_d_state": 4,
            "mamba_ngroups": 1,
            "n_mamba_heads": 8,
            "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
            "use_mamba_kernels": False,
        },
    ),
    "llama4": (
        "Llama4TextConfig",
        {
            **GATED,
            "head_dim": 8,
            "intermediate_size_mlp": 64,
            "num_local_experts": 2,
            "interleave_moe_layer_step": 2,
        },
    ),
}
ENCODERS = {
    "mpnet": ("MPNetConfig", {**BERT, "max_position_embeddings": 514}),
    "deberta": ("DebertaConfig", BERT),
    "deberta-v2": ("DebertaV2Config", {**BERT, "relative_attention": True}),
    "roberta": ("RobertaConfig", {**BERT, "max_position_embeddings": 514}),
}
SENTENCES = [
    "The cat sleeps.",
    "Rain falls on the harbour while nobody is looking at the old boats!",
    "A",
    "Two engineers repair the bridge at night, and nobody notices until the morning comes.",
    "Bread rises; why? " * 12,
]


def save(architecture, folder, *, limit=512):
    """A tiny random model, its weights large enough that vectors depend on the sentence."""
    class_name, fields = (DECODERS | ENCODERS)[architecture]
    encoder = architecture in ENCODERS
    config = getattr(transformers, class_name)(
        **fields, pad_token_id=0, bos_token_id=1, eos_token_id=2
    )
    auto = transformers.AutoModel if encoder else transformers.AutoModelForCausalLM
    torch.manual_seed(0)
    model = auto.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "conv" not in name and "A_log" not in name:
                weight.normal_(0, 0.3)
    tokenizer = tiny_tokenizer(bos=encoder, encoder=encoder)
    tokenizer.model_max_length = limit
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def worst(vectors, expected):
    return (np.linalg.norm(vectors - expected, axis=1) / np.linalg.norm(expected, axis=1)).max()


def check_equal_or_refused(folder, prompt, sentences):
    """Returns the refusal, or None after `encode` was seen equal to the reference."""
    try:
        loaded = load_model(folder)
        vectors = Encoder(loaded, prompt).encode(sentences, batch_tokens=256)
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 300
        return str(error)
    expected = np.concatenate([reference(loaded, prompt, [one]) for one in sentences])
    gaps = np.linalg.norm(expected[:, None] - expected[None], axis=-1)
    apart = (gaps / np.linalg.norm(expected, axis=1))[~np.eye(len(sentences), dtype=bool)].min()
    assert apart > 0.01, "the tiny model cannot tell sentences apart"
    assert worst(vectors, expected) < 1e-4 < worst(vectors[::-1], expected)
    return None


@pytest.mark.parametrize("architecture", sorted(set(DECODERS) - {"llama4"}))
def test_decoders_equal_the_reference(architecture, tmp_path):
    folder = save(architecture, tmp_path / architecture)
    assert check_equal_or_refused(folder, "prompteol", SENTENCES) is None


@pytest.mark.parametrize("architecture", sorted(ENCODERS))
def test_encoders_equal_the_reference(architecture, tmp_path):
    folder = save(architecture, tmp_path / architecture)
    assert check_equal_or_refused(folder, "mean", SENTENCES) is None


def test_a_body_that_cannot_be_read_is_refused(tmp_path):
    refusal = check_equal_or_refused(save("llama4", tmp_path / "f"), "prompteol", SENTENCES)
    assert "no access to its hidden states" in refusal


@pytest.mark.parametrize("architecture", ["roberta", "mpnet"])
def test_positions_that_are_kept_back_are_not_filled(architecture, tmp_path):
    """The position table has 2 places more than it can hold tokens; the tokenizer names none."""
    folder = save(architecture, tmp_path / "f", limit=int(1e30))
    vector = Encoder(load_model(folder), "mean").encode("the boats and the bridge " * 300)
    assert np.isfinite(vector).all()
    assert check_equal_or_refused(folder, "mean", SENTENCES) is None


@pytest.mark.parametrize("name", ["Bart", "MBart", "Pegasus", "Marian"])
def test_encoder_decoders_that_are_no_t5_are_refused(name, tmp_path):
    fields = {
        "vocab_size": 400,
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "pad_token_id": 0,
        "decoder_start_token_id": 2,
    }
    config = getattr(transformers, f"{name}Config")(**fields)
    auto = transformers.AutoModelForSeq2SeqLM
    auto.from_config(config).save_pretrained(tmp_path)
    tiny_tokenizer(bos=True, encoder=True).save_pretrained(tmp_path)
    refusal = check_equal_or_refused(str(tmp_path), "mean", SENTENCES)
    assert "encoder-decoder" in refusal and "T5 family" in refusal
