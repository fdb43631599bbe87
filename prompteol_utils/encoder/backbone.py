"""Token ids to hidden states: rows laid end to end where a model allows it (checked on the model itself), padded on the right elsewhere."""

import logging
from collections.abc import Sequence
from functools import cache
from weakref import WeakKeyDictionary

import torch

from prompteol_utils.encoder import packing
from prompteol_utils.encoder.batching import pad
from prompteol_utils.encoder.onednn import sample

log = logging.getLogger(__name__)

_trials: WeakKeyDictionary = WeakKeyDictionary()  # body -> what `trial` found


class Backbone:
    """Runs a transformer without its head over batches of token ids; the order of rows and their mates never change a state.

    Args:
        model: A transformers or peft model in eval mode.

    Attributes:
        body: The transformer below the LM head.
        causal: Whether every attention layer looks back only.
        layers: How many hidden states there are, the embeddings included.
        packs: Whether rows are laid end to end, and a shared prefix is run once.
        ends: Whether the last layer can then be run for the last token of each row only.
    """

    def __init__(self, model):
        self.body = find_body(model)
        self.config = self.body.config.get_text_config()
        self.causal = is_causal(self.body)
        self.layers = self.config.num_hidden_layers + 1
        self.supports_packing, self.ends = (
            probe_packing_support(self)
            if self.causal and has_plain_cache(self.config)
            else (False, False)
        )

    def fingerprint(self) -> list:
        """Another one when the weights have changed, or an adapter was switched or scaled; it looks at a sample of each weight."""
        weights = [
            (sample(weight), 0 if weight.is_inference() else weight._version)
            for weight in self.body.parameters()
        ]
        layers = [
            module
            for module in self.body.modules()
            if isinstance(getattr(module, "disable_adapters", None), bool)
        ]  # peft's
        switches = ("disable_adapters", "active_adapters", "merged", "scaling")
        return weights + [
            tuple(repr(getattr(layer, name, None)) for name in switches) for layer in layers
        ]

    def prefix(self, ids: Sequence[int], layers: Sequence[int]) -> packing.Prefix:
        """Run what all rows begin with, once; only where `packs`."""
        with torch.inference_mode():
            return packing.run_prefix(self.body, ids, layers)

    def states(
        self,
        rows: Sequence[Sequence[int]],
        prefix: packing.Prefix | None,
        layers: Sequence[int],
        ends: bool = False,
    ) -> list[torch.Tensor]:
        """Hidden states of a batch.

        Args:
            rows: Token ids, after the prefix.
            prefix: From `prefix`, or None.
            layers: Indices ≥ 0 into the hidden states.
            ends: Only the last token of each row will be read; what the others hold is then left open.

        Returns:
            Per layer (sum of the rows' lengths, d): the tokens of the first row, then those of the second, …, without padding.
        """
        ends = ends and self.ends and all(layer == self.layers - 1 for layer in layers)
        with torch.inference_mode():
            return (
                packing.run(self.body, rows, prefix, layers, ends=ends)
                if self.supports_packing
                else self.padded(rows, layers)
            )

    def padded(self, rows: Sequence[Sequence[int]], layers: Sequence[int]) -> list[torch.Tensor]:
        """The same with padding and without a prefix, by the model's own attention; gradients flow where they are not switched off."""
        tokens, mask, lengths = pad(rows, 0)
        tokens, mask, last = tokens.to(self.body.device), mask.to(self.body.device), self.layers - 1
        out = self.body(
            input_ids=tokens,
            attention_mask=mask,
            output_hidden_states=any(layer != last for layer in layers),
            return_dict=True,
            **({"use_cache": False} if self.causal else {}),
        )
        states = [
            out.last_hidden_state if layer == last else out.hidden_states[layer] for layer in layers
        ]
        return [
            torch.cat([row[:length] for row, length in zip(state, lengths.tolist(), strict=True)])
            for state in states
        ]


def find_body(model):
    """The transformer below the LM head (and inside a peft wrapper): the head costs time and its logits are not read."""
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    return model.base_model


def is_causal(body) -> bool:
    """Whether every attention layer looks back only; each says so itself."""
    flags = [module.is_causal for module in body.modules() if hasattr(module, "is_causal")]
    return bool(flags) and all(flags)


def has_plain_cache(config) -> bool:
    """Whether the model's past is keys and values only; state-space, convolution and compressed layers run their prompts whole."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    layers = DynamicCache(config=config).layers
    return bool(layers) and all(
        type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers
    )


def probe_packing_support(forward: Backbone) -> tuple[bool, bool]:
    """Try it: three rows behind a prefix, packed, against each of them whole and alone. Once per model.

    Positions by bias (ALiBi), an attention of the model's own or anything else that packing gets wrong shows here, and such a model is
    run with padding instead.

    Returns:
        Whether rows can be packed, and whether the last layer can then be left out for all but their last tokens.
    """
    body = forward.body
    if body not in _trials:
        words = body.get_input_embeddings().weight.shape[0]
        start, *rows = (
            [(7919 * token + seed) % words for token in range(n)]
            for n, seed in ((3, 11), (5, 101), (4, 1009), (4, 10007))
        )
        last = (forward.layers - 1,)
        allowed = 1e-3 if body.dtype == torch.float32 else 0.1

        @cache
        def alone() -> torch.Tensor:
            return torch.cat(
                [forward.padded([start + row], last)[0][len(start) :] for row in rows]
            ).float()

        def same(ends: bool) -> bool:
            read = torch.tensor([len(row) for row in rows]).cumsum(0) - 1 if ends else slice(None)
            try:
                found = packing.run(
                    body, rows, packing.run_prefix(body, start, last), last, ends=ends
                )[0][read].float()
                return float((found - alone()[read]).norm() / alone()[read].norm()) < allowed
            except (
                packing.CannotPackError,
                TypeError,
                KeyError,
                AttributeError,
                ValueError,
                RuntimeError,
            ) as problem:
                log.debug(
                    "%s is run %s: %s",
                    type(body).__name__,
                    "through its whole last layer" if ends else "with padding",
                    problem,
                )
                return False

        with torch.inference_mode():
            packs = same(ends=False)
            _trials[body] = (packs, packs and same(ends=True))
    return _trials[body]
