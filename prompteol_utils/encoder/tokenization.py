"""Sentence to token ids."""

from collections.abc import Sequence

from prompteol_utils.models.loading import LoadedModel


def token_ids(loaded: LoadedModel, texts: Sequence[str], drop_end: bool = False) -> list[list[int]]:
    """Tokenize whole prompts as the model expects them (with its begin token, if it has one).

    Args:
        loaded: A model from `load_model`.
        texts: Whole prompts.
        drop_end: Leave out the end tokens that some tokenizers append: the state to read is that of the prompt's own last token.

    Returns:
        One list of ids per text.
    """
    tokenizer = loaded.tokenizer
    ids = tokenizer(list(texts), add_special_tokens=True, verbose=False)["input_ids"]
    if drop_end:
        plain, full = (
            tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True)
        )
        begin = next(i for i in range(len(full)) if full[i : i + len(plain)] == plain)
        end = len(full) - begin - len(plain)
        ids = [row[: len(row) - end] for row in ids]
    return ids
