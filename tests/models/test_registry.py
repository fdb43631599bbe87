"""Every entry: complete, of the size that its name says, its class path run on a tiny model."""

import csv
import functools
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.stats import spearmanr

from prompteol_utils.encoder import Encoder, reference
from prompteol_utils.models import MODELS, load_model, memory, registry, save_tiny, tiny_model
from prompteol_utils.models.tiny import ARCHITECTURES, ENCODERS
from prompteol_utils.prompts import get_prompt
from prompteol_utils.results import paper_table

SENTENCES = [
    "The cat sleeps.",
    "Rain falls on the harbour while nobody is looking at the old boats!",
    "'Yes', she said.",
    '"Quoted" and odd',
    "Two engineers repair the bridge at night.",
    "12 % of 2024",
    "Bread rises; why?",
    "A",
]
DECODERS = sorted(set(ARCHITECTURES) - set(ENCODERS) - {"lfm2"})


def relative(a, b):
    return (np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1)).max()


def distance(vectors):
    """Smallest relative distance of two different sentences."""
    gaps = np.linalg.norm(vectors[:, None] - vectors[None], axis=-1) / np.linalg.norm(
        vectors, axis=1
    )
    return gaps[~np.eye(len(vectors), dtype=bool)].min()


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """The folder of a tiny model, with what its entry puts on top: a dense layer, an adapter."""

    @functools.cache
    def make(architecture, extra=""):
        folder = tmp_path_factory.mktemp(architecture)
        if extra == "adapter":
            from peft import LoraConfig, get_peft_model

            torch.manual_seed(1)
            base = tiny_model(architecture).model
            get_peft_model(
                base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
            ).save_pretrained(folder)
            return folder
        save_tiny(architecture, folder)
        if extra == "2_Dense":
            (folder / extra).mkdir()
            weight = torch.randn(24, 32, generator=torch.Generator().manual_seed(2))
            save_file({"linear.weight": weight}, folder / extra / "model.safetensors")
        return folder

    return make


# One entry for each combination that takes another path through the classes.
KINDS = {
    (spec.architecture, spec.kind, spec.head, bool(spec.adapter_of), spec.prompt): name
    for name, spec in reversed(MODELS.items())
}


@pytest.mark.parametrize("name", sorted(KINDS.values()))
def test_class_path_runs_on_a_tiny_model(name, stand_in):
    spec = MODELS[name]
    adapter = str(stand_in(spec.architecture, "adapter")) if spec.adapter_of else None
    loaded = load_model(
        name,
        weights=stand_in(spec.architecture, "2_Dense" if spec.head == "2_Dense" else ""),
        adapter=adapter,
    )
    assert loaded.name == (spec.adapter_of or name) and bool(loaded.adapter) == bool(
        spec.adapter_of
    )
    origin = MODELS[loaded.name].weight_origin + " (a folder)"  # an adapter's field says the rest
    assert (loaded.weight_origin, loaded.prompt, loaded.dtype) == (origin, spec.prompt, "float32")
    assert (loaded.model.get_output_embeddings() is not None) == (spec.kind == "causal")
    encoder = Encoder(loaded, loaded.prompt)
    expected, vectors = (
        reference(loaded, loaded.prompt, SENTENCES),
        encoder.encode(SENTENCES, batch_tokens=64),
    )
    assert distance(expected) > 0.01, "the tiny model cannot tell sentences apart"
    assert (
        vectors.shape == expected.shape == (len(SENTENCES), encoder.dimension)
        and relative(vectors, expected) < 1e-4
    )
    assert relative(vectors[::-1], expected) > 0.01
    if spec.head or spec.adapter_of:
        bare = tiny_model(spec.architecture)
        without = reference(bare, spec.prompt, SENTENCES)
        assert without.shape != expected.shape or relative(without, expected) > 0.01, (
            "the layer on top, or the adapter, does nothing"
        )


def test_layer_on_top_is_what_it_says(stand_in):
    plain, dense = (
        load_model("st5-enc", weights=stand_in("t5")),
        load_model("st5-enc-nli", weights=stand_in("t5", "2_Dense")),
    )
    weight = torch.randn(24, 32, generator=torch.Generator().manual_seed(2)).numpy()
    assert (
        relative(
            Encoder(dense, "mean").encode(SENTENCES),
            Encoder(plain, "mean").encode(SENTENCES) @ weight.T,
        )
        < 1e-4
    )
    plain, pooler = (
        load_model(name, weights=stand_in("roberta"))
        for name in ("simcse-roberta", "simcse-roberta-nli")
    )
    layer = plain.model.pooler
    first = torch.from_numpy(Encoder(plain, "cls").encode(SENTENCES))
    with torch.inference_mode():
        assert (
            relative(
                Encoder(pooler, "cls").encode(SENTENCES),
                layer.activation(layer.dense(first)).numpy(),
            )
            < 1e-4
        )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("bert-prompt", 'This sentence : "It rains." means[MASK].'),
        ("promptbert", 'This sentence of "It rains." means[MASK].'),
        ("promptroberta", "This sentence : ' It rains. ' means<mask>."),
    ],
)
def test_mask_is_read_where_the_prompt_has_it(name, text, stand_in):
    loaded = load_model(name, weights=stand_in(MODELS[name].architecture))
    prompt = get_prompt(MODELS[name].prompt)
    assert prompt.render("It rains") == text
    ids = loaded.tokenizer(text)["input_ids"]
    at = ids.index(loaded.tokenizer.mask_token_id)
    assert 0 < at < len(ids) - 2
    with torch.inference_mode():
        states = loaded.model(input_ids=torch.tensor([ids])).last_hidden_state[0].numpy()
    vector = Encoder(loaded, prompt).encode("It rains")
    assert (
        relative(vector[None], states[at : at + 1]) < 1e-4
        and relative(vector[None], states[at - 1 : at]) > 0.01
    )
    without = get_prompt(prompt).__class__(
        prompt.prefix, prompt.suffix.removesuffix("."), "no period", "mask", "period"
    )
    assert relative(Encoder(loaded, without).encode("It rains")[None], vector[None]) > 0.01, (
        "the final period matters"
    )


