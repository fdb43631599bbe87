"""Methods after PromptEOL: each equals a version written out by hand, and would not if it erred.

The versions by hand run the whole model with padding on the left, as the authors' code does, and
name each architecture's layers; the package pads on the right or packs, and finds them itself.
"""

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from prompteol_utils.data import load_sts
from prompteol_utils.evaluation import evaluate_sts
from prompteol_utils.experiments.followups import measuring, prompts, tables
from prompteol_utils.experiments.followups.methods import METHODS, few_shot, get_method, whitened
from prompteol_utils.experiments.followups.rewriting import geneol, rewrite
from prompteol_utils.experiments.followups.views import Contrastive, Echo, TokenPrepending
from prompteol_utils.models.tiny import tiny_model
from prompteol_utils.prompts import Demonstration, paper_punctuation
from prompteol_utils.results import Store

SENTENCES = [
    "The kettle sings",
    "Two boats drift past the empty pier, and nobody is there to see where they go.",
    "A",
    "Who left the gate open?",
    "Rain falls on the harbour and on the 'Old Mill'.",
]
# Where each architecture has its layers, and in a layer the projection of the attention's output.
PLACES = {
    "llama": ("model.layers", "self_attn.o_proj"),
    "gpt2": ("transformer.h", "attn.c_proj"),
    "gemma3": ("model.layers", "self_attn.o_proj"),
}
TOLERANCE = 1e-4
PLAIN = {
    "prompteol": 'This sentence : "{}" means in one word:"',
    "pretended-cot": 'After thinking step by step , this sentence : "{}" means in one word:"',
}
AUXILIARY = 'The irrelevant information of this sentence : "{}" means in one word:"'


# Behind a window of 12 tokens a long sentence's two prompts say the same, and nothing is left.
OPTIONS = {"gpt2": {"n_layer": 4}, "gemma3": {"num_hidden_layers": 4, "sliding_window": 512}}


@pytest.fixture(params=PLACES)
def loaded(request):
    return tiny_model(request.param, **OPTIONS.get(request.param, {"num_hidden_layers": 4}))


def ids_of(loaded, text, special=True):
    return loaded.tokenizer(text, add_special_tokens=special)["input_ids"]


def layers_of(loaded):
    return loaded.model.get_submodule(PLACES[loaded.name.removeprefix("tiny-")][0])


def projection_of(loaded, layer):
    return layers_of(loaded)[layer].get_submodule(PLACES[loaded.name.removeprefix("tiny-")][1])


class Hooks:
    """Pre-hooks while the context lasts."""

    def __init__(self, changes):
        self.changes = changes

    def __enter__(self):
        self.handles = []
        for module, change in self.changes:
            if isinstance(module, torch.nn.Embedding):
                self.handles.append(module.register_forward_hook(lambda m, a, o, c=change: c(o)))
                continue

            def hook(m, args, options, c=change):
                if args:
                    return (c(args[0]), *args[1:]), options
                return args, {**options, "hidden_states": c(options["hidden_states"])}

            self.handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def __exit__(self, *error):
        for handle in self.handles:
            handle.remove()


@torch.no_grad()
def forward(loaded, ids, *, mask=True, changes=()):
    """States (layers, n, width, d) of a batch padded on the left."""
    width = max(map(len, ids))
    pads = [width - len(one) for one in ids]
    tokens = torch.tensor([[5] * pad + one for pad, one in zip(pads, ids, strict=True)])
    seen = torch.tensor([[0] * pad + [1] * (width - pad) for pad in pads])
    options = {"attention_mask": seen, "position_ids": (seen.cumsum(1) - 1).clamp(min=0)}
    with Hooks(changes):
        out = loaded.model(tokens, output_hidden_states=True, **(options if mask else {}))
    return torch.stack(out.hidden_states), pads


def last(loaded, ids, **options):
    return forward(loaded, ids, **options)[0][:, :, -1].numpy()


def plain(loaded, template, sentences, *, mask=True, clean=paper_punctuation):
    ids = [ids_of(loaded, template.format(clean(one))) for one in sentences]
    return last(loaded, ids, mask=mask)


# Each takes (loaded, sentences, shift, mask, auxiliary): what can go wrong is an argument.


