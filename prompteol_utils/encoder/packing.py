"""Sentences laid end to end in one row: no padding, and every sentence attends to one copy of the shared prefix.

Only attention mixes tokens in such a transformer, so only attention must know where a sentence ends. The model runs on one row of tokens
with each token's position in its own sentence, and calls the function below in place of its attention; the mask is the model's own rule
(causal, sliding window, …), asked for once per batch on the positions of its longest sentence.

Where only the last token of each sentence is read, the last layer needs the other tokens' keys and values, and nothing else of them.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import groupby

import torch

from prompteol_utils.encoder.patching import patched

NAME = "prompteol_packed"  # under which transformers knows the attention below
# What models hand to their attention besides queries, keys, values and mask, and what has no say in it (a window is in the mask).
_HARMLESS = {
    "sliding_window",
    "position_ids",
    "position_embeddings",
    "is_causal",
    "use_cache",
    "cache_position",
    "cu_seq_lens_q",
}
_HARMLESS |= {
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "head_mask",
    "layer_head_mask",
}


class _Here(threading.local):
    batch: "_Batch | None" = None  # that runs in this thread


_here = _Here()
_before: dict[
    int, str
] = {}  # id of a configuration -> the attention that it names when no batch runs


class CannotPackError(RuntimeError):
    """The model's attention has a part that this one lacks."""


class _KeysReady(Exception):
    """Leaves a layer that was entered for its keys and values."""


class Prefix:
    """What a shared prefix leaves behind.

    Args:
        length: Its tokens.
        pairs: Per attention module: keys and values (1, heads, length, width).
        sums: Per wanted layer: float32 (d,), the sum of its hidden states.
    """

    def __init__(self, length: int, pairs: dict, sums: list[torch.Tensor]):
        self.length, self.pairs, self.sums = length, pairs, sums


class _Batch:
    """Rows in one line: (length, count) of each run of equally long rows, the prefix, and, while a prefix itself runs, its record.

    Where only the rows' last tokens are wanted of the last layer, `ends_at` says where they stand among the `count` tokens; in that layer
    `ends` is set, and `held` are the keys and values of all tokens. `biases`: what `_bias` worked out, with the mask it came from.
    """

    def __init__(
        self, lengths: Sequence[int], prefix: Prefix | None, record: dict | None, ends: bool = False
    ):
        self.runs = [(length, len(list(group))) for length, group in groupby(lengths)]
        self.prefix, self.record, self.past = prefix, record, prefix.length if prefix else 0
        self.count, self.ends_at = sum(lengths), _ends(lengths) if ends else None
        self.ends, self.held, self.biases = False, None, {}


def _ends(lengths: Sequence[int]) -> torch.Tensor:
    return torch.tensor(lengths).cumsum(0) - 1


@contextmanager
def _running(body: torch.nn.Module, batch: _Batch) -> Iterator[None]:
    """Put the packed attention in place of the model's own for this batch, and take it out again."""
    configs = [
        config
        for module in body.modules()
        if (config := getattr(module, "config", None)) is not None
    ]
    changes: dict = {("attention", id(config)): partial(_lend, config) for config in configs}
    if batch.ends_at is not None:
        layer = _last_layer(body)
        changes["ends", id(layer)] = partial(_hook, layer)
    with patched(changes):
        try:
            _here.batch = batch
            yield
        finally:
            _here.batch = None


def _lend(config) -> Callable:
    """Name the packed attention in a model's configuration."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)
    before, config._attn_implementation = config._attn_implementation, NAME
    _before[id(config)] = before

    def undo() -> None:
        config._attn_implementation = before
        _before.pop(id(config), None)

    return undo


def _own(functions, config) -> Callable:
    """The model's own attention or mask, for a thread without a batch that calls the model meanwhile."""
    name = _before.get(id(config), config._attn_implementation)
    if name not in functions:
        raise RuntimeError(
            f"another thread is encoding with this model, and its attention ({name}) cannot be reached meanwhile; "
            "wait for the other thread, or load the model a second time"
        )
    return functions[name]


def _last_layer(body: torch.nn.Module) -> torch.nn.Module:
    depth = body.config.get_text_config().num_hidden_layers
    stack = next(
        (
            module
            for module in body.modules()
            if isinstance(module, torch.nn.ModuleList) and len(module) == depth
        ),
        None,
    )
    if stack is None:
        raise CannotPackError(f"{type(body).__name__} has no list of its {depth} layers")
    return stack[-1]


def _hook(layer: torch.nn.Module) -> Callable:
    """Let the last layer run for the rows' last tokens where a batch asks for that; at all others it then gives zeros.

    The layer is entered twice: with all tokens, as far as its attention, for their keys and values; then with what it takes of the last
    tokens (states, positions, rotations, …: whatever has the line of tokens as its second axis).
    """

    def asked() -> _Batch | None:
        return _here.batch if _here.batch and _here.batch.ends_at is not None else None

    def cut(value, batch: _Batch):
        if isinstance(value, tuple):
            return tuple(cut(one, batch) for one in value)
        along = isinstance(value, torch.Tensor) and value.ndim > 1 and value.shape[1] == batch.count
        return value[:, batch.ends_at.to(value.device)] if along else value

    def enter(layer, args, options):
        if (batch := asked()) is None:  # another thread may be at work in the same layer
            return None
        batch.ends = True
        with suppress(_KeysReady):
            layer.forward(*args, **options)
        return cut(args, batch), {name: cut(value, batch) for name, value in options.items()}

    def leave(layer, args, out):
        if (batch := asked()) is None:
            return None
        state, *rest = out if isinstance(out, tuple) else (out,)
        full = state.new_zeros(1, batch.count, *state.shape[2:])
        full[:, batch.ends_at.to(state.device)] = state
        return (full, *rest) if isinstance(out, tuple) else full

    hooks = [
        layer.register_forward_pre_hook(enter, with_kwargs=True),
        layer.register_forward_hook(leave),
    ]
    return lambda: [hook.remove() for hook in hooks]


