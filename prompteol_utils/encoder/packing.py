"""Packed sequences: one line of tokens without padding, all attending to one copy of a prefix.

Only attention mixes tokens in such a transformer, so only attention must know where a sequence
ends. The model runs on one line of tokens, each with its position in its own sequence, and calls
the function below in place of its attention. The mask is the model's own rule (causal, sliding
window, …), asked for once a batch on the positions of its longest sequence.

Where only the last token of each sequence is read, the last layer needs the other tokens' keys and
values, and nothing else of them.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import cache, partial
from itertools import chain, groupby

import torch

from prompteol_utils.encoder.patching import patched

NAME = "prompteol_packed"  # of the attention below in transformers' registry
# What models pass to their attention that has no say in the result (a window is in the mask).
_IGNORED = {
    *("sliding_window", "position_ids", "position_embeddings", "is_causal", "use_cache"),
    *("cache_position", "cu_seq_lens_q", "output_attentions", "output_hidden_states"),
    *("return_dict", "head_mask", "layer_head_mask"),
}
_own_attention: dict[int, str] = {}  # id of a configuration -> the attention it names otherwise


class _Thread(threading.local):
    batch: "_Batch | None" = None


_thread = _Thread()


class CannotPackError(RuntimeError):
    """The model's attention has a part that packing does not support."""


class _KeysReady(Exception):
    """Leaves a layer that was entered for its keys and values."""


class Prefix:
    """What a shared prefix leaves behind.

    Args:
        length: Its tokens.
        pairs: Per attention module: keys and values (1, heads, length, width).
        sums: Per requested layer: float32 (d,), the sum of its hidden states.
    """

    def __init__(self, length: int, pairs: dict, sums: list[torch.Tensor]):
        self.length = length
        self.pairs = pairs
        self.sums = sums


class _Batch:
    """What attention must know of the batch that runs in this thread.

    Attributes:
        groups: (length, count) of each run of equally long sequences.
        recorded: While a prefix runs: filled with keys and values by attention module.
        last: Positions of the last tokens in the line, where only they are read.
        in_last_layer: That layer runs now, for the last tokens only.
        held: In that layer, the keys and values of all tokens.
        kept: Biases and indices, worked out once a batch for all layers.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        prefix: Prefix | None = None,
        recorded: dict | None = None,
        last_token_only: bool = False,
        device: torch.device | str = "cpu",
    ):
        self.lengths = torch.tensor(lengths)
        self.groups = [(length, len(list(same))) for length, same in groupby(lengths)]
        self.prefix = prefix
        self.past = prefix.length if prefix else 0
        self.recorded = recorded
        self.count = sum(lengths)
        self.last = to_device(last_positions(lengths), device) if last_token_only else None
        self.in_last_layer = False
        self.held: tuple[torch.Tensor, torch.Tensor] | None = None
        self.kept: dict = {}


def last_positions(lengths: Sequence[int]) -> torch.Tensor:
    """Where the last token of each sequence is in the line."""
    return torch.tensor(lengths).cumsum(0) - 1


def to_device(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Move a CPU tensor without waiting for the GPU's queued work."""
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def run(
    backbone: torch.nn.Module,
    sequences: Sequence[Sequence[int]],
    prefix: Prefix | None,
    layers: Sequence[int],
    recorded: dict | None = None,
    last_token_only: bool = False,
) -> list[torch.Tensor]:
    """Hidden states of sequences that follow a common prefix.

    Args:
        backbone: A causal transformer without its head.
        sequences: Token ids after the prefix; equally long ones should be adjacent.
        prefix: From `run_prefix`, or None.
        layers: Indices ≥ 0 into the hidden states.
        recorded: Filled with the keys and values of each attention module.
        last_token_only: Only the last layer is asked for, and of it only the last token of each
            sequence is right: the others are not computed.

    Returns:
        Per layer (sum of the lengths, d): all tokens of the first sequence, then of the second, ….

    Raises:
        CannotPackError: The model's attention does something that packing does not.
    """
    device = backbone.device
    batch = _Batch(list(map(len, sequences)), prefix, recorded, last_token_only, device)
    starts = batch.lengths.cumsum(0) - batch.lengths - batch.past
    positions = torch.arange(batch.count) - starts.repeat_interleave(batch.lengths)
    tokens = to_device(torch.tensor([list(chain.from_iterable(sequences))]), device)
    last = backbone.config.get_text_config().num_hidden_layers
    with _running(backbone, batch):
        out = backbone(
            input_ids=tokens,
            position_ids=to_device(positions[None], device),
            # Without a mask some models infer the packing themselves, as a dense mask.
            attention_mask=torch.ones_like(tokens),
            use_cache=False,
            output_hidden_states=any(layer != last for layer in layers),
            return_dict=True,
        )
    return [
        (out.last_hidden_state if layer == last else out.hidden_states[layer])[0]
        for layer in layers
    ]