def by_hand_prepending(loaded, sentences, shift=0, mask=True, other=False):
    name = "After thinking step by step , this sentence : " if other else "This sentence : "
    head = ids_of(loaded, name)
    tails = [
        ids_of(loaded, f' "{paper_punctuation(one)}" means in one word:"', special=False)
        for one in sentences
    ]
    ids = [[*head, 7, *tail] for tail in tails]
    width = max(map(len, ids))
    at = [width - len(one) + len(head) for one in ids]
    rows = torch.arange(len(ids))
    embeddings = loaded.model.get_input_embeddings()
    noise = torch.randn(embeddings.weight.shape[1], generator=torch.Generator().manual_seed(0))

    def first(states):
        states = states.clone()
        states[rows, at] = noise
        return states

    def carry(states):
        states = states.clone()
        states[rows, at] = states[:, -1].clone()
        return states

    layers = [layers_of(loaded)[i + shift] for i in (1, 2)]
    changes = [(embeddings, first), *((layer, carry) for layer in layers)]
    return last(loaded, ids, mask=mask, changes=changes)


def by_hand_contrastive(loaded, sentences, shift=0, mask=True, other=False, strength=2.0):
    auxiliary = PLAIN["pretended-cot"] if other else AUXILIARY
    projection = projection_of(loaded, 1 + shift)
    caught = []

    def catch(heads):
        caught.append(heads[:, -1].clone())
        return heads

    def change(heads):
        heads = heads.clone()
        difference = heads[:, -1] - caught[0]
        if strength is None:
            norms = heads[:, -1].norm(dim=-1, keepdim=True)
            heads[:, -1] = difference / difference.norm(dim=-1, keepdim=True) * norms
        else:
            heads[:, -1] = strength * difference
        return heads

    def ids(template):
        return [ids_of(loaded, template.format(paper_punctuation(one))) for one in sentences]

    last(loaded, ids(auxiliary), mask=mask, changes=[(projection, catch)])
    return last(loaded, ids(PLAIN["prompteol"]), mask=mask, changes=[(projection, change)])


def by_hand_reduced(loaded, sentences, shift=0, mask=True, other=False):
    return by_hand_contrastive(loaded, sentences, shift, mask, other, strength=None)


def by_hand_echo(loaded, sentences, shift=0, mask=True, other=False):
    template = "Rewrite the following paragraph: {0}. The rewritten paragraph: {0}"
    if other:
        template = "Repeat the following paragraph: {0}. The same paragraph: {0}"
    ids = [ids_of(loaded, template.format(one)) for one in sentences]
    before = [ids_of(loaded, template.format(one).removesuffix(f" {one}")) for one in sentences]
    states, pads = forward(loaded, ids, mask=mask)
    starts = [pad + len(one) for pad, one in zip(pads, before, strict=True)]
    means = [states[:, row, start:].mean(1) for row, start in enumerate(starts)]
    return _shifted(torch.stack(means, 1).numpy(), shift)


def by_hand_ck(loaded, sentences, shift=0, mask=True, other=False):
    knowledge = (
        "The essence of a sentence is often captured by its main subjects and actions, while "
        "descriptive terms provide additional but less central details. With this in mind , this "
        'sentence : "{}" means in one word:"'
    )
    first = PLAIN["prompteol" if other else "pretended-cot"]
    states = [plain(loaded, one, sentences, mask=mask) for one in (first, knowledge)]
    return _shifted((states[0] + states[1]) / 2, shift)


def by_hand_meta(loaded, sentences, shift=0, mask=True, other=False):
    templates = [f"{one.prefix}{{}}{one.suffix}" for one in prompts.META]
    templates[0] = PLAIN["prompteol"] if other else templates[0]
    total = sum(plain(loaded, one, sentences, mask=mask) for one in templates)
    return _shifted(total / 8, shift)


def by_hand_reverse(loaded, sentences, shift=0, mask=True, other=False):
    turned = [" ".join(reversed(one.split(" "))) for one in sentences]
    second = plain(loaded, PLAIN["pretended-cot" if other else "prompteol"], turned, mask=mask)
    return _shifted((plain(loaded, PLAIN["prompteol"], sentences, mask=mask) + second) / 2, shift)


