"""What a model costs before it is loaded: memory from its configuration, time from its work."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd
import torch

from prompteol_utils.models.registry import MODELS, ModelSpec, Shape
from prompteol_utils.utils import devices

GB = 10**9
CARDS = (8, 16, 24, 48, 80, 141)  # GB
# Peak 16-bit matrix speed without sparsity, as vendors state it; a run reaches a part of it.
PEAK = {"T4": 65e12, "RTX 4090": 165e12, "A100": 312e12, "H100": 989e12}
# Of the peak, for batches of thousands of tokens: an assumption, not a measurement.
ASSUMED_MFU = 0.4
LORA_RANK = 64  # the paper's
BITS = {None: 0, "nf4": 4, "int8": 8}
# On a CPU, chosen by measurements of the 135M model in three precisions and checked on Gemma 270M:
# what kernels set aside, whatever the batch, and how often the numbers of a batch are there: once
# in use, and once more as freed blocks that the C library keeps for the next layer.
WORKSPACE = 24 * 10**6
KEPT = 2
# fp32 matrices up to this size are kept a second time, in the kernel's order (encoder/onednn.py).
PACKED_BYTES = 1 << 30
# NF4: a scale of 8 bits for every 64 weights, and one of 32 bits for every 256 of these.
_EXTRA_BITS = {4: 8 / 64 + 32 / (64 * 256)}


@dataclass(frozen=True)
class Estimate:
    """Bytes that a model needs, part by part.

    Args:
        weights: All parameters as they are stored.
        activations: What one batch needs beside them, copies of weights and buffers included.
        training: LoRA's matrices, their gradients and AdamW's two moments; 0 for encoding.
    """

    weights: int
    activations: int
    training: int = 0

    @property
    def total(self) -> int:
        """Their sum."""
        return self.weights + self.activations + self.training


def parameters(shape: Shape, kind: str = "causal") -> dict[str, int]:
    """Count a model's weights from its shape.

    Norms, biases and learned positions (about a hundredth) are left out.

    Args:
        shape: Its numbers.
        kind: A "causal" model has an output layer, shared with the word embedding where `tied`.

    Returns:
        {"matrices": those of the layers, which quantisation shrinks; "embeddings": the others}.
    """
    queries = shape.heads * shape.head_dim
    keys = shape.kv_heads * shape.head_dim
    attention = shape.hidden * (2 * queries + 2 * keys)
    feed_forward = shape.hidden * shape.ffn * (3 if shape.gated_mlp else 2)
    tables = 2 if kind == "causal" and not shape.tied else 1
    projections = 2 * shape.embedding * shape.hidden if shape.embedding != shape.hidden else 0
    return {
        "matrices": shape.layers * (attention + feed_forward) + projections,
        "embeddings": tables * shape.vocab * shape.embedding,
    }


def count_weights(model_class, config) -> tuple[int, int] | None:
    """Count a model's weights exactly, experts included, on an instance without memory.

    Args:
        model_class: A transformers auto class.
        config: Its configuration.

    Returns:
        Weights of linear layers below the head, which quantisation shrinks, and all others; None
        where the class cannot be built this way.
    """
    from transformers.pytorch_utils import Conv1D

    try:
        with torch.device("meta"):
            model = model_class.from_config(copy.deepcopy(config))
    except Exception:  # an estimate is no reason to refuse a model
        return None
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    linear = sum(
        module.weight.numel()
        for module in model.modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    )
    return linear, sum(weight.numel() for weight in model.parameters()) - linear


def _weights(spec: ModelSpec) -> tuple[int, int]:
    if spec.weights is not None:
        return spec.weights
    if spec.shape is None:
        raise ValueError(f"the memory of {spec.name} cannot be estimated: its shape is not known")
    count = parameters(spec.shape, spec.kind)
    return count["matrices"], count["embeddings"]


def estimate_memory(
    spec: "ModelSpec | Shape",
    *,
    bits: int,
    batch_tokens: int,
    training: bool = False,
    compute_bits: int | None = None,
    device: str | None = None,
) -> Estimate:
    """Estimate a model's memory from its configuration alone.

    Args:
        spec: A registry entry (or one from `loading.find_spec`), or a shape.
        bits: Of a stored weight: 32, 16, 8 or 4. Embeddings are never quantised.
        batch_tokens: Tokens in one batch, padding included.
        training: LoRA on top: rank 64 on every matrix, its weights and AdamW in fp32, and what
            autograd keeps of a batch (a chunk, with cached gradients) for the backward pass.
        compute_bits: Of a number while it is computed with, where `bits` is 4 or 8: 16 on a GPU,
            32 on a CPU. None: 16.
        device: "cpu" or "cuda". None: a CPU where it computes in 32 bits.

    Returns:
        Its parts in bytes. The process itself (Python, torch, CUDA's context: 0.3 to 0.6 GB) and
        the tokenizer (up to 0.3 GB for a vocabulary of 262,144) come on top.

    Raises:
        ValueError: Another number of bits, or a model without a shape.

    Source: the arithmetic of the layers; NF4's overhead as in QLoRA (arXiv 2305.14314).
    """
    if bits not in (32, 16, 8, 4):
        raise ValueError(f"bits is 32, 16, 8 or 4, got {bits!r}")
    if isinstance(spec, Shape):
        spec = ModelSpec("a shape", "", "", "", "", shape=spec)
    compute = (compute_bits or 16 if bits < 16 else bits) / 8
    matrices, others = _weights(spec)
    weights = round(matrices * (bits + _EXTRA_BITS.get(bits, 0)) / 8 + others * compute)
    shape = spec.shape
    if shape is None:
        return Estimate(weights, WORKSPACE)
    queries = shape.heads * shape.head_dim
    keys = shape.kv_heads * shape.head_dim
    mlp = (3 if shape.gated_mlp else 2) * shape.ffn
    # Numbers a token at the widest moment of a layer: word embedding, the layer's input, the sum
    # after its attention and what was normed are all still there (counted tensor by tensor on the
    # 135M model: 3 % more than this).
    widest = 4 * shape.hidden + max(2 * queries + 2 * keys, mlp)
    widest_matrix = shape.hidden * max(shape.ffn, queries)
    dequantised = widest_matrix * compute if bits < 16 else 0
    cpu = device == "cpu" if device else compute == 4
    if training:
        kept = batch_tokens * _kept_per_token(shape, compute, compute if cpu else 1)
        cast = lora_weights(shape) * compute if compute < 4 else 0  # 16-bit copies of the masters
        return Estimate(weights, round(kept + cast + dequantised), 16 * lora_weights(shape))
    packed = matrices * 4 if bits == 32 and matrices * 4 <= PACKED_BYTES else 0
    batch = batch_tokens * widest * compute * (KEPT if cpu else 1) + (WORKSPACE if cpu else 0)
    return Estimate(weights, round(batch + dequantised + packed))


def _kept_per_token(shape: Shape, compute: float, mask: float) -> float:
    """Bytes a token that autograd keeps, as `saved_tensors_hooks` counts them.

    Args:
        shape: The model's numbers.
        compute: Bytes of a number in the forward pass: 2 on a 16-bit base, else 4.
        mask: Bytes of an entry of a mask of the model's own dropout; LoRA's take 1.
    """
    queries = shape.heads * shape.head_dim
    modules = 7 if shape.gated_mlp else 6
    inputs = (modules - 2) * shape.hidden + queries + shape.ffn  # of all LoRA modules
    kept = inputs * (1 + compute)  # dropout's mask, and what it lets through
    kept += modules * LORA_RANK * compute
    kept += 4 * queries * compute + 4 * shape.heads  # q, k, v, output; softmax's normaliser
    if shape.gated_mlp:  # gate, its activation, up; RMSNorm keeps its input in fp32
        kept += 3 * shape.ffn * compute + 2 * shape.hidden * 4
    else:  # the activation; LayerNorm's input; two dropouts on the residual stream (OPT's)
        kept += shape.ffn * compute + 2 * shape.hidden * (compute + mask)
    return shape.layers * kept


def lora_weights(shape: Shape, rank: int = LORA_RANK) -> int:
    """Count the weights of LoRA matrices on every linear layer."""
    queries = shape.heads * shape.head_dim
    keys = shape.kv_heads * shape.head_dim
    reads = (5 if shape.gated_mlp else 4) * shape.hidden + queries + shape.ffn
    writes = queries + 2 * keys + 2 * shape.hidden + (2 if shape.gated_mlp else 1) * shape.ffn
    return rank * shape.layers * (reads + writes)


def shape_of(config) -> Shape | None:
    """Read the numbers of a transformers configuration; None where it does not have them all.

    A number that differs by layer is given as a list: the largest counts.

    Args:
        config: Of any text model.
    """
    config = config.get_text_config()

    def get(*names):
        found = (getattr(config, name, None) for name in names)
        value = next((value for value in found if value is not None), None)
        return max(value) if isinstance(value, list | tuple) and value else value

    layers = get("num_hidden_layers")
    hidden = get("hidden_size")
    heads = get("num_attention_heads")
    if not (layers and hidden and heads and get("vocab_size")):
        return None
    return Shape(
        layers=layers,
        hidden=hidden,
        ffn=get("intermediate_size", "ffn_dim", "d_ff", "n_inner") or 4 * hidden,
        heads=heads,
        kv_heads=get("num_key_value_heads") or heads,
        head_dim=get("head_dim", "d_kv") or hidden // heads,
        vocab=config.vocab_size,
        embedding=get("word_embed_proj_dim") or hidden,
        positions=get("max_position_embeddings", "n_positions") or 0,
        gated_mlp=get("hidden_act", "hidden_activation") in ("silu", "gelu_pytorch_tanh"),
        tied=bool(get("tie_word_embeddings")),
        source="its configuration",
    )


def fitting_table(
    models: "Iterable[str | ModelSpec] | None" = None,
    *,
    training: bool = False,
    batch_tokens: int = 2_048,
    cards: Sequence[int] = CARDS,
) -> pd.DataFrame:
    """Tabulate which size fits on which card.

    Args:
        models: Names or specs (`loading.find_spec` makes one for a hub id or a folder); None takes
            all language models of the registry.
        training: QLoRA instead of encoding: 4 bits.
        batch_tokens: Tokens in a batch; larger ones are faster and take more.
        cards: Memory in GB; a twelfth is left free for CUDA's context and fragments.

    Returns:
        For each model: parameters (in billions), GB at each precision, and for each card the most
        precise weights that fit ("16 bit", "8 bit", "4 bit") or "–".
    """
    table = []
    known = [spec for spec in MODELS.values() if spec.kind == "causal" and not spec.adapter_of]
    for spec in list(models or ()) or known:
        spec = MODELS[spec] if isinstance(spec, str) else spec
        options = {"batch_tokens": batch_tokens, "training": training}
        need = {
            bits: estimate_memory(spec, bits=bits, **options).total / GB
            for bits in ((4,) if training else (16, 8, 4))
        }
        entry = {"model": spec.name, "billions": sum(_weights(spec)) / 1e9}
        entry |= {f"{bits} bit, GB": value for bits, value in need.items()}
        for card in cards:
            fits = [f"{bits} bit" for bits in need if need[bits] <= card * 11 / 12]
            entry[f"{card} GB"] = fits[0] if fits else "–"
        table.append(entry)
    return pd.DataFrame(table)


def forward_flops(spec: ModelSpec, tokens: int) -> float:
    """Count the operations of reading so many tokens: two for every weight of the matrices."""
    return 2.0 * parameters(spec.shape, spec.kind)["matrices"] * tokens


def seconds_per_million(spec: ModelSpec, speed: float, tokens_per_sentence: float = 25) -> float:
    """Estimate the seconds for a million sentences.

    Args:
        spec: A registry entry.
        speed: Operations a second: measured, or `ASSUMED_MFU` of a card's `PEAK`.
        tokens_per_sentence: Those that are computed (the prefix is shared): about 14 of an STS
            sentence and 11 of the prompt.
    """
    return forward_flops(spec, 1) * tokens_per_sentence * 1e6 / speed


def check_fits(
    spec: ModelSpec, *, bits: int, device: torch.device, batch_tokens: int | None = None
) -> Estimate | None:
    """Say before it is loaded that a model is larger than the memory.

    Args:
        spec: A registry entry; without a shape nothing is checked.
        bits: Of a stored weight.
        device: Where it will run.
        batch_tokens: None takes the encoder's default.

    Returns:
        The estimate, None without a shape.

    Raises:
        devices.NotEnoughMemoryError: Says what is needed, what is free, and what would fit.
    """
    if spec.shape is None and spec.weights is None:
        return None
    options = {
        "batch_tokens": batch_tokens or devices.BATCH_TOKENS[device.type],
        "compute_bits": 32 if device.type == "cpu" else 16,
        "device": "cpu" if device.type == "cpu" else "cuda",
    }
    need = estimate_memory(spec, bits=bits, **options)
    free = devices.available_memory(device)
    if need.weights <= free:  # a batch that does not fit is halved, weights cannot be
        return need

    def fits(other: ModelSpec, precision: int) -> bool:
        return estimate_memory(other, bits=precision, **options).total <= free

    instead = [f"{spec.name} ({b} bits)" for b in (16, 8, 4) if b < bits and fits(spec, b)]
    family = [
        other
        for other in MODELS.values()
        if other.architecture == spec.architecture and not other.adapter_of and fits(other, bits)
    ]
    family.sort(key=lambda other: -sum(_weights(other)))
    instead += [f"{other.name} ({bits} bits)" for other in family[:2]]
    raise devices.NotEnoughMemoryError(
        f"{spec.name} needs {need.total / GB:.1f} GB at {bits} bits a weight "
        f"({need.weights / GB:.1f} for its weights), and {free / GB:.1f} GB are free on {device}. "
        f"What would fit: {', '.join(instead) or 'none of its kind'}. "
        "`prompteol models --memory` shows all"
    )


def compare(records: pd.DataFrame) -> pd.DataFrame:
    """Set today's estimates beside recorded measurements.

    Args:
        records: Records of kind "memory".

    Returns:
        model, precision, batch_tokens, "estimate, MB", "measured, MB", ratio (estimate / measured);
        the last measurement of each.
    """
    table = []
    for record in records.to_dict("records"):
        estimate = estimate_memory(
            MODELS[record["model"]],
            bits=record["bits"],
            batch_tokens=record["batch_tokens"],
            compute_bits=32 if record["dtype"] == "float32" else 16,
            device=record["device"].partition(":")[0],
        )
        quantized = isinstance(record["quantization"], str)
        table.append(
            {
                "model": record["model"],
                "precision": record["quantization"] if quantized else record["dtype"],
                "batch_tokens": record["batch_tokens"],
                "estimate, MB": estimate.total / 1e6,
                "measured, MB": record["measured_peak"] / 1e6,
                "ratio": estimate.total / record["measured_peak"],
            }
        )
    by = ["model", "precision", "batch_tokens"]
    columns = [*by, "estimate, MB", "measured, MB", "ratio"]
    return pd.DataFrame(table, columns=columns).drop_duplicates(by, keep="last").sort_values(by)
