"""Prompts are tokenised as if whole; what goes into an encoder is checked, what is cut is said."""

import json
import logging

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prompteol_utils.encoder import BadSentenceError, Encoder, token_ids
from prompteol_utils.models import tiny_model
from prompteol_utils.models.tiny import ARCHITECTURES
from prompteol_utils.prompts import PROMPTS, Demonstration, Prompt, with_demonstrations

SHOTS = with_demonstrations(
    "prompteol",
    [Demonstration("A man is smoking.", "Smoking"), Demonstration("The clock stopped", "Time")],
)
TEXTS = ["The cat sleeps.", "'Yes', she said.", " two  spaces", "12 % of 2024", "\u0301x", "🎉"]
ENCODERS = {name: Encoder(tiny_model(name), SHOTS) for name in ("llama", "gpt2", "gemma3")}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("prompt", [*PROMPTS.values(), SHOTS], ids=lambda prompt: prompt.name)
def test_ids_are_those_of_whole_prompts(architecture, prompt):
    loaded = tiny_model(architecture)
    encoder = Encoder(loaded, prompt)
    whole = [prompt.render(text) for text in TEXTS]
    drop_end = encoder.pooling == "last"
    assert encoder.tokenize(TEXTS) == token_ids(loaded, whole, drop_end)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=20), min_size=1))
def test_any_text_is_tokenised_as_if_whole(texts):
    for encoder in ENCODERS.values():
        whole = [SHOTS.render(text) for text in texts]
        assert encoder.tokenize(texts) == token_ids(encoder.loaded, whole, drop_end=True)


def test_demonstrations_are_tokenised_once():
    loaded = tiny_model("llama")
    encoder = Encoder(loaded, SHOTS)
    encoder.tokenize(TEXTS)
    lengths = []
    own = loaded.tokenizer._tokenizer

    class Counting:
        def __getattr__(self, name):
            return getattr(own, name)

        def encode_batch(self, texts, **options):
            lengths.extend(map(len, texts))
            return own.encode_batch(texts, **options)

    loaded.tokenizer._tokenizer = Counting()
    encoder.tokenize(TEXTS * 50)
    assert sorted(lengths)[len(lengths) // 2] < len(SHOTS.prefix) / 2


def test_a_tokenizer_that_looks_back_further_gets_whole_prompts():
    from tokenizers import normalizers

    loaded = tiny_model("llama")
    # "sentence :" is one word here, but not where the text begins after "sentence".
    loaded.tokenizer.backend_tokenizer.normalizer = normalizers.Replace("sentence :", "colon")
    encoder = Encoder(loaded)
    assert encoder.tokenize(TEXTS) == token_ids(
        loaded, [PROMPTS["prompteol"].render(text) for text in TEXTS], drop_end=True
    )


@pytest.mark.parametrize("call", ["encode", "encode_layers", "stream"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("Cat", "got a single string; write"),
        (pd.DataFrame({"text": ["a", "b"]}), "got DataFrame; pass one column"),
        ({"a": "b"}, "got a dict"),
        (np.array([["a", "b"]]), "got ndarray; pass one column"),
        (b"Cat", "got a single string"),
    ],
)
def test_what_is_no_list_of_sentences_is_refused(call, given, message):
    encoder = ENCODERS["llama"]
    if call == "encode" and isinstance(given, str):
        return  # one vector
    with pytest.raises(ValueError, match=message):
        list(getattr(encoder, call)(given))


def test_settings_of_numpy_are_taken_and_the_key_is_json():
    loaded = tiny_model("llama")
    options = {"layer": -1, "max_sentence_tokens": 8, "normalize": True, "prefix_cache": False}
    plain = Encoder(loaded, **options)
    kinds = {"layer": np.int64, "max_sentence_tokens": np.int32}
    numpy = Encoder(loaded, **{k: kinds.get(k, np.bool_)(v) for k, v in options.items()})
    assert json.dumps(numpy.key) == json.dumps(plain.key)
    found = numpy.encode(TEXTS, batch_tokens=np.int64(50))
    assert abs(found - plain.encode(TEXTS)).max() < 1e-5
    assert numpy.encode_layers(TEXTS, np.array([1, 3])).shape == (2, len(TEXTS), 32)
    for wrong in ({"layer": 1.5}, {"max_sentence_tokens": "8"}, {"normalize": "no"}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .*, got"):
            Encoder(loaded, **wrong)
    with pytest.raises(ValueError, match="batch_tokens is at least 1, got 0"):
        plain.encode(TEXTS, batch_tokens=0)


def test_a_cut_that_leaves_nothing_is_refused():
    encoder = Encoder(tiny_model("llama"), max_sentence_tokens=1)
    assert encoder.encode(["The cat."]).shape == (1, 32)
    with pytest.raises(BadSentenceError, match="sentence 2: cut to 1 tokens, nothing is left"):
        encoder.encode(["The cat.", "The cat.", "🎉 party"])


def test_a_prompt_without_room_names_the_way_out():
    crowded = with_demonstrations("prompteol", [Demonstration("Many words " * 30, "Crowd")] * 10)
    with pytest.raises(ValueError, match="use fewer demonstrations"):
        Encoder(tiny_model("llama"), crowded).encode(["One cat."])


def test_nan_is_an_error_that_names_the_sentence():
    loaded = tiny_model("llama")
    encoder = Encoder(loaded, Prompt("", "", "bare", punctuation=None))
    (token,) = loaded.tokenizer("A", add_special_tokens=False)["input_ids"]
    loaded.model.model.embed_tokens.weight.data[token] = float("inf")
    with pytest.raises(BadSentenceError, match="sentence 1: its vector holds NaN or infinity"):
        encoder.encode(["zzz", "A"])
    with pytest.raises(BadSentenceError, match="sentence 1: "):
        encoder.encode_layers(["zzz", "A"])


def test_an_error_of_the_source_comes_after_what_was_read():
    def source():
        yield from ["One.", "Two.", "Three."]
        raise OSError("the disk is gone")

    parts = ENCODERS["llama"].stream(source(), chunk=2)
    assert len(next(parts)) == 2
    with pytest.raises(OSError, match="disk is gone"):
        next(parts)


def test_casts_of_8_bit_layers_are_not_logged(caplog):
    import dataclasses

    loaded = dataclasses.replace(tiny_model("llama"), quantization="int8")
    Encoder(loaded)
    log = logging.getLogger("bitsandbytes.autograd._functions")
    log.warning("MatMul8bitLt: inputs will be cast from %s to float16 during quantization", "fp32")
    log.warning("something else")
    assert [record.message for record in caplog.records] == ["something else"]


def test_the_digest_of_tokens_follows_the_tokenizer():
    import copy
    from dataclasses import replace

    loaded = tiny_model("llama")
    other = copy.deepcopy(loaded.tokenizer)
    other.add_tokens(["1,5"])
    assert Encoder(loaded).tokens == Encoder(loaded).tokens
    assert Encoder(loaded).tokens != Encoder(replace(loaded, tokenizer=other)).tokens
