"""The loss, and its gradient by chunks: that of one graph, dropout included."""

import functools

import numpy as np
import pytest
import torch
from samples import WORDS

from prompteol_utils.encoder import Encoder
from prompteol_utils.encoder.batching import batches, even_budget
from prompteol_utils.finetuning import cached_backward, contrastive_loss, dropout, triplet_loss
from prompteol_utils.models import LoadedModel, tiny_model

LOSS = functools.partial(triplet_loss, temperature=0.05)


def sentences(n: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, int(rng.integers(2, 25)))) for _ in range(n)]


def reader(lora_dropout: float, architecture: str = "llama") -> Encoder:
    """An encoder over a tiny model with LoRA whose weights are not zero."""
    from peft import LoraConfig, get_peft_model

    base = tiny_model(architecture, spread=0.1)
    torch.manual_seed(1)
    config = LoraConfig(
        r=4, lora_dropout=lora_dropout, target_modules="all-linear", init_lora_weights=False
    )
    model = get_peft_model(base.model, config).train()
    return Encoder(
        LoadedModel(model, base.tokenizer, "tiny", "random", "float32", "cpu"), prefix_cache=False
    )


def trained(encoder: Encoder) -> list[torch.nn.Parameter]:
    return [p for p in encoder.loaded.model.parameters() if p.requires_grad]


def gradients(encoder: Encoder) -> torch.Tensor:
    flat = torch.cat([p.grad.flatten() for p in trained(encoder)])
    for p in trained(encoder):
        p.grad = None
    return flat


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def masks(ids, chunk, seed: int = 7):
    """Masks by sentence: what the trainer draws on a CPU."""
    return dropout.sentence_masks(
        [(seed, position) for position in chunk], [len(ids[position]) for position in chunk]
    )


def by_chunks(encoder, ids, chunk_tokens=150, num_workers=1, **options):
    torch.manual_seed(7)
    value = cached_backward(
        encoder.vectors, ids, LOSS, chunk_tokens, parameters=trained(encoder),
        num_workers=num_workers, **options,
    )  # fmt: skip
    return value, gradients(encoder)


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


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_without_dropout_it_is_the_gradient_of_the_plain_batch(num_workers):
    encoder = reader(0.0)
    ids = encoder.tokenize(sentences(24))
    loss = LOSS(encoder.vectors(ids))
    loss.backward()
    plain = gradients(encoder)
    value, found = by_chunks(encoder, ids, num_workers=num_workers)
    assert value.item() == pytest.approx(loss.item(), rel=1e-6)
    assert relative(found, plain) < 1e-5
    shuffled = [*ids[1:], ids[0]]
    assert relative(by_chunks(encoder, shuffled, num_workers=num_workers)[1], plain) > 1e-2


@pytest.mark.parametrize("num_workers", [1, 2, 4])
@pytest.mark.parametrize("chunk_tokens", [60, 150, 10_000])
def test_gradient_with_dropout_does_not_depend_on_chunks_or_workers(num_workers, chunk_tokens):
    encoder = reader(0.3)
    dropout.use_sentence_dropout(encoder.loaded.model)
    ids = encoder.tokenize(sentences(24))
    assert len(list(batches([len(row) for row in ids], 150))) > 3
    with masks(ids, range(len(ids))):
        value = LOSS(encoder.vectors(ids))
    value.backward()
    one_graph = gradients(encoder)
    found, gradient = by_chunks(
        encoder, ids, chunk_tokens, num_workers, randomness=functools.partial(masks, ids)
    )
    assert found.item() == pytest.approx(value.item(), rel=1e-6)
    assert relative(gradient, one_graph) < 5e-6
    other = functools.partial(masks, ids, seed=8)
    assert relative(by_chunks(encoder, ids, randomness=other)[1], one_graph) > 1e-2, (
        "other masks must give another gradient, or this test tells nothing"
    )


def test_workers_give_the_gradient_of_the_serial_order_and_the_same_bits_every_time():
    encoder = reader(0.3)
    dropout.use_sentence_dropout(encoder.loaded.model)
    ids = encoder.tokenize(sentences(24))
    draw = functools.partial(masks, ids)
    runs = [by_chunks(encoder, ids, 100, 3, randomness=draw)[1] for _ in range(3)]
    assert all(torch.equal(gradient, runs[0]) for gradient in runs)
    chunk_tokens = even_budget([len(row) for row in ids], 100, 3, padded=True)
    assert relative(by_chunks(encoder, ids, chunk_tokens, randomness=draw)[1], runs[0]) < 1e-6


@pytest.mark.parametrize("architecture", ["llama", "opt"])
def test_torchs_own_dropout_is_drawn_alike_in_both_passes(architecture, monkeypatch):
    """Serial chunks, OPT's own dropout among them; the graphs of all chunks give the same sum."""
    encoder = reader(0.3, architecture)
    ids = encoder.tokenize(sentences(24))
    torch.manual_seed(7)
    seed = int(torch.randint(2**62, ()))
    chunks = list(batches([len(row) for row in ids], 150))
    parts = []
    for chunk in chunks:
        torch.manual_seed(seed + min(chunk))
        parts.append(encoder.vectors([ids[i] for i in chunk]))
    order = torch.tensor([position for chunk in chunks for position in chunk])
    LOSS(torch.cat(parts)[order.argsort()]).backward()
    one_graph = gradients(encoder)
    assert relative(by_chunks(encoder, ids)[1], one_graph) < 1e-5
    torch.manual_seed(7)
    before = torch.get_rng_state()
    cached_backward(encoder.vectors, ids, LOSS, 150)
    gradients(encoder)
    torch.set_rng_state(before)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "manual_seed", lambda seed: None)
        assert relative(by_chunks(encoder, ids)[1], one_graph) > 1e-3


def test_sentence_dropout_drops_the_share_that_was_asked_for():
    layer, x = dropout.SentenceDropout(0.05), torch.ones(2, 400, 500, requires_grad=True)
    with dropout.sentence_masks([(1,), (2,)], [400, 400]):
        y = layer(x)
    dropped = (y == 0).float().mean()
    assert abs(dropped - 0.05) < 0.002 and abs(y.mean() - 1) < 0.002
    y.sum().backward()
    assert torch.equal(x.grad, y), "what is dropped gets no gradient, the rest is scaled alike"
    assert not torch.equal(y[0], y[1])
    assert torch.equal(layer.eval()(x), x)


def test_memory_holds_one_graph_a_worker():
    encoder, alive, most = reader(0.0), [0], [0]
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
    most[0] = 0
    by_chunks(encoder, ids, 60, 2)
    assert alive[0] == 0 and most[0] == 2


def test_loss_that_is_not_finite_leaves_no_gradient():
    encoder = reader(0.0)
    value = cached_backward(
        encoder.vectors, encoder.tokenize(sentences(6)), lambda v: v.sum() * float("nan"), 100
    )
    assert torch.isnan(value) and all(p.grad is None for p in encoder.loaded.model.parameters())
