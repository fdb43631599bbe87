"""The loss, and its gradient by chunks: equal to one graph, dropout included, on one process and on two."""

import functools

import numpy as np
import pytest
import torch

from prompteol_utils.encoder import Encoder, batches
from prompteol_utils.finetuning import cached_backward, contrastive, contrastive_loss, triplet_loss
from prompteol_utils.models import LoadedModel, tiny_model

WORDS = (
    "cat",
    "dog",
    "river",
    "boat",
    "garden",
    "night",
    "bridge",
    "child",
    "bread",
    "rain",
    "music",
    "street",
    "winter",
    "market",
)


def sentences(n: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, int(rng.integers(2, 25)))) for _ in range(n)]


def reader(dropout: float, architecture: str = "llama") -> Encoder:
    """An encoder over a tiny model with LoRA whose weights are not zero."""
    from peft import LoraConfig, get_peft_model

    base = tiny_model(architecture, spread=0.1)
    torch.manual_seed(1)
    config = LoraConfig(
        r=4, lora_dropout=dropout, target_modules="all-linear", init_lora_weights=False
    )
    model = get_peft_model(base.model, config).train()
    return Encoder(
        LoadedModel(model, base.tokenizer, "tiny", "random", "float32", "cpu"), prefix_cache=False
    )


def gradients(encoder: Encoder) -> torch.Tensor:
    parameters = [p for p in encoder.loaded.model.parameters() if p.requires_grad]
    flat = torch.cat([p.grad.flatten() for p in parameters])
    for p in parameters:
        p.grad = None
    return flat


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


LOSS = functools.partial(triplet_loss, temperature=0.05)


def by_chunks(encoder, ids, **options):
    torch.manual_seed(7)
    value = cached_backward(encoder.vectors, ids, LOSS, 150, **options)
    return value, gradients(encoder), torch.get_rng_state()


def in_one_graph(encoder, ids):
    """The same chunks, drawn with the same random numbers, all graphs alive."""
    torch.manual_seed(7)
    chunks = list(batches([len(row) for row in ids], 150))
    assert len(chunks) > 3
    vectors = torch.cat([encoder.vectors([ids[i] for i in chunk]) for chunk in chunks])
    value = LOSS(vectors[torch.tensor([row for chunk in chunks for row in chunk]).argsort()])
    value.backward()
    return value.detach(), gradients(encoder), torch.get_rng_state()


def test_loss_by_hand():
    torch.manual_seed(0)
    a, p, n = torch.randn(3, 4, 8)
    unit = torch.nn.functional.normalize
    for negative, candidates in ((n, torch.cat([p, n])), (None, p)):
        e = torch.exp(unit(a) @ unit(candidates).T / 0.05)
        expected = -torch.log(e.diagonal() / e.sum(1)).mean()
        assert contrastive_loss(a, p, negative).item() == pytest.approx(expected.item(), rel=1e-5)
    assert contrastive_loss(a, a, temperature=0.5) > 0.1 > contrastive_loss(a, a, temperature=0.05)
    with pytest.raises(ValueError, match="batch of one"):
        contrastive_loss(a[:1], p[:1])


@pytest.mark.parametrize("architecture", ["llama", "opt"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_of_chunks_is_that_of_one_graph(architecture, dropout):
    encoder = reader(dropout, architecture)
    ids = encoder.tokenize(sentences(24))
    one, many = in_one_graph(encoder, ids), by_chunks(encoder, ids)
    assert (
        many[0].item() == pytest.approx(one[0].item(), rel=1e-6)
        and relative(many[1], one[1]) < 1e-5
    )
    assert torch.equal(one[2], many[2]), "the random numbers after it are those of one pass"
    if dropout:
        torch.manual_seed(8)
        cached_backward(encoder.vectors, ids, LOSS, 150)
        assert relative(gradients(encoder), one[1]) > 1e-2, (
            "other dropout must give another gradient, or this test tells nothing"
        )


def test_without_dropout_it_is_the_gradient_of_the_plain_batch():
    encoder = reader(0.0)
    ids = encoder.tokenize(sentences(24))
    LOSS(encoder.vectors(ids)).backward()
    plain = gradients(encoder)
    assert relative(by_chunks(encoder, ids)[1], plain) < 1e-5
    shuffled = [*ids[1:], ids[0]]
    assert relative(by_chunks(encoder, shuffled)[1], plain) > 1e-2


def test_duplicates_are_embedded_once():
    encoder = reader(0.0)
    ids = encoder.tokenize(sentences(6) * 4)
    plain, seen = by_chunks(encoder, ids), []
    vectors = encoder.vectors
    encoder.vectors = lambda rows: seen.extend(map(tuple, rows)) or vectors(rows)
    merged = by_chunks(encoder, ids, deduplicate=True)
    assert relative(merged[1], plain[1]) < 1e-5 and len(set(seen)) == 6 and len(seen) < 12


def test_forgotten_random_state_is_seen(monkeypatch):
    encoder = reader(0.3)
    ids = encoder.tokenize(sentences(24))
    expected = in_one_graph(encoder, ids)[1]
    monkeypatch.setattr(contrastive, "_set_random_state", lambda state: None)
    assert relative(by_chunks(encoder, ids)[1], expected) > 1e-3


def test_memory_holds_one_graph_at_a_time():
    encoder, alive, most = reader(0.1), [0], [0]
    ids, vectors = encoder.tokenize(sentences(24)), encoder.vectors

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            alive[0] += 1
            most[0] = max(most[0], alive[0])
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            alive[0] -= 1
            return gradient

    encoder.vectors = lambda rows: (
        Counted.apply(vectors(rows)) if torch.is_grad_enabled() else vectors(rows)
    )
    by_chunks(encoder, ids)
    assert (alive[0], most[0]) == (0, 1)


def test_loss_that_is_not_finite_leaves_no_gradient():
    encoder = reader(0.0)
    value = cached_backward(
        encoder.vectors, encoder.tokenize(sentences(6)), lambda v: v.sum() * float("nan"), 100
    )
    assert torch.isnan(value) and all(p.grad is None for p in encoder.loaded.model.parameters())
