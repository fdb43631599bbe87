"""Sentence to token ids: what all prompts begin with is tokenised once, long sentences are cut."""

import logging
from collections.abc import Sequence

from prompteol_utils.models.loading import LoadedModel
from prompteol_utils.prompts import Prompt

log = logging.getLogger(__name__)

# First characters that a tokenizer could join with what comes before them, or change itself.
_PROBES = (
    "The cat.", "a", "A b", " two  spaces", "'s", '"quoted"', ".", "?!", ":x", "12", "\nline",
    "\ttab", "\u0301accent", "é", "ﬁ", "你好", "🎉", "\u200d", "\x00", "<s>", "[MASK]", "▁x",
)  # fmt: skip


class BadSentenceError(ValueError):
    """A sentence that cannot be embedded.

    Attributes:
        index: Its position in the input.
        embeddings: float32 (k, d): the sentences of the finished chunks before it.
    """

    def __init__(self, index: int, reason: str):
        super().__init__(f"sentence {index}: {reason}")
        self.index = index
        self.reason = reason
        self.embeddings = None


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def token_ids(loaded: LoadedModel, texts: Sequence[str], drop_end: bool = False) -> list[list[int]]:
    """Tokenise whole prompts as the model expects them (with its begin token, if it has one).

    Args:
        loaded: A model from `load_model`.
        texts: Whole prompts.
        drop_end: Leave out the end tokens that some tokenizers append: the state to read is that
            of the prompt's own last token.

    Returns:
        One list of ids per text.
    """
    ids = _ids(loaded.tokenizer, texts, special=True)
    if drop_end:
        _, end = special_tokens(loaded.tokenizer)
        ids = [one[: len(one) - len(end)] for one in ids]
    return ids


class PromptTokenizer:
    """Tokenises one prompt's sentences.

    Args:
        loaded: A model from `load_model`.
        prompt: What surrounds each sentence. It is never cut.
        drop_end: As for `token_ids`.
        max_sentence_tokens: Longer sentences are cut to this many tokens before they are wrapped.
        max_positions: Tokens that the model's positions hold, or None.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        prompt: Prompt,
        drop_end: bool,
        max_sentence_tokens: int | None,
        max_positions: int | None,
    ):
        self.loaded = loaded
        self.prompt = prompt
        self.drop_end = drop_end
        self.max_sentence_tokens = max_sentence_tokens
        limit = loaded.tokenizer.model_max_length
        self.max_tokens = min(max_positions or limit, limit)
        self._head: tuple[str, list[int]] | None = None  # text and ids that need no second look
        self._warned = False

    def __call__(self, sentences: Sequence[str]) -> list[list[int]]:
        """Token ids of whole prompts.

        Raises:
            BadSentenceError: Nothing is left of a sentence that is cut.
            ValueError: The prompt alone fills the model.
        """
        if self.max_sentence_tokens:
            sentences = self._cut(sentences, self.max_sentence_tokens)
        ids = self._whole(sentences)
        for index, one in enumerate(ids):
            if len(one) > self.max_tokens:
                ids[index] = self._fit(index, sentences[index], len(one))
        return ids

    def count_shared(self, ids: list[list[int]]) -> int:
        """How many tokens all prompts begin with, by ids: a merge may straddle the seam."""
        if not self.prompt.prefix:
            return 0
        # The prefix alone is a bound: a lone sentence shares all of its tokens with itself.
        alone = token_ids(self.loaded, [self.prompt.prefix], drop_end=True)[0]
        shared = [alone[: min(map(len, ids)) - 1], *ids]
        return common_prefix(min(shared), max(shared))  # all between these two share it as well

    def _whole(self, sentences: Sequence[str]) -> list[list[int]]:
        """Tokenise prompts, without their unchanging head where that is seen to be the same."""
        texts = [self.prompt.render(sentence) for sentence in sentences]
        if self._head is None:
            self._head = self._find_head()
        head, head_ids = self._head
        if not head or not texts:
            return token_ids(self.loaded, texts, self.drop_end)
        _, end = special_tokens(self.loaded.tokenizer)
        end = [] if self.drop_end else end
        rest = _ids(self.loaded.tokenizer, [text[len(head) :] for text in texts], special=False)
        ids = [[*head_ids, *one, *end] for one in rest]
        if ids[0] != token_ids(self.loaded, texts[:1], self.drop_end)[0]:
            self._head = "", []
            return token_ids(self.loaded, texts, self.drop_end)
        return ids

    def _find_head(self) -> tuple[str, list[int]]:
        """The prefix up to its last two words, if prompts can be cut there; else nothing."""
        words = self.prompt.prefix.rsplit(" ", 2)
        if len(words) < 3 or not words[0]:
            return "", []
        head = words[0]
        begin, end = special_tokens(self.loaded.tokenizer)
        head_ids = [*begin, *_ids(self.loaded.tokenizer, [head], special=False)[0]]
        texts = [self.prompt.prefix + probe + self.prompt.suffix for probe in _PROBES]
        rest = _ids(self.loaded.tokenizer, [text[len(head) :] for text in texts], special=False)
        whole = token_ids(self.loaded, texts)
        same = all([*head_ids, *a, *end] == b for a, b in zip(rest, whole, strict=True))
        return (head, head_ids) if same else ("", [])

    def _fit(self, index: int, sentence: str, length: int) -> list[int]:
        """Cut a sentence until its prompt fits the model."""
        if not self._warned:
            log.warning(
                "a sentence was cut to fit the %d positions of %s (further cuts are not reported)",
                self.max_tokens,
                self.loaded.name,
            )
            self._warned = True
        keep = len(_ids(self.loaded.tokenizer, [sentence], special=False)[0])
        while length > self.max_tokens:
            keep -= length - self.max_tokens
            if keep < 1:
                raise ValueError(
                    f"prompt {self.prompt.name!r} alone fills the {self.max_tokens} positions of "
                    f"{self.loaded.name}; use fewer demonstrations"
                )
            text = self.prompt.render(self._cut([sentence], keep, index)[0])
            ids = token_ids(self.loaded, [text], self.drop_end)[0]
            length = len(ids)
        return ids

    def _cut(self, sentences: Sequence[str], keep: int, first: int = 0) -> list[str]:
        tokenizer = self.loaded.tokenizer
        cut = list(sentences)
        for index, ids in enumerate(_ids(tokenizer, sentences, special=False)):
            if len(ids) > keep:
                text = tokenizer.decode(ids[:keep], clean_up_tokenization_spaces=False)
                # A cut inside a character of several bytes leaves a replacement sign behind.
                cut[index] = text.rstrip("\ufffd")
                if not cut[index].strip():
                    raise BadSentenceError(
                        first + index,
                        f"cut to {keep} tokens, nothing is left of it; raise max_sentence_tokens",
                    )
        return cut


def _ids(tokenizer, texts: Sequence[str], special: bool) -> list[list[int]]:
    if not texts:
        return []
    options = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
    return tokenizer(list(texts), add_special_tokens=special, **options)["input_ids"]


def special_tokens(tokenizer) -> tuple[list[int], list[int]]:
    """The ids that a tokenizer puts before and after a text."""
    plain, whole = (_ids(tokenizer, ["a"], special)[0] for special in (False, True))
    starts = range(len(whole) - len(plain) + 1)
    begin = next(i for i in starts if whole[i : i + len(plain)] == plain)
    return whole[:begin], whole[begin + len(plain) :]
