"""Linear layers through oneDNN: the same products, from the weights as they are now."""

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