def test_poolings_refuse_models_that_they_do_not_suit(stand_in):
    llama, bert = load_model(str(stand_in("llama"))), load_model(str(stand_in("bert")))
    with pytest.raises(ValueError, match="has none"):
        Encoder(llama, "bert-prompt")
    with pytest.raises(ValueError, match="has seen nothing else"):
        Encoder(llama, "cls")
    with pytest.raises(ValueError, match="not the tokenizer's"):
        Encoder(bert, "promptroberta").encode(SENTENCES)


@pytest.mark.parametrize("architecture", DECODERS)
def test_four_bits_keep_the_order_of_similarities(architecture, tmp_path):
    """NF4: encode equals the reference, and similarities are ranked nearly as in fp32."""
    wide = {"n_embd": 128} if architecture == "gpt2" else {"hidden_size": 128}
    if architecture.startswith("opt"):
        wide |= {"word_embed_proj_dim": 128 if architecture == "opt" else 64, "ffn_dim": 256}
    elif architecture != "gpt2":
        wide |= {"intermediate_size": 256} | (
            {"head_dim": 32} if architecture in ("qwen3", "gemma3") else {}
        )
    folder = str(save_tiny(architecture, tmp_path, spread=0.05, **wide))
    full, small = Encoder(load_model(folder)), Encoder(load_model(folder, quantization="nf4"))
    assert any(type(module).__name__ == "Linear4bit" for module in small.loaded.model.modules())
    a, b = full.encode(SENTENCES), small.encode(SENTENCES)
    assert (
        relative(b, reference(small.loaded, "prompteol", SENTENCES)) < 1e-4
        and relative(a, b) > 1e-3
    )
    pairs = np.triu_indices(len(SENTENCES), 1)
    ranks = [(x @ x.T / np.outer(n := np.linalg.norm(x, axis=1), n))[pairs] for x in (a, b)]
    correlation = spearmanr(*ranks).statistic
    print(f"{architecture}: rank correlation of NF4 and fp32 {correlation:.3f}")
    assert correlation >= 0.8


# The table itself.


def test_rows_are_complete():
    for name, spec in MODELS.items():
        assert (
            name == spec.name
            and "/" in spec.hub_id
            and spec.verified
            and spec.licence
            and spec.weight_origin
        )
        assert spec.architecture in ARCHITECTURES and (spec.kind == "encoder") == (
            spec.architecture in ENCODERS
        )
        assert (
            get_prompt(spec.prompt)
            and spec.shape.source
            and (not spec.adapter_of or spec.adapter_of in MODELS)
        )
    systems = {
        "opt": 8,
        "llama-": 4,
        "prompteol-opt": 4,
        "prompteol-llama": 3,
        "qwen2.5": 3,
        "qwen3": 3,
        "smollm2": 3,
        "pythia": 3,
    }
    for start, least in systems.items():
        assert sum(name.startswith(start) for name in MODELS) >= least, start


@pytest.mark.parametrize("name", [name for name in MODELS if re.search(r"\d[bm]", name)])
def test_size_is_what_the_name_says(name):
    """An entry's numbers, multiplied out, give what its name promises, a twentieth off at most."""
    number, unit = re.findall(r"(\d+(?:\.\d+)?)([bm])(?![a-z]*\d)", name)[-1]
    said = float(number) * {"b": 1e9, "m": 1e6}[unit]
    count = sum(memory.parameters(MODELS[name].shape, MODELS[name].kind).values())
    exact = {
        "opt-350m": 331e6,
        "qwen2.5-0.5b": 0.49e9,
        "qwen2.5-7b": 7.6e9,
        "qwen2.5-14b": 14.8e9,
        "qwen3-14b": 14.8e9,
        "llama-7b": 6.7e9,
        "llama-2-7b": 6.7e9,
        "llama-30b": 32.5e9,
        "llama-3.2-1b": 1.24e9,
        "llama-3.2-3b": 3.2e9,
    }
    said = exact.get(name.removeprefix("prompteol-"), said)  # where the name rounds by more
    assert count == pytest.approx(said, rel=0.05)


def test_baselines_name_rows_of_the_paper():
    table = paper_table("sts")
    known = {
        f"{group}|{system}" for group, system in zip(table["group"], table["system"], strict=True)
    }
    named = {spec.paper for spec in MODELS.values() if spec.paper}
    assert named <= known
    for row in table[["group", "system", "model", "adapter"]].drop_duplicates().itertuples():
        runnable = row.model in MODELS or f"{row.group}|{row.system}" in named
        reason = any(row.system in name for name in registry.NOT_REPRODUCED)
        assert runnable or reason, f"{row.system} ({row.group}) is neither a row nor explained"
        if row.adapter:
            assert any(
                spec.hub_id == row.adapter and spec.adapter_of == row.model
                for spec in MODELS.values()
            ), row.adapter


def test_broken_table_is_named(tmp_path):
    rows = list(csv.reader(registry.TABLE.open(encoding="utf-8")))
    rows[3][rows[0].index("layers")] = "many"
    path = tmp_path / "models.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    with pytest.raises(ValueError, match=r"models\.csv, line 4: .*many"):
        registry.read_table(path)