def by_hand_filter(loaded, sentences, shift=0, mask=True, other=False):
    weight = loaded.model.lm_head.weight.detach()
    *_, directions = torch.linalg.svd(weight, full_matrices=False)
    middle = directions[:16] if other else directions[8:24]
    # Signs of singular vectors are free: compare projections onto the subspace.
    states = plain(loaded, PLAIN["prompteol"], sentences, mask=mask)
    return _shifted(states @ (middle.T @ middle).numpy(), shift)


def by_hand_shots(loaded, sentences, shift=0, mask=True, other=False):
    word = "Steam" if other else "Tea"
    shot = f'This sentence : "Water boils." means in one word:"{word}".'
    return _shifted(plain(loaded, shot + PLAIN["prompteol"], sentences, mask=mask), shift)


def by_hand_cot(loaded, sentences, shift=0, mask=True, other=False):
    name = "prompteol" if other else "pretended-cot"
    return _shifted(plain(loaded, PLAIN[name], sentences, mask=mask), shift)


def _shifted(states, shift):
    return np.roll(states, shift, axis=0)


def filtered(loaded, sentences):
    method = METHODS["embedfilter"]
    return method.encode_layers(loaded, sentences) @ method.linear.directions(loaded)


def of(method):
    return lambda loaded, sentences: method.encode_layers(loaded, sentences)


CASES = {
    "pretended-cot": (of(METHODS["pretended-cot"]), by_hand_cot),
    "ck": (of(METHODS["ck"]), by_hand_ck),
    "metaeol": (of(METHODS["metaeol"]), by_hand_meta),
    "token-prepending": (TokenPrepending(start=1, end=3), by_hand_prepending),
    "contrastive-ns": (Contrastive(layer=1), by_hand_contrastive),
    "contrastive-nr": (Contrastive(layer=1, strength=None), by_hand_reduced),
    "echo": (Echo(), by_hand_echo),
    "reverseeol": (of(METHODS["reverseeol"]), by_hand_reverse),
    "embedfilter": (filtered, by_hand_filter),
    "one-shot": (of(few_shot([Demonstration("Water boils.", "Tea")])), by_hand_shots),
}


def error(found, expected):
    """The largest relative error of a vector, over sentences and the layers above the first."""
    found, expected = found[1:], expected[1:]
    return (np.linalg.norm(found - expected, axis=2) / np.linalg.norm(expected, axis=2)).max()


@pytest.mark.parametrize("name", CASES)
def test_equals_the_version_by_hand_alone_and_in_a_ragged_batch(loaded, name):
    method, by_hand = CASES[name]
    alone = np.concatenate([by_hand(loaded, [one]) for one in SENTENCES], axis=1)
    distance = min(
        np.linalg.norm(alone[-1, i] - alone[-1, j]) / np.linalg.norm(alone[-1, i])
        for i in range(5) for j in range(i)
    )  # fmt: skip
    assert distance > 100 * TOLERANCE, "two sentences differ, so that the comparison can tell"
    assert error(by_hand(loaded, SENTENCES), alone) < TOLERANCE
    assert error(method(loaded, SENTENCES), alone) < TOLERANCE
    assert error(method(loaded, SENTENCES[::-1])[:, ::-1], alone) < TOLERANCE
    assert error(method(loaded, SENTENCES[1:2]), alone[:, 1:2]) < TOLERANCE


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("mistake", [{"shift": 1}, {"mask": False}, {"other": True}], ids=str)
def test_the_comparison_sees_a_mistake(loaded, name, mistake):
    method, by_hand = CASES[name]
    assert error(method(loaded, SENTENCES), by_hand(loaded, SENTENCES, **mistake)) > 1e-3


def test_a_model_that_cannot_serve_a_method_is_told_in_one_sentence():
    with pytest.raises(ValueError, match="tiny-bert looks both ways; use a model such as"):
        METHODS["token-prepending"].encode(tiny_model("bert"), SENTENCES)
    with pytest.raises(ValueError, match="tiny-t5 looks both ways"):
        METHODS["prompteol"].encode(tiny_model("t5"), SENTENCES)
    loaded = tiny_model("llama")
    with pytest.raises(ValueError, match=r"works on layer 3, and tiny-llama has layers 0 to 2"):
        TokenPrepending(end=5)(loaded, SENTENCES)
    with pytest.raises(ValueError, match=r"works on layer 9, and tiny-llama has layers 0 to 2"):
        Contrastive(layer=9)(loaded, SENTENCES)
    with pytest.raises(ValueError, match=r"read at layer 7, .* has hidden states 0 to 3"):
        METHODS["prompteol"].encode(loaded, SENTENCES, layer=7)
    with pytest.raises(ValueError, match="no attention in this layer"):
        Contrastive(layer=0)(tiny_model("lfm2"), SENTENCES)
    with pytest.raises(ValueError, match="tokens with its prompt, and tiny-llama holds 512"):
        Echo()(loaded, ["word " * 600])
    loaded.model.get_output_embeddings = lambda: None
    with pytest.raises(ValueError, match="output matrix, and tiny-llama has none"):
        METHODS["embedfilter"].encode(loaded, SENTENCES)
    with pytest.raises(ValueError, match="unknown method 'eol'; allowed: prompteol, pretended-cot"):
        get_method("eol")


