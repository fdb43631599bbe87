"""The encoder equals the reference, on models that can tell; each way of breaking it is seen."""

import functools
import logging
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prompteol_utils.encoder import (
    BadSentenceError,
    Encoder,
    backbone,
    encoder,
    next_words,
    packing,
    paper_loop,
    reference,
)
from prompteol_utils.models import load_model, tiny_model
from prompteol_utils.models.tiny import ARCHITECTURES
from prompteol_utils.prompts import PROMPTS, Demonstration, with_demonstrations

TOLERANCE = 1e-4  # relative error ‖a − b‖ / ‖b‖
CASES = int(os.environ.get("PROMPTEOL_HYPOTHESIS_CASES", "150"))  # 10000 for the long run

SENTENCES = [
    "The cat sleeps.",
    "Rain falls on the harbour while nobody is looking at the old boats!",
    "'Yes', she said.",
    "? what",
    '"Quoted" and ".This sentence : "again" means in one word:"odd".',
    "A",
    "Two engineers repair the bridge at night, and nobody notices until morning! " * 4,
    "“Smart” quotes — and an emoji 🎉",
    "tab\tand\x00control\x1b characters",
    "12 % of 2024",
]
DEMONSTRATIONS = [
    Demonstration("A man is smoking.", "Smoking"),
    Demonstration("The old clock stopped at noon", "Time"),
]
PROMPTS_TRIED = {**PROMPTS, "two shots": with_demonstrations("prompteol", DEMONSTRATIONS)}


def errors(vectors, expected):
    """(largest relative error, smallest cosine) over sentences."""
    lengths = np.linalg.norm(expected, axis=1)
    cosine = (vectors * expected).sum(1) / (np.linalg.norm(vectors, axis=1) * lengths)
    return (np.linalg.norm(vectors - expected, axis=1) / lengths).max(), cosine.min()


def assert_same(vectors, expected):
    assert vectors.dtype == np.float32 and vectors.shape == expected.shape
    error, cosine = errors(vectors, expected)
    assert error <= TOLERANCE, f"relative error {error:.1e}"
    assert cosine >= 0.99999, f"cosine {cosine:.7f}"


def assert_can_tell(expected):
    """Two sentences differ by at least 100 tolerances, else equality would prove nothing."""
    distance = np.linalg.norm(expected[:, None] - expected[None], axis=-1) / np.linalg.norm(
        expected, axis=1
    )
    assert distance[~np.eye(len(expected), dtype=bool)].min() >= 100 * TOLERANCE


@functools.cache
def tiny(architecture):
    return tiny_model(architecture)


@functools.cache
def expected_of(architecture, prompt_name):
    return reference(tiny(architecture), PROMPTS_TRIED[prompt_name], SENTENCES)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("prompt_name", PROMPTS_TRIED)
def test_equals_reference(architecture, prompt_name):
    expected = expected_of(architecture, prompt_name)
    assert_can_tell(expected)
    for cache in (True, False):
        for budget in (1, 64, 100_000):
            vectors = Encoder(
                tiny(architecture), PROMPTS_TRIED[prompt_name], prefix_cache=cache
            ).encode(SENTENCES, batch_tokens=budget)
            assert_same(vectors, expected)


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "bert"])
@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("layer", [-1, -2, 1])
def test_other_layers_and_pooling(architecture, pooling, layer):
    expected = reference(tiny(architecture), "prompteol", SENTENCES, pooling=pooling, layer=layer)
    assert_same(
        Encoder(tiny(architecture), pooling=pooling, layer=layer).encode(SENTENCES), expected
    )


