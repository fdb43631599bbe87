"""LoRA for the time of a training, on a model that is the caller's again afterwards."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
import torch.distributed as dist

from prompteol_utils.encoder.encoder import Encoder
from prompteol_utils.finetuning import processes
from prompteol_utils.finetuning.config import FinetuneConfig
from prompteol_utils.finetuning.dropout import use_sentence_dropout
from prompteol_utils.models import adapters


def check_start(encoder: Encoder, config: FinetuneConfig, start: str | os.PathLike) -> None:
    """See whether an adapter can be trained further on this base with these settings.

    Args:
        encoder: The base.
        config: Rank, alpha and layers, which have to be those of the adapter.
        start: Its folder, or that of the run that made it.

    Raises:
        ValueError: It was trained on other weights, or with another rank or alpha. Another
            precision or prompt is only a warning.
    """
    before = adapters.settings(start)
    for name, here, there in (
        ("rank", config.rank, before.get("r")),
        ("alpha", config.alpha, before.get("lora_alpha")),
    ):
        if here != there:
            raise ValueError(
                f"adapter {str(start)!r} was trained with {name} {there}, and here it is {here}; "
                f"give the {name} that it was trained with"
            )
    label = adapters.name_of(adapters.weights_file(start).parent)
    adapters.check_base(encoder.loaded, start, label)
    trained = adapters.read(start).get("prompt")
    adapters.check_prompt(
        replace(encoder.loaded, adapter=label, trained_prompt=trained), encoder.prompt
    )


@contextmanager
def lora_encoder(
    encoder: Encoder, config: FinetuneConfig, start: str | os.PathLike | None = None
) -> Iterator[Encoder]:
    """Put LoRA weights in fp32 on an encoder's model, the same on every process.

    No weight of the base changes its dtype: training, dev scores and a later
    `load_model(adapter=…)` run on the same model. (peft's `prepare_model_for_kbit_training` would
    turn norms and embeddings, and so all activations, to fp32.)

    Args:
        encoder: The base.
        config: Rank, alpha, dropout, layers and seed.
        start: An adapter to begin with; None begins with one that changes nothing.

    Yields:
        An encoder of the model with LoRA. Afterwards the base has no LoRA, and requires gradients
        and checkpoints its layers' inputs as it did before.
    """
    base = encoder.loaded.model
    required = [(parameter, parameter.requires_grad) for parameter in base.parameters()]
    # Chunks bound the memory, so no layer is run again in the backward pass.
    checkpointed = [m for m in base.modules() if getattr(m, "gradient_checkpointing", False)]
    for module in checkpointed:
        module.gradient_checkpointing = False
    torch.manual_seed(config.seed)
    model = adapters.add_lora(
        base, rank=config.rank, alpha=config.alpha, dropout=config.dropout, layers=config.layers
    )
    try:
        use_sentence_dropout(model)
        if start is not None:
            _load(model, start)
        for parameter in model.parameters():
            if parameter.requires_grad and processes.count() > 1:
                dist.broadcast(parameter.data, 0)
        yield same_reading(encoder, replace(encoder.loaded, model=model, adapter="in training"))
    finally:
        model.unload()
        base.eval()
        for parameter, flag in required:
            parameter.requires_grad_(flag)
        for module in checkpointed:
            module.gradient_checkpointing = True


def same_reading(encoder: Encoder, loaded) -> Encoder:
    """Return an encoder with the same prompt and pooling, without anything cached."""
    return Encoder(
        loaded,
        encoder.prompt,
        pooling=encoder.pooling,
        layer=encoder.layer,
        max_sentence_tokens=encoder.max_sentence_tokens,
    )


@contextmanager
def lora_in_input_dtype(model: torch.nn.Module) -> Iterator[None]:
    """Compute LoRA's products in the dtype of a 16-bit base; its fp32 weights stay the masters.

    peft by itself turns each layer's input to fp32, and autograd would keep that copy for every
    LoRA layer: more than all else that a decoder layer keeps.
    """
    from peft.helpers import disable_input_dtype_casting

    layers = [
        layer
        for module in model.modules()
        for name in ("lora_A", "lora_B")
        for layer in getattr(module, name, {}).values()
    ]
    with disable_input_dtype_casting(model):
        for layer in layers:
            layer.forward = partial(_linear_in_input_dtype, layer)
        try:
            yield
        finally:
            for layer in layers:
                del layer.forward


def _linear_in_input_dtype(layer: torch.nn.Linear, input: torch.Tensor) -> torch.Tensor:
    bias = None if layer.bias is None else layer.bias.to(input.dtype)
    return torch.nn.functional.linear(input, layer.weight.to(input.dtype), bias)


def _load(model, start: str | os.PathLike) -> None:
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from peft.utils import load_peft_weights

    weights = load_peft_weights(adapters.find(start), device="cpu")
    wanted = get_peft_model_state_dict(model, save_embedding_layers=False)
    shapes, found = ({name: tuple(w.shape) for name, w in d.items()} for d in (wanted, weights))
    if shapes != found:
        name = next(name for name in shapes | found if shapes.get(name) != found.get(name))
        raise ValueError(
            f"adapter {str(start)!r} cannot be trained further with these settings: {name} has "
            f"shape {found.get(name)} there and {shapes.get(name)} here; give the layers and the "
            "base that it was trained with"
        )
    set_peft_model_state_dict(model, weights)
