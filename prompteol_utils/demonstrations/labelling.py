"""One word for a sentence: asked of a chat model behind an OpenAI-compatible endpoint, or of a local language model.

A labelling function takes sentences and returns, for each, its answers, the best first. Its attribute `name` tells rows apart.
"""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from prompteol_utils.models.loading import LoadedModel
from prompteol_utils.prompts import Demonstration, Prompt, with_demonstrations

Label = Callable[[list[str]], list[list[str]]]

INSTRUCTION = "You sum up a sentence by one English word: its topic, its action or the thing it is about. Answer with that word alone."
EXAMPLES = (
    Demonstration("Two men argue loudly about the bill.", "Quarrel"),
    Demonstration("The old ferry crosses the strait at dawn.", "Voyage"),
    Demonstration("She waters her tomatoes every evening.", "Gardening"),
    Demonstration("a small bottle that keeps drinks hot.", "Thermos"),
    Demonstration("The judge read the verdict to a silent room.", "Trial"),
)
AGAIN = (408, 409, 429)  # and 500 upwards: worth another try


class LabelError(RuntimeError):
    """The endpoint gave no usable answer; what was labelled before is kept by whoever keeps it."""


def endpoint_labeller(
    *,
    model: str | None = None,
    base_url: str | None = None,
    api_key: str | None = None,
    concurrency: int = 4,
    retries: int = 5,
    timeout: float = 30,
    pause: float = 0.5,
    examples: Sequence[Demonstration] = EXAMPLES,
) -> Label:
    """Ask a chat model: OpenAI's, or any server that speaks its chat completions (vLLM, Ollama, llama.cpp, `transformers serve`).

    Args:
        model: The endpoint's name for the model; None: from OPENAI_MODEL.
        base_url: For example http://localhost:8000/v1; None: from OPENAI_BASE_URL, else OpenAI's own.
        api_key: None: from OPENAI_API_KEY; a local server mostly wants none.
        concurrency: Requests at the same time.
        retries: Further tries after a refusal (429), an error of the server, a time-out or a broken answer.
        timeout: Seconds to wait for one answer.
        pause: Seconds before the second try, doubled each time; a server's Retry-After is obeyed if it is longer.
        examples: Solved examples that are shown to the model.

    Returns:
        The labelling function. It raises LabelError where the tries are used up, or at once where another try cannot help (a wrong key,
        an unknown model).

    Raises:
        ImportError: The package openai is missing.
        ValueError: No model was named, or a bad number.

    Source: the paper lets ChatGPT sum up STS-B sentences in one word. Built in notebook 02.
    """
    try:
        import openai
    except ImportError as error:
        raise ImportError(
            "an endpoint is asked through the package openai: pip install openai (or prompteol-utils[label])"
        ) from error
    model, base_url = (
        model or os.environ.get("OPENAI_MODEL"),
        base_url or os.environ.get("OPENAI_BASE_URL"),
    )
    if not model:
        raise ValueError(
            "no model is named: pass model=, or set OPENAI_MODEL (with OPENAI_BASE_URL and OPENAI_API_KEY)"
        )
    if concurrency < 1 or retries < 0:
        raise ValueError(
            f"concurrency is at least 1 and retries at least 0, got {concurrency} and {retries}"
        )
    key = api_key or os.environ.get("OPENAI_API_KEY") or ("none" if base_url else None)
    if key is None:
        raise ValueError(
            "no key for OpenAI's own endpoint: set OPENAI_API_KEY, or OPENAI_BASE_URL for another server"
        )
    client = openai.OpenAI(
        base_url=base_url, api_key=key, timeout=timeout, max_retries=0
    )  # we retry: broken answers too

    def once(sentence: str) -> str:
        reply = client.chat.completions.create(
            model=model, messages=chat(sentence, examples), temperature=0, max_tokens=12
        )
        content = reply.choices[0].message.content if getattr(reply, "choices", None) else None
        if not isinstance(content, str):
            raise ValueError(f"an answer without text: {str(reply)[:80]}")
        return content

    def ask(sentence: str) -> list[str]:
        for attempt in range(retries + 1):
            try:
                return [once(sentence)]
            except openai.APIStatusError as error:
                status, wait = (
                    error.status_code,
                    _seconds(error.response.headers.get("retry-after")),
                )
                if status not in AGAIN and status < 500:
                    raise LabelError(
                        f"{client.base_url} refuses model {model!r} (HTTP {status}): {str(error)[:200]}"
                    ) from error
                last = f"HTTP {status}"
            except (
                openai.APIConnectionError,
                ValueError,
                TypeError,
                AttributeError,
            ) as error:  # time-outs are of the first kind
                last, wait = f"{type(error).__name__}: {str(error)[:80]}", 0.0
            if attempt < retries:
                time.sleep(max(pause * 2**attempt, min(wait, 60)))
        raise LabelError(
            f"{client.base_url} gave no usable answer in {retries + 1} tries ({last}); is it there? Run this again to go on"
        )

    def label(sentences: list[str]) -> list[list[str]]:
        with ThreadPoolExecutor(concurrency) as threads:
            try:
                return list(threads.map(ask, sentences))
            except LabelError:
                threads.shutdown(
                    cancel_futures=True
                )  # what waits would fail too, after all its tries
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
    """What labelling costs, before it starts, by the rule of thumb of four letters a token.

    Args:
        sentences: To label.
        price_in: Of a million tokens read, in the currency of your provider.
        price_out: Of a million tokens written.

    Returns:
        {"requests": …, "tokens in": …, "tokens out": …, "cost": …}
    """
    around = sum(4 + len(message["content"]) / 4 for message in chat(""))
    read, written = (
        round(sum(around + len(sentence) / 4 for sentence in sentences)),
        4 * len(sentences),
    )
    return {
        "requests": len(sentences),
        "tokens in": read,
        "tokens out": written,
        "cost": (read * price_in + written * price_out) / 1e6,
    }


