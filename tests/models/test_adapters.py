"""Adapters: wholly applied or refused, named by what they compute, bound to their base."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from prompteol_utils.encoder import Encoder, reference
from prompteol_utils.models import adapters, load_model, loading, save_tiny
from prompteol_utils.prompts import Demonstration, with_demonstrations
from prompteol_utils.utils.files import DATA

SENTENCES = ["The cat sleeps.", "Rain falls on the old harbour.", "Prices rose again!"]


def worst(a, b):
    return (np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1)).max()


@pytest.fixture
def base(tmp_path):
    return str(save_tiny("llama", tmp_path / "base"))


def foreign(model, folder, **settings):
    """An adapter as peft alone saves it."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    settings = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False} | settings
    get_peft_model(model, LoraConfig(**settings)).save_pretrained(folder)
    return str(folder)


def own(base, folder, **record):
    """An adapter as this project saves it."""
    from dataclasses import replace

    loaded = load_model(base)
    torch.manual_seed(1)
    tuned = adapters.add_lora(loaded.model, rank=4, alpha=8, dropout=0.0)
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, 0, 0.1)
    adapters.save(replace(loaded, model=tuned), folder, **record)
    return str(folder)


def test_bin_adapters_load(base, tmp_path):
    folder = foreign(load_model(base).model, tmp_path / "a")
    expected = load_model(base, adapter=folder)
    weights = load_file(tmp_path / "a" / "adapter_model.safetensors")
    torch.save(weights, tmp_path / "a" / "adapter_model.bin")
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    found = load_model(base, adapter=folder)
    assert found.adapter.startswith("a@") and found.adapter != expected.adapter
    assert np.array_equal(Encoder(found).encode(SENTENCES), Encoder(expected).encode(SENTENCES))


@pytest.mark.parametrize("direction", ["trained without head", "trained with head"])
def test_names_without_the_heads_level_are_applied(base, tmp_path, direction):
    from transformers import AutoModel, AutoModelForCausalLM

    where = AutoModel if direction == "trained without head" else AutoModelForCausalLM
    folder = foreign(where.from_pretrained(base), tmp_path / "a")
    plain = Encoder(load_model(base)).encode(SENTENCES)
    tuned = load_model(base, adapter=folder)
    vectors = Encoder(tuned).encode(SENTENCES)
    assert worst(vectors, plain) > 0.05
    assert worst(vectors, reference(tuned, "prompteol", SENTENCES)) < 1e-4
    stored = load_file(tmp_path / "a" / "adapter_model.safetensors")
    layer = tuned.model.get_base_model().model.layers[1].self_attn.q_proj
    key = next(key for key in stored if "layers.1.self_attn.q_proj.lora_B" in key)
    assert torch.equal(layer.lora_B["default"].weight, stored[key])


@pytest.mark.parametrize("change", ["a weight is missing", "a weight too many", "other sizes"])
def test_what_is_not_wholly_applied_is_refused(base, tmp_path, change):
    folder = foreign(load_model(base).model, tmp_path / "a")
    file = tmp_path / "a" / "adapter_model.safetensors"
    weights = load_file(file)
    name = next(iter(weights))
    if change == "a weight is missing":
        del weights[name]
    elif change == "a weight too many":
        weights["base_model.model.model.layers.9.mlp.up_proj.lora_A.weight"] = torch.ones(4, 32)
    else:
        weights[name] = torch.ones(4, 7)
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ValueError, match="does not fit base"):
        load_model(base, adapter=folder)


@pytest.mark.parametrize(
    "kind", ["PromptTuningConfig", "PromptEncoderConfig", "PrefixTuningConfig"]
)
def test_virtual_tokens_are_refused(base, tmp_path, kind):
    import peft

    settings = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 4}
    config = getattr(peft, kind)(**settings)
    peft.get_peft_model(load_model(base).model, config).save_pretrained(tmp_path / "a")
    with pytest.raises(ValueError, match="virtual tokens"):
        load_model(base, adapter=str(tmp_path / "a"))


