"""The methods after PromptEOL: each is the mean of one or more views, read at one layer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from prompteol_utils.experiments.followups import prompts
from prompteol_utils.experiments.followups.linear import (
    EmbedFilter,
    LinearMap,
    Whitening,
    mean_states,
)
from prompteol_utils.experiments.followups.views import Contrastive, Echo, Prompted, TokenPrepending
from prompteol_utils.models.loading import LoadedModel
from prompteol_utils.prompts import Demonstration, with_demonstrations

View = Callable[[LoadedModel, Sequence[str]], np.ndarray]
_LATE = 27 / 32  # the state that Token and Contrastive Prompting read of LLaMA2-7B's 32 layers


@dataclass(frozen=True)
class Method:
    """A way to turn sentences into vectors with a frozen model.

    Args:
        name: What records call it.
        views: Their mean is the embedding.
        layer: The hidden state that its authors read: -1 the last one, -2 the one before, or a
            share of the depth, for those who named a layer of a model of 32.
        system: Its name in `paper_table("followups")`.
        linear: A map of the embedding, or None.
        needs: What it asks for beside the model.
        source: The paper.
    """

    name: str
    views: tuple[View, ...]
    layer: int | float = -1
    system: str = ""
    linear: LinearMap | None = None
    needs: str = "nothing"
    source: str = ""

    @property
    def passes(self) -> float:
        """Forward passes of a sentence; Contrastive Prompting's second one ends early."""
        return sum(view.passes for view in self.views)

    @property
    def touches(self) -> str:
        """Where it changes states on the way."""
        return " and ".join(dict.fromkeys(view.touches for view in self.views))

    def published_layer(self, depth: int) -> int:
        """The index of the hidden state that its authors read, in a model of this depth."""
        return depth + 1 + self.layer if self.layer < 0 else round(self.layer * depth)

    def combine(self, loaded: LoadedModel, states: Sequence[np.ndarray]) -> np.ndarray:
        """From the views' states (layers, n, d) to the method's."""
        mean = mean_states(states)
        return mean if self.linear is None else self.linear(loaded, mean)

    def encode_layers(self, loaded: LoadedModel, sentences: Sequence[str]) -> np.ndarray:
        """Embed sentences at every depth, each view in one pass.

        Args:
            loaded: A causal language model from `load_model`.
            sentences: Strings.

        Returns:
            float32 (depth + 1, n, d), the embeddings' layer first.

        Raises:
            ValueError: The model cannot serve this method.
        """
        return self.combine(loaded, [view(loaded, sentences) for view in self.views])

    def encode(
        self, loaded: LoadedModel, sentences: Sequence[str], layer: int | None = None
    ) -> np.ndarray:
        """Embed sentences at one layer.

        Args:
            loaded: As for `encode_layers`.
            sentences: As for `encode_layers`.
            layer: Index into the hidden states; None takes the authors' own.

        Returns:
            float32 (n, d).

        Raises:
            ValueError: As `encode_layers`; or there is no such layer.
        """
        states = self.encode_layers(loaded, sentences)
        index = self.published_layer(len(states) - 1) if layer is None else layer
        if not -len(states) <= index < len(states):
            raise ValueError(
                f"{self.name} is read at layer {index}, and {loaded.name} has hidden states 0 to "
                f"{len(states) - 1}"
            )
        return states[index]


_EOL = Prompted()
_COT = Prompted(prompts.PRETENDED_COT)
_KE = Prompted(prompts.KNOWLEDGE)
_TP = "arXiv 2412.11556"
_CP = "arXiv 2505.12831"
_PRETCOT = "arXiv 2404.03921"
_MATRIX = "the output matrix"

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("prompteol", (_EOL,), -1, "PromptEOL", source="arXiv 2307.16645"),
        Method("pretended-cot", (_COT,), -2, "Pretended CoT", source=_PRETCOT),
        Method("knowledge", (_KE,), -2, "Knowledge Enhancement", source=_PRETCOT),
        Method(
            "ck",
            (_COT, _KE),
            -2,
            "CK (mean of the Pretended CoT and Knowledge Enhancement vectors)",
            source=_CP,
        ),
        Method(
            "metaeol", tuple(map(Prompted, prompts.META)), -1, "MetaEOL", source="arXiv 2402.18458"
        ),
        Method("token-prepending", (TokenPrepending(),), _LATE, "PromptEOL + TP", source=_TP),
        Method("contrastive-ns", (Contrastive(),), _LATE, "PromptEOL + CP-NS", source=_CP),
        Method(
            "contrastive-nr", (Contrastive(strength=None),), _LATE, "PromptEOL + CP-NR", source=_CP
        ),
        Method("echo", (Echo(),), -1, "Echo, zero-shot", source="arXiv 2402.15449"),
        Method("reverseeol", (_EOL, Prompted(reverse=True)), -1, source="arXiv 2606.05858"),
        Method(
            "embedfilter",
            (_EOL,),
            -1,
            linear=EmbedFilter(),
            needs=_MATRIX,
            source="arXiv 2606.07502",
        ),
        # Combinations of our own; the views are those of above, so that they cost nothing more.
        Method("ck-embedfilter", (_COT, _KE), -2, linear=EmbedFilter(), needs=_MATRIX),
        Method("eol-cot-knowledge", (_EOL, _COT, _KE), -2),
    )
}


def get_method(name: str) -> Method:
    """The method of a name in `METHODS`.

    Raises:
        ValueError: Unknown name; the message lists the known ones.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; allowed: {', '.join(METHODS)}")
    return METHODS[name]


def few_shot(demonstrations: Sequence[Demonstration]) -> Method:
    """PromptEOL after solved examples, this project's notebook 02.

    Args:
        demonstrations: In reading order.
    """
    prompt = with_demonstrations("prompteol", demonstrations)
    name = f"{len(prompt.demonstrations)}-shot"
    return Method(name, (Prompted(prompt),), needs="demonstrations", source="arXiv 2307.16645")


def whitened(method: Method, loaded: LoadedModel, states: np.ndarray, size: int = 256) -> Method:
    """A method whose embeddings are whitened afterwards.

    Args:
        method: Any method without a linear map.
        loaded: The model that the states are of.
        states: Its states (layers, n, d) of training sentences, from `encode_layers`.
        size: Directions to keep.
    """
    fitted = Whitening.fit(states, size)
    name = "whitening" if method.name == "prompteol" else f"{method.name}-whitening"
    return replace(method, name=name, system="", linear=fitted, needs="training sentences")
