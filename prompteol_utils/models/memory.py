"""What a model costs before it is loaded: memory from the numbers of its configuration, time from its work and a machine's speed."""

from dataclasses import dataclass

import pandas as pd

from prompteol_utils.models.registry import MODELS, ModelSpec, Shape
from prompteol_utils.utils import devices

GB = 10**9
CARDS = (8, 16, 24, 48, 80, 141)  # GB
# Peak 16-bit matrix speed without sparsity, as vendors state it; a run reaches a part of it.
PEAK = {"T4": 65e12, "RTX 4090": 165e12, "A100": 312e12, "H100": 989e12}
ASSUMED_MFU = (
    0.4  # of the peak: an assumption for batches of thousands of tokens, not a measurement
)
BATCH_TOKENS = {"cpu": 512, "cuda": 16_384}  # the encoder's defaults
LORA_RANK = 64  # the paper's
BITS = {None: 0, "nf4": 4, "int8": 8}
# On a CPU, chosen by measurements of the 135M model in three precisions and checked on Gemma 270M: what kernels set aside, whatever the
# batch, and how often the numbers of a batch are there: once alive, and once more as freed blocks that the C library keeps for the
# next layer.
WORKSPACE, KEPT = 24 * 10**6, 2
PACKED_BYTES = (
    1 << 30
)  # fp32 matrices up to this size are kept a second time, in the order that the kernel reads (linear.py)
# NF4: a scale of 8 bits for every 64 weights, and one of 32 bits for every 256 of these (double quantisation).
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
    """Count a model's weights; norms, biases and learned positions (about a hundredth) are left out.

    Args:
        shape: Its numbers.
        kind: A "causal" model has an output layer, shared with the word embedding where `tied`.

    Returns:
        {"matrices": those of the layers, which quantisation shrinks; "embeddings": those that stay as they are}. Built in notebook 03.
    """
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    attention = shape.hidden * (2 * queries + 2 * keys)
    feed_forward = shape.hidden * shape.ffn * (3 if shape.gated_mlp else 2)
    tables = 2 if kind == "causal" and not shape.tied else 1
    projections = 2 * shape.embedding * shape.hidden if shape.embedding != shape.hidden else 0
    return {
        "matrices": shape.layers * (attention + feed_forward) + projections,
        "embeddings": tables * shape.vocab * shape.embedding,
    }


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
        spec: A registry row or its shape.
        bits: Of a stored weight: 32, 16, 8 or 4. Embeddings are never quantised.
        batch_tokens: Tokens in one batch, padding included.
        training: QLoRA on top: rank 64 on every matrix, AdamW in fp32, and all activations of a batch kept for the backward pass.
        compute_bits: Of a number while it is computed with, where `bits` is 4 or 8: 16 on a GPU, 32 on a CPU. None: 16.
        device: "cpu" or "cuda". None: a CPU where it computes in 32 bits.

    Returns:
        Its parts in bytes. The process itself (Python, torch, CUDA's context: 0.3 to 0.6 GB) and the tokenizer (up to 0.3 GB for a
        vocabulary of 262,144) come on top.

    Raises:
        ValueError: Another number of bits, or a row without a shape.

    Source: the arithmetic of the layers; NF4's overhead as in the QLoRA paper (arXiv 2305.14314). Built in notebook 03.
    """
    if bits not in (32, 16, 8, 4):
        raise ValueError(f"bits is 32, 16, 8 or 4, got {bits!r}")
    kind = spec.kind if isinstance(spec, ModelSpec) else "causal"
    shape = spec.shape if isinstance(spec, ModelSpec) else spec
    if shape is None:
        raise ValueError(
            f"the registry has no numbers for {spec.name}, so its memory cannot be estimated"
        )
    compute = (compute_bits or 16 if bits < 16 else bits) / 8
    count = parameters(shape, kind)
    weights = (
        count["matrices"] * (bits + _EXTRA_BITS.get(bits, 0)) / 8 + count["embeddings"] * compute
    )
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    mlp = (3 if shape.gated_mlp else 2) * shape.ffn
    # Numbers a token at the widest moment of a layer: word embedding, the layer's input, the sum after its attention and what was normed
    # are all still there (counted tensor by tensor on the 135M model: 3 % more than this).
    widest = 4 * shape.hidden + max(2 * queries + 2 * keys, mlp)
    if training:
        kept = shape.layers * (4 * shape.hidden + 3 * queries + 2 * keys + mlp)
        reads = (5 if shape.gated_mlp else 4) * shape.hidden + queries + shape.ffn
        writes = queries + 2 * keys + 2 * shape.hidden + (2 if shape.gated_mlp else 1) * shape.ffn
        rank = LORA_RANK * shape.layers * (reads + writes)
        return Estimate(round(weights), round(batch_tokens * kept * compute), 16 * rank)
    dequantised = (
        max(shape.hidden * shape.ffn, shape.hidden * queries) * compute if bits < 16 else 0
    )
    packed = count["matrices"] * 4 if bits == 32 and count["matrices"] * 4 <= PACKED_BYTES else 0
    cpu = device == "cpu" if device else compute == 4
    batch = batch_tokens * widest * compute * (KEPT if cpu else 1) + (WORKSPACE if cpu else 0)
    return Estimate(round(weights), round(batch + dequantised + packed))


def shape_of(config) -> "Shape | None":
    """The numbers of a transformers configuration, or None where it does not have them all.

    Args:
        config: Of any text model.
    """
    config = config.get_text_config()

    def get(*names):
        return next(
            (value for name in names if (value := getattr(config, name, None)) is not None), None
        )

    layers, hidden, heads = get("num_hidden_layers"), get("hidden_size"), get("num_attention_heads")
    if not (layers and hidden and heads and get("vocab_size")):
        return None
    return Shape(
        layers,
        hidden,
        get("intermediate_size", "ffn_dim", "d_ff", "n_inner") or 4 * hidden,
        heads,
        get("num_key_value_heads") or heads,
        get("head_dim", "d_kv") or hidden // heads,
        config.vocab_size,
        get("word_embed_proj_dim") or hidden,
        get("max_position_embeddings", "n_positions") or 0,
        str(get("hidden_act", "hidden_activation") or "") in ("silu", "gelu_pytorch_tanh"),
        bool(get("tie_word_embeddings")),
        "its configuration",
    )


def fitting_table(
    models=None, *, training: bool = False, batch_tokens: int = 2_048, cards=CARDS
) -> pd.DataFrame:
    """Which size fits on which card.

    Args:
        models: Names of rows; None takes all language models of the registry.
        training: QLoRA instead of encoding: 4 bits.
        batch_tokens: Tokens in a batch; larger ones are faster and take more.
        cards: Memory in GB; a twelfth of it is left free for CUDA's context and fragments.

    Returns:
        One row a model: parameters (in billions), GB at each precision, and for each card the most precise weights that fit
        ("16 bit", "8 bit", "4 bit") or "–". Built in notebook 03.
    """
    rows = []
    for name in models or [
        name for name, spec in MODELS.items() if spec.kind == "causal" and not spec.adapter_of
    ]:
        spec = MODELS[name]
        need = {
            bits: estimate_memory(
                spec, bits=bits, batch_tokens=batch_tokens, training=training
            ).total
            / GB
            for bits in ((4,) if training else (16, 8, 4))
        }
        row = {"model": name, "billions": sum(parameters(spec.shape, spec.kind).values()) / 1e9}
        row |= {f"{bits} bit, GB": value for bits, value in need.items()}
        row |= {
            f"{card} GB": next(
                (f"{bits} bit" for bits in need if need[bits] <= card * 11 / 12), "–"
            )
            for card in cards
        }
        rows.append(row)
    return pd.DataFrame(rows)


def forward_flops(spec: ModelSpec, tokens: int) -> float:
    """Floating-point operations of reading so many tokens: two for every weight of the layers' matrices.

    Args:
        spec: A registry row.
        tokens: How many, prompt included.
    """
    return 2.0 * parameters(spec.shape, spec.kind)["matrices"] * tokens


def seconds_per_million(spec: ModelSpec, speed: float, tokens_per_sentence: float = 25) -> float:
    """Seconds for a million sentences.

    Args:
        spec: A registry row.
        speed: Operations a second that are really reached: measured, or `ASSUMED_MFU` of a card's `PEAK`.
        tokens_per_sentence: Those that are computed (PromptEOL's prefix is shared): about 14 of an STS sentence and 11 of the prompt.

    Built in notebook 03.
    """
    return forward_flops(spec, 1) * tokens_per_sentence * 1e6 / speed


def check_fits(
    spec: ModelSpec, *, bits: int, device, batch_tokens: int | None = None
) -> Estimate | None:
    """Say before it is loaded that a model is larger than the memory.

    Args:
        spec: A registry row; without a shape nothing is checked.
        bits: Of a stored weight.
        device: A torch device.
        batch_tokens: None takes the encoder's default.

    Returns:
        The estimate, None without a shape.

    Raises:
        hardware.NotEnoughMemoryError: Says what is needed, what is there, and what would fit.

    Built in notebook 03.
    """
    if spec.shape is None:
        return None
    kind = "cuda" if device.type == "cuda" else "cpu"
    options = {
        "batch_tokens": batch_tokens or BATCH_TOKENS[kind],
        "compute_bits": 16 if kind == "cuda" else 32,
        "device": kind,
    }
    need = estimate_memory(spec, bits=bits, **options)
    free = devices.available_memory(device)
    if need.weights <= free:  # a batch that does not fit is halved, weights cannot be
        return need
    fits = [
        f"{name} ({b} bits)"
        for b in (16, 8, 4)
        for name in [spec.name]
        if b < bits and estimate_memory(spec, bits=b, **options).total <= free
    ]
    smaller = sorted(
        (
            other
            for other in MODELS.values()
            if other.architecture == spec.architecture and other.shape and not other.adapter_of
        ),
        key=lambda other: -sum(parameters(other.shape, other.kind).values()),
    )
    fits += [
        f"{m.name} ({bits} bits)"
        for m in smaller
        if estimate_memory(m, bits=bits, **options).total <= free
    ][:2]
    raise devices.NotEnoughMemoryError(
        f"{spec.name} needs {need.total / GB:.1f} GB at {bits} bits a weight ({need.weights / GB:.1f} for its weights), and "
        f"{free / GB:.1f} GB are free on {device}. What would fit: {', '.join(fits) or 'none of its kind'}. "
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
