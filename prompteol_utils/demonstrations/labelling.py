"""Labelling functions: a chat endpoint, or a local causal model.

A labelling function takes sentences and returns the answers for each, best first. Its attribute
`name` tells its records apart.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from prompteol_utils.models.loading import LoadedModel
from prompteol_utils.prompts import Demonstration, Prompt, with_demonstrations

Label = Callable[[list[str]], list[list[str]]]

INSTRUCTION = (
    "You sum up a sentence by one English word: its topic, its action or the thing it is about. "
    "Answer with that word alone."
)
EXAMPLES = (
    Demonstration("Two men argue loudly about the bill.", "Quarrel"),
    Demonstration("The old ferry crosses the strait at dawn.", "Voyage"),
    Demonstration("She waters her tomatoes every evening.", "Gardening"),
    Demonstration("a small bottle that keeps drinks hot.", "Thermos"),
    Demonstration("The judge read the verdict to a silent room.", "Trial"),
)


class LabelError(RuntimeError):
    """The endpoint gave no usable answer; finished batches are in the store."""


def endpoint_labeller(
    *,
    model: str | None = None,
    base_url: str | None = None,
    api_key: str | None = None,
    concurrency: int = 4,
    retries: int = 5,
    timeout: float = 30,
    examples: Sequence[Demonstration] = EXAMPLES,
) -> Label:
    """Ask OpenAI, or any server with its chat completions (vLLM, Ollama, `transformers serve`).

    Args:
        model: The endpoint's name for the model; None: OPENAI_MODEL.
        base_url: Such as http://localhost:8000/v1; None: OPENAI_BASE_URL, else OpenAI's own.
        api_key: None: OPENAI_API_KEY; a local server mostly needs none.
        concurrency: Requests at the same time.
        retries: Of the client: after 408, 409, 429 and 5xx, time-outs and lost connections, with
            its own back-off, which obeys Retry-After.
        timeout: Seconds to wait for one answer.
        examples: Solved examples that are shown to the model.

    Returns:
        The labelling function; it raises `LabelError`.

    Raises:
        ImportError: The package openai is missing.
        ValueError: No model or key was named, or a bad number.

    Source: the paper lets ChatGPT sum up STS-B sentences in one word.
    """
    try:
        import openai
    except ImportError as error:
        raise ImportError(
            "an endpoint is asked through the package openai: pip install prompteol-utils[label]"
        ) from error
    model = model or os.environ.get("OPENAI_MODEL")
    base_url = base_url or os.environ.get("OPENAI_BASE_URL")
    if not model:
        raise ValueError(
            "no model is named: pass model=, or set OPENAI_MODEL (with OPENAI_BASE_URL and "
            "OPENAI_API_KEY)"
        )
    if concurrency < 1 or retries < 0:
        raise ValueError(
            f"concurrency is at least 1 and retries at least 0, got {concurrency} and {retries}"
        )
    key = api_key or os.environ.get("OPENAI_API_KEY") or ("none" if base_url else None)
    if key is None:
        raise ValueError(
            "no key for OpenAI's own endpoint: set OPENAI_API_KEY, or OPENAI_BASE_URL for another "
            "server"
        )
    client = openai.OpenAI(base_url=base_url, api_key=key, timeout=timeout, max_retries=retries)

    def ask(sentence: str) -> list[str]:
        try:
            reply = client.chat.completions.create(
                model=model, messages=chat(sentence, examples), temperature=0, max_tokens=12
            )
            return [reply.choices[0].message.content or ""]  # an empty answer is rejected later
        except openai.APIStatusError as error:
            raise LabelError(
                f"{client.base_url} refuses model {model!r} (HTTP {error.status_code}): "
                f"{str(error)[:200]}"
            ) from error
        except (openai.APIError, ValueError, TypeError, IndexError, AttributeError) as error:
            raise LabelError(
                f"{client.base_url} gave no usable answer ({type(error).__name__}: "
                f"{str(error)[:80]}); finished batches are kept"
            ) from error

    def label(sentences: list[str]) -> list[list[str]]:
        with ThreadPoolExecutor(concurrency) as threads:
            try:
                return list(threads.map(ask, sentences))
            except LabelError:
                threads.shutdown(cancel_futures=True)  # those that wait would fail too
                raise

    label.name = f"endpoint {model}, {len(examples)} examples"
    return label


def chat(sentence: str, examples: Sequence[Demonstration] = EXAMPLES) -> list[dict]:
    """The messages that ask for a sentence's word."""
    turns = [("system", INSTRUCTION)]
    for example in examples:
        turns += [("user", example.sentence), ("assistant", example.word)]
    return [{"role": role, "content": text} for role, text in [*turns, ("user", sentence)]]


def estimate_cost(
    sentences: Sequence[str], price_in: float = 0.0, price_out: float = 0.0
) -> dict[str, float]:
    """Estimate what labelling costs, by the rule of thumb of four letters a token.

    Args:
        sentences: To label.
        price_in: Of a million tokens read.
        price_out: Of a million tokens written.

    Returns:
        {"requests": …, "tokens in": …, "tokens out": …, "cost": …}
    """
    request = sum(4 + len(message["content"]) / 4 for message in chat(""))
    read = round(sum(request + len(sentence) / 4 for sentence in sentences))
    written = 4 * len(sentences)
    cost = (read * price_in + written * price_out) / 1e6
    return {"requests": len(sentences), "tokens in": read, "tokens out": written, "cost": cost}


def local_labeller(
    loaded: LoadedModel,
    *,
    examples: Sequence[Demonstration] = EXAMPLES,
    beams: int = 8,
    tokens: int = 6,
) -> Label:
    """Ask a local causal model for its likeliest words, by beam search after solved examples.

    A small model that is asked plainly answers badly, so it continues PromptEOL's own text.

    Args:
        loaded: A causal model from `load_model`.
        examples: Solved examples; none asks plainly.
        beams: Words that are followed at the same time, and returned.
        tokens: Longest word.

    Returns:
        The labelling function; sentences given together are one batch.

    Raises:
        ValueError: The model has no LM head.
    """
    if loaded.model.get_output_embeddings() is None:
        raise ValueError(
            f"{loaded.name} has no LM head, so it says no word; use a causal model such as "
            "smollm2-135m-instruct"
        )
    prompt = with_demonstrations("prompteol", examples)
    label = partial(_likely_words, loaded, prompt, beams, tokens)
    label.name = f"local {loaded.name}, {len(examples)} examples"
    return label


def _likely_words(
    loaded: LoadedModel, prompt: Prompt, beams: int, tokens: int, sentences: list[str]
) -> list[list[str]]:
    import torch

    tokenizer = loaded.tokenizer
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids = tokenizer([prompt.render(sentence) for sentence in sentences])["input_ids"]
    width = max(map(len, ids))
    padded = torch.tensor([[pad] * (width - len(one)) + one for one in ids])
    mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in ids])
    with torch.inference_mode():
        out = loaded.model.generate(
            padded.to(loaded.model.device),
            attention_mask=mask.to(loaded.model.device),
            num_beams=beams,
            num_return_sequences=beams,
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=pad,
            stop_strings=['"'],
            tokenizer=tokenizer,
        )
    texts = tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
    words = [text.partition('"')[0] for text in texts]
    starts = range(0, len(words), beams)
    return [list(dict.fromkeys(words[start : start + beams])) for start in starts]