def run(
    body: torch.nn.Module,
    rows: Sequence[Sequence[int]],
    prefix: Prefix | None,
    layers: Sequence[int],
    record: dict | None = None,
    ends: bool = False,
) -> list[torch.Tensor]:
    """Hidden states of rows that follow a common prefix.

    Args:
        body: A causal transformer without its head.
        rows: Token ids after the prefix; equally long rows stand together.
        prefix: From `run_prefix`, or None.
        layers: Indices ≥ 0 into the hidden states.
        record: Filled with the keys and values of each attention module.
        ends: Only the last layer is asked for, and of it only the last token of each row is right: the others are not worked out.

    Returns:
        Per layer (sum of the rows' lengths, d): all tokens of the first row, then of the second, ….

    Raises:
        CannotPackError: The model's attention does something that packing does not.
    """
    lengths = [len(row) for row in rows]
    batch = _Batch(lengths, prefix, record, ends)
    tokens = torch.tensor([[token for row in rows for token in row]], device=body.device)
    positions = torch.cat([torch.arange(batch.past, batch.past + length) for length in lengths])[
        None
    ].to(body.device)
    last = body.config.get_text_config().num_hidden_layers
    with _running(body, batch):
        out = body(
            input_ids=tokens,
            position_ids=positions,
            attention_mask=torch.ones_like(
                tokens
            ),  # without one, some models would work out the packing themselves, as a dense mask
            use_cache=False,
            output_hidden_states=any(layer != last for layer in layers),
            return_dict=True,
        )
    return [
        (out.last_hidden_state if layer == last else out.hidden_states[layer])[0]
        for layer in layers
    ]


def run_prefix(body: torch.nn.Module, ids: Sequence[int], layers: Sequence[int]) -> Prefix:
    """Run a shared prefix once.

    Args:
        body: As for `run`.
        ids: The prefix's tokens.
        layers: As for `run`.
    """
    pairs: dict = {}
    states = run(body, [ids], None, layers, record=pairs)
    return Prefix(len(ids), pairs, [state.float().sum(0) for state in states])


def _mask(*, mask_function, device, **options) -> torch.Tensor:
    """The model's rule on the positions of the longest row: bool (1, 1, longest, past + longest); shorter rows read its corner."""
    batch = _here.batch
    if batch is None:
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as functions

        return _own(functions, options["config"])(
            mask_function=mask_function, device=device, **options
        )
    longest = max(length for length, _ in batch.runs)
    zero = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=device)
    queries = torch.arange(batch.past, batch.past + longest, device=device)[None, None, :, None]
    keys = torch.arange(batch.past + longest, device=device)[None, None, None, :]
    return mask_function(zero, zero, queries, keys).expand(1, 1, longest, batch.past + longest)


def _attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **options):
    """Attention within each row of the line, and to the prefix: (1, heads, tokens, width) in, (1, tokens, heads, width) out."""
    batch = _here.batch
    if batch is None:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as functions

        own = _own(functions, module.config)
        return own(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    if unknown := {
        name for name, option in options.items() if option is not None and name not in _HARMLESS
    }:
        raise CannotPackError(f"attention with {', '.join(sorted(unknown))}")
    if batch.record is not None:
        batch.record[module] = (key.contiguous(), value.contiguous())
    if batch.ends:
        if batch.held is None:
            batch.held = key, value
            raise _KeysReady
        key, value = batch.held
    past = batch.prefix.pairs[module] if batch.prefix else ()
    shared = (
        query.shape[1] // key.shape[1]
    )  # so many query heads read one key head: they stand as further queries, the keys once
    parts, asked, start = [], 0, 0
    for length, count in batch.runs:
        asks = 1 if batch.ends else length  # queries of a row
        k, v = (
            states[0, :, start : start + length * count].unflatten(1, (count, length))
            for states in (key, value)
        )
        q = query[0, :, asked : asked + asks * count].unflatten(1, (count, asks))
        q = q.unflatten(0, (-1, shared)).permute(2, 0, 1, 3, 4).flatten(2, 3)
        k, v = _expand(past, k.transpose(0, 1), v.transpose(0, 1))
        bias = _bias(batch, attention_mask, length, asks, shared, q.dtype)
        out = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=bias, dropout_p=dropout, scale=scaling
        )
        parts.append(
            out.unflatten(2, (shared, asks)).permute(0, 3, 1, 2, 4).flatten(2, 3).flatten(0, 1)
        )
        asked, start = asked + asks * count, start + length * count
    return torch.cat(parts)[None], None


def _bias(
    batch: _Batch, mask: torch.Tensor, length: int, asks: int, shared: int, dtype: torch.dtype
) -> torch.Tensor:
    """The mask's part for a run, as torch's kernel adds it to the scores (shared * asks, past + length): once a batch, not once a layer."""
    key = (id(mask), length, asks, shared)
    if key not in batch.biases:
        seen = mask[0, 0, length - asks : length, : batch.past + length].repeat(shared, 1)
        batch.biases[key] = (
            mask,
            torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(
                ~seen, float("-inf")
            ),
        )
    return batch.biases[key][1]


def _expand(past, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Put the prefix's keys and values before those of each row: (rows, heads, past + length, width)."""
    if not past:
        return keys, values
    rows = len(keys)
    return tuple(
        torch.cat([old.expand(rows, -1, -1, -1), new], dim=2)
        for old, new in zip(past, (keys, values), strict=True)
    )