def run_prefix(backbone: torch.nn.Module, ids: Sequence[int], layers: Sequence[int]) -> Prefix:
    """Run a shared prefix once; arguments as for `run`."""
    pairs: dict = {}
    states = run(backbone, [ids], None, layers, recorded=pairs)
    return Prefix(len(ids), pairs, [state.float().sum(0) for state in states])


@contextmanager
def _running(backbone: torch.nn.Module, batch: _Batch) -> Iterator[None]:
    """Replace the model's attention by the packed one while this batch runs."""
    configs = [getattr(module, "config", None) for module in backbone.modules()]
    changes: dict = {
        ("attention", id(config)): partial(_replace_attention, config)
        for config in configs
        if config is not None
    }
    if batch.last is not None:
        layer = decoder_layers(backbone)[-1]
        changes["last layer", id(layer)] = partial(_hook_last_layer, layer)
    with patched(changes), _kernels(backbone.device):
        outer = _thread.batch  # of an encode from whose forward hook this one was called
        try:
            _thread.batch = batch
            yield
        finally:
            _thread.batch = outer


def _kernels(device: torch.device):
    """On a GPU, keep cuDNN's attention away: it builds a plan for every new (count, length)."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if device.type != "cuda":
        return nullcontext()
    return sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


def _replace_attention(config, undos: list) -> None:
    """Name the packed attention in a model's configuration."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)
    own = config._attn_implementation

    def undo() -> None:
        config._attn_implementation = own
        _own_attention.pop(id(config), None)

    undos.append(undo)
    _own_attention[id(config)] = own
    config._attn_implementation = NAME


def _own(functions, config) -> Callable:
    """The model's own attention or mask, for a thread without a batch that calls the model."""
    name = _own_attention.get(id(config), config._attn_implementation)
    if name not in functions:
        raise RuntimeError(
            f"another thread is encoding with this model, and its attention ({name}) cannot be "
            "reached meanwhile; wait for the other thread, or load the model a second time"
        )
    return functions[name]


def decoder_layers(backbone: torch.nn.Module) -> torch.nn.ModuleList:
    """The list of a backbone's layers.

    Raises:
        CannotPackError: There is none of the configured length.
    """
    depth = backbone.config.get_text_config().num_hidden_layers
    for module in backbone.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == depth:
            return module
    raise CannotPackError(f"{type(backbone).__name__} has no list of its {depth} layers")