def test_whitening_gives_the_training_sentences_one_variance_in_every_direction():
    loaded = tiny_model("llama")
    train = [f"{word} {number} boats drift past." for word in ("Two", "No") for number in range(30)]
    states = METHODS["prompteol"].encode_layers(loaded, train)
    method = whitened(METHODS["prompteol"], loaded, states, size=8)
    found = method.encode_layers(loaded, train)
    assert found.shape == (4, 60, 8)
    for layer in found[1:]:
        assert layer.mean(0) == pytest.approx(0, abs=1e-3)
        assert layer.T @ layer / 60 == pytest.approx(np.eye(8), abs=1e-2)
    # By hand: the singular vectors of what is left without the mean.
    centred = states[-1] - states[-1].mean(0)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    by_hand = centred @ (directions[:8].T / (sizes[:8] / np.sqrt(60)))
    assert found[-1] @ found[-1].T == pytest.approx(by_hand @ by_hand.T, abs=1e-2)
    with pytest.raises(ValueError, match="60 sentences of 32 numbers cannot be whitened to 64"):
        whitened(METHODS["prompteol"], loaded, states, size=64)


def test_an_answer_counts_as_a_version_and_an_empty_one_does_not():
    loaded = tiny_model("llama")
    loaded.tokenizer.chat_template = "{{ messages[-1]['content'] }}"
    answers = {"once": 0}

    def generate(input_ids, **options):
        answers["once"] += 1
        text = ['\n"Steam rises."\nMore', "  "]
        new = loaded.tokenizer(text, return_tensors="pt", padding=True, add_special_tokens=False)
        return torch.cat([input_ids, new["input_ids"]], dim=1)

    loaded.model.generate = generate
    # Shorter sentences come first.
    assert rewrite(loaded, ["The kettle sings.", "A"], "concise") == [
        "The kettle sings.",
        "Steam rises.",
    ]
    versions = [["Steam rises.", "B"], ["It boils.", "C"]]
    method = geneol(["The kettle sings.", "A"], versions)
    assert method.passes == 3
    found = method.encode_layers(loaded, ["A", "The kettle sings."])
    template = f"{prompts.KNOWLEDGE.prefix}{{}}{prompts.KNOWLEDGE.suffix}"
    by_hand = [
        plain(loaded, template, [one]) for one in ("The kettle sings.", "Steam rises.", "It boils.")
    ]
    assert found[1:, 1] == pytest.approx(np.mean(by_hand, axis=0)[1:, 0], abs=1e-4)
    with pytest.raises(ValueError, match="unknown kind 'longer'; allowed: paraphrase"):
        rewrite(loaded, ["A"], "longer")
    loaded.tokenizer.chat_template = None
    with pytest.raises(ValueError, match="tiny-llama has no chat template"):
        rewrite(loaded, ["A"], "concise")


def test_the_authors_layer_scales_with_the_depth():
    layers = {
        name: METHODS[name].published_layer(32) for name in ("prompteol", "ck", "token-prepending")
    }
    assert layers == {"prompteol": 32, "ck": 31, "token-prepending": 27}
    assert METHODS["token-prepending"].published_layer(30) == 25


