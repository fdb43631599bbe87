"""Reference implementations: the whole model, without what makes `Encoder` fast."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from prompteol_utils.encoder.backbone import eval_mode, find_backbone, reset_rotary
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
    """Embed with the whole model, a batch of one, no padding and no cache: the ground truth.

    Args:
        loaded: A model from `load_model`.
        prompt: A prompt or its name.
        sentences: Strings.
        pooling: "last", "mean", "cls" or "mask"; None takes the prompt's own.
        layer: Index into the hidden states.

    Returns:
        float32 (n, d) in input order.

    Source: the authors' evaluation code, without its batching.
    """
    prompt = get_prompt(prompt)
    pooling = pooling or prompt.pooling
    model = loaded.model
    backbone = find_backbone(model)
    if getattr(model.config, "is_encoder_decoder", False):
        model = backbone
    vectors = []
    with eval_mode(loaded.model):
        for sentence in sentences:
            ids = token_ids(loaded, [prompt.render(sentence)], drop_end=pooling == "last")
            tokens = torch.tensor(ids, device=model.device)
            reset_rotary(backbone)
            out = model(input_ids=tokens, output_hidden_states=True)
            states = out.hidden_states[layer][0].float()
            if pooling == "mask":
                at = int((tokens[0] == loaded.tokenizer.mask_token_id).nonzero()[-1])
                vector = states[at]
            else:
                vector = {"last": states[-1], "cls": states[0]}.get(pooling, states.mean(0))
            vectors.append(vector.cpu().numpy())
    return np.stack(vectors)


@torch.inference_mode()
def paper_loop(
    loaded: LoadedModel, prompt: "Prompt | str", sentences: Sequence[str], batch_size: int = 16
) -> np.ndarray:
    """Embed as the paper's code does: logits too, batches in file order, left padding, no cache.

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
    device = loaded.model.device
    vectors = []
    for start in range(0, len(sentences), batch_size):
        texts = [prompt.render(sentence) for sentence in sentences[start : start + batch_size]]
        ids = token_ids(loaded, texts, drop_end=True)
        width = max(map(len, ids))
        mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in ids])
        out = loaded.model(
            input_ids=torch.tensor([[0] * (width - len(one)) + one for one in ids], device=device),
            attention_mask=mask.to(device),
            position_ids=(mask.cumsum(1) - 1).clamp(min=0).to(device),
            output_hidden_states=True,
            use_cache=False,
        )
        vectors.append(out.hidden_states[-1][:, -1].float().cpu().numpy())
    return np.concatenate(vectors)


@torch.inference_mode()
def next_words(
    loaded: LoadedModel, prompt: "Prompt | str", sentence: str, k: int = 10
) -> list[tuple[str, float]]:
    """The k likeliest tokens after a sentence's prompt.

    Args:
        loaded: A causal model from `load_model`.
        prompt: A prompt or its name.
        sentence: The sentence to wrap.
        k: How many.

    Returns:
        (token's text, probability), likeliest first.

    Raises:
        ValueError: The model has no LM head.
    """
    model = loaded.model
    if model.get_output_embeddings() is None:
        raise ValueError(
            f"{loaded.name} has no LM head, so it predicts no next word; use a causal model such "
            "as smollm2-135m-instruct"
        )
    ids = token_ids(loaded, [get_prompt(prompt).render(sentence)], drop_end=True)
    logits = model(input_ids=torch.tensor(ids, device=model.device)).logits[0, -1]
    top = logits.float().softmax(-1).topk(k)
    words = [loaded.tokenizer.decode([token]) for token in top.indices.tolist()]
    return list(zip(words, top.values.tolist(), strict=True))
