"""Linear layers through oneDNN: the same products, from the weights as they are now."""

from contextlib import nullcontext

import pytest
import torch

from prompteol_utils import linear

pytestmark = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="torch sends products to MKL only on x86")


@pytest.fixture
def layers():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(48, 96), torch.nn.Linear(96, 16, bias=False)).eval()


@pytest.mark.parametrize("limit", [0, 1 << 30])
@torch.inference_mode()
def test_same_products(layers, monkeypatch, limit):
    monkeypatch.setattr(linear, "PACKED_BYTES", limit)
    for shape in ((1, 7, 48), (700, 48), (3, 48)):
        rows = torch.randn(shape)
        with linear.fast_linear(layers) as mode:
            found = layers(rows)
        assert mode.pack == bool(limit)
        assert torch.allclose(found, layers(rows), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_it_really_goes_another_way(layers):
    names = []
    with torch.autograd.profiler.profile() as profile, linear.fast_linear(layers):
        layers(torch.randn(4, 48))
    names = {event.name for event in profile.function_events}
    assert "mkldnn::_linear_pointwise" in names and "aten::addmm" not in names


def test_a_changed_weight_is_packed_again(layers):
    rows = torch.randn(5, 48)
    with torch.inference_mode(), linear.fast_linear(layers):
        before = layers(rows)
    with torch.no_grad():
        layers[0].weight.mul_(2)
    with torch.inference_mode(), linear.fast_linear(layers):
        after = layers(rows)
    with torch.inference_mode():
        assert torch.allclose(after, layers(rows), atol=1e-5) and not torch.allclose(after, before, atol=0.1)


def test_other_dtypes_are_left_alone(layers):
    with linear.fast_linear(layers.to(torch.bfloat16)) as mode:
        assert mode is None


def gradients(layers, rows, context):
    """What a step would see: the output, and the gradients of rows and weights."""
    rows = rows.clone().requires_grad_()
    layers.zero_grad()
    with context:
        out = layers(rows)
    (out * torch.linspace(-1, 2, out.numel()).view(out.shape)).sum().backward()
    return [out.detach(), rows.grad, *(one.grad.clone() for one in layers.parameters() if one.grad is not None)]


@pytest.mark.parametrize("trained", ["all", "last", "none"])
@pytest.mark.parametrize("shape", [(1, 7, 48), (33, 48), (2, 5, 48)])
def test_same_gradients(layers, trained, shape):
    layers.requires_grad_(trained == "all")
    layers[1].requires_grad_(trained != "none")
    rows = torch.randn(shape)
    expected = gradients(layers, rows, nullcontext())
    found = gradients(layers, rows, linear.fast_linear(layers))
    assert len(found) == len(expected) == {"all": 5, "last": 3, "none": 2}[trained]
    for one, other in zip(found, expected, strict=True):
        assert other.norm() > 0.1 and (one - other).norm() / other.norm() < 1e-5


def test_gradients_go_another_way_too(layers):
    with torch.autograd.profiler.profile() as profile:
        gradients(layers, torch.randn(4, 48), linear.fast_linear(layers))
    names = [event.name for event in profile.function_events]
    assert names.count("mkldnn::_linear_pointwise") == 4 and "aten::addmm" not in names


def test_weights_in_training_are_not_packed(layers):
    layers[1].requires_grad_(False)
    with torch.no_grad(), linear.fast_linear(layers):
        layers(torch.randn(5, 48))
    assert layers[0].weight not in linear._packed and layers[1].weight in linear._packed


@pytest.fixture
def four_bits():
    """The same two layers in 4 bits, twice: as bitsandbytes runs them, and by this module."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        sizes = ((64, 128, True), (128, 64, False))
        made.append(
            torch.nn.Sequential(*(bitsandbytes.nn.Linear4bit(i, o, b, torch.float32, quant_type="nf4") for i, o, b in sizes)).to("cpu")
        )
        for layer in made[-1]:
            layer.support_avx512bf16_for_cpu = False
    linear.fast_4bit(made[1])
    return made


@pytest.mark.parametrize("shape", [(1, 7, 64), (33, 64)])
def test_4bit_layers_are_those_of_bitsandbytes(four_bits, shape):
    rows = torch.randn(shape)
    with torch.inference_mode():
        expected, found = (layers(rows) for layers in four_bits)
    assert (found - expected).norm() / expected.norm() < 1e-5 and (expected[..., 0, :] - expected[..., 1, :]).norm() > 0.1
    expected, found = (gradients(layers, rows, nullcontext()) for layers in four_bits)
    assert len(found) == len(expected) == 3, "the output, the gradients of the rows and of the bias"
    assert all((one - other).norm() / other.norm() < 1e-5 for one, other in zip(found, expected, strict=True))


def test_4bit_layers_go_another_way(four_bits):
    with torch.autograd.profiler.profile() as profile:
        gradients(four_bits[1], torch.randn(4, 64), nullcontext())
    names = [event.name for event in profile.function_events]
    assert names.count("mkldnn::_linear_pointwise") == 4 and "bitsandbytes::gemm_4bit" not in names


def test_4bit_layers_in_16_bits_are_left_to_bitsandbytes(four_bits):
    rows = torch.randn(3, 64, dtype=torch.bfloat16)
    for layers in four_bits:
        for layer in layers:
            layer.compute_dtype = torch.bfloat16
    expected, found = (layers(rows) for layers in four_bits)
    assert torch.equal(found, expected) and found.dtype == torch.bfloat16