def test_changed_settings_change_the_name(base, tmp_path):
    names = []
    for folder in (
        foreign(load_model(base).model, tmp_path / "foreign"),
        own(base, tmp_path / "own"),
    ):
        names.append(load_model(base, adapter=folder).adapter)
        file = tmp_path / folder / "adapter_config.json"
        config = json.loads(file.read_text())
        file.write_text(json.dumps(config | {"peft_version": "9", "lora_dropout": 0.3}))
        assert load_model(base, adapter=folder).adapter == names[-1]
        file.write_text(json.dumps(config | {"lora_alpha": 32}))
        names.append(load_model(base, adapter=folder).adapter)
    assert len(set(names)) == 4
    assert names[2].count("-") == 0, "the settings that it was saved with need no suffix"


def test_other_content_in_a_folder_of_the_same_name_is_another_adapter(base, tmp_path):
    one, two = (foreign(load_model(base).model, tmp_path / run / "lora") for run in "ab")
    assert load_model(base, adapter=one).adapter == load_model(base, adapter=two).adapter
    file = tmp_path / "b" / "lora" / "adapter_model.safetensors"
    save_file({name: 2 * weight for name, weight in load_file(file).items()}, file)
    names = [load_model(base, adapter=one).adapter, load_model(base, adapter=two).adapter]
    assert names[0] != names[1] and all(name.startswith("lora@") for name in names)


def test_the_name_of_the_adapter_in_data_is_as_in_the_records():
    assert adapters.name_of(DATA / "adapters" / "nli-nf4-r16") == "nli-nf4-r16@2295f19a"


def test_an_adapter_of_other_weights_is_refused(base, tmp_path):
    folder = own(base, tmp_path / "run" / "adapter")
    load_model(base, adapter=folder)
    other = save_tiny("llama", tmp_path / "other" / "base", seed=5)
    with pytest.raises(ValueError, match="trained on other weights"):
        load_model(str(other), adapter=folder)
    moved = shutil.copytree(base, tmp_path / "moved")
    load_model(str(moved), adapter=folder)


@pytest.mark.parametrize("quantization", [None, "nf4", "int8"])
def test_a_merged_base_does_not_get_its_adapter_twice(tmp_path, quantization):
    """Word embeddings and norms of a merged model are those of its base."""
    size = {"hidden_size": 128, "intermediate_size": 256}
    base = str(save_tiny("llama", tmp_path / "base", spread=0.05, **size))
    folder = own(base, tmp_path / "a")
    record = json.loads((tmp_path / "a" / adapters.RECORD).read_text())
    if quantization:  # as if it had been trained on the quantised base
        quantised = load_model(base, quantization=quantization)
        record["base"] |= {
            "quantization": quantization,
            "weights": adapters.weights_sample(quantised.model),
        }
        (tmp_path / "a" / adapters.RECORD).write_text(json.dumps(record))
        load_model(base, adapter=folder, quantization=quantization)
    adapters.merge(load_model(base, adapter=folder), tmp_path / "merged")
    facts = json.loads((tmp_path / "merged" / adapters.RECORD).read_text())["merged"]
    assert facts["name"] == "base" and facts["adapter"].startswith("a@")
    with pytest.raises(ValueError, match="already holds adapter a@"):
        load_model(str(tmp_path / "merged"), adapter=folder, quantization=quantization)
    (tmp_path / "merged" / adapters.RECORD).unlink()  # merged elsewhere
    with pytest.raises(ValueError, match="trained on other weights"):
        load_model(str(tmp_path / "merged"), adapter=folder, quantization=quantization)


def test_another_precision_is_said(base, tmp_path, caplog):
    folder = own(base, tmp_path / "a")
    load_model(base, adapter=folder)
    assert not caplog.text
    load_model(base, adapter=folder, quantization="int8")
    assert "quantization=None, here it is 'int8'" in caplog.text


