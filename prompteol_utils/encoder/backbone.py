"""Token ids to hidden states: packed where the model allows it (tried on itself), else padded."""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from weakref import WeakKeyDictionary

import torch

from prompteol_utils.encoder import packing
from prompteol_utils.encoder.batching import pad
from prompteol_utils.encoder.patching import patched
from prompteol_utils.utils.devices import is_out_of_memory

log = logging.getLogger(__name__)

_probed: WeakKeyDictionary = WeakKeyDictionary()  # module -> what `probe_packing_support` found


class Backbone:
    """Runs a transformer without its head on batches of token ids.

    The other sequences of a batch and their order never change a state, except under int8, whose
    activations are rounded batch by batch.

    Args:
        model: A transformers or peft model.

    Attributes:
        module: The transformer below the LM head.
        causal: Whether every attention layer looks back only.
        num_hidden_states: The embeddings included.
        rescales_positions: Whether positions depend on the longest sequence of a batch (rotary
            scaling "dynamic" and "longrope"): such a model runs one sequence at a time.
        supports_packing: Whether sequences are packed, and a shared prefix is run once.
        last_token_only: Whether the last layer can then run for the last tokens only.
    """

    def __init__(self, model):
        self.module = find_backbone(model)
        self.config = self.module.config.get_text_config()
        self.causal = is_causal(self.module)
        self.num_hidden_states = self.config.num_hidden_layers + 1
        self.rescales_positions = any(True for _ in _rescaled_rotary(self.module))
        packs = self.causal and has_plain_cache(self.config) and not self.rescales_positions
        self.supports_packing, self.last_token_only = (
            probe_packing_support(self) if packs else (False, False)
        )

    def fingerprint(self) -> tuple:
        """What decides a hidden state besides the tokens: weights, buffers, adapters, autocast.

        It changes when a whole row or column of a weight changes, by whatever means; a single
        number is noticed only where torch counts the change (not through `weight.data`).
        """
        tensors = [*self.module.parameters(), *self.module.buffers()]
        tensors = [one for one in tensors if one.device.type != "meta" and one.numel()]
        samples = [_sample(one) for one in tensors]
        versions = [0 if one.is_inference() else one._version for one in tensors]
        switches = ("disable_adapters", "active_adapters", "merged", "scaling")
        adapters = [
            tuple(repr(getattr(layer, name, None)) for name in switches)
            for layer in self.module.modules()
            if isinstance(getattr(layer, "disable_adapters", None), bool)  # peft's
        ]
        device = self.module.device.type
        autocast = torch.is_autocast_enabled(device) and str(torch.get_autocast_dtype(device))
        # One transfer a device, not one a weight.
        by_device: dict = {}
        for one in samples:
            by_device.setdefault(one.device, []).append(one)
        sums = [torch.stack(group).tolist() for group in by_device.values()]
        return sums, versions, adapters, autocast

    def has_hooks(self) -> bool:
        """Whether forward hooks of the caller's may change a state in ways that cannot be seen."""
        hooks = (
            hook
            for module in self.module.modules()
            for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        )
        # transformers leaves hooks behind that record hidden states; the others are packing's.
        known = ("transformers", "prompteol_utils")
        return any(
            str(getattr(hook, "__module__", "")).split(".")[0] not in known for hook in hooks
        )

    def prefix(self, ids: Sequence[int], layers: Sequence[int]) -> packing.Prefix:
        """Run what all sequences begin with, once; only where packing is supported."""
        with torch.inference_mode():
            return packing.run_prefix(self.module, ids, layers)

    def states(
        self,
        sequences: Sequence[Sequence[int]],
        prefix: packing.Prefix | None,
        layers: Sequence[int],
        last_token_only: bool = False,
    ) -> list[torch.Tensor]:
        """Hidden states of a batch.

        Args:
            sequences: Token ids, after the prefix.
            prefix: From `prefix`, or None.
            layers: Indices ≥ 0 into the hidden states.
            last_token_only: Only the last token of each sequence will be read.

        Returns:
            Per layer (sum of the lengths, d): the tokens of the first sequence, then those of the
            second, …, without padding.
        """
        only = last_token_only and self.last_token_only
        only = only and all(layer == self.num_hidden_states - 1 for layer in layers)
        with torch.inference_mode():
            if not self.supports_packing:
                return self.padded(sequences, layers)
            return packing.run(self.module, sequences, prefix, layers, last_token_only=only)

    def padded(
        self, sequences: Sequence[Sequence[int]], layers: Sequence[int]
    ) -> list[torch.Tensor]:
        """As `states`, with padding, without a prefix, and with gradients where they are on."""
        reset_rotary(self.module)
        tokens, mask, lengths = pad(sequences, 0)
        last = self.num_hidden_states - 1
        out = self.module(
            input_ids=packing.to_device(tokens, self.module.device),
            attention_mask=packing.to_device(mask, self.module.device),
            output_hidden_states=any(layer != last for layer in layers),
            return_dict=True,
            **({"use_cache": False} if self.causal else {}),
        )
        if not hasattr(out, "last_hidden_state"):
            raise ValueError(
                f"{type(self.module).__name__} returns no hidden states without its head, so it "
                "cannot be used as an encoder"
            )
        states = [
            out.last_hidden_state if layer == last else out.hidden_states[layer] for layer in layers
        ]
        return [
            torch.cat([one[:length] for one, length in zip(state, lengths.tolist(), strict=True)])
            for state in states
        ]


