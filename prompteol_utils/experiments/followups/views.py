"""One look at a sentence: what the model reads, what is changed on the way, what is read off.

A view turns sentences into float32 (layers, n, d), the embeddings' layer first. `passes` counts
forward passes of a sentence, `touches` says where states are changed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from prompteol_utils.encoder.encoder import Encoder
from prompteol_utils.encoder.tokenization import PromptTokenizer, common_prefix, token_ids
from prompteol_utils.experiments.followups import hooked
from prompteol_utils.experiments.followups.prompts import ECHO, IRRELEVANT
from prompteol_utils.models.loading import LoadedModel
from prompteol_utils.prompts import PROMPTS, Prompt


@dataclass(frozen=True)
class Prompted:
    """The state of a prompt's last token; the prompt's beginning is run once for all sentences.

    Args:
        prompt: As PromptEOL's.
        reverse: Read the sentence's words last to first (arXiv 2606.05858).
        rewritten: (sentence, text to read in its place), for `rewriting`.
    """

    prompt: Prompt = PROMPTS["prompteol"]
    reverse: bool = False
    rewritten: tuple[tuple[str, str], ...] = ()
    passes = 1.0
    touches = "nothing"

    def __call__(self, loaded: LoadedModel, sentences: Sequence[str]) -> np.ndarray:
        """float32 (layers, n, d)."""
        hooked.causal_backbone(loaded, self.prompt.name)
        if self.rewritten:
            texts = dict(self.rewritten)
            sentences = [texts[sentence] for sentence in sentences]
        if self.reverse:
            sentences = [" ".join(sentence.split()[::-1]) for sentence in sentences]
        return Encoder(loaded, self.prompt).encode_layers(sentences)


@dataclass(frozen=True)
class Echo:
    """The mean over a sentence's second copy, whose tokens have all read the whole first one.

    Source: arXiv 2402.15449, zero-shot; only the second copy is read.
    """

    template: str = ECHO
    prompt = Prompt(ECHO.partition("{0}")[0], "", "echo", pooling="mean", punctuation=None)
    passes = 1.0
    touches = "nothing"

    def __call__(self, loaded: LoadedModel, sentences: Sequence[str]) -> np.ndarray:
        """float32 (layers, n, d)."""
        backbone = hooked.causal_backbone(loaded, "Echo")
        starts = self.template.rpartition("{0}")[0].rstrip()
        ids = token_ids(loaded, [self.template.format(one) for one in sentences], drop_end=True)
        heads = token_ids(loaded, [starts.format(one) for one in sentences], drop_end=True)
        spans = [len(one) - common_prefix(one, head) for one, head in zip(ids, heads, strict=True)]

        def run(batch: list[int]) -> list[torch.Tensor]:
            states = backbone.states(
                [ids[i] for i in batch], None, range(backbone.num_hidden_states)
            )
            ends = np.cumsum([len(ids[i]) for i in batch])
            parts = [(end - spans[i], end) for i, end in zip(batch, ends, strict=True)]
            return [torch.stack([one[a:b].float().mean(0) for a, b in parts]) for one in states]

        return hooked.run_batches(loaded, backbone, ids, run)


@dataclass(frozen=True)
class TokenPrepending:
    """A token before the sentence that holds, layer by layer, what the last token knows so far.

    The sentence's tokens attend to it, and through it to what comes after them.

    Args:
        prompt: Its prefix ends with the opening quote; the token is put before that.
        start: The first layer (from 0) whose input is changed.
        end: The first layer that is not changed any more. None: as deep, in proportion, as the
            authors' 7 of 32.

    Source: arXiv 2412.11556.
    """

    prompt: Prompt = PROMPTS["prompteol"]
    start: int = 1
    end: int | None = None
    passes = 1.0

    @property
    def touches(self) -> str:
        """Where states are changed."""
        end = "22 % of the depth" if self.end is None else f"layer {self.end - 1}"
        return f"the added token before layers {self.start} to {end}"

    def __call__(self, loaded: LoadedModel, sentences: Sequence[str]) -> np.ndarray:
        """float32 (layers, n, d)."""
        backbone = hooked.causal_backbone(loaded, "Token Prepending")
        depth = backbone.num_hidden_states - 1
        end = self.end or max(self.start + 1, round(depth * 7 / 32))
        layers = [
            hooked.layer_of(loaded, index, "Token Prepending") for index in range(self.start, end)
        ]
        before, quote, _ = self.prompt.prefix.rpartition('"')
        if not quote:
            raise ValueError(
                f"Token Prepending puts its token before the sentence's quote; prompt "
                f"{self.prompt.name!r} has none"
            )
        head = token_ids(loaded, [before], drop_end=True)[0]
        texts = [f' "{self.prompt.render(one)[len(self.prompt.prefix) :]}' for one in sentences]
        tails = loaded.tokenizer(texts, add_special_tokens=False)["input_ids"]
        ids = [[*head, 0, *tail] for tail in tails]
        embeddings = backbone.module.get_input_embeddings()
        width = embeddings.weight.shape[1]
        # Any start will do, say the authors; theirs is random, too.
        noise = torch.randn(width, generator=torch.Generator().manual_seed(0))

        def run(batch: list[int]) -> list[torch.Tensor]:
            last = torch.tensor([len(ids[i]) - 1 for i in batch])

            def first(states: torch.Tensor) -> torch.Tensor:
                states = states.clone()
                states[:, len(head)] = noise.to(states)
                return states

            def carry(states: torch.Tensor) -> torch.Tensor:
                states = states.clone()
                states[:, len(head)] = states[torch.arange(len(last)), last.to(states.device)]
                return states

            with hooked.edited({embeddings: first} | dict.fromkeys(layers, carry)):
                return hooked.last_states(backbone, [ids[i] for i in batch])

        return hooked.run_batches(loaded, backbone, ids, run)


class _Captured(Exception):
    """Leaves a pass that was run for one layer's attention."""