def test_layer_zero_with_mean_pooling():
    expected = reference(tiny("llama"), "mean", SENTENCES, layer=0)
    assert_same(Encoder(tiny("llama"), "mean", layer=0).encode(SENTENCES), expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padding_side_and_pad_token_do_not_matter(architecture):
    expected = expected_of(architecture, "prompteol")
    loaded = tiny_model(architecture, pad=False)
    for side in ("left", "right"):
        loaded.tokenizer.padding_side = side
        assert_same(Encoder(loaded).encode(SENTENCES), expected)


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2", "bert"])
def test_order_mates_and_duplicates_do_not_matter(architecture):
    expected, encoder = expected_of(architecture, "prompteol"), Encoder(tiny(architecture))
    order = np.random.default_rng(0).permutation(len(SENTENCES))
    assert_same(encoder.encode([SENTENCES[i] for i in order], batch_tokens=100), expected[order])
    assert_same(encoder.encode(SENTENCES * 3), np.tile(expected, (3, 1)))
    for i, sentence in enumerate(SENTENCES):
        assert_same(encoder.encode([sentence]), expected[i : i + 1])
    assert encoder.encode(SENTENCES[0]).shape == expected[0].shape


@pytest.mark.parametrize("architecture", ["opt", "llama", "gemma3", "gpt2"])
def test_the_papers_loop_gives_the_same_vectors(architecture):
    assert_same(
        paper_loop(tiny(architecture), "prompteol", SENTENCES, batch_size=4),
        expected_of(architecture, "prompteol"),
    )


def test_duplicates_are_run_once(monkeypatch):
    encoder, rows = Encoder(tiny("llama")), []
    run = encoder.run_batch
    monkeypatch.setattr(
        encoder, "run_batch", lambda ids, *rest: rows.extend(ids) or run(ids, *rest)
    )
    encoder.encode(["One cat.", "Two cats.", "One cat."] * 5)
    assert len(rows) == 2


def test_shared_prefix_is_run_once_and_never_reaches_into_the_sentence(monkeypatch):
    encoder, widths = Encoder(tiny("llama"), PROMPTS_TRIED["two shots"]), []
    run = packing.run
    monkeypatch.setattr(
        packing,
        "run",
        lambda body, rows, *rest, **more: (
            widths.append((len(rows), len(rows[0]))) or run(body, rows, *rest, **more)
        ),
    )
    encoder.encode(["Same start, one end.", "Same start, two ends."], batch_tokens=1)
    encoder.encode(["Same start, three ends."])
    prefix = encoder.loaded.tokenizer(encoder.prompt.prefix)["input_ids"]
    assert widths[0][0] == 1 and len(prefix) - 1 <= widths[0][1] <= len(prefix)
    assert len(widths) == 4, "one prefix run, three sentence runs"
    assert all(width[1] < widths[0][1] for width in widths[1:])


def test_sliding_window_is_shorter_than_the_prompt():
    loaded, sentence = tiny("gemma3"), SENTENCES[6]
    assert loaded.model.config.sliding_window < len(
        loaded.tokenizer(PROMPTS["prompteol"].prefix + sentence)["input_ids"]
    )
    wide = tiny_model("gemma3", sliding_window=400)
    assert (
        errors(
            reference(wide, "prompteol", [sentence]), reference(loaded, "prompteol", [sentence])
        )[0]
        > 0.01
    ), "the window must matter"


def test_hybrid_model_runs_without_cache():
    assert not Encoder(tiny("lfm2")).backbone.supports_packing
    assert Encoder(tiny("gemma3")).backbone.supports_packing
    assert Encoder(tiny("opt-350m")).backbone.supports_packing


# Each way of breaking it is seen by the same comparison.


def broken(monkeypatch, name, replacement):
    owner = next(owner for owner in (Encoder, backbone, packing) if hasattr(owner, name))
    monkeypatch.setattr(owner, name, replacement)


def assert_seen(architecture, prompt_name="two shots", **options):
    with pytest.raises(AssertionError, match="relative error"):
        assert_same(
            Encoder(tiny(architecture), PROMPTS_TRIED[prompt_name], **options).encode(SENTENCES),
            expected_of(architecture, prompt_name),
        )


@pytest.mark.parametrize("architecture", ["opt", "llama", "gemma3", "gpt2"])
def test_broken_cache_is_seen(monkeypatch, architecture):
    assert Encoder(tiny(architecture)).backbone.supports_packing
    prepend = packing.prepend_prefix
    broken(
        monkeypatch,
        "prepend_prefix",
        lambda past, keys, values: prepend(
            past and (past[0], past[1].roll(1, dims=2)), keys, values
        ),
    )
    assert_seen(architecture)


@pytest.mark.parametrize("architecture", ["opt", "llama", "gemma3", "gpt2"])
def test_dropped_packed_mask_is_seen(monkeypatch, architecture):
    assert Encoder(tiny(architecture)).backbone.supports_packing
    bias = packing.attention_bias
    broken(monkeypatch, "attention_bias", lambda *args: torch.zeros_like(bias(*args)))
    assert_seen(architecture)


@pytest.mark.parametrize("architecture", ["opt", "llama", "gemma3", "gpt2"])
def test_wrong_tokens_in_the_last_layer_are_seen(monkeypatch, architecture):
    assert Encoder(tiny(architecture)).backbone.last_token_only
    last = packing.last_positions
    broken(monkeypatch, "last_positions", lambda lengths: last(lengths[::-1]))
    assert_seen(architecture)


@pytest.mark.parametrize("prompt_name", ["prompteol", "mean", "last"])
def test_dropped_mask_is_seen(monkeypatch, prompt_name):
    # A causal model cannot look at padding on the right; one that looks both ways can.
    pad = backbone.pad
    broken(
        monkeypatch,
        "pad",
        lambda *args: [
            torch.ones_like(x) if place == 1 else x for place, x in enumerate(pad(*args))
        ],
    )
    assert_seen("bert", prompt_name)


@pytest.mark.parametrize("architecture", ["lfm2", "bert"])
def test_padding_on_the_wrong_side_is_seen(monkeypatch, architecture):
    pad = backbone.pad

    def left(*args):
        tokens, mask, lengths = pad(*args)
        width = tokens.shape[1]
        return (
            torch.stack([row.roll(int(width - n)) for row, n in zip(tokens, lengths, strict=True)]),
            mask,
            lengths,
        )

    broken(monkeypatch, "pad", left)
    assert_seen(architecture)


@pytest.mark.parametrize("architecture", ["opt", "llama", "gpt2", "gpt-neox"])
def test_wrong_place_after_the_prefix_is_seen(architecture):
    encoder = Encoder(tiny(architecture), PROMPTS_TRIED["two shots"])
    expected = expected_of(architecture, "two shots")
    hook = encoder.backbone.module.register_forward_pre_hook(
        lambda module, args, options: (
            args,
            options | {"position_ids": options["position_ids"].clamp(min=1)},
        ),
        with_kwargs=True,
    )
    try:
        with pytest.raises(AssertionError, match="relative error"):
            assert_same(encoder.encode(SENTENCES), expected)
    finally:
        hook.remove()


@pytest.mark.parametrize("architecture", ["llama", "opt", "gpt2"])
def test_shifted_position_is_seen(monkeypatch, architecture):
    run = Encoder.run_batch
    broken(
        monkeypatch,
        "run_batch",
        lambda self, ids, *rest: run(self, [row[:-1] for row in ids], *rest),
    )
    assert_seen(architecture)


def test_swapped_rows_are_seen(monkeypatch):
    run = Encoder.run_batch
    broken(
        monkeypatch,
        "run_batch",
        lambda self, *args: [vectors.flip(0) for vectors in run(self, *args)],
    )
    assert_seen("llama")


def test_missing_punctuation_is_seen():
    with pytest.raises(AssertionError, match="relative error"):
        plain = encoder.Prompt(
            PROMPTS["prompteol"].prefix, PROMPTS["prompteol"].suffix, "bare", punctuation=None
        )
        assert_same(
            Encoder(tiny("llama"), plain).encode(SENTENCES), expected_of("llama", "prompteol")
        )


# Any text at all.

TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=60).filter(str.strip)


@settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    sentences=st.lists(TEXT, min_size=1, max_size=5),
    architecture=st.sampled_from(
        ["opt", "opt-350m", "llama", "qwen2", "gemma3", "gpt2", "gpt-neox"]
    ),
    prompt_name=st.sampled_from(sorted(PROMPTS_TRIED)),
    budget=st.sampled_from([1, 50, 5_000]),
    cache=st.booleans(),
)
def test_any_text_equals_reference(sentences, architecture, prompt_name, budget, cache):
    prompt = PROMPTS_TRIED[prompt_name]
    vectors = Encoder(tiny(architecture), prompt, prefix_cache=cache).encode(
        sentences, batch_tokens=budget
    )
    assert_same(vectors, reference(tiny(architecture), prompt, sentences))


# What goes in and what comes out.


def test_empty_input():
    encoder = Encoder(tiny("opt-350m"))
    assert encoder.encode([]).shape == (0, encoder.dimension) == (0, 16)
    assert encoder.encode(iter([])).shape == (0, 16)
    assert encoder.encode_layers([], [1, 2]).shape == (2, 0, 32)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (None, "NoneType"),
        (3, "int"),
        (b"bytes", "bytes"),
        ("", "blank"),
        (" \n\t", "blank"),
        ("half \ud83d", "surrogate"),
    ],
)
def test_bad_sentence_is_named(bad, reason):
    with pytest.raises(ValueError, match=f"sentence 1: .*{reason}"):
        Encoder(tiny("llama")).encode(["fine", bad, "fine too"])