def find_backbone(model):
    """The transformer below head and adapter, or the encoder half of an encoder-decoder."""
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    backbone = model.base_model
    if getattr(backbone.config, "is_encoder_decoder", False):
        return backbone.get_encoder()
    return backbone


def is_causal(backbone) -> bool:
    """Whether every attention layer looks back only; each says so itself."""
    flags = [module.is_causal for module in backbone.modules() if hasattr(module, "is_causal")]
    return bool(flags) and all(flags)


def has_plain_cache(config) -> bool:
    """Whether the past is keys and values only: not in state-space and convolution layers."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    layers = DynamicCache(config=config).layers
    plain = (DynamicLayer, DynamicSlidingWindowLayer)
    return bool(layers) and all(type(layer) in plain for layer in layers)


def max_positions(backbone) -> int | None:
    """Tokens that the model's positions hold, or None where they have no end.

    RoBERTa and its kin keep the places up to their padding token's free; "dynamic" rotary scaling
    stretches the positions by its factor.
    """
    config = backbone.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None) or 0
    if any("dynamic" in kind for *_, kind in _rescaled_rotary(backbone)):
        limit = int(limit * config.rope_parameters.get("factor", 1))
    for name, table in backbone.named_modules():
        if name.endswith("position_embeddings") and isinstance(table, torch.nn.Embedding):
            reserved = 0 if table.padding_idx is None else table.padding_idx + 1
            return table.num_embeddings - reserved
    return limit if limit > 0 else None


def _rescaled_rotary(backbone) -> Iterator[tuple[torch.nn.Module, str, str]]:
    """Rotary modules whose scaling depends on the length: (module, prefix of its buffers, kind)."""
    for module in backbone.modules():
        kinds = getattr(module, "rope_type", None) or {}
        kinds = kinds if isinstance(kinds, dict) else {"": kinds}
        for layer_type, kind in kinds.items():
            if kind and ("dynamic" in kind or kind == "longrope"):
                yield module, f"{layer_type}_" if layer_type else "", kind


def reset_rotary(backbone) -> None:
    """Forget the longest sequence so far, on which "dynamic" rotary scaling would depend."""
    for module, name, kind in _rescaled_rotary(backbone):
        if "dynamic" in kind:
            original = getattr(module, f"{name}original_inv_freq")
            current = getattr(module, f"{name}inv_freq")
            module.register_buffer(f"{name}inv_freq", original.to(current.device), persistent=False)
            setattr(module, f"{name}max_seq_len_cached", module.original_max_seq_len)


def eval_mode(model) -> AbstractContextManager[None]:
    """A context without dropout; afterwards a model in training is in training again."""
    training = [module for module in model.modules() if module.training]
    if not training:
        return nullcontext()

    def switch(undos: list) -> None:
        undos.append(lambda: [setattr(module, "training", True) for module in training])
        model.eval()

    return patched({("training", id(model)): switch})


def _sample(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of numbers from every row and every column, on the tensor's device."""
    width = tensor.shape[-1] if tensor.ndim else 1
    count = tensor.numel()
    step = min(width, count // width)
    if step == 1:
        step = max(1, count // 4096)
    while math.gcd(step, width) > 1:
        step -= 1
    return tensor.detach().reshape(-1)[::step].sum(dtype=torch.float32)


def probe_packing_support(backbone: Backbone) -> tuple[bool, bool]:
    """Compare three packed sequences behind a prefix with each of them whole and alone.

    Positions by bias (ALiBi), an attention of the model's own or anything else that packing gets
    wrong shows here, and such a model is run with padding instead. Done once a model.

    Returns:
        Whether sequences can be packed, and whether the last layer can then run for their last
        tokens only.

    Raises:
        torch.OutOfMemoryError: Not even these few tokens fit; nothing is concluded.
    """
    module = backbone.module
    if module in _probed:
        return _probed[module]
    vocabulary = module.get_input_embeddings().weight.shape[0]
    start, *sequences = (
        [(7919 * token + seed) % vocabulary for token in range(length)]
        for length, seed in ((3, 11), (5, 101), (4, 1009), (4, 10007))
    )
    last = (backbone.num_hidden_states - 1,)
    is_int8 = getattr(module, "is_loaded_in_8bit", False)
    tolerance = 1e-3 if module.dtype == torch.float32 and not is_int8 else 0.1

    @cache
    def expected() -> torch.Tensor:
        alone = [backbone.padded([start + one], last)[0][len(start) :] for one in sequences]
        return torch.cat(alone).float()

    def agrees(last_token_only: bool) -> bool:
        read = packing.last_positions(list(map(len, sequences))) if last_token_only else slice(None)
        try:
            prefix = packing.run_prefix(module, start, last)
            found = packing.run(module, sequences, prefix, last, last_token_only=last_token_only)
            error = (found[0][read].float() - expected()[read]).norm() / expected()[read].norm()
            return float(error) < tolerance
        except (TypeError, KeyError, AttributeError, ValueError, RuntimeError) as problem:
            if is_out_of_memory(problem):
                raise
            how = "through its whole last layer" if last_token_only else "with padding"
            log.info("%s is run %s: %s", type(module).__name__, how, problem)
            return False

    with torch.inference_mode(), eval_mode(module):
        packs = agrees(last_token_only=False)
        _probed[module] = packs, packs and agrees(last_token_only=True)
    return _probed[module]