def test_records_resume_and_compare(tmp_path):
    pairs = load_sts("stsb", "test", limit=24)
    loaded = tiny_model("llama")
    store = Store(tmp_path / "rows.jsonl")
    methods = [METHODS[name] for name in ("prompteol", "ck", "reverseeol")]
    settings = {"store": store, "work": tmp_path / "work"}
    for split in ("dev", "test", "test"):
        measuring.measure(
            loaded, methods, load_sts("stsb", split, limit=24), split=split, **settings
        )
    rows = store.read()
    assert len(rows) == 6 and set(rows["n"]) == {24}
    assert rows["passes"].tolist() == [1, 2, 2, 1, 2, 2]
    encode = partial(METHODS["ck"].encode, loaded, layer=3)
    expected = evaluate_sts(encode, pairs)["spearman"][0]
    assert rows["by_layer"][4][2] == pytest.approx(expected, abs=0.01)
    for _ in range(2):
        measuring.differences(loaded, methods, pairs, baseline=methods[0], **settings)
    found = store.read().query("kind == 'followup_difference' and method == 'ck'")
    assert found["layers"].tolist() == [
        "published", "same published", "best", "same best", "best over published",
    ]  # fmt: skip
    first = found.iloc[0]
    scores = [rows["by_layer"][4][first["layer"] - 1], rows["by_layer"][3][2]]
    assert first["points"] == pytest.approx(scores[0] - scores[1], abs=0.01)
    assert first["low"] <= first["points"] <= first["high"]
    with pytest.raises(ValueError, match="echo was not measured on stsb dev with tiny-llama"):
        measuring.best_layer(store, "tiny-llama", "echo")


def row(method, split, by_layer, **more):
    fixed = {"kind": "followup", "model": "m", "task": "stsb", "origin": "senteval", "n": 9}
    fixed |= {"passes": 1, "published_layer": 3, "sentences": 10, "cpu_seconds": 0.5}
    known = {"method": method, "split": split, "by_layer": by_layer, "spearman": by_layer[2]}
    return fixed | known | more


def test_tables_choose_the_layer_on_dev_and_report_it_on_test():
    records = pd.DataFrame(
        [
            row("a", "dev", [1.0, 9.0, 5.0]),
            row("a", "test", [8.0, 6.0, 7.0]),
            row("b", "dev", [4.0, 2.0, 3.0], passes=8),
            row("b", "test", [7.0, 1.0, 2.0], passes=8, cpu_seconds=4.0),
            row("c", "test", [3.0, 3.0, 3.0], rewriting_cpu_seconds=9.5, n=5),
        ]
    )
    table = tables.summary(records, "m")
    assert table.loc["a", ["published", "best_layer", "best", "dev"]].tolist() == [7, 2, 6, 9]
    assert table["ms"].tolist() == [50, 400, 1000]
    assert np.isnan(table.loc["c", "best"])
    curve = tables.curves(records, "m")
    assert curve[curve["method"] == "b"][["layer", "spearman"]].values.tolist() == [
        [1, 4], [2, 2], [3, 3],
    ]  # fmt: skip
    assert tables.pareto_front(table["ms"], table["published"]).tolist() == [True, False, False]
    cost, score = pd.Series({"x": 30.0, "y": 33.0, "z": 60.0}), pd.Series({"x": 5, "y": 6, "z": 6})
    assert tables.pareto_front(cost, score).tolist() == [False, True, False]
    assert tables.pareto_front(cost, score, tolerance=0).tolist() == [True, True, False]
    gap = {"model": "m", "layers": "best", "baseline": "prompteol", "method": "a", "n": 9}
    gap |= {"points": 2.0, "low": 1.0, "high": 3.0, "level": 0.95}
    assert str(tables.gains(pd.DataFrame([gap]), "m", "best")["a"]) == "leads by 2.0 [1.0, 3.0]"
    more = [gap, {**gap, "model": "n", "points": -1.0}]
    more += [{**gap, "method": "b", "model": name, "points": 0.5} for name in "mn"]
    more.append({**gap, "method": "c", "points": 8.0})
    gained = {name: tables.gains(pd.DataFrame(more), name, "best") for name in "mn"}
    assert tables.recommended(gained, {"a": 1, "b": 2, "c": 1}, 2) == ("b", 0.5)
    assert tables.recommended(gained, {"a": 1, "b": 2, "c": 1}, 1) == ("prompteol", 0.0)
    with pytest.raises(ValueError, match="no record of b on stsb dev; measured models: m"):
        tables.curves(records, "b")
    with pytest.raises(ValueError, match="unknown layers 'last'; allowed: published"):
        tables.gains(pd.DataFrame([gap]), "m", "last")