def test_bad_sentence_in_a_stream_keeps_finished_work(monkeypatch):
    monkeypatch.setattr(encoder, "CHUNK", 2)
    with pytest.raises(BadSentenceError, match="sentence 5") as caught:
        Encoder(tiny("llama")).encode(text for text in [*SENTENCES[:5], None])
    assert_same(caught.value.embeddings, expected_of("llama", "prompteol")[:4])


def test_generator_is_streamed():
    encoder, pulled = Encoder(tiny("llama")), []
    source = (pulled.append(text) or text for text in SENTENCES)
    chunks = encoder.stream(source, chunk=3)
    first = next(chunks)
    assert len(first) == 3 and len(pulled) == 6, "no more is read than this chunk and the next"
    assert_same(np.concatenate([first, *chunks]), expected_of("llama", "prompteol"))
    assert_same(encoder.encode(iter(SENTENCES)), expected_of("llama", "prompteol"))


def test_other_containers():
    import pandas as pd

    for container in (
        tuple(SENTENCES),
        np.array(SENTENCES[:3]),
        pd.Series(SENTENCES, index=range(5, 5 + len(SENTENCES))),
    ):
        assert_same(
            Encoder(tiny("llama")).encode(container),
            expected_of("llama", "prompteol")[: len(container)],
        )


def test_layers_in_one_pass():
    encoder = Encoder(tiny("llama"))
    vectors = encoder.encode_layers(SENTENCES, [1, -1])
    assert vectors.shape == (2, len(SENTENCES), 32)
    assert_same(vectors[0], Encoder(tiny("llama"), layer=1).encode(SENTENCES))
    assert_same(vectors[1], expected_of("llama", "prompteol"))
    assert encoder.encode_layers(SENTENCES[:2]).shape == (4, 2, 32)


def test_normalize():
    vectors = Encoder(tiny("llama"), normalize=True).encode(SENTENCES)
    expected = expected_of("llama", "prompteol")
    assert_same(vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "max"}, "unknown pooling 'max'; allowed: last, mean"),
        ({"layer": 9}, "layer 9 does not exist"),
        ({"layer": -5}, "layer -5 does not exist"),
        ({"prompt": "promteol"}, "did you mean 'prompteol'"),
        ({"max_sentence_tokens": 0}, "at least 1"),
    ],
)
def test_bad_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        Encoder(tiny("llama"), **options)


# Cutting.


def test_sentence_is_cut_before_it_is_wrapped():
    loaded, long = tiny("llama"), SENTENCES[6]
    kept = loaded.tokenizer.decode(
        loaded.tokenizer(long, add_special_tokens=False)["input_ids"][:7]
    )
    vectors = Encoder(loaded, max_sentence_tokens=7).encode([long, "A"])
    assert_same(vectors, reference(loaded, "prompteol", [kept, "A"]))


@pytest.mark.parametrize("architecture", ["opt", "gpt2", "bert", "llama"])
def test_very_long_sentence_is_cut_with_one_warning(architecture, caplog):
    words = [f"word{i}" for i in range(10_000)]
    encoder = Encoder(tiny(architecture), PROMPTS_TRIED["two shots"])
    with caplog.at_level(logging.WARNING):
        ids = encoder.tokenize([" ".join(words), " ".join(reversed(words))])
        vectors = encoder.encode([" ".join(words), " ".join(reversed(words))])
    assert len([record for record in caplog.records if "was cut" in record.message]) == 1
    suffix = encoder.loaded.tokenizer("word" + encoder.prompt.suffix)["input_ids"][-5:]
    assert all(
        512 - 8 <= len(row) <= 512 and row[-5:] == (suffix if architecture != "bert" else row[-5:])
        for row in ids
    )
    assert np.isfinite(vectors).all() and errors(vectors[:1], vectors[1:])[0] > 100 * TOLERANCE


