"""Write an encoder as a folder that stock sentence-transformers loads, without this package.

The prompt and its demonstrations become the tokenizer's chat template, because the prompts of
sentence-transformers have a place before the text only, and PromptEOL needs one after it, too.
"""

import json
import os
import shutil
from pathlib import Path

import torch

from prompteol_utils.encoder import Encoder
from prompteol_utils.encoder.tokenization import special_tokens
from prompteol_utils.export.model_card import write_model_card
from prompteol_utils.models.loading import silence_transformers
from prompteol_utils.utils import files

MISSING = (
    "exporting needs the package sentence-transformers, which is not installed: "
    "pip install prompteol-utils[export]"
)


def chat_template(prefix: str, suffix: str) -> str:
    """A Jinja template that puts each user message between two fixed texts.

    Args:
        prefix: Before the sentence; begin token and demonstrations included.
        suffix: After it. Both may hold anything, braces, quotes and line breaks included.
    """
    content = 'm["content"] if m["content"] is string else m["content"][0]["text"]'
    # A JSON string of ASCII characters is a valid Jinja string; so nothing in it is template.
    before, after = (f"{{{{- {json.dumps(text)} -}}}}" for text in (prefix, suffix))
    inside = f"{before}{{{{- {content} -}}}}{after}"
    return (
        '{%- for m in messages -%}{%- if m["role"] == "user" -%}'
        f"{inside}"
        "{%- endif -%}{%- endfor -%}"
    )


def export_sentence_transformer(
    encoder: Encoder, folder: str | os.PathLike, *, max_tokens: int = 512
) -> Path:
    """Export an encoder: stock `Transformer` and last-token `Pooling`, prompt as chat template.

    `SentenceTransformer(folder).encode` then gives the vectors of `Encoder.encode` for the same
    prompt with `punctuation=None`: the paper's punctuation rules cannot live in a template.

    Args:
        encoder: With a causal model, not quantised, that reads the last token of its last layer.
            An adapter on it is merged into the exported weights.
        folder: A new folder.
        max_tokens: Longest input, prompt included; what is cut is the end of the sentence, never
            the prompt's suffix.

    Returns:
        The folder.

    Raises:
        ImportError: sentence-transformers is not installed.
        ValueError: Another pooling or layer, a quantised model, a folder that is not empty.
    """
    try:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import (
            Normalize,
            Pooling,
            Transformer,
        )
    except ImportError as error:
        raise ImportError(MISSING) from error
    folder = Path(folder)
    _check(encoder, folder)
    with files.atomic_folder(folder) as work:
        source = work / "source"
        _save_backbone(encoder, source)
        with silence_transformers():
            body = Transformer(str(source), max_seq_length=max_tokens)
            modules = [body, Pooling(body.get_embedding_dimension(), "lasttoken")]
            if encoder.normalize:
                modules.append(Normalize())
            model = SentenceTransformer(modules=modules, device="cpu", similarity_fn_name="cosine")
            model.save_pretrained(str(work), create_model_card=False)
        shutil.rmtree(source)
        write_model_card(encoder, work, max_tokens=max_tokens)
    return folder


def _check(encoder: Encoder, folder: Path) -> None:
    loaded = encoder.loaded
    if encoder.pooling != "last":
        raise ValueError(f"only last-token pooling is exported, got {encoder.pooling!r}")
    last = encoder.backbone.num_hidden_states - 1
    if encoder.layer != last:
        raise ValueError(
            "only the last layer is exported (sentence-transformers reads no other), got "
            f"{encoder.layer} of {last}"
        )
    if loaded.quantization is not None:
        raise ValueError(
            f"{loaded.name} is loaded in {loaded.quantization}: export it with quantization=None"
        )
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{str(folder)!r} is not empty; choose another folder")


def _save_backbone(encoder: Encoder, folder: Path) -> None:
    """Save weights and tokenizer for `AutoModel`, with the prompt as the only chat template."""
    loaded = encoder.loaded
    model = loaded.model
    if loaded.adapter is not None:
        model = _merged(model)
    with silence_transformers(), torch.inference_mode():
        model.save_pretrained(folder)
    tokenizer = loaded.tokenizer
    # A chat template is tokenized without special tokens, so it has the begin token as text.
    begin = "".join(tokenizer.convert_ids_to_tokens(special_tokens(tokenizer)[0]))
    before = tokenizer.chat_template
    tokenizer.chat_template = chat_template(begin + encoder.prompt.prefix, encoder.prompt.suffix)
    try:
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.chat_template = before


def _merged(model):
    """A copy of the base with the adapter added, so that the caller's model stays as it is."""
    import copy

    return copy.deepcopy(model).merge_and_unload()
