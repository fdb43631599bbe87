"""Forward passes whose states are changed on the way, by public forward hooks only.

They run whole prompts with padding on the right: what a hook changes depends on the sentence, so
nothing before it can be shared by all of them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch

from prompteol_utils.encoder import batching, packing
from prompteol_utils.encoder.backbone import Backbone, eval_mode, find_backbone, max_positions
from prompteol_utils.encoder.onednn import fast_linear
from prompteol_utils.models.loading import LoadedModel

Edit = Callable[[torch.Tensor], torch.Tensor]
BATCH_TOKENS = 2_048


def causal_backbone(loaded: LoadedModel, method: str) -> Backbone:
    """The model without its head, if its last token has read the whole sentence.

    Raises:
        ValueError: A bidirectional model.
    """
    backbone = Backbone(loaded.model)
    if not backbone.causal:
        raise ValueError(
            f"{method} reads the last token of a causal language model, and {loaded.name} looks "
            "both ways; use a model such as smollm2-135m-instruct"
        )
    return backbone


def decoder_layers(loaded: LoadedModel) -> torch.nn.ModuleList:
    """The list of a model's layers.

    Raises:
        ValueError: There is none of the configured length.
    """
    try:
        return packing.decoder_layers(find_backbone(loaded.model))
    except packing.CannotPackError as error:
        raise ValueError(f"{loaded.name} cannot be hooked into: {error}") from None


def layer_of(loaded: LoadedModel, index: int, method: str) -> torch.nn.Module:
    """One layer, counted from 0.

    Raises:
        ValueError: The model has too few of them.
    """
    layers = decoder_layers(loaded)
    if not 0 <= index < len(layers):
        raise ValueError(
            f"{method} works on layer {index}, and {loaded.name} has layers 0 to {len(layers) - 1}"
        )
    return layers[index]


def attention_output(layer: torch.nn.Module, name: str) -> torch.nn.Module:
    """The projection that mixes the attention heads' outputs: the attention's last linear child.

    Raises:
        ValueError: The layer has no attention (state-space and convolution layers).
    """
    for module in layer.modules():
        if hasattr(module, "is_causal"):
            weights = [(child, getattr(child, "weight", None)) for child in module.children()]
            linear = [child for child, one in weights if one is not None and one.ndim == 2]
            if linear:
                return linear[-1]
    raise ValueError(f"{name} has no attention in this layer whose output could be changed")


@contextmanager
def edited(edits: Mapping[torch.nn.Module, Edit]) -> Iterator[None]:
    """Change what modules get, or, for the word embeddings, what they give.

    Args:
        edits: From a module to a function of its states (n, width, d).
    """

    def before(module, args, options):
        if args:
            return (edits[module](args[0]), *args[1:]), options
        return args, options | {"hidden_states": edits[module](options["hidden_states"])}

    def after(module, args, out):
        return edits[module](out)

    with ExitStack() as stack:
        for module in edits:
            if isinstance(module, torch.nn.Embedding):
                hook = module.register_forward_hook(after)
            else:
                hook = module.register_forward_pre_hook(before, with_kwargs=True)
            stack.callback(hook.remove)
        yield


def run_batches(
    loaded: LoadedModel,
    backbone: Backbone,
    ids: Sequence[Sequence[int]],
    run: Callable[[list[int]], list[torch.Tensor]],
) -> np.ndarray:
    """Run sentences in batches of similar length.

    Args:
        loaded: The model.
        backbone: Its backbone.
        ids: Token ids of each sentence's prompt, for the lengths.
        run: Takes positions of one batch's sentences; returns a tensor (n, d) per layer.

    Returns:
        float32 (layers, n, d).

    Raises:
        ValueError: A prompt is longer than the model's positions.
    """
    limit = max_positions(backbone.module)
    longest = max(map(len, ids))
    if limit and longest > limit:
        raise ValueError(
            f"sentence {max(range(len(ids)), key=lambda i: len(ids[i]))} makes {longest} tokens "
            f"with its prompt, and {loaded.name} holds {limit}; shorten it"
        )
    out = None
    with torch.inference_mode(), eval_mode(loaded.model), fast_linear(backbone.module):
        for batch in batching.batches(list(map(len, ids)), BATCH_TOKENS):
            found = torch.stack([one.float().cpu() for one in run(batch)]).numpy()
            if out is None:
                out = np.empty((len(found), len(ids), found.shape[-1]), np.float32)
            out[:, batch] = found
    return out


def last_states(backbone: Backbone, ids: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """All hidden states of a batch's last tokens: a tensor (n, d) per layer, embeddings first."""
    at = torch.tensor(list(map(len, ids))).cumsum(0) - 1
    states = backbone.padded(ids, range(backbone.num_hidden_states))
    return [one[at.to(one.device)] for one in states]