def test_another_prompt_is_said(base, tmp_path, caplog):
    key = Encoder(load_model(base)).key["prompt"]
    loaded = load_model(base, adapter=own(base, tmp_path / "a", prompt=key))
    with caplog.at_level(logging.WARNING):
        Encoder(loaded)
        assert not caplog.text
        shown = with_demonstrations("prompteol", [Demonstration("A dog barks.", "Noise")])
        Encoder(loaded, shown)
    assert "trained with prompt 'prompteol' and 0 demonstrations" in caplog.text


def test_a_hub_adapter_that_cannot_be_had_says_so(base, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"some/adapter is not in the local hub cache"):
        load_model(base, adapter="some/adapter")


def test_a_hub_adapter_is_named_with_its_commit(base, tmp_path, monkeypatch):
    folder = foreign(load_model(base).model, tmp_path / "a")
    monkeypatch.setattr(adapters, "hub_commit", lambda *_: "0123456789abcdef")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: folder)
    assert load_model(base, adapter="some/adapter").adapter == "some/adapter@01234567"


# Checkpoints.


def rewrite(base, change):
    from pathlib import Path

    file = Path(base, "model.safetensors")
    weights = {new: weight for name, weight in load_file(file).items() if (new := change(name))}
    save_file(weights, file, {"format": "pt"})


@pytest.mark.parametrize("prefix", ["module.", "base_model.model.", "_orig_mod.", "encoder."])
def test_a_checkpoint_with_a_wrappers_prefix_is_refused(base, prefix):
    rewrite(base, lambda name: prefix + name)
    with pytest.raises(ValueError, match=f"lacks 29 weights.*begin with '{prefix}'"):
        load_model(base)


def test_a_missing_block_is_refused_and_an_unread_head_is_not(base):
    expected = Encoder(load_model(base)).encode(SENTENCES)
    rewrite(base, lambda name: None if name.startswith("lm_head") else name)
    assert np.array_equal(Encoder(load_model(base)).encode(SENTENCES), expected)
    rewrite(base, lambda name: None if "layers.1.mlp" in name else name)
    with pytest.raises(ValueError, match=r"lacks 3 weights.*layers\.1\.mlp\.down_proj"):
        load_model(base)


def test_a_pooler_may_be_missing_unless_it_is_read(tmp_path):
    base = str(save_tiny("roberta", tmp_path / "base"))
    rewrite(base, lambda name: None if name.startswith("pooler") else name)
    load_model(base)
    with pytest.raises(ValueError, match=r"lacks 2 weights.*pooler"):
        load_model("simcse-roberta-nli", weights=base)


@pytest.mark.parametrize("damage", ["cut", "no weights", "unknown type", "bad config"])
def test_broken_folders_are_refused_in_one_sentence(base, damage):
    from pathlib import Path

    folder = Path(base)
    if damage == "cut":
        content = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[:-100])
    elif damage == "no weights":
        (folder / "model.safetensors").unlink()
    elif damage == "unknown type":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "nothing"}))
    else:
        (folder / "config.json").write_text("{")
    with pytest.raises((ValueError, OSError)) as caught:
        load_model(base)
    assert "\n" not in str(caught.value).strip() and len(str(caught.value)) < 500


def test_a_model_that_fits_one_card_is_not_spread(monkeypatch):
    spec = loading.find_spec("opt-2.7b")
    free = [6 * 10**9, 20 * 10**9]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(loading.devices, "free_on_card", free.__getitem__)
    place = torch.device("cuda")
    assert loading.choose_device_map(spec, place, 16, None) == {"": 1}
    assert loading.choose_device_map(loading.find_spec("opt-13b"), place, 16, None) == "auto"
    assert loading.choose_device_map(spec, torch.device("cuda:0"), 16, None) == {"": "cuda:0"}
    assert loading.choose_device_map(spec, torch.device("cpu"), 32, None) is None
