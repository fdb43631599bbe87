"""The 80 sentences of the semantic-search demo are balanced, distinct, and share no passage
with each other or with the mini STS set.
"""

import csv
from collections import Counter
from pathlib import Path

import pytest
from texts import passages, words

DATA = Path(__file__).resolve().parents[2] / "data"
TOPICS = {"cooking", "space", "football", "money", "gardening", "music", "medicine", "travel"}


def read(name):
    with open(DATA / name, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def shared_passages(groups):
    """Passages of five words that stand in more than one group.

    A group is the sentences that may resemble each other.
    """
    owners = Counter(passage for group in groups for passage in set().union(*map(passages, group)))
    return [passage for passage, count in owners.items() if count > 1]


@pytest.fixture(scope="module")
def corpus():
    return read("corpus.csv")


def test_eight_topics_of_ten(corpus):
    assert Counter(row["topic"] for row in corpus) == dict.fromkeys(TOPICS, 10)


def test_sentences_are_distinct_and_well_formed(corpus):
    sentences = [row["sentence"] for row in corpus]
    assert len({" ".join(words(s)) for s in sentences}) == 80
    for sentence in sentences:
        assert 4 <= len(words(sentence)) <= 25, sentence
        assert sentence == sentence.strip() and sentence[0].isupper() and sentence[-1] in ".?!", (
            sentence
        )


def test_no_sentence_names_a_topic(corpus):
    """Searching for the topic's name as a keyword must find nothing, so that the demo needs
    meaning.
    """
    stems = ("cook", "space", "football", "soccer", "money", "garden", "music", "medic", "travel")
    for row in corpus:
        assert not [w for w in words(row["sentence"]) if w.startswith(stems)], row["sentence"]


def test_no_topic_leans_on_one_word(corpus):
    """A content word in three or more of a topic's ten sentences would let a keyword search
    succeed.
    """
    for topic in TOPICS:
        counts = Counter(
            w
            for row in corpus
            if row["topic"] == topic
            for w in set(words(row["sentence"]))
            if len(w) > 4
        )
        repeated = [
            w
            for w, n in counts.items()
            if n > 2 and w not in {"their", "until", "before", "after", "under"}
        ]
        assert not repeated, (topic, repeated)


def test_no_five_words_in_a_row_twice(corpus):
    groups = [[row["sentence"]] for row in corpus]
    # The merged set when there is one, else the parts that it will be merged from.
    parts = (
        ["mini_sts.csv"]
        if (DATA / "mini_sts.csv").exists()
        else sorted(path.name for path in DATA.glob("mini_sts_part*.csv"))
    )
    assert parts, "data/ holds neither mini_sts.csv nor mini_sts_part*.csv"
    groups += [[row["left"], row["right"]] for name in parts for row in read(name)]
    assert shared_passages(groups) == []