def test_demonstrations_that_fill_the_model_are_refused():
    crowded = with_demonstrations(
        "prompteol", [Demonstration("Many words in here " * 20, "Crowd")] * 10
    )
    with pytest.raises(ValueError, match="use fewer demonstrations"):
        Encoder(tiny("llama"), crowded).encode(["One cat."])


# Out of memory, quantisation, next words, identity.


def test_out_of_memory_halves_the_batch(monkeypatch):
    encoder, sizes = Encoder(tiny("llama")), []
    run = encoder.run_batch

    def small(ids, *rest):
        sizes.append(len(ids))
        if len(ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(ids, *rest)

    monkeypatch.setattr(encoder, "run_batch", small)
    assert_same(encoder.encode(SENTENCES, batch_tokens=100_000), expected_of("llama", "prompteol"))
    assert sizes[0] == len(SENTENCES) and min(sizes) <= 2


def test_appended_end_token_is_not_read():
    from tokenizers import processors

    loaded = tiny_model("llama")
    ids = [("<s>", 1), ("</s>", 2)]
    loaded.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=ids
    )
    assert loaded.tokenizer("a")["input_ids"][-1] == 2
    assert_same(Encoder(loaded).encode(SENTENCES), expected_of("llama", "prompteol"))


def test_next_words():
    words = next_words(tiny("gpt2"), "prompteol", "The cat sleeps.", k=400)
    assert len(words) == 400 and abs(sum(p for _, p in words) - 1) < 1e-4
    assert [p for _, p in words] == sorted((p for _, p in words), reverse=True)
    with pytest.raises(ValueError, match="no LM head"):
        next_words(tiny("bert"), "prompteol", "The cat sleeps.")


def test_key_tells_apart_what_changes_a_vector():
    loaded = tiny("llama")
    encoders = [
        Encoder(loaded),
        Encoder(loaded, "means"),
        Encoder(loaded, PROMPTS_TRIED["two shots"]),
        Encoder(loaded, layer=-2),
        Encoder(loaded, pooling="mean"),
        Encoder(loaded, normalize=True),
        Encoder(loaded, max_sentence_tokens=8),
        Encoder(tiny("opt")),
    ]
    keys = [str(encoder.key) for encoder in encoders]
    assert len(set(keys)) == len(keys)
    assert Encoder(loaded, layer=3).key == Encoder(loaded, layer=-1, prefix_cache=False).key


@pytest.mark.bundled
@pytest.mark.parametrize(
    "name",
    [
        "smollm2-135m-instruct",
        pytest.param("gemma3-270m", marks=pytest.mark.gemma),
        "all-minilm-l6-v2",
    ],
)
def test_offline_model_equals_reference(name):
    loaded = load_model(name)
    for prompt in ("mean",) if name == "all-minilm-l6-v2" else PROMPTS_TRIED.values():
        expected = reference(loaded, prompt, SENTENCES)
        assert_can_tell(expected)
        for budget in (40, 4_000):
            assert_same(Encoder(loaded, prompt).encode(SENTENCES, batch_tokens=budget), expected)


def test_an_adapter_that_is_switched_scaled_or_merged_between_calls_is_seen():
    from peft import LoraConfig, get_peft_model

    loaded, texts = (
        tiny_model("llama"),
        ["The kettle sings.", "Two boats drift past the empty pier."],
    )
    encoder_of_base = Encoder(loaded).encode(texts)
    model = get_peft_model(
        loaded.model, LoraConfig(r=4, lora_alpha=16, target_modules="all-linear")
    )
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(len(name)))
    loaded = replace(loaded, model=model.eval())
    encoder = Encoder(loaded)
    with model.disable_adapter():
        base = encoder.encode(texts)
    layers = [module for module in model.modules() if hasattr(module, "scale_layer")]
    [layer.scale_layer(0.0) for layer in layers]
    scaled_away = encoder.encode(texts)
    [layer.unscale_layer() for layer in layers]
    apart = encoder.encode(texts)
    model.merge_adapter()  # writes into the weights without torch's counting it
    merged = encoder.encode(texts)
    expected = reference(loaded, "prompteol", texts)
    for found in (apart, merged):
        assert (
            np.linalg.norm(found - expected)
            < 1e-4 * np.linalg.norm(expected)
            < np.linalg.norm(expected - base)
        )
    for found in (base, scaled_away):
        assert np.linalg.norm(found - encoder_of_base) < 1e-4 * np.linalg.norm(base)
