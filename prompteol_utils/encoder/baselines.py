"""The plain loops that say what is right: one sentence at a time, the whole model, no padding, no cache."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from prompteol_utils.encoder.tokenization import token_ids
from prompteol_utils.models.loading import LoadedModel
from prompteol_utils.prompts import Prompt, get_prompt


@torch.inference_mode()
def reference(
    loaded: LoadedModel,
    prompt: "Prompt | str",
    sentences: Iterable[str],
    *,
    pooling: str | None = None,
    layer: int = -1,
) -> np.ndarray:
    """The plain loop that says what is right: the whole model, a batch of one, no padding, no cache.

    Args:
        loaded: A model from `load_model`.
        prompt: A prompt or its name.
        sentences: Strings.
        pooling: "last", "mean", "cls" or "mask"; None takes the prompt's own.
        layer: Index into the hidden states.

    Returns:
        float32 (n, d) in input order.

    Source: the authors' evaluation code, without its batching. Built in notebook 01.
    """
    prompt = get_prompt(prompt)
    pooling = pooling or prompt.pooling
    rows = []
    for sentence in sentences:
        tokens = torch.tensor(
            token_ids(loaded, [prompt.render(sentence)], drop_end=pooling == "last")
        )
        states = (
            loaded.model(input_ids=tokens.to(loaded.model.device), output_hidden_states=True)
            .hidden_states[layer][0]
            .float()
        )
        if pooling == "mask":
            vector = states[int((tokens[0] == loaded.tokenizer.mask_token_id).nonzero()[-1])]
        else:
            vector = {"last": states[-1], "cls": states[0]}.get(pooling, states.mean(0))
        rows.append(vector.cpu().numpy())
    return np.stack(rows)


@torch.inference_mode()
def paper_loop(
    loaded: LoadedModel, prompt: "Prompt | str", sentences: Sequence[str], batch_size: int = 16
) -> np.ndarray:
    """What the paper's code costs: the whole LM with its logits, batches in file order, padded on the left, no cache.

    Args:
        loaded: A causal model from `load_model`.
        prompt: A prompt or its name; its last token is read.
        sentences: Strings.
        batch_size: Sentences at a time.

    Returns:
        float32 (n, d) in input order.

    Source: the authors' evaluation code. Measured in benchmarks/encode.py.
    """
    prompt = get_prompt(prompt)
    rows = []
    for start in range(0, len(sentences), batch_size):
        ids = token_ids(
            loaded,
            [prompt.render(sentence) for sentence in sentences[start : start + batch_size]],
            drop_end=True,
        )
        width = max(map(len, ids))
        tokens = torch.tensor([[0] * (width - len(row)) + row for row in ids])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids])
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        device = loaded.model.device
        out = loaded.model(
            input_ids=tokens.to(device), attention_mask=mask.to(device), position_ids=positions.to(device), output_hidden_states=True,
            use_cache=False,
        )  # fmt: skip
        rows.append(out.hidden_states[-1][:, -1].float().cpu().numpy())
    return np.concatenate(rows)


@torch.inference_mode()
def next_words(
    loaded: LoadedModel, prompt: "Prompt | str", sentence: str, k: int = 10
) -> list[tuple[str, float]]:
    """What the model would say next: the k likeliest tokens after the prompt.

    Args:
        loaded: A causal model from `load_model`.
        prompt: A prompt or its name.
        sentence: The sentence to wrap.
        k: How many.

    Returns:
        (token's text, probability), likeliest first.

    Raises:
        ValueError: The model has no LM head.

    Source: the paper reads PromptEOL's vector as its next word. Built in notebook 00.
    """
    if loaded.model.get_output_embeddings() is None:
        raise ValueError(
            f"{loaded.name} has no LM head, so it predicts no next word; use a causal model such as smollm2-135m-instruct"
        )
    tokens = torch.tensor(token_ids(loaded, [get_prompt(prompt).render(sentence)], drop_end=True))
    probabilities = (
        loaded.model(input_ids=tokens.to(loaded.model.device)).logits[0, -1].float().softmax(-1)
    )
    top = probabilities.topk(k)
    return [
        (loaded.tokenizer.decode([token]), float(p))
        for p, token in zip(top.values.tolist(), top.indices.tolist(), strict=True)
    ]