@dataclass(frozen=True)
class Contrastive:
    """Subtract, at one layer, what the model says of the sentence's irrelevant information.

    In the last token's attention output v, before it is projected, v becomes
    strength · (v − v_auxiliary), or that direction at v's own length.

    Args:
        prompt: The prompt that is read.
        auxiliary: The prompt that is subtracted.
        layer: Where, from 0. None: as deep, in proportion, as the authors' fifth of 32 layers.
        strength: α of their NS; None keeps the length (NR).

    Source: arXiv 2505.12831.
    """

    prompt: Prompt = PROMPTS["prompteol"]
    auxiliary: Prompt = IRRELEVANT
    layer: int | None = None
    strength: float | None = 2.0
    passes = 2.0

    @property
    def touches(self) -> str:
        """Where states are changed."""
        where = "the layer at 13 % of the depth" if self.layer is None else f"layer {self.layer}"
        return f"the last token's attention in {where}, where the second pass ends"

    def __call__(self, loaded: LoadedModel, sentences: Sequence[str]) -> np.ndarray:
        """float32 (layers, n, d)."""
        backbone = hooked.causal_backbone(loaded, "Contrastive Prompting")
        depth = backbone.num_hidden_states - 1
        index = round(depth * 4 / 32) if self.layer is None else self.layer
        layer = hooked.layer_of(loaded, index, "Contrastive Prompting")
        projection = hooked.attention_output(layer, loaded.name)
        ids, other = (
            PromptTokenizer(loaded, prompt, True, None, None)(sentences)
            for prompt in (self.prompt, self.auxiliary)
        )

        def run(batch: list[int]) -> list[torch.Tensor]:
            last, aux_last = (
                torch.tensor([len(one[i]) - 1 for i in batch]) for one in (ids, other)
            )
            rows = torch.arange(len(batch))
            caught: list[torch.Tensor] = []

            def catch(heads: torch.Tensor) -> torch.Tensor:
                caught.append(heads[rows, aux_last])
                raise _Captured

            def subtract(heads: torch.Tensor) -> torch.Tensor:
                heads = heads.clone()
                own = heads[rows, last].float()
                heads[rows, last] = self._contrast(own, caught[0].float()).to(heads)
                return heads

            try:
                with hooked.edited({projection: catch}):
                    hooked.last_states(backbone, [other[i] for i in batch])
            except _Captured:
                pass
            with hooked.edited({projection: subtract}):
                return hooked.last_states(backbone, [ids[i] for i in batch])

        return hooked.run_batches(loaded, backbone, other, run)

    def _contrast(self, own: torch.Tensor, auxiliary: torch.Tensor) -> torch.Tensor:
        difference = own - auxiliary
        if self.strength is not None:
            return self.strength * difference
        lengths = own.norm(dim=-1, keepdim=True), difference.norm(dim=-1, keepdim=True)
        return difference * lengths[0] / lengths[1].clamp(min=1e-7)
