"""The template to the character, the punctuation rules in their order, demonstrations in
the paper's format.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompteol_utils.prompts import (
    PROMPTS,
    Demonstration,
    Prompt,
    get_prompt,
    paper_punctuation,
    parse_demonstration,
    with_demonstrations,
)


def test_template_to_the_character():
    assert (
        PROMPTS["prompteol"].render("The cat sleeps.")
        == 'This sentence : "The cat sleeps." means in one word:"'
    )
    assert PROMPTS["means"].render("The cat sleeps.") == 'This sentence : "The cat sleeps." means'
    assert (
        PROMPTS["mean"].render(' The  cat "sleeps"')
        == PROMPTS["last"].render(' The  cat "sleeps"')
        == ' The  cat "sleeps"'
    )
    assert {name: prompt.pooling for name, prompt in PROMPTS.items()} == {
        "prompteol": "last",
        "means": "last",
        "mean": "mean",
        "last": "last",
    }


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("the cat sleeps", "the cat sleeps."),
        ("the cat sleeps .", "the cat sleeps ."),
        ("Look!", "Look!."),
        ("Why?", "Why."),
        ('she said "yes"', "she said 'yes'"),
        ('is it "blue"?', "is it 'blue'."),
        ("it's the dogs'", "it's the dogs'"),
        ("two  spaces\nand a line", "two spaces and a line."),
        ('ends in a quote?"', "ends in a quote?'"),
        ("", ""),
    ],
)
def test_paper_punctuation(before, after):
    assert paper_punctuation(before) == after


@given(st.text())
def test_cleaned_sentence_cannot_close_the_template_quote(text):
    cleaned = paper_punctuation(text)
    assert '"' not in cleaned and "\n" not in cleaned
    assert not cleaned or cleaned[-1] in ".'"
    assert PROMPTS["prompteol"].render(text).count('"') == 3


def test_one_demonstration_in_the_format_of_the_paper():
    prompt = with_demonstrations(
        "prompteol", [Demonstration("A jockey riding a horse.", "Equestrian")]
    )
    expected = (
        'This sentence : "A jockey riding a horse." means in one word:"Equestrian".'
        'This sentence : "The cat sleeps." means in one word:"'
    )
    assert prompt.render("The cat sleeps") == expected
    assert (
        prompt.demonstrations[0].word == "Equestrian"
        and prompt.pooling == "last"
        and prompt.suffix == PROMPTS["prompteol"].suffix
    )


def test_demonstrations_keep_their_order_and_are_cleaned_like_the_sentence():
    prompt = with_demonstrations(
        "prompteol",
        [
            Demonstration('He said "go"\nand left', "Farewell"),
            Demonstration("Meat from a deer?", "Venison"),
        ],
    )
    assert prompt.prefix.startswith(
        'This sentence : "He said \'go\' and left." means in one word:"Farewell".'
        'This sentence : "Meat from a deer."'
    )
    assert with_demonstrations("prompteol", []) is PROMPTS["prompteol"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: with_demonstrations("mean", [Demonstration("a b", "c")]), "open quote"),
        (
            lambda: with_demonstrations(
                with_demonstrations("prompteol", [Demonstration("a b", "c")]),
                [Demonstration("d", "e")],
            ),
            "already holds 1",
        ),
        (lambda: Demonstration("", "Word"), "needs a sentence"),
        (lambda: Demonstration("A text.", " "), "needs a word"),
        (lambda: Demonstration("A text.", 'Wo"rd'), "double quotes"),
        (lambda: Demonstration("A text.", "two words"), "one word"),
        (lambda: parse_demonstration("A text. -> Word"), "SENTENCE=>WORD"),
        (lambda: get_prompt("nothing"), "allowed: prompteol, means, mean, last"),
        (lambda: Prompt("", "", "x", pooling="max"), "allowed: last, mean"),
        (lambda: Prompt("", "", "x", punctuation="mine"), "'paper', 'period' or None"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_parse_demonstration():
    assert parse_demonstration("if a => b=>Logic") == Demonstration("if a => b", "Logic")
