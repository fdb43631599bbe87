"""What the model reads: a sentence wrapped into a prompt, demonstrations folded into its prefix, the paper's punctuation rules."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace

POOLINGS = ("last", "mean", "cls", "mask")


@dataclass(frozen=True)
class Demonstration:
    """One in-context example: a sentence and the one word that stands for it (the paper's in-context learning).

    Args:
        sentence: The example sentence, as it is written between the quotes.
        word: Its word, without quotes. It may be several tokens long ("Horseback-riding").
        kind: Where it comes from, for tables: "sentence" or "dictionary".
        topic: A free label, for tables.
        source: Who wrote or chose it.
        names: What the word names, for tables: the sentence's "topic", its "action" or a "thing" in it.

    Raises:
        ValueError: Sentence or word is blank, or the word holds a double quote, which would end it early.

    Built in notebook 02.
    """

    sentence: str
    word: str
    kind: str = ""
    topic: str = ""
    source: str = ""
    names: str = ""

    def __post_init__(self):
        for field in ("sentence", "word"):
            value = getattr(self, field)
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"a demonstration needs a {field}, got {value!r}")
        if '"' in self.word or self.word.split() != [self.word]:
            raise ValueError(
                f"a demonstration's word is one word without double quotes or spaces, got {self.word!r}"
            )

    def __str__(self) -> str:
        """`SENTENCE=>WORD`, as records and the command line write it."""
        return f"{self.sentence}=>{self.word}"


@dataclass(frozen=True)
class Prompt:
    """A template with one place for the sentence, and how its hidden states become one vector.

    Args:
        prefix: Text before the sentence (demonstrations included).
        suffix: Text after it. For PromptEOL it ends with the opening quote of the word that the model is about to say.
        name: What tables call it.
        pooling: "last" (the state of the last token), "mean" (over all tokens), "cls" (the first token) or "mask" (the mask token).
        punctuation: "paper" applies `paper_punctuation` to the sentence, "period" its first rule alone, None leaves it untouched.
        demonstrations: Those that `with_demonstrations` folded into the prefix, for the record.

    Raises:
        ValueError: Unknown pooling or punctuation.

    Source: the paper's method; the template is the one of the authors' code. Built in notebook 01.
    """

    prefix: str
    suffix: str
    name: str
    pooling: str = "last"
    punctuation: str | None = "paper"
    demonstrations: tuple[Demonstration, ...] = ()

    def __post_init__(self):
        if self.pooling not in POOLINGS:
            raise ValueError(f"unknown pooling {self.pooling!r}; allowed: {', '.join(POOLINGS)}")
        if self.punctuation not in ("paper", "period", None):
            raise ValueError(
                f"unknown punctuation {self.punctuation!r}; allowed: 'paper', 'period' or None"
            )

    def clean(self, sentence: str) -> str:
        """Apply this prompt's punctuation rule to a sentence."""
        if self.punctuation == "paper":
            return paper_punctuation(sentence)
        return final_period(sentence) if self.punctuation == "period" else sentence

    def render(self, sentence: str) -> str:
        """Return the whole text that the model reads for `sentence`.

        Args:
            sentence: The sentence, without the quotes around it.

        Returns:
            prefix + cleaned sentence + suffix.
        """
        return self.prefix + self.clean(sentence) + self.suffix


def paper_punctuation(sentence: str) -> str:
    """Clean a sentence as the authors' evaluation does before it goes into a template, in the same order.

    Words are joined by single spaces; a sentence that does not end in one of . ? " ' gets a period (so "!" becomes "!."); double quotes
    become single ones, so that a sentence can never close the template's own quote; a final question mark becomes a period.

    Args:
        sentence: Any text.

    Returns:
        The cleaned text; an empty one stays empty.

    Source: the authors' evaluation code (`batcher` of evaluation.py); their training code does not apply it. Built in notebook 01.
    """
    sentence = final_period(sentence).replace('"', "'")
    return sentence[:-1] + "." if sentence.endswith("?") else sentence


def final_period(sentence: str) -> str:
    """Join words by single spaces, and add a period unless the sentence ends in one of . ? " ' (PromptBERT's evaluation does only this).

    Args:
        sentence: Any text.
    """
    sentence = " ".join(sentence.split())
    return sentence + "." if sentence and sentence[-1] not in ".?\"'" else sentence


PROMPTS: dict[str, Prompt] = {
    prompt.name: prompt
    for prompt in (
        Prompt('This sentence : "', '" means in one word:"', "prompteol"),
        Prompt('This sentence : "', '" means', "means"),
        # The authors clean a sentence only on its way into a template, so the two without one leave it as it is.
        Prompt("", "", "mean", pooling="mean", punctuation=None),
        Prompt("", "", "last", punctuation=None),
    )
}
# What bidirectional models read: the first token, or a mask token after the sentence. A decoder has no use for them. In the authors'
# evaluation (run.sh and eval_only.sh of kongds/Prompt-BERT) each template ends with a period, without which BERT falls by half.
ENCODER_PROMPTS: dict[str, Prompt] = {
    prompt.name: prompt
    for prompt in (
        Prompt("", "", "cls", pooling="cls", punctuation=None),
        Prompt(
            'This sentence : "',
            '" means[MASK].',
            "bert-prompt",
            pooling="mask",
            punctuation="period",
        ),
        Prompt(
            'This sentence of "',
            '" means[MASK].',
            "promptbert",
            pooling="mask",
            punctuation="period",
        ),
        Prompt(
            "This sentence : ' ",
            " ' means<mask>.",
            "promptroberta",
            pooling="mask",
            punctuation="period",
        ),
    )
}


def get_prompt(prompt: "str | Prompt") -> Prompt:
    """Return the prompt of that name, or the prompt itself.

    Args:
        prompt: A name in `PROMPTS` or `ENCODER_PROMPTS`, or a `Prompt`.

    Raises:
        ValueError: Unknown name; the message lists the known ones.
    """
    if isinstance(prompt, Prompt):
        return prompt
    known = {**ENCODER_PROMPTS, **PROMPTS}
    if prompt not in known:
        near = difflib.get_close_matches(str(prompt), known, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        allowed = f"{', '.join(PROMPTS)}; for bidirectional models {', '.join(ENCODER_PROMPTS)}"
        raise ValueError(
            f"unknown prompt {prompt!r}{hint}; allowed: {allowed}; or a Prompt of your own"
        )
    return known[prompt]


def with_demonstrations(prompt: "str | Prompt", demonstrations: Iterable[Demonstration]) -> Prompt:
    """Put solved examples before a prompt (in-context learning).

    Args:
        prompt: A prompt, or its name, whose suffix ends with an opening quote, as PromptEOL's does.
        demonstrations: Any number of them, in reading order. None at all returns the prompt unchanged.

    Returns:
        A prompt whose prefix holds `This sentence : "DEMO" means in one word:"WORD".` once for each, with nothing in between.

    Raises:
        ValueError: The prompt has no open quote for the word to stand in.

    Source: the in-context learning of the paper, and its appendix; format of the authors' run_icl.sh. Built in notebook 02.
    """
    prompt, demonstrations = get_prompt(prompt), tuple(demonstrations)
    if not demonstrations:
        return prompt
    if not prompt.suffix.endswith('"'):
        raise ValueError(
            f"prompt {prompt.name!r} ends in {prompt.suffix[-12:]!r}: a demonstration's word needs a suffix that ends with an open quote"
        )
    if prompt.demonstrations:
        raise ValueError(
            f"prompt {prompt.name!r} already holds {len(prompt.demonstrations)} demonstrations; start from the plain prompt"
        )
    solved = "".join(f'{prompt.render(demo.sentence)}{demo.word}".' for demo in demonstrations)
    return replace(prompt, prefix=solved + prompt.prefix, demonstrations=demonstrations)


def parse_demonstration(text: str) -> Demonstration:
    """Read a demonstration written as `SENTENCE=>WORD` (the command line's form).

    Args:
        text: For example "A man is smoking.=>Smoking".

    Raises:
        ValueError: The arrow is missing or one side is blank.
    """
    sentence, arrow, word = text.rpartition("=>")
    if not arrow:
        raise ValueError(f'a demonstration is written "SENTENCE=>WORD", got {text!r}')
    return Demonstration(sentence.strip(), word.strip())
