"""Tiny random models with tokenizers trained on the spot: they stand in for big ones in tests."""

from pathlib import Path

import torch

from prompteol_utils.models.loading import LoadedModel

# A few hundred merges are enough for prompts to have realistic token boundaries.
_TEXT = [
    'This sentence : "The cat sleeps on the warm window sill." means in one word:"Rest".',
    "After thinking step by step , this sentence : "
    '"Rain is falling over the harbour." means in one word:"Weather"',
    "A child paints the old garden gate green. Two engineers repair the bridge at night, "
    "and nobody notices until morning!",
    "Why does bread rise? Because yeast turns sugar into gas; the dough traps it. "
    "'Yes', she said, \"it does\".",
    "Prices rose by 12 percent in 2024, while wages (before tax) stayed the same: "
    "that is what the report says.",
]

_SIZE = {
    "vocab_size": 400,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
_LLAMA = {**_SIZE, "intermediate_size": 64, "num_key_value_heads": 2}
_BERT = {**_SIZE, "intermediate_size": 64}
_GPT2 = {"vocab_size": 400, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512}
_OPT = {**_SIZE, "ffn_dim": 64, "word_embed_proj_dim": 32}

_T5 = {
    "vocab_size": 400,
    "d_model": 32,
    "d_ff": 64,
    "d_kv": 8,
    "num_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
}
ENCODERS = ("bert", "roberta", "t5")  # bidirectional: an end token after the text, and no LM head

# architecture: (transformers configuration class, its fields, BOS added by the tokenizer)
ARCHITECTURES: dict[str, tuple[str, dict, bool]] = {
    "opt": ("OPTConfig", _OPT, True),
    "opt-350m": (
        "OPTConfig",
        {**_OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
        True,
    ),
    "llama": ("LlamaConfig", _LLAMA, True),
    "mistral": ("MistralConfig", {**_LLAMA, "sliding_window": 12}, True),
    "qwen2": ("Qwen2Config", _LLAMA, False),
    "qwen3": ("Qwen3Config", {**_LLAMA, "head_dim": 8}, False),
    "gemma3": (
        "Gemma3TextConfig",
        {**_LLAMA, "head_dim": 8, "sliding_window": 12, "query_pre_attn_scalar": 8},
        True,
    ),
    "gpt2": ("GPT2Config", _GPT2, False),
    "gpt-neox": ("GPTNeoXConfig", {**_SIZE, "intermediate_size": 64}, False),
    "lfm2": (
        "Lfm2Config",
        {**_LLAMA, "num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2},
        True,
    ),  # hybrid: short convolutions and attention
    "bert": ("BertConfig", _BERT, True),
    "roberta": ("RobertaConfig", {**_BERT, "max_position_embeddings": 514}, True),
    "t5": ("T5Config", _T5, False),
}


def tiny_tokenizer(*, bos: bool, encoder: bool = False, pad: bool = True, mask: str = ""):
    """Train a byte-level BPE tokenizer on a few sentences.

    Args:
        bos: Put a begin-of-sentence token before every text, as OPT, LLaMA and Gemma do.
        encoder: Put an end token after it, as BERT and T5 do.
        pad: Define a pad token; LLaMA and GPT-2 have none.
        mask: The mask token, as it is written in a prompt.

    Returns:
        A transformers fast tokenizer with at most 400 tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", *([mask] if mask else [])]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    if bos or encoder:
        ids = [(token, tokenizer.token_to_id(token)) for token in special]
        around = "<s> " * bos + "$A" + " </s>" * encoder
        tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=ids)
    names = ({"pad_token": "<pad>"} if pad else {}) | ({"mask_token": mask} if mask else {})
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", model_max_length=512, **names
    )


def tiny_model(
    architecture: str, *, seed: int = 0, spread: float = 0.4, pad: bool = True, **config
) -> LoadedModel:
    """Build a random model whose vectors really depend on what it reads.

    Args:
        architecture: A key of `ARCHITECTURES`.
        seed: Of the random weights.
        spread: Standard deviation of the weights. At the default of most configurations (0.02) a
            tiny model gives nearly the same vector for every sentence, and a test on it proves
            nothing.
        pad: Give the tokenizer a pad token.
        **config: Overrides of the configuration.

    Returns:
        A model in fp32 on the CPU.

    Raises:
        ValueError: Unknown architecture.
    """
    import transformers

    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"unknown architecture {architecture!r}; allowed: {', '.join(ARCHITECTURES)}"
        )
    class_name, fields, bos = ARCHITECTURES[architecture]
    encoder = architecture in ENCODERS
    settings = {**fields, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **config}
    settings[
        {"opt": "init_std", "t5": "initializer_factor"}.get(architecture[:3], "initializer_range")
    ] = spread
    configuration = getattr(transformers, class_name)(**settings)
    torch.manual_seed(seed)
    auto = transformers.AutoModelForTextEncoding if encoder else transformers.AutoModelForCausalLM
    model = auto.from_config(configuration, dtype=torch.float32).eval()
    tokenizer = tiny_tokenizer(
        bos=bos,
        encoder=encoder,
        pad=pad,
        mask={"bert": "[MASK]", "roberta": "<mask>"}.get(architecture, ""),
    )
    return LoadedModel(model, tokenizer, f"tiny-{architecture}", "random", "float32", "cpu")


def save_tiny(architecture: str, folder: "str | Path", **options) -> Path:
    """Save a tiny model as a folder that `load_model` reads like any other.

    Args:
        architecture: A key of `ARCHITECTURES`.
        folder: Where to; made if missing.
        **options: As for `tiny_model`.

    Returns:
        The folder.
    """
    loaded = tiny_model(architecture, **options)
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return Path(folder)
