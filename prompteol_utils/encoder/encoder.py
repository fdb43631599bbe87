"""Text to embedding, exactly and fast: no LM head, no padding, the shared prefix once, duplicates once, batches by token budget."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from itertools import islice

import numpy as np
import torch
from tqdm import tqdm

from prompteol_utils.encoder import batching
from prompteol_utils.encoder.backbone import Backbone
from prompteol_utils.encoder.batching import batches, even_budget, pooling_positions
from prompteol_utils.encoder.onednn import fast_linear
from prompteol_utils.encoder.tokenization import token_ids
from prompteol_utils.models.adapters import check_prompt
from prompteol_utils.models.loading import LoadedModel, load_model
from prompteol_utils.models.registry import MODELS
from prompteol_utils.prompts import (
    POOLINGS,
    PROMPTS,
    Demonstration,
    Prompt,
    get_prompt,
    with_demonstrations,
)

CHUNK = 16_384  # sentences tokenised, sorted and deduplicated together; bounds the memory beside the result
CPU_TOKENS, GPU_TOKENS = (
    512,
    16_384,
)  # default batch budgets: on a CPU what its caches hold (benchmarks/README.md)
QUIET_BELOW = 256  # sentences for which no progress bar is shown

log = logging.getLogger(__name__)


class BadSentenceError(ValueError):
    """A sentence that cannot be embedded.

    Attributes:
        index: Its position in the input.
        embeddings: float32 (k, d): the sentences of the finished chunks before it, so that a long run loses nothing.
    """

    def __init__(self, index: int, reason: str):
        super().__init__(f"sentence {index}: {reason}")
        self.index, self.embeddings = index, None


class Encoder:
    """Turn sentences into vectors by what a language model would say next.

    Args:
        loaded: A model from `load_model`.
        prompt: The template around each sentence, or its name.
        pooling: "last", "mean", or for a bidirectional model "cls" or "mask"; None takes the prompt's own.
        layer: Index into the model's hidden states: -1 is the last layer after the final norm (the paper's), 0 the token embeddings.
        max_sentence_tokens: Cut longer sentences to this many tokens before they are wrapped (the paper's training: 32). None cuts
            only what the model's positions cannot hold. The prompt itself is never cut.
        normalize: Scale every vector to length 1. The paper keeps the raw vectors, and cosine does not care.
        prefix_cache: Run the tokens that all prompts begin with once and reuse their keys and values. Never changes a result.

    Raises:
        ValueError: Unknown prompt, pooling or layer.

    Source: the method of the paper. Built in notebook 01.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        prompt: "Prompt | str" = PROMPTS["prompteol"],
        *,
        pooling: str | None = None,
        layer: int = -1,
        max_sentence_tokens: int | None = None,
        normalize: bool = False,
        prefix_cache: bool = True,
    ):
        self.loaded, self.prompt = loaded, get_prompt(prompt)
        check_prompt(loaded, self.prompt)
        self.pooling = pooling or self.prompt.pooling
        if self.pooling not in POOLINGS:
            raise ValueError(f"unknown pooling {pooling!r}; allowed: {', '.join(POOLINGS)}")
        if self.pooling == "mask" and loaded.tokenizer.mask_token is None:
            raise ValueError(
                f"pooling 'mask' needs a model with a mask token, such as BERT; {loaded.name} has none"
            )
        if max_sentence_tokens is not None and max_sentence_tokens < 1:
            raise ValueError(f"max_sentence_tokens is at least 1, got {max_sentence_tokens}")
        self.max_sentence_tokens, self.normalize, self.prefix_cache = (
            max_sentence_tokens,
            normalize,
            prefix_cache,
        )
        self._forward = Backbone(loaded.model)
        self._config, self._layers = self._forward.config, self._forward.layers
        if self.pooling == "cls" and self._forward.causal:
            raise ValueError(
                f"pooling 'cls' reads the first token, which in a causal model such as {loaded.name} has seen nothing else"
            )
        self.layer = self._layer_index(layer)
        self._plain_cache = prefix_cache and self._forward.supports_packing
        # bitsandbytes' 8-bit layers keep what they work on in themselves, so that two batches at once would mix.
        self._in_threads = (
            loaded.device == "cpu"
            and self._forward.supports_packing
            and loaded.quantization != "int8"
        )
        self._prefix: tuple = (None, None)
        self._warned = False

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        prompt: "Prompt | str | None" = None,
        demonstrations: Iterable[Demonstration] = (),
        quantization: str | None = None,
        device: "str | torch.device | None" = None,
        *,
        dtype: "str | torch.dtype | None" = None,
        adapter: str | None = None,
        **options,
    ) -> "Encoder":
        """Load a model and make its encoder.

        Args:
            name_or_path: As for `load_model`.
            prompt: A prompt or its name; None takes the one that the model's row in the registry names, PromptEOL for any other model.
            demonstrations: Put before the prompt, in this order.
            quantization: None, "nf4" or "int8".
            device: None chooses the GPU if there is one.
            dtype: None chooses fp32 on a CPU, bf16/fp16 on a GPU.
            adapter: A LoRA adapter's hub id or folder.
            **options: As for `Encoder`.
        """
        if prompt is None:
            prompt = MODELS[name_or_path].prompt if name_or_path in MODELS else "prompteol"
        prompt = with_demonstrations(
            prompt, demonstrations
        )  # a wrong prompt is said before a model is downloaded
        return cls(
            load_model(
                name_or_path, dtype=dtype, quantization=quantization, device=device, adapter=adapter
            ),
            prompt,
            **options,
        )

    @property
    def key(self) -> dict:
        """All that decides a vector besides its sentence: the identity for rows and for the embedding cache."""
        loaded = self.loaded
        return {
            "model": loaded.name,
            "weight_origin": loaded.weight_origin,
            "commit": loaded.commit,
            "dtype": loaded.dtype,
            "quantization": loaded.quantization,
            "adapter": loaded.adapter,
            "prompt": asdict(self.prompt)
            | {"demonstrations": list(map(str, self.prompt.demonstrations))},
            "pooling": self.pooling,
            "layer": self.layer,
            "max_sentence_tokens": self.max_sentence_tokens,
            "normalize": self.normalize,
        }

    @property
    def dimension(self) -> int:
        """Width of the vectors."""
        width = self._config.hidden_size
        # OPT-350m projects its last state down to the width of its word embeddings; a layer on top may change it too.
        last = self.loaded.width or getattr(self._config, "word_embed_proj_dim", width)
        return last if self.layer == self._layers - 1 else width

    def encode(
        self,
        sentences: "str | Iterable[str]",
        *,
        batch_tokens: int | None = None,
        show_progress_bar: bool | None = None,
    ) -> np.ndarray:
        """Embed sentences.

        Args:
            sentences: A list or any iterable of strings (a generator is read as it goes); a single string gives a single vector.
            batch_tokens: Tokens in one batch. None takes 512 on a CPU and 16,384 on a GPU. A memory error halves the batch and goes on.
            show_progress_bar: None shows one for 256 sentences or more.

        Returns:
            float32 (n, d) in input order, or (d,) for a single string. An empty input gives (0, d).

        Raises:
            BadSentenceError: (a ValueError) a sentence is not a string, blank, or holds a lone surrogate; it names the sentence's index.

        Built in notebook 01.
        """
        if isinstance(sentences, str):
            return self.encode([sentences], batch_tokens=batch_tokens, show_progress_bar=False)[0]
        rows: list[np.ndarray] = []
        if hasattr(sentences, "__len__"):
            sentences = list(sentences)
            _validate(sentences)  # a list is looked through before the first second is spent
            out, done = np.empty((len(sentences), self.dimension), np.float32), 0
            for part in self.stream(
                sentences, batch_tokens=batch_tokens, show_progress_bar=show_progress_bar
            ):
                out[done : done + len(part)] = part
                done += len(part)
            return out
        try:
            rows.extend(
                self.stream(
                    sentences, batch_tokens=batch_tokens, show_progress_bar=show_progress_bar
                )
            )
        except BadSentenceError as error:
            error.embeddings = np.concatenate([np.empty((0, self.dimension), np.float32), *rows])
            raise
        return np.concatenate([np.empty((0, self.dimension), np.float32), *rows])

    def stream(
        self,
        sentences: Iterable[str],
        *,
        batch_tokens: int | None = None,
        show_progress_bar: bool | None = None,
        chunk: int = CHUNK,
        bar: tqdm | None = None,
    ) -> Iterator[np.ndarray]:
        """Embed sentences chunk by chunk, for input or output that does not fit into memory.

        Args:
            sentences: Any iterable of strings.
            batch_tokens: As for `encode`.
            show_progress_bar: As for `encode`.
            chunk: Sentences at a time; within a chunk duplicates are embedded once and batches are sorted by length.
            bar: A bar to move by what is done, in place of one of its own.

        Yields:
            float32 (k, d), k ≤ chunk, in input order.
        """
        total = len(sentences) if hasattr(sentences, "__len__") else None
        show = (
            show_progress_bar
            if show_progress_bar is not None
            else (total is None or total >= QUIET_BELOW)
        )
        source, start = iter(sentences), 0
        shown = (
            nullcontext(bar)
            if bar is not None
            else tqdm(total=total, unit="sentence", disable=not show, desc="encode", leave=False)
        )
        with shown as bar:
            while part := list(islice(source, chunk)):
                _validate(part, start)
                yield self._encode_chunk(part, start, batch_tokens, bar, (self.layer,))[0]
                start += len(part)

    def encode_layers(
        self,
        sentences: Sequence[str],
        layers: Sequence[int] | None = None,
        *,
        batch_tokens: int | None = None,
        show_progress_bar: bool | None = None,
    ) -> np.ndarray:
        """Embed sentences at several depths in one pass.

        Args:
            sentences: A list of strings.
            layers: Indices into the hidden states, negative ones count from the end. None takes all of one width.
            batch_tokens: As for `encode`.
            show_progress_bar: As for `encode`.

        Returns:
            float32 (layers, n, d).

        Raises:
            ValueError: A layer does not exist.

        Built in notebook 01.
        """
        layers = tuple(
            self._layer_index(layer)
            for layer in (range(self._layers) if layers is None else layers)
        )
        _validate(sentences)
        show = show_progress_bar if show_progress_bar is not None else len(sentences) >= QUIET_BELOW
        with tqdm(
            total=len(sentences), unit="sentence", disable=not show, desc="encode", leave=False
        ) as bar:
            parts = [
                np.stack(
                    self._encode_chunk(
                        sentences[start : start + CHUNK], start, batch_tokens, bar, layers
                    )
                )
                for start in range(0, len(sentences), CHUNK)
            ]
        return (
            np.concatenate(parts, axis=1)
            if parts
            else np.empty((len(layers), 0, self.dimension), np.float32)
        )

    def _layer_index(self, layer: int) -> int:
        if not -self._layers <= layer < self._layers:
            raise ValueError(
                f"layer {layer} does not exist: {self.loaded.name} has hidden states 0 (the embeddings) to {self._layers - 1}, "
                f"or -1 to {-self._layers} counted from the end"
            )
        return layer % self._layers

    def _encode_chunk(
        self,
        sentences: Sequence[str],
        start: int,
        batch_tokens: int | None,
        bar,
        layers: tuple[int, ...],
    ) -> list[np.ndarray]:
        """Embed a chunk of checked sentences; one (n, d) array per layer."""
        row_of = {sentence: row for row, sentence in enumerate(dict.fromkeys(sentences))}
        order = [row_of[sentence] for sentence in sentences]
        ids = self.tokenize(list(row_of))
        if [] in ids:
            raise BadSentenceError(
                start + order.index(ids.index([])),
                f"the tokenizer of {self.loaded.name} finds no token in it",
            )
        shared = self._shared_prefix(ids)
        budget = batch_tokens or (
            GPU_TOKENS if self.loaded.device.startswith("cuda") else CPU_TOKENS
        )
        results: list = [None] * len(ids)
        repeats = np.bincount(order)
        tails = [row[shared:] for row in ids]

        def run(batch: list[int]) -> list:
            return batching.halve_on_oom(
                lambda rows: self._run([tails[row] for row in rows], prefix, layers), batch
            )

        lengths = [len(row) for row in tails]
        todo = list(batches(lengths, budget, padded=not self._forward.supports_packing))
        num_workers = batching.num_workers(len(todo)) if self._in_threads else 1
        if num_workers > 1:
            todo = list(batches(lengths, even_budget(lengths, budget, num_workers), padded=False))
        with (
            torch.inference_mode(),
            fast_linear(self._forward.body),
        ):  # once for all batches: it looks at every layer
            prefix = self._run_prefix(ids[0][:shared], layers) if shared else None
            for parts in batching.parallel_map(run, todo, num_workers):
                for rows, vectors in parts:
                    for position, row in enumerate(rows):
                        results[row] = [vector[position] for vector in vectors]
                    bar.update(int(repeats[rows].sum()))
        return [np.stack([result[k] for result in results])[order] for k in range(len(layers))]

    def tokenize(self, sentences: Sequence[str]) -> list[list[int]]:
        """Token ids of whole prompts. The sentence is cut before it is wrapped, so the suffix always survives."""
        loaded, prompt = self.loaded, self.prompt
        drop_end = self.pooling == "last"
        if self.max_sentence_tokens:
            sentences = [self._cut(sentence, self.max_sentence_tokens) for sentence in sentences]
        ids = token_ids(loaded, [prompt.render(sentence) for sentence in sentences], drop_end)
        room = min(
            getattr(self._config, "max_position_embeddings", None) or 10**9,
            loaded.tokenizer.model_max_length,
        )
        for row, tokens in enumerate(ids):
            keep = (
                len(
                    loaded.tokenizer(sentences[row], add_special_tokens=False, verbose=False)[
                        "input_ids"
                    ]
                )
                if len(tokens) > room
                else 0
            )
            while len(ids[row]) > room:
                keep -= len(ids[row]) - room
                if keep < 1:
                    raise ValueError(
                        f"prompt {prompt.name!r} alone fills the {room} positions of {loaded.name}; use fewer demonstrations"
                    )
                ids[row] = token_ids(
                    loaded, [prompt.render(self._cut(sentences[row], keep))], drop_end
                )[0]
            if len(tokens) > room and not self._warned:
                log.warning(
                    "a sentence was cut to fit the %d positions of %s (further cuts are not reported)",
                    room,
                    loaded.name,
                )
                self._warned = True
        return ids

    def _cut(self, sentence: str, keep: int) -> str:
        tokens = self.loaded.tokenizer(sentence, add_special_tokens=False, verbose=False)[
            "input_ids"
        ]
        if len(tokens) <= keep:
            return sentence
        # A cut inside a character of several bytes leaves a replacement sign behind.
        return self.loaded.tokenizer.decode(
            tokens[:keep], clean_up_tokenization_spaces=False
        ).rstrip("\ufffd")

    def _shared_prefix(self, ids: list[list[int]]) -> int:
        """How many tokens all prompts begin with. Counted on ids: a merge may straddle the seam between prefix and sentence."""
        if not (self._plain_cache and self.prompt.prefix):
            return 0
        # The prefix alone is a bound: a lone sentence shares all of its tokens with itself.
        alone = token_ids(self.loaded, [self.prompt.prefix], True)[0][
            : min(len(row) for row in ids) - 1
        ]
        shared = 0
        for column in zip(alone, *ids, strict=False):
            if len(set(column)) > 1:
                break
            shared += 1
        return shared

    def _run_prefix(self, ids: list[int], layers: tuple[int, ...]):
        """Run the shared prefix once, and again when another one is asked for or the model has changed (training, an adapter switched)."""
        key = (ids, layers, self._forward.fingerprint())
        found = self._prefix  # once: another thread may put its own in its place
        if found[0] != key:
            found = self._prefix = (key, self._forward.prefix(ids, layers))
        return found[1]

    def vectors(self, ids: list[list[int]]) -> torch.Tensor:
        """One batch of token rows (from `tokenize`) as a float32 tensor (rows, d) on the model's device, ready for gradients."""
        with fast_linear(self._forward.body):
            return self._pool(self._forward.padded(ids, (self.layer,))[0], ids)

    @torch.inference_mode()
    def _run(self, ids: list[list[int]], prefix, layers: tuple[int, ...]) -> list[np.ndarray]:
        """One batch: a float32 array (rows, d) per layer."""
        states = self._forward.states(ids, prefix, layers, ends=self.pooling == "last")
        sums = prefix.sums if prefix else [None] * len(layers)
        past = prefix.length if prefix else 0
        return [
            self._pool(one, ids, past, before).cpu().numpy()
            for one, before in zip(states, sums, strict=True)
        ]

    def _pool(
        self,
        states: torch.Tensor,
        ids: list[list[int]],
        past: int = 0,
        before: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states (all tokens, d), row after row, to float32 vectors (rows, d); the mean also counts the prefix's `past` tokens."""
        lengths = torch.tensor([len(row) for row in ids], device=states.device)
        if self.pooling != "mean":
            at = torch.tensor(
                pooling_positions(ids, self.pooling, self.loaded.tokenizer.mask_token_id),
                device=states.device,
            )
            vectors = states[lengths.cumsum(0) - lengths + at].float()
        else:
            sums = torch.stack([row.float().sum(0) for row in states.split(lengths.tolist())])
            vectors = (sums if before is None else sums + before) / (past + lengths[:, None])
        return torch.nn.functional.normalize(vectors) if self.normalize else vectors


def _validate(sentences: Iterable[str], start: int = 0) -> None:
    for index, sentence in enumerate(sentences, start):
        if not isinstance(sentence, str):
            raise BadSentenceError(index, f"a string is needed, got {type(sentence).__name__}")
        if not sentence.strip():
            raise BadSentenceError(
                index,
                "it is empty or blank, and has no meaning to embed; drop it or give it a text",
            )
        if not sentence.isascii() and any("\ud800" <= char <= "\udfff" for char in sentence):
            raise BadSentenceError(
                index,
                "it holds a lone surrogate (broken Unicode); repair it, for example with text.encode('utf-8', 'replace').decode()",
            )