def _hook_last_layer(layer: torch.nn.Module, undos: list) -> None:
    """Let the last layer run for the last tokens only, where a batch asks for that.

    The layer is entered twice: with all tokens, up to its attention, for their keys and values;
    then with what it takes of the last tokens (states, positions, rotations, …: whatever has the
    line of tokens as its second axis). For all other tokens it returns zeros.
    """

    def cutting() -> _Batch | None:
        batch = _thread.batch  # another thread may run the same layer
        return batch if batch is not None and batch.last is not None else None

    def cut(value, batch: _Batch):
        if isinstance(value, tuple):
            return tuple(cut(one, batch) for one in value)
        per_token = isinstance(value, torch.Tensor) and value.ndim > 1
        if per_token and value.shape[1] == batch.count:
            return value[:, batch.last.to(value.device)]
        return value

    def enter(layer, args, options):
        if (batch := cutting()) is None:
            return None
        batch.in_last_layer = True
        with suppress(_KeysReady):
            layer.forward(*args, **options)
        return cut(args, batch), {name: cut(value, batch) for name, value in options.items()}

    def leave(layer, args, out):
        if (batch := cutting()) is None:
            return None
        state, *rest = out if isinstance(out, tuple) else (out,)
        full = state.new_zeros(1, batch.count, *state.shape[2:])
        full[:, batch.last.to(state.device)] = state
        return (full, *rest) if isinstance(out, tuple) else full

    hooks: list = []
    undos.append(lambda: [hook.remove() for hook in hooks])
    hooks.append(layer.register_forward_pre_hook(enter, with_kwargs=True))
    hooks.append(layer.register_forward_hook(leave))


def _mask(*, mask_function, device, **options) -> torch.Tensor | None:
    """The model's rule on the positions of the longest sequence.

    Returns:
        bool (1, 1, longest, past + longest), whose corner shorter sequences read; None where it is
        the causal rule and nothing else.
    """
    batch = _thread.batch
    if batch is None:
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as functions

        own = _own(functions, options["config"])
        return own(mask_function=mask_function, device=device, **options)
    longest = int(batch.lengths.max())
    zero = torch.zeros(1, 1, 1, 1, dtype=torch.long)
    queries = torch.arange(batch.past, batch.past + longest)[None, None, :, None]
    keys = torch.arange(batch.past + longest)[None, None, None, :]
    # On the CPU, so that a GPU is not waited for.
    mask = mask_function(zero, zero, queries, keys).expand(1, 1, longest, batch.past + longest)
    return None if torch.equal(mask, _causal(longest, batch.past)[None, None]) else mask.to(device)


def _causal(length: int, past: int) -> torch.Tensor:
    return torch.ones(length, past + length, dtype=torch.bool).tril(past)


def _attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **options):
    """Attention within each sequence, and to the prefix.

    Args:
        module: The attention module that calls.
        query: (1, heads, tokens, width); `key` and `value` may have fewer heads.
        key: …
        value: …
        attention_mask: From `_mask`.
        dropout: Probability.
        scaling: Of the scores.
        options: Refused unless known to have no effect.

    Returns:
        (1, tokens, heads, width), and None for the weights.
    """
    batch = _thread.batch
    if batch is None:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as functions

        own = _own(functions, module.config)
        options |= {"dropout": dropout, "scaling": scaling}
        return own(module, query, key, value, attention_mask, **options)
    given = {name for name, option in options.items() if option is not None}
    if unknown := given - _IGNORED:
        raise CannotPackError(f"attention with {', '.join(sorted(unknown))}")
    if batch.recorded is not None:
        batch.recorded[module] = (key.contiguous(), value.contiguous())
    if batch.in_last_layer:
        if batch.held is None:
            batch.held = key, value
            raise _KeysReady
        key, value = batch.held
    past = batch.prefix.pairs[module] if batch.prefix else None
    if attention_mask is None and dropout == 0 and (kernel := _varlen(query)):
        return _attend_varlen(kernel, batch, past, query, key, value, scaling), None
    return _attend_groups(batch, past, query, key, value, attention_mask, dropout, scaling), None


