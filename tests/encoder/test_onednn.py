"""Linear layers through oneDNN: the same products, from the weights as they are now."""

from contextlib import nullcontext

import pytest
import torch

from prompteol_utils.encoder import onednn, patching

pytestmark = pytest.mark.skipif(
    not torch.backends.mkl.is_available(), reason="torch sends products to MKL only on x86"
)


@pytest.fixture
def layers():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(48, 96), torch.nn.Linear(96, 16, bias=False)).eval()


@pytest.mark.parametrize("limit", [0, 1 << 30])
@torch.inference_mode()
def test_same_products(layers, monkeypatch, limit):
    monkeypatch.setattr(onednn, "PACKED_BYTES", limit)
    for shape in ((1, 7, 48), (700, 48), (3, 48)):
        rows = torch.randn(shape)
        with onednn.fast_linear(layers):
            found = layers(rows)
        assert (layers[0].weight in onednn._packed) == bool(limit)
        assert torch.allclose(found, layers(rows), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_it_really_goes_another_way(layers):
    names = []
    with torch.autograd.profiler.profile() as profile, onednn.fast_linear(layers):
        layers(torch.randn(4, 48))
    names = {event.name for event in profile.function_events}
    assert "mkldnn::_linear_pointwise" in names and "aten::addmm" not in names


def test_a_changed_weight_is_packed_again(layers):
    rows = torch.randn(5, 48)
    with torch.inference_mode(), onednn.fast_linear(layers):
        before = layers(rows)
    with torch.no_grad():
        layers[0].weight.mul_(2)
    with torch.inference_mode(), onednn.fast_linear(layers):
        after = layers(rows)
    with torch.inference_mode():
        assert torch.allclose(after, layers(rows), atol=1e-5) and not torch.allclose(
            after, before, atol=0.1
        )


def test_other_dtypes_are_left_alone(layers):
    rows = torch.randn(4, 48, dtype=torch.bfloat16)
    expected = layers.to(torch.bfloat16)(rows)
    with onednn.fast_linear(layers):
        assert not any("forward" in vars(layer) for layer in layers) and torch.equal(
            layers(rows), expected
        )


def test_afterwards_the_layers_are_as_they_were(layers):
    with onednn.fast_linear(layers), pytest.raises(KeyError), onednn.fast_linear(layers):
        assert all("forward" in vars(layer) for layer in layers)
        raise KeyError
    assert not any("forward" in vars(layer) for layer in layers) and not patching._users


def test_what_somebody_put_in_place_of_a_layer_stays(layers):
    layers[0].forward = lambda rows: torch.nn.functional.linear(rows, layers[0].weight) + 7
    rows = torch.randn(4, 48)
    with torch.inference_mode():
        expected = layers(rows)
        with onednn.fast_linear(layers):
            found = layers(rows)
    assert torch.allclose(found, expected, atol=1e-5) and "forward" in vars(layers[0])


class Gated(torch.nn.Module):
    """The feed-forward block of LLaMA and those after it."""

    def __init__(self, activation, bias=False):
        super().__init__()
        self.gate_proj, self.up_proj = (torch.nn.Linear(48, 96, bias) for _ in range(2))
        self.down_proj, self.act_fn = torch.nn.Linear(96, 48, bias), activation

    def forward(self, rows):
        return self.down_proj(self.act_fn(self.gate_proj(rows)) * self.up_proj(rows))


class Clamped(Gated):
    """The same parts, and on common inputs the same numbers."""

    def forward(self, rows):
        return self.down_proj(self.act_fn(self.gate_proj(rows).clamp(max=10)) * self.up_proj(rows))


class Dropping(Gated):
    def forward(self, rows):
        return torch.nn.functional.dropout(super().forward(rows), 0.5, self.training)


class Routed(Gated):
    """One that needs more than the states."""

    def forward(self, rows, weight=2):
        return weight * self.down_proj(self.act_fn(self.gate_proj(rows)) * self.up_proj(rows))


def operators(block, rows):
    with (
        torch.inference_mode(),
        torch.autograd.profiler.profile() as profile,
        onednn.fast_linear(block),
    ):
        found = block(rows)
    return found, [event.name for event in profile.function_events]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", ["silu", "gelu_pytorch_tanh", "gelu", "relu"])
def test_a_gated_block_activates_within_its_products(name, bias):
    from transformers.activations import ACT2FN

    torch.manual_seed(1)
    block, rows = Gated(ACT2FN[name], bias), 3 * torch.randn(2, 7, 48)
    with torch.inference_mode():
        expected, _ = block(rows), operators(block, rows)  # the block is tried once
    found, names = operators(block, rows)
    assert (found - expected).norm() / expected.norm() < 1e-5
    assert sum("_linear_pointwise" in name for name in names) == 3 and "aten::mul" not in names


@pytest.mark.parametrize("kind", [Clamped, Dropping, Routed])
def test_blocks_of_another_formula_run_as_they_are(kind):
    torch.manual_seed(1)
    block, rows = kind(torch.nn.SiLU()).eval(), 100 * torch.randn(2, 7, 48)
    with torch.inference_mode():
        expected = block(rows)
    found, names = operators(block, rows)
    assert (found - expected).norm() / expected.norm() < 1e-5 and "aten::mul" in names


class Late(torch.nn.Module):
    def forward(self, rows, more):
        return rows * more


@pytest.mark.parametrize("activation", [torch.nn.Tanh(), torch.nn.Softplus()])
def test_an_activation_that_onednn_does_not_have_is_the_blocks_own(activation):
    block, rows = Gated(activation), 3 * torch.randn(2, 7, 48)
    with torch.inference_mode():
        expected = block(rows)
    found, names = operators(block, rows)
    assert (found - expected).norm() / expected.norm() < 1e-5 and "aten::mul" in names
    assert onednn._activation(Late()) is None, "one that cannot be asked"


@pytest.mark.parametrize("name", ["gate_proj", "up_proj", "down_proj", "act_fn"])
def test_nobody_who_looks_on_is_passed_by(name):
    block, rows, seen = Gated(torch.nn.SiLU()), torch.randn(4, 48), []
    with torch.inference_mode(), onednn.fast_linear(block):
        before = block(rows)
        handle = getattr(block, name).register_forward_hook(
            lambda layer, inputs, out: seen.append(out)
        )
        assert torch.allclose(block(rows), before, atol=1e-5) and len(seen) == 1, (
            "a hook that came while the context lasts"
        )
        handle.remove()
        everywhere = torch.nn.modules.module.register_module_forward_hook(
            lambda layer, inputs, out: seen.append(out)
        )
        block(rows)
        everywhere.remove()
        assert len(seen) > 4


def test_a_forward_put_into_a_block_is_called():
    block, rows = Gated(torch.nn.SiLU()), torch.randn(4, 48)
    with torch.inference_mode(), onednn.fast_linear(block):
        before = block(rows)
        block.up_proj.forward = lambda input: (
            torch.nn.functional.linear(input, block.up_proj.weight) + 7
        )
        changed = block(rows)
        del block.up_proj.forward
        assert not torch.allclose(changed, before, atol=0.1) and torch.allclose(
            block(rows), before, atol=1e-5
        )
    assert not any("forward" in vars(module) for module in block.modules()) and not patching._users


def test_layers_are_called_by_name_too():
    block, rows = Gated(torch.nn.SiLU()), torch.randn(4, 48)
    with torch.inference_mode(), onednn.fast_linear(block):
        assert torch.allclose(block.up_proj(input=rows), block.up_proj(rows)) and torch.allclose(
            block(rows=rows), block(rows), atol=1e-6
        )


def test_a_weight_changed_behind_torchs_back_is_packed_again(layers):
    rows = torch.randn(5, 48)
    with torch.inference_mode(), onednn.fast_linear(layers):
        layers(rows)
    layers[0].weight.data.mul_(2)  # as peft merges an adapter
    with torch.inference_mode():
        expected = layers(rows)
        with onednn.fast_linear(layers):
            assert torch.allclose(layers(rows), expected, atol=1e-5)


def test_another_default_dtype_or_device_changes_nothing(layers):
    block, rows = Gated(torch.nn.SiLU()), torch.randn(4, 48)
    with torch.inference_mode():
        expected = block(rows)
        with torch.device("meta"), onednn.fast_linear(block):
            assert torch.allclose(block(rows), expected, atol=1e-5)


def test_gradients_flow_through_a_gated_block():
    torch.manual_seed(1)
    block = Gated(torch.nn.SiLU())
    expected = gradients(block, torch.randn(5, 48), nullcontext())
    torch.manual_seed(1)
    block = Gated(torch.nn.SiLU())
    found = gradients(block, torch.randn(5, 48), onednn.fast_linear(block))
    assert len(found) == len(expected) == 5
    assert all(
        (one - other).norm() / other.norm() < 1e-5
        for one, other in zip(found, expected, strict=True)
    )


def gradients(layers, rows, context):
    """What a step would see: the output, and the gradients of rows and weights."""
    rows = rows.clone().requires_grad_()
    layers.zero_grad()
    with context:
        out = layers(rows)
    (out * torch.linspace(-1, 2, out.numel()).view(out.shape)).sum().backward()
    return [
        out.detach(),
        rows.grad,
        *(one.grad.clone() for one in layers.parameters() if one.grad is not None),
    ]


@pytest.mark.parametrize("trained", ["all", "last", "none"])
@pytest.mark.parametrize("shape", [(1, 7, 48), (33, 48), (2, 5, 48)])
def test_same_gradients(layers, trained, shape):
    layers.requires_grad_(trained == "all")
    layers[1].requires_grad_(trained != "none")
    rows = torch.randn(shape)
    expected = gradients(layers, rows, nullcontext())
    found = gradients(layers, rows, onednn.fast_linear(layers))
    assert len(found) == len(expected) == {"all": 5, "last": 3, "none": 2}[trained]
    for one, other in zip(found, expected, strict=True):
        assert other.norm() > 0.1 and (one - other).norm() / other.norm() < 1e-5


def test_gradients_go_another_way_too(layers):
    with torch.autograd.profiler.profile() as profile:
        gradients(layers, torch.randn(4, 48), onednn.fast_linear(layers))
    names = [event.name for event in profile.function_events]
    assert names.count("mkldnn::_linear_pointwise") == 4 and "aten::addmm" not in names


def test_weights_in_training_are_not_packed(layers):
    layers[1].requires_grad_(False)
    with torch.no_grad(), onednn.fast_linear(layers):
        layers(torch.randn(5, 48))
    assert layers[0].weight not in onednn._packed and layers[1].weight in onednn._packed


@pytest.fixture
def four_bits():
    """The same two layers in 4 bits, twice: as bitsandbytes runs them, and by this module."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        sizes = ((64, 128, True), (128, 64, False))
        made.append(
            torch.nn.Sequential(
                *(
                    bitsandbytes.nn.Linear4bit(i, o, b, torch.float32, quant_type="nf4")
                    for i, o, b in sizes
                )
            ).to("cpu")
        )
        for layer in made[-1]:
            layer.support_avx512bf16_for_cpu = False
    return made


@pytest.mark.parametrize("shape", [(1, 7, 64), (33, 64)])
def test_4bit_layers_are_those_of_bitsandbytes(four_bits, shape):
    rows = torch.randn(shape)
    with torch.inference_mode():
        expected = four_bits[0](rows)
        with onednn.fast_linear(four_bits[1]):
            found = four_bits[1](rows)
    assert (found - expected).norm() / expected.norm() < 1e-5 and (
        expected[..., 0, :] - expected[..., 1, :]
    ).norm() > 0.1
    expected, found = (
        gradients(*both)
        for both in zip(
            four_bits, (rows, rows), (nullcontext(), onednn.fast_linear(four_bits[1])), strict=True
        )
    )
    assert len(found) == len(expected) == 3, "the output, the gradients of the rows and of the bias"
    assert all(
        (one - other).norm() / other.norm() < 1e-5
        for one, other in zip(found, expected, strict=True)
    )


def test_4bit_layers_go_another_way(four_bits):
    with torch.autograd.profiler.profile() as profile:
        gradients(four_bits[1], torch.randn(4, 64), onednn.fast_linear(four_bits[1]))
    names = [event.name for event in profile.function_events]
    assert names.count("mkldnn::_linear_pointwise") == 4 and "bitsandbytes::gemm_4bit" not in names


def test_4bit_layers_in_16_bits_are_left_to_bitsandbytes(four_bits):
    rows = torch.randn(3, 64, dtype=torch.bfloat16)
    for layers in four_bits:
        for layer in layers:
            layer.compute_dtype = torch.bfloat16
    expected = four_bits[0](rows)
    with onednn.fast_linear(four_bits[1]):
        found = four_bits[1](rows)
    assert torch.equal(found, expected) and found.dtype == torch.bfloat16
