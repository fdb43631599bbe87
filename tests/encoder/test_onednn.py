"""Linear layers through oneDNN: results and gradients of torch's own, from the current weights."""

import threading
from contextlib import nullcontext

import pytest
import torch

from prompteol_utils.encoder import onednn
from prompteol_utils.encoder.onednn import fast_linear

needs_operator = pytest.mark.skipif(
    onednn.measured_speedup() == 0.0, reason="this build of torch lacks the operator"
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    layers = (torch.nn.Linear(48, 96), torch.nn.SiLU(), torch.nn.Linear(96, 16, bias=False))
    return torch.nn.Sequential(*layers).eval().requires_grad_(False)


def run(model, x, enabled=True):
    with torch.inference_mode(), fast_linear(model, enabled=enabled):
        return model(x)


def gradients(model, x, context):
    """The output, the gradient of the input, and those of the parameters that have one."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    with context:
        out = model(x)
        (out * torch.linspace(-1, 2, out.numel()).view(out.shape)).sum().backward()
    return [
        out.detach(),
        x.grad,
        *(p.grad.clone() for p in model.parameters() if p.grad is not None),
    ]


def assert_close(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert other.norm() > 0
        assert (one - other).norm() / other.norm() < 1e-5


def has_replaced_forwards(model):
    return any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("shape", [(1, 7, 48), (700, 48), (3, 48), (48,), (0, 48)])
def test_same_output(model, shape):
    x = torch.randn(shape)
    torch.testing.assert_close(run(model, x), run(model, x, enabled=False), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("trained", ["all", "last", "bias", "none"])
@pytest.mark.parametrize("shape", [(1, 7, 48), (33, 48)])
def test_same_gradients(model, trained, shape):
    model.requires_grad_(trained == "all")
    model[2].requires_grad_(trained in ("all", "last"))
    model[0].bias.requires_grad_(trained in ("all", "bias"))
    x = torch.randn(shape)
    expected = gradients(model, x, nullcontext())
    assert_close(gradients(model, x, fast_linear(model, enabled=True)), expected)


def test_a_frozen_weight_changed_before_the_backward_pass_is_an_error(model):
    x = torch.randn(5, 48, requires_grad=True)
    with fast_linear(model, enabled=True):
        out = model(x)
    model[0].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_every_edit_of_a_weight_is_noticed(model):
    x = torch.randn(5, 48)
    with torch.inference_mode(), fast_linear(model, enabled=True):
        before = model(x)
        model[0].weight.data[5] = 0  # not counted by torch
        after = model(x)
    torch.testing.assert_close(after, run(model, x, enabled=False), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(after, before, atol=1e-4)


@pytest.mark.parametrize("kind", ["strided", "expanded", "slice of a fused bias"])
def test_biases_that_are_views(model, kind):
    views = {
        "strided": torch.randn(2 * 96)[::2],
        "expanded": torch.randn(1).expand(96),
        "slice of a fused bias": torch.randn(3 * 96)[96 : 2 * 96],
    }
    model[0].bias = torch.nn.Parameter(views[kind], requires_grad=False)
    x = torch.randn(5, 48)
    torch.testing.assert_close(run(model, x), run(model, x, enabled=False), atol=1e-5, rtol=1e-5)


def test_weights_that_are_views(model):
    model[0].weight = torch.nn.Parameter(torch.randn(48, 96).t(), requires_grad=False)
    model[2].weight = torch.nn.Parameter(torch.randn(32, 100)[::2, 1:97], requires_grad=False)
    x = torch.randn(96, 5).t()[:, ::2]
    torch.testing.assert_close(run(model, x), run(model, x, enabled=False), atol=1e-4, rtol=1e-4)


def test_other_dtypes_and_autocast_are_torchs_own(model):
    x = torch.randn(4, 48)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(run(model, x), run(model, x, enabled=False))
        assert run(model, x).dtype == torch.bfloat16
    model.to(torch.bfloat16)
    x = x.to(torch.bfloat16)
    assert torch.equal(run(model, x), run(model, x, enabled=False))


class Scaled(torch.nn.Linear):
    def forward(self, input):
        return 3 * super().forward(input)


def test_a_subclass_keeps_its_forward():
    model = torch.nn.Sequential(Scaled(8, 8)).requires_grad_(False)
    x = torch.randn(4, 8)
    torch.testing.assert_close(run(model, x), run(model, x, enabled=False))


def test_a_forward_that_someone_replaced_stays(model):
    x = torch.randn(4, 48)
    replaced = model[0].forward = lambda input: torch.full((len(input), 96), 7.0)
    torch.testing.assert_close(run(model, x), run(model, x, enabled=False), atol=1e-5, rtol=1e-5)
    assert model[0].forward is replaced
    del model[0].forward
    with fast_linear(model, enabled=True):
        model[2].forward = replaced
        assert model(x).shape == (4, 96)
    assert model[2].forward is replaced


def test_hooks_are_called(model):
    seen = []
    model[0].register_forward_pre_hook(lambda layer, inputs: seen.append("before"))
    with torch.inference_mode(), fast_linear(model, enabled=True):
        model[2].register_forward_hook(lambda layer, inputs, out: seen.append("after"))
        model(torch.randn(4, 48))
    assert seen == ["before", "after"]


def test_input_by_name(model):
    x = torch.randn(4, 48)
    with torch.inference_mode(), fast_linear(model, enabled=True):
        torch.testing.assert_close(model[0](input=x), model[0](x))


def test_the_model_is_restored(model):
    with pytest.raises(KeyError), fast_linear(model, enabled=True):
        with fast_linear(model, enabled=True):
            pass
        assert has_replaced_forwards(model)
        raise KeyError
    assert not has_replaced_forwards(model)


def test_overlapping_contexts(model):
    """As of two threads: the one that entered first may leave first."""
    first = fast_linear(model, enabled=True)
    second = fast_linear(model, enabled=True)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert has_replaced_forwards(model)
    second.__exit__(None, None, None)
    assert not has_replaced_forwards(model)


def test_threads_share_a_model(model):
    x = torch.randn(64, 48)
    expected = run(model, x, enabled=False)
    wrong = []

    def work():
        for _ in range(100):
            if not torch.allclose(run(model, x), expected, atol=1e-5):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert not has_replaced_forwards(model)


def test_another_default_device_or_dtype_changes_nothing(model):
    x = torch.randn(4, 48)
    expected = run(model, x, enabled=False)
    with torch.device("meta"):
        found = run(model, x)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("speedup", [0.0, 1.0, 2.0])
def test_the_measurement_decides(model, monkeypatch, speedup):
    monkeypatch.setattr(onednn, "measured_speedup", lambda: speedup)
    with fast_linear(model):
        assert has_replaced_forwards(model) == (speedup >= onednn.MIN_SPEEDUP)
    with fast_linear(model, enabled=False):
        assert not has_replaced_forwards(model)


@needs_operator
def test_the_measurement_leaves_threads_and_random_numbers_alone():
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    onednn.measured_speedup.cache_clear()
    assert 0.2 < onednn.measured_speedup() < 20
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_a_torch_without_the_operator_takes_the_public_path(model, monkeypatch):
    class Missing:
        def __getattr__(self, name):
            raise AttributeError(name)

    monkeypatch.setattr(torch.ops, "mkldnn", Missing())
    onednn.measured_speedup.cache_clear()
    x = torch.randn(4, 48)
    try:
        assert onednn.measured_speedup() == 0.0
        assert torch.equal(run(model, x, enabled=None), run(model, x, enabled=False))
    finally:
        onednn.measured_speedup.cache_clear()


@pytest.fixture
def four_bit():
    """Two 4-bit layers with the reference's settings."""
    import bitsandbytes as bnb

    torch.manual_seed(0)
    layers = [
        bnb.nn.Linear4bit(64, 128, True, torch.float32, quant_type="nf4"),
        bnb.nn.Linear4bit(128, 64, False, torch.float32, quant_type="nf4"),
    ]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False
    return torch.nn.Sequential(*layers).to("cpu").eval().requires_grad_(False)


@pytest.mark.parametrize("shape", [(1, 7, 64), (33, 64), (0, 64)])
def test_4bit_layers_give_the_output_of_bitsandbytes(four_bit, shape):
    x = torch.randn(shape)
    expected = run(four_bit, x, enabled=False)
    torch.testing.assert_close(run(four_bit, x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("trained_bias", [False, True])
def test_4bit_layers_have_the_gradients_of_bitsandbytes(four_bit, trained_bias):
    four_bit[0].bias.requires_grad_(trained_bias)
    x = torch.randn(33, 64)
    expected = gradients(four_bit, x, nullcontext())
    assert_close(gradients(four_bit, x, fast_linear(four_bit, enabled=True)), expected)


def test_4bit_layers_in_16_bits_are_left_to_bitsandbytes(four_bit):
    for layer in four_bit:
        layer.compute_dtype = torch.bfloat16
    for dtype in (torch.bfloat16, torch.float32):
        x = torch.randn(3, 64, dtype=dtype)
        assert torch.equal(run(four_bit, x), run(four_bit, x, enabled=False))


def test_lora_on_4bit_layers_trains_as_without(four_bit):
    """peft's wrapper of a 4-bit layer has the same class name, and its weight is the layer's."""
    import peft

    config = peft.LoraConfig(r=4, target_modules=["0", "1"], init_lora_weights=False)
    model = peft.get_peft_model(four_bit, config)
    x = torch.randn(5, 64)
    expected = gradients(model, x, nullcontext())
    assert len(expected) == 6, "output, input, and two LoRA matrices of each layer"
    assert_close(gradients(model, x, fast_linear(model, enabled=True)), expected)
    assert_close([run(model, x)], [expected[0]])