def _attend_groups(batch, past, query, key, value, mask, dropout, scaling) -> torch.Tensor:
    """One call of torch's kernel for each run of equally long sequences."""
    # Query heads that share a key head become further queries, so that keys are not copied.
    shared = query.shape[1] // key.shape[1]
    parts = []
    first_query = first_key = 0
    for length, count in batch.groups:
        asked = 1 if batch.in_last_layer else length
        keys, values = (
            states[0, :, first_key : first_key + length * count]
            .unflatten(1, (count, length))
            .transpose(0, 1)
            for states in (key, value)
        )
        queries = query[0, :, first_query : first_query + asked * count]
        queries = queries.unflatten(1, (count, asked)).unflatten(0, (-1, shared))
        queries = queries.permute(2, 0, 1, 3, 4).flatten(2, 3)
        keys, values = prepend_prefix(past, keys, values)
        out = torch.nn.functional.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=attention_bias(batch, mask, length, asked, shared, query),
            dropout_p=dropout,
            scale=scaling,
        )
        out = out.unflatten(2, (shared, asked)).permute(0, 3, 1, 2, 4)
        parts.append(out.flatten(2, 3).flatten(0, 1))
        first_query += asked * count
        first_key += length * count
    return torch.cat(parts)[None]


def attention_bias(
    batch, mask, length: int, asked: int, shared: int, like: torch.Tensor
) -> torch.Tensor:
    """The mask's part for one length, as added to the scores: (shared * asked, past + length)."""
    key = id(mask), length, asked, shared
    if key not in batch.kept:
        if mask is None:
            seen = to_device(_causal(length, batch.past)[length - asked :], like.device)
        else:
            seen = mask[0, 0, length - asked : length, : batch.past + length]
        bias = torch.zeros(seen.shape, dtype=like.dtype, device=like.device)
        bias = bias.masked_fill_(~seen, float("-inf")).repeat(shared, 1)
        batch.kept[key] = mask, bias  # the mask too, so that its id is not used again
    return batch.kept[key][1]


def prepend_prefix(
    past, keys: torch.Tensor, values: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Put the prefix's keys and values first: (sequences, heads, past + length, width)."""
    if past is None:
        return keys, values
    return tuple(
        torch.cat([old.expand(len(new), -1, -1, -1), new], dim=2)
        for old, new in zip(past, (keys, values), strict=True)
    )


@cache
def _varlen_kernel() -> Callable | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn


def _varlen(query: torch.Tensor) -> Callable | None:
    """torch's kernel for sequences of many lengths, where it takes such queries."""
    fits = query.dtype in (torch.float16, torch.bfloat16) and query.shape[-1] in (32, 64, 128, 256)
    if not (fits and query.device.type == "cuda"):
        return None
    return _varlen_kernel() if torch.cuda.get_device_capability(query.device) >= (8, 0) else None


def _attend_varlen(kernel, batch, past, query, key, value, scaling) -> torch.Tensor:
    """One call for all sequences: no mask, and no state per (count, length)."""
    starts_q, starts_k, gather = _varlen_index(batch, query.device)
    queries, keys, values = (states[0].transpose(0, 1) for states in (query, key, value))
    if past is not None:
        keys, values = (
            torch.cat([old[0].transpose(0, 1), new]).index_select(0, gather)
            for old, new in zip(past, (keys, values), strict=True)
        )
    longest = int(batch.lengths.max())
    out = kernel(
        queries.contiguous(),
        keys.contiguous(),
        values.contiguous(),
        starts_q,
        starts_k,
        1 if batch.in_last_layer else longest,
        batch.past + longest,
        scale=scaling,
        window_size=(-1, 0),  # causal, aligned to the last key
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out[None]


def _varlen_index(batch: _Batch, device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where queries and keys of each sequence start, and which keys it reads.

    Returns:
        int32 (n + 1,) starts of the queries, the same of the keys, and int64 indices into the
        prefix's keys followed by those of the line.
    """
    where = "varlen", batch.in_last_layer, device
    if where not in batch.kept:
        lengths = batch.lengths
        asked = torch.ones_like(lengths) if batch.in_last_layer else lengths
        starts = [
            torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()
            for counts in (asked, lengths + batch.past)
        ]
        first = batch.past + lengths.cumsum(0) - lengths
        own = [
            torch.arange(a, a + n) for a, n in zip(first.tolist(), lengths.tolist(), strict=True)
        ]
        shared = torch.arange(batch.past)
        gather = torch.cat([part for one in own for part in (shared, one)])
        batch.kept[where] = tuple(to_device(one, device) for one in (*starts, gather))
    return batch.kept[where]
