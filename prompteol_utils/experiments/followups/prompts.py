"""The prompts of the methods after PromptEOL, word for word as their authors' code has them."""

from prompteol_utils.prompts import Prompt

_MEANS = '" means in one word:"'

# PretCoTandKE (arXiv 2404.03921).
PRETENDED_COT = Prompt('After thinking step by step , this sentence : "', _MEANS, "pretended-cot")
KNOWLEDGE = Prompt(
    "The essence of a sentence is often captured by its main subjects and actions, while "
    "descriptive terms provide additional but less central details. With this in mind , this "
    'sentence : "',
    _MEANS,
    "knowledge",
)

# Contrastive Prompting (arXiv 2505.12831): what it subtracts.
IRRELEVANT = Prompt('The irrelevant information of this sentence : "', _MEANS, "irrelevant")

# Echo (arXiv 2402.15449), zero-shot: read over the second copy.
ECHO = "Rewrite the following paragraph: {0}. The rewritten paragraph: {0}"

# MetaEOL (arXiv 2402.18458): name, task, what the sentence does, in the order of its evaluation.py.
_FOR = "For this task, this sentence"
_ENHANCE = "To enhance the performance of this task, this sentence"
_TASKS = (
    (
        "category",
        "you're presented with a text excerpt. Your task is to categorize the excerpt into a broad "
        "category such as 'Education', 'Technology', 'Health', 'Business', 'Environment', "
        "'Politics', or 'Culture'. These categories help in organizing content for better "
        f"accessibility and targeting. {_FOR}",
        "should be classified under one general category",
    ),
    (
        "opinion",
        "you're given a statement and you need to determine whether it's presenting an 'Opinion' "
        "or a 'Fact'. This distinction is vital for information verification, educational "
        f"purposes, and content analysis. {_FOR}",
        "discriminates between opinion and fact",
    ),
    (
        "rating",
        "you're given a review from an online platform. Your task is to generate a rating for the "
        "product based on the review on a scale of 1-5, where 1 means 'extremely negative' and 5 "
        f"means 'extremely positive'. {_FOR}",
        "reflects the sentiment",
    ),
    (
        "emotion",
        "you're reading a personal diary entry. Your task is to identify the predominant emotion "
        f"expressed, such as joy, sadness, anger, fear, or love. {_FOR}",
        "conveys the emotion",
    ),
    (
        "paraphrase",
        "you're presented with two sentences. Your task is to assess whether the sentences convey "
        "the same meaning. Use 'identical', 'similar', 'different', or 'unrelated' to describe the "
        f"relationship. {_ENHANCE}",
        "means",
    ),
    (
        "synonym",
        "you're given a sentence and a phrase. Your task is to determine if the phrase can be a "
        "contextual synonym within the given sentence. Options include 'yes', 'no', or "
        f"'partially'. {_ENHANCE}",
        "means",
    ),
    (
        "fact",
        "you're examining a news article. Your task is to extract the most critical fact from the "
        f"article. {_FOR}",
        "encapsulates the key fact",
    ),
    (
        "entity",
        "you're reviewing a scientific abstract. Your task is to identify the main entities (e.g., "
        f"proteins, diseases) and their relations (e.g., causes, treats). {_FOR}",
        "highlights the primary entity or relation",
    ),
)


def meta_prompt(name: str, task: str, clause: str) -> Prompt:
    """A prompt in MetaEOL's form: a task, then what the sentence does in one word.

    Args:
        name: What tables call it.
        task: From "you're …" to "this sentence".
        clause: What stands between the sentence and "in one word".
    """
    return Prompt(f'In this task, {task} : "', f'" {clause} in one word:"', f"meta-{name}")


META: tuple[Prompt, ...] = tuple(meta_prompt(*one) for one in _TASKS)
