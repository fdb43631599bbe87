"""What the model reads: a sentence in a prompt, demonstrations, the paper's punctuation rules."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace

POOLINGS = ("last", "mean", "cls", "mask")


@dataclass(frozen=True)
class Demonstration:
    """One in-context example: a sentence and the one word that stands for it.

    Args:
        sentence: As it is written between the quotes.
        word: Without quotes or spaces; it may be several tokens long ("Horseback-riding").
        kind: "sentence" or "dictionary"; like the fields below, for tables only.
        topic: A free label.
        source: Who wrote or chose it.
        names: What the word names: the sentence's "topic", its "action" or a "thing" in it.

    Raises:
        ValueError: Sentence or word is blank, or the word holds a space or a double quote.
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
                "a demonstration's word is one word without double quotes or spaces, got "
                f"{self.word!r}"
            )

    def __str__(self) -> str:
        """`SENTENCE=>WORD`, as records and the command line write it."""
        return f"{self.sentence}=>{self.word}"


@dataclass(frozen=True)
class Prompt:
    """A template with one place for the sentence, and how its hidden states become one vector.

    Args:
        prefix: Text before the sentence (demonstrations included).
        suffix: Text after it. PromptEOL's ends with the opening quote of the word to come.
        name: What tables call it.
        pooling: "last" (the state of the last token), "mean" (over all tokens), "cls" (the first
            token) or "mask" (the mask token).
        punctuation: "paper" applies `paper_punctuation` to the sentence, "period" its first rule
            alone, None leaves it untouched.
        demonstrations: Those that `with_demonstrations` put into the prefix, for the record.

    Raises:
        ValueError: Unknown pooling or punctuation.

    Source: the paper's method (section 3); the templates are those of the authors' code.
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
        """Return the text that the model reads: prefix + cleaned sentence + suffix."""
        return self.prefix + self.clean(sentence) + self.suffix


def paper_punctuation(sentence: str) -> str:
    """Clean a sentence as the authors' evaluation does before it goes into a template.

    After `final_period`, double quotes become single ones, so that a sentence can never close the
    template's own quote, and a final question mark becomes a period. An empty text stays empty.

    Source: `batcher` of the authors' evaluation.py; their training code does not apply it.
    """
    sentence = final_period(sentence).replace('"', "'")
    return sentence[:-1] + "." if sentence.endswith("?") else sentence


def final_period(sentence: str) -> str:
    """Join words by single spaces, and add a period unless the text ends in one of . ? " '.

    Source: PromptBERT's evaluation, which does only this.
    """
    sentence = " ".join(sentence.split())
    return sentence + "." if sentence and sentence[-1] not in ".?\"'" else sentence


PROMPTS: dict[str, Prompt] = {
    prompt.name: prompt
    for prompt in (
        Prompt('This sentence : "', '" means in one word:"', "prompteol"),
        Prompt('This sentence : "', '" means', "means"),
        # The authors clean a sentence only on its way into a template.
        Prompt("", "", "mean", pooling="mean", punctuation=None),
        Prompt("", "", "last", punctuation=None),
    )
}
# What bidirectional models read: the first token, or a mask token after the sentence. In the
# authors' evaluation (run.sh and eval_only.sh of kongds/Prompt-BERT) each template ends with a
# period, without which BERT falls by half.
ENCODER_PROMPTS: dict[str, Prompt] = {
    name: Prompt(prefix, suffix, name, pooling, punctuation)
    for name, prefix, suffix, pooling, punctuation in (
        ("cls", "", "", "cls", None),
        ("bert-prompt", 'This sentence : "', '" means[MASK].', "mask", "period"),
        ("promptbert", 'This sentence of "', '" means[MASK].', "mask", "period"),
        ("promptroberta", "This sentence : ' ", " ' means<mask>.", "mask", "period"),
    )
}


def get_prompt(prompt: "str | Prompt") -> Prompt:
    """Return the prompt of a name in `PROMPTS` or `ENCODER_PROMPTS`, or the prompt itself.

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
        demonstrations: In reading order. None at all returns the prompt unchanged.

    Returns:
        A prompt whose prefix holds ``This sentence : "DEMO" means in one word:"WORD".`` once for
        each, with nothing in between.

    Raises:
        ValueError: The prompt has no open quote, or holds demonstrations already.

    Source: the paper's in-context learning and its appendix; format of the authors' run_icl.sh.
    """
    prompt = get_prompt(prompt)
    demonstrations = tuple(demonstrations)
    if not demonstrations:
        return prompt
    if not prompt.suffix.endswith('"'):
        raise ValueError(
            f"prompt {prompt.name!r} ends in {prompt.suffix[-12:]!r}: a demonstration's word "
            "needs a suffix that ends with an open quote"
        )
    if prompt.demonstrations:
        raise ValueError(
            f"prompt {prompt.name!r} already holds {len(prompt.demonstrations)} demonstrations; "
            "start from the plain prompt"
        )
    solved = "".join(f'{prompt.render(demo.sentence)}{demo.word}".' for demo in demonstrations)
    return replace(prompt, prefix=solved + prompt.prefix, demonstrations=demonstrations)


def parse_demonstration(text: str) -> Demonstration:
    """Read a demonstration written as `SENTENCE=>WORD` (the command line's form).

    Raises:
        ValueError: The arrow is missing or one side is blank.
    """
    sentence, arrow, word = text.rpartition("=>")
    if not arrow:
        raise ValueError(f'a demonstration is written "SENTENCE=>WORD", got {text!r}')
    return Demonstration(sentence.strip(), word.strip())
