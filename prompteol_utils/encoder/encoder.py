"""Text to embedding, exactly and fast: no LM head, no padding, the shared prefix once."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict

import numpy as np
import torch
from tqdm import tqdm

from prompteol_utils.encoder import batching, inputs
from prompteol_utils.encoder.backbone import Backbone, eval_mode, max_positions
from prompteol_utils.encoder.chunks import Chunk, read_chunks
from prompteol_utils.encoder.onednn import fast_linear
from prompteol_utils.encoder.packing import to_device
from prompteol_utils.encoder.tokenization import BadSentenceError, PromptTokenizer, token_ids
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
from prompteol_utils.results.key import digest
from prompteol_utils.utils.devices import BATCH_TOKENS

# Sentences tokenised, sorted and deduplicated together; bounds the memory beside the result. On a
# GPU the next chunk is tokenised while one runs, so that smaller ones start it sooner.
CHUNK = 16_384
GPU_CHUNK = 4_096
_PROBE = "Aé 1,5's 日🙂"  # what tokenizers treat in different ways


class Encoder:
    """Turn sentences into vectors by what a language model would say next.

    Vectors are those of `reference` up to rounding, whatever the batch. int8 is the exception:
    bitsandbytes treats outliers batch by batch, so its vectors depend on the batch (by some per
    cent).

    Args:
        loaded: A model from `load_model`.
        prompt: The template around each sentence, or its name.
        pooling: "last", "mean", or for a bidirectional model "cls" or "mask"; None takes the
            prompt's own.
        layer: Index into the model's hidden states: -1 is the last layer after the final norm (the
            paper's), 0 the token embeddings.
        max_sentence_tokens: Cut longer sentences to this many tokens before they are wrapped (the
            paper's training: 32). None cuts only what the model's positions cannot hold. The
            prompt itself is never cut.
        normalize: Scale every vector to length 1. The paper keeps the raw vectors, and cosine does
            not care.
        prefix_cache: Run the tokens that all prompts begin with once and reuse their keys and
            values. Never changes a result.

    Raises:
        ValueError: Unknown prompt, pooling or layer.

    Source: the paper's method (section 3).
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
        self.loaded = loaded
        self.prompt = get_prompt(prompt)
        check_prompt(loaded, self.prompt)
        self.pooling = pooling or self.prompt.pooling
        if self.pooling not in POOLINGS:
            raise ValueError(f"unknown pooling {pooling!r}; allowed: {', '.join(POOLINGS)}")
        if self.pooling == "mask" and loaded.tokenizer.mask_token is None:
            raise ValueError(
                f"pooling 'mask' needs a model with a mask token, such as BERT; {loaded.name} has "
                "none"
            )
        self.max_sentence_tokens = inputs.integer(
            "max_sentence_tokens", max_sentence_tokens, least=1
        )
        self.normalize = inputs.boolean("normalize", normalize)
        self.prefix_cache = inputs.boolean("prefix_cache", prefix_cache)
        self.backbone = Backbone(loaded.model)
        if self.pooling == "cls" and self.backbone.causal:
            raise ValueError(
                "pooling 'cls' reads the first token, which in a causal model such as "
                f"{loaded.name} has seen nothing else"
            )
        self.layer = self._layer_index(layer)
        self.tokenize = PromptTokenizer(
            loaded,
            self.prompt,
            drop_end=self.pooling == "last",
            max_sentence_tokens=self.max_sentence_tokens,
            max_positions=max_positions(self.backbone.module),
        )
        # 8-bit layers keep what they work on in themselves, so that two batches at once would mix.
        is_int8 = loaded.quantization == "int8"
        self._in_threads = loaded.device == "cpu" and self.backbone.supports_packing and not is_int8
        if is_int8:  # a line for each call of each layer
            name = "bitsandbytes.autograd._functions"
            logging.getLogger(name).addFilter(_without_cast_messages)
        self._prefix: tuple = (None, None)

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
            prompt: A prompt or its name; None takes the one that the model's registry entry
                names, PromptEOL for any other model.
            demonstrations: Put before the prompt, in this order.
            quantization: None, "nf4" or "int8".
            device: None chooses the GPU if there is one.
            dtype: None chooses fp32 on a CPU, bf16/fp16 on a GPU.
            adapter: A LoRA adapter's hub id or folder.
            **options: As for `Encoder`.
        """
        if prompt is None:
            prompt = MODELS[name_or_path].prompt if name_or_path in MODELS else "prompteol"
        # Before a model is downloaded, so that a wrong prompt costs nothing.
        prompt = with_demonstrations(prompt, demonstrations)
        loaded = load_model(
            name_or_path, dtype=dtype, quantization=quantization, device=device, adapter=adapter
        )
        return cls(loaded, prompt, **options)

    @property
    def key(self) -> dict:
        """All that decides a vector besides its sentence: identity of records and caches."""
        loaded = self.loaded
        return {
            "model": loaded.name,
            "weight_origin": loaded.weight_origin,
            "commit": loaded.commit,
            "dtype": loaded.dtype,
            "quantization": loaded.quantization,
            "adapter": self._adapter(),
            "prompt": asdict(self.prompt)
            | {"demonstrations": list(map(str, self.prompt.demonstrations))},
            "pooling": self.pooling,
            "layer": self.layer,
            "max_sentence_tokens": self.max_sentence_tokens,
            "normalize": self.normalize,
        }

    @property
    def tokens(self) -> str:
        """A digest of the ids of a probing sentence: another library version may read it anew."""
        return digest(token_ids(self.loaded, [self.prompt.render(_PROBE)]))[:16]

    def _adapter(self) -> str | None:
        """The adapter's name, or None while it is switched off."""
        if self.loaded.adapter is None:
            return None
        layers = [
            layer
            for layer in self.backbone.module.modules()
            if isinstance(getattr(layer, "disable_adapters", None), bool)
        ]
        if layers and all(layer.disable_adapters and not layer.merged for layer in layers):
            return None
        return self.loaded.adapter

    @property
    def dimension(self) -> int:
        """Width of the vectors."""
        return self._width(self.layer)

    def _width(self, layer: int) -> int:
        config = self.backbone.config
        if layer != self.backbone.num_hidden_states - 1:
            return config.hidden_size
        # OPT-350m projects its last state to the width of its word embeddings; a trained layer on
        # top may change it too.
        return self.loaded.width or getattr(config, "word_embed_proj_dim", config.hidden_size)

    def forget(self) -> None:
        """Drop the states of the shared prefix, as after an edit that torch does not count.

        Needed only where single numbers of a weight were changed through `weight.data`. A new
        `Encoder` starts without such states.
        """
        self._prefix = (None, None)

    def encode(
        self,
        sentences: "str | Iterable[str]",
        *,
        batch_tokens: int | None = None,
        show_progress_bar: bool | None = None,
    ) -> np.ndarray:
        """Embed sentences.

        Args:
            sentences: A list or any iterable of strings (a generator is read as it goes); a single
                string gives a single vector.
            batch_tokens: Tokens in one batch. None takes 512 on a CPU and 16,384 on a GPU, where a
                quarter of the shared prefix counts for each sentence. A memory error halves it.
            show_progress_bar: None shows one for 256 sentences or more.

        Returns:
            float32 (n, d) in input order, or (d,) for a single string. An empty input gives (0, d).

        Raises:
            BadSentenceError: (a ValueError) A sentence is not a string, blank, holds a lone
                surrogate or gets a vector with NaN or infinity; it names the sentence's index.
        """
        options = {"batch_tokens": batch_tokens, "show_progress_bar": show_progress_bar}
        if isinstance(sentences, str):
            return self.encode([sentences], batch_tokens=batch_tokens, show_progress_bar=False)[0]
        if hasattr(sentences, "__len__"):
            return self._encode_list(sentences, (self.layer,), **options)[0]
        parts = [np.empty((0, self.dimension), np.float32)]
        try:
            parts.extend(self.stream(sentences, **options))
        except BadSentenceError as error:
            error.embeddings = np.concatenate(parts)
            raise
        return np.concatenate(parts)

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
            layers: Indices into the hidden states, negative ones count from the end. None takes
                all of them; they must be of one width.
            batch_tokens: As for `encode`.
            show_progress_bar: As for `encode`.

        Returns:
            float32 (layers, n, d).

        Raises:
            ValueError: A layer does not exist.
        """
        if layers is None:
            layers = range(self.backbone.num_hidden_states)
        layers = tuple(self._layer_index(layer) for layer in layers)
        options = {"batch_tokens": batch_tokens, "show_progress_bar": show_progress_bar}
        return self._encode_list(sentences, layers, **options)

    def stream(
        self,
        sentences: Iterable[str],
        *,
        batch_tokens: int | None = None,
        show_progress_bar: bool | None = None,
        chunk: int | None = None,
        bar: tqdm | None = None,
    ) -> Iterator[np.ndarray]:
        """Embed sentences chunk by chunk, for input or output that does not fit into memory.

        Args:
            sentences: Any iterable of strings, of which one chunk is read ahead.
            batch_tokens: As for `encode`.
            show_progress_bar: As for `encode`.
            chunk: Sentences at a time, by default 16,384 (4,096 on a GPU). Within a chunk
                duplicates are embedded once and batches are sorted by length.
            bar: A bar to advance in place of one of its own.

        Yields:
            float32 (k, d), k ≤ chunk, in input order.
        """
        sentences = inputs.sentence_iterable(sentences)
        total = len(sentences) if hasattr(sentences, "__len__") else None
        own_bar = self._bar(total, show_progress_bar) if bar is None else nullcontext(bar)
        with own_bar as shown:
            run = self._runner((self.layer,), batch_tokens, shown)
            for prepared in self._chunks(sentences, chunk):
                out = np.empty((1, prepared.size, self.dimension), np.float32)
                run(prepared, out)
                yield out[0]

    def vectors(self, ids: list[list[int]]) -> torch.Tensor:
        """Embed one batch with gradients.

        Args:
            ids: Token ids, from `tokenize`.

        Returns:
            float32 (n, d) on the model's device.
        """
        with fast_linear(self.backbone.module):
            return self.pool(self.backbone.padded(ids, (self.layer,))[0], ids)

    def _encode_list(
        self, sentences, layers: tuple[int, ...], batch_tokens, show_progress_bar
    ) -> np.ndarray:
        """float32 (layers, n, d) of a list, all of which is checked before any work."""
        sentences = list(inputs.sentence_iterable(sentences))
        inputs.validate(sentences)
        widths = {self._width(layer) for layer in layers}
        if len(widths) != 1:
            raise ValueError(f"layers of one width are needed, got {layers} of widths {widths}")
        out = np.empty((len(layers), len(sentences), *widths), np.float32)
        with self._bar(len(sentences), show_progress_bar) as bar:
            run = self._runner(layers, batch_tokens, bar)
            for chunk in self._chunks(sentences):
                run(chunk, out[:, chunk.start : chunk.start + chunk.size])
        return out

    def _bar(self, total: int | None, show: bool | None) -> tqdm:
        show = (total is None or total >= inputs.QUIET_BELOW) if show is None else show
        return tqdm(total=total, unit="sentence", disable=not show, desc="encode", leave=False)

    def _layer_index(self, layer: int) -> int:
        layer = inputs.integer("layer", layer)
        states = self.backbone.num_hidden_states
        if layer is None or not -states <= layer < states:
            raise ValueError(
                f"layer {layer} does not exist: {self.loaded.name} has hidden states 0 (the "
                f"embeddings) to {states - 1}, or -1 to {-states} counted from the end"
            )
        return layer % states

    def _chunks(self, sentences: Iterable[str], size: int | None = None) -> Iterator[Chunk]:
        default = CHUNK if self.loaded.device == "cpu" else GPU_CHUNK
        size = inputs.integer("chunk", size, least=1) or default
        share_prefix = self.prefix_cache and self.backbone.supports_packing
        return read_chunks(sentences, size, self.tokenize, share_prefix)

    def _runner(
        self, layers: tuple[int, ...], batch_tokens: int | None, bar: tqdm
    ) -> Callable[[Chunk, np.ndarray], None]:
        """A function that writes a chunk's vectors into float32 (layers, k, d)."""
        batch_tokens = inputs.integer("batch_tokens", batch_tokens, least=1)
        device = torch.device(self.loaded.device).type
        budget = batch_tokens or BATCH_TOKENS.get(device, BATCH_TOKENS["cuda"])
        if self.backbone.rescales_positions:
            budget = 1
        padded = not self.backbone.supports_packing
        tails: list[list[int]] = []  # of the chunk that runs
        limit = batching.SizeLimit(lambda batch: sum(len(tails[index]) for index in batch))

        def run(chunk: Chunk, out: np.ndarray) -> None:
            tails[:] = [ids[chunk.shared :] for ids in chunk.ids]
            # On a GPU each sequence's copies of the prefix's keys and values count, too.
            copies = 0 if device == "cpu" else chunk.shared // 4
            lengths = [len(tail) + copies for tail in tails]
            todo = list(batching.batches(lengths, budget, padded))
            workers = batching.num_workers(len(todo)) if self._in_threads else 1
            if workers > 1:
                even = batching.even_budget(lengths, budget, workers)
                todo = list(batching.batches(lengths, even, padded=False))
            repeats = np.bincount(chunk.source, minlength=chunk.size)
            with torch.inference_mode(), eval_mode(self.loaded.model):
                fingerprint = self._fingerprint() if chunk.shared else None
                with fast_linear(self.backbone.module):
                    prefix = None
                    if chunk.shared:
                        prefix = self._run_prefix(chunk.ids[0][: chunk.shared], layers, fingerprint)

                    def run_or_halve(batch: list[int]) -> list:
                        return batching.halve_on_oom(
                            lambda part: self.run_batch([tails[i] for i in part], prefix, layers),
                            batch,
                            limit,
                        )

                    on_host = []
                    for parts in batching.parallel_map(run_or_halve, todo, workers):
                        for part, vectors in parts:
                            on_host.append((chunk.first[part], vectors))
                            bar.update(int(repeats[chunk.first[part]].sum()))
                    if device == "cuda":  # the only wait for the GPU
                        torch.cuda.synchronize()
            for positions, vectors in on_host:
                for layer, one in enumerate(vectors):
                    out[layer, positions] = one.numpy()
            copied = np.flatnonzero(chunk.source != np.arange(chunk.size))
            out[:, copied] = out[:, chunk.source[copied]]
            inputs.check_finite(out, chunk.start)

        return run

    def _fingerprint(self) -> object:
        """What a prefix's states depend on; equal to nothing where hooks may change them."""
        return object() if self.backbone.has_hooks() else self.backbone.fingerprint()

    def _run_prefix(self, ids: list[int], layers: tuple[int, ...], fingerprint):
        """Run the shared prefix, unless its states are there and the model has not changed."""
        key = (ids, layers, fingerprint)
        found = self._prefix  # once: another thread may put its own in its place
        if found[0] != key:
            found = (key, self.backbone.prefix(ids, layers))
            self._prefix = found
        return found[1]

    @torch.inference_mode()
    def run_batch(
        self, ids: list[list[int]], prefix, layers: tuple[int, ...]
    ) -> list[torch.Tensor]:
        """One batch: a float32 tensor (n, d) per layer on the CPU, perhaps still on its way."""
        states = self.backbone.states(ids, prefix, layers, last_token_only=self.pooling == "last")
        past = prefix.length if prefix else 0
        sums = prefix.sums if prefix else [None] * len(layers)
        return [
            _to_host(self.pool(one, ids, prefix_sum, past))
            for one, prefix_sum in zip(states, sums, strict=True)
        ]

    def pool(
        self,
        states: torch.Tensor,
        ids: list[list[int]],
        prefix_sum: torch.Tensor | None = None,
        past: int = 0,
    ) -> torch.Tensor:
        """Hidden states (all tokens, d), sequence after sequence, to float32 vectors (n, d).

        A mean also counts the prefix's `past` tokens, whose sum is `prefix_sum`.
        """
        lengths = torch.tensor([len(one) for one in ids])
        if self.pooling != "mean":
            mask_id = self.loaded.tokenizer.mask_token_id
            at = torch.tensor(batching.pooling_positions(ids, self.pooling, mask_id))
            at = to_device(lengths.cumsum(0) - lengths + at, states.device)
            vectors = states[at].float()
        else:
            lengths = to_device(lengths, states.device)
            sums = torch.segment_reduce(states.float(), "sum", lengths=lengths)
            sums = sums if prefix_sum is None else sums + prefix_sum
            vectors = sums / (past + lengths[:, None])
        return torch.nn.functional.normalize(vectors) if self.normalize else vectors


def _to_host(vectors: torch.Tensor) -> torch.Tensor:
    if vectors.device.type != "cuda":
        return vectors.cpu()
    host = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
    return host.copy_(vectors, non_blocking=True)


def _without_cast_messages(record: logging.LogRecord) -> bool:
    return "inputs will be cast" not in str(record.msg)
