"""GenEOL: let an instruct model rewrite a sentence, and average the embeddings of all versions."""

from collections.abc import Sequence

import torch

from prompteol_utils.experiments.followups.methods import Method
from prompteol_utils.experiments.followups.prompts import KNOWLEDGE
from prompteol_utils.experiments.followups.views import Prompted
from prompteol_utils.models.loading import LoadedModel

# The authors' four kinds of rewriting; the wording is ours, without their solved examples.
KINDS: dict[str, str] = {
    "paraphrase": "Say the same in other words.",
    "restructure": "Change the order of the parts, keep the meaning.",
    "entailment": "Write a sentence that must be true if this one is.",
    "concise": "Say the same as briefly as possible.",
}
SYSTEM = "You rewrite one sentence. Answer with the new sentence and nothing else."


@torch.inference_mode()
def rewrite(
    generator: LoadedModel,
    sentences: Sequence[str],
    kind: str,
    *,
    temperature: float = 0.7,
    max_new_tokens: int = 32,
    batch_size: int = 32,
    seed: int = 0,
) -> list[str]:
    """One new version of each sentence.

    Args:
        generator: An instruct model, whose tokenizer has a chat template.
        sentences: Strings.
        kind: A key of `KINDS`.
        temperature: Of the sampling.
        max_new_tokens: Where an answer is cut.
        batch_size: Sentences at a time.
        seed: Of the sampling.

    Returns:
        The answers' first lines, without quotes; the sentence itself where nothing is left.

    Raises:
        ValueError: Unknown kind, or a model that was not trained to follow instructions.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; allowed: {', '.join(KINDS)}")
    tokenizer = generator.tokenizer
    if not tokenizer.chat_template:
        raise ValueError(
            f"GenEOL needs an instruct model to rewrite sentences, and {generator.name} has no "
            "chat template; use smollm2-135m-instruct or qwen2.5-coder-0.5b-instruct"
        )
    torch.manual_seed(seed)
    order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
    versions = list(sentences)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        chats = [_chat(kind, sentences[i]) for i in batch]
        texts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
        given = tokenizer(
            texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
        ).to(generator.model.device)
        out = generator.model.generate(
            **given,
            do_sample=True,
            temperature=temperature,
            top_k=0,
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
        )
        answers = tokenizer.batch_decode(
            out[:, given["input_ids"].shape[1] :], skip_special_tokens=True
        )
        for i, answer in zip(batch, answers, strict=True):
            versions[i] = _first_line(answer) or sentences[i]
    return versions


def geneol(sentences: Sequence[str], versions: Sequence[Sequence[str]]) -> Method:
    """The mean over a sentence and its versions, each in the Knowledge Enhancement prompt.

    Args:
        sentences: n of them, without repeats.
        versions: m lists of n texts, from `rewrite`.

    Source: arXiv 2410.14635. The authors average the tokens of `:"`; we read the last token.
    """
    views = [
        Prompted(KNOWLEDGE, rewritten=tuple(zip(sentences, texts, strict=True)))
        for texts in versions
    ]
    return Method(
        f"geneol-{len(versions)}",
        (Prompted(KNOWLEDGE), *views),
        needs="an instruct model",
        source="arXiv 2410.14635",
    )


def _chat(kind: str, sentence: str) -> list[dict]:
    user = f"{KINDS[kind]}\nSentence: {sentence}"
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}]


def _first_line(answer: str) -> str:
    line = answer.strip().partition("\n")[0]
    return line.removeprefix("Sentence:").strip().strip('"').strip()
