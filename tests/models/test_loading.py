"""Loading: registry, folders, quantisation, adapters, the hub offline, incomplete checkpoints."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from prompteol_utils.encoder import Encoder, token_ids
from prompteol_utils.models import MODELS, fetch_model, load_model, save_tiny, tiny_model
from prompteol_utils.models.tiny import ARCHITECTURES

SENTENCES = ["The cat sleeps.", "Rain falls on the old harbour.", "Prices rose again!"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PROMPTEOL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def relative(a, b):
    return (np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1)).max()


def test_registry_rows_are_complete():
    assert {
        "smollm2-135m-instruct",
        "gemma3-270m",
        "all-minilm-l6-v2",
        "opt-125m",
        "opt-350m",
        "opt-66b",
    } <= set(MODELS)
    for name, spec in MODELS.items():
        assert (
            name == spec.name
            and "/" in spec.hub_id
            and spec.weight_origin
            and spec.licence
            and spec.verified
        )
        assert spec.kind in ("causal", "encoder") and spec.revision is None
        assert all(len(wheel.sha256) == 64 for wheel in spec.wheels)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_saved_model_loads_by_folder(architecture, tmp_path):
    folder = save_tiny(architecture, tmp_path / architecture)
    loaded = load_model(str(folder))
    assert (loaded.name, loaded.weight_origin, loaded.dtype, loaded.device) == (
        architecture,
        "local folder",
        "float32",
        "cpu",
    )
    assert next(loaded.model.parameters()).dtype is torch.float32 and not loaded.model.training
    assert (
        relative(
            Encoder(loaded).encode(SENTENCES), Encoder(tiny_model(architecture)).encode(SENTENCES)
        )
        < 1e-5
    )


def test_dtype_is_explicit_even_when_the_checkpoint_is_half(tmp_path):
    loaded = tiny_model("opt")
    loaded.model.half().save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    assert next(load_model(str(tmp_path)).model.parameters()).dtype is torch.float32
    assert load_model(str(tmp_path), dtype="bfloat16").dtype == "bfloat16"


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantised_model_is_near_but_not_equal(quantization, tmp_path):
    folder = save_tiny("llama", tmp_path, spread=0.1, hidden_size=128, intermediate_size=256)
    plain, small = load_model(str(folder)), load_model(str(folder), quantization=quantization)
    error = relative(Encoder(small).encode(SENTENCES), Encoder(plain).encode(SENTENCES))
    assert small.quantization == quantization and 1e-4 < error < 0.6
    kinds = {type(module).__name__ for module in small.model.modules()}
    assert ("Linear4bit" if quantization == "nf4" else "Linear8bitLt") in kinds


def test_int8_does_not_log_every_product(tmp_path, caplog):
    loaded = load_model(str(save_tiny("llama", tmp_path)), quantization="int8")
    Encoder(loaded).encode(SENTENCES)
    assert "will be cast" not in caplog.text


def test_adapter_goes_on_top(tmp_path):
    from peft import LoraConfig, get_peft_model

    folder = save_tiny("llama", tmp_path / "base")
    torch.manual_seed(1)
    peft = get_peft_model(
        load_model(str(folder)).model,
        LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False),
    )
    peft.save_pretrained(tmp_path / "mine")
    adapted, plain = (
        load_model(str(folder), adapter=str(tmp_path / "mine")),
        load_model(str(folder)),
    )
    assert adapted.adapter.startswith("mine@") and Encoder(adapted).key != Encoder(plain).key
    assert relative(Encoder(adapted).encode(SENTENCES), Encoder(plain).encode(SENTENCES)) > 0.01
    from prompteol_utils.encoder import reference

    assert (
        relative(Encoder(adapted).encode(SENTENCES), reference(adapted, "prompteol", SENTENCES))
        < 1e-4
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: load_model("smollm2-135m-instrct"),
            "nearest names: smollm2-135m-instruct, smollm2-135m, smollm2-360m. `prompteol models`",
        ),
        (lambda: load_model("nothing-like-it"), "also allowed: a hub id like 'org/name'"),
        (lambda: load_model("./no/such/folder"), "unknown model"),
        (lambda: load_model("smollm2-135m-instruct", device="cuda:99"), "CUDA GPUs here"),
        (lambda: load_model("smollm2-135m-instruct", dtype="int3"), "unknown dtype"),
        (lambda: fetch_model("opt-125m"), "takes it from the hub"),
    ],
)
def test_bad_arguments_are_named_before_any_work(call, message, cache):
    with pytest.raises(ValueError, match=message):
        call()
    assert not list(cache.glob("models/*/*"))


def test_bad_quantization_is_named(tmp_path):
    with pytest.raises(ValueError, match="allowed: None, 'nf4', 'int8'"):
        load_model(str(save_tiny("opt", tmp_path)), quantization="int2")


def test_folder_without_a_model(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        load_model(str(tmp_path))


def test_offline_hub_model_fails_clearly_and_fast(tmp_path):
    code = (
        "import time, transformers; from prompteol_utils.models import load_model\n"
        "start = time.monotonic()\n"
        "try: load_model('opt-6.7b', quantization='nf4')\n"
        "except OSError as error: print(f'{time.monotonic() - start:.1f} {error}')"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    seconds, _, told = done.stdout.partition(" ")
    assert told.startswith(
        "facebook/opt-6.7b is not in the local hub cache and the hub cannot be reached"
    ), done.stderr
    assert "pass a folder with the saved model" in told and "smollm2-135m-instruct" in told, (
        "what to do, and what needs no hub"
    )
    assert float(seconds) < 15, "one short try"


def test_ends_appended_by_a_tokenizer_are_dropped_on_request():
    loaded = tiny_model("bert")
    whole, cut = (
        token_ids(loaded, ["The cat sleeps."], drop_end=drop)[0] for drop in (False, True)
    )
    assert whole[:-1] == cut and whole[-1] == loaded.tokenizer.eos_token_id


@pytest.mark.bundled
@pytest.mark.parametrize(
    "name", ["smollm2-135m-instruct", pytest.param("gemma3-270m", marks=pytest.mark.gemma)]
)
def test_offline_weights_are_what_the_registry_says(name):
    loaded = load_model(name)
    config = loaded.model.config
    assert (config.num_hidden_layers, config.hidden_size) == {
        "smollm2-135m-instruct": (30, 576),
        "gemma3-270m": (18, 640),
    }[name]
    assert (
        loaded.model.get_output_embeddings().weight is loaded.model.get_input_embeddings().weight
    ), "the head is tied"
    assert loaded.weight_origin == MODELS[name].weight_origin and loaded.commit is None