def local_labeller(
    loaded: LoadedModel,
    *,
    examples: Sequence[Demonstration] = EXAMPLES,
    beams: int = 8,
    tokens: int = 6,
) -> Label:
    """Ask a local causal model, with examples before the sentence: its likeliest words, ranked.

    A small model asked plainly answers badly, so it continues PromptEOL's own text behind solved examples, and beam search finds its
    likeliest words, which may be several tokens long.

    Args:
        loaded: A causal model from `load_model`.
        examples: Solved examples; none asks plainly.
        beams: Words that are followed at the same time, and returned.
        tokens: Longest word.

    Returns:
        The labelling function; sentences given together are one batch.

    Raises:
        ValueError: The model has no LM head.

    Built in notebook 02.
    """
    if loaded.model.get_output_embeddings() is None:
        raise ValueError(
            f"{loaded.name} has no LM head, so it says no word; use a causal model such as smollm2-135m-instruct"
        )
    label = partial(
        _likely_words, loaded, with_demonstrations("prompteol", examples), beams, tokens
    )
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
    left = torch.tensor([[pad] * (width - len(row)) + row for row in ids]).to(loaded.model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids]).to(
        loaded.model.device
    )
    with torch.inference_mode():
        out = loaded.model.generate(
            left, attention_mask=mask, num_beams=beams, num_return_sequences=beams, max_new_tokens=tokens, do_sample=False,
            pad_token_id=pad, stop_strings=['"'], tokenizer=tokenizer,
        )  # fmt: skip
    texts = tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
    words = [text.partition('"')[0] for text in texts]
    return [
        list(dict.fromkeys(words[row * beams : (row + 1) * beams])) for row in range(len(sentences))
    ]


def _seconds(text: str | None) -> float:
    try:
        return max(0.0, float(text))
    except (TypeError, ValueError):  # absent, or a date
        return 0.0
