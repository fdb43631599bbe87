"""The 200 definitions keep their rules, and WordNet is read from wherever it lies."""

import csv
import re
import zipfile
from collections import Counter

import numpy as np
import pytest
from texts import passages, read, words

from prompteol_utils.data import (
    SentenceFileError,
    load_definitions,
    load_demonstrations,
    load_dictionary,
)
from prompteol_utils.data.dictionary import find_wordnet, wordnet_entries
from prompteol_utils.utils.files import DATA

PATH = DATA / "definitions.csv"
OTHERS = {
    "mini_sts.csv": ["left", "right"],
    "corpus.csv": ["sentence"],
    "demonstrations.csv": ["sentence"],
    "mini_nli.csv": ["anchor", "positive", "negative"],
}
# Written for this test, in WordNet's format.
NOUNS = """  1 This line stands for a licence.
00000001 06 n 02 teapot 0 samovar 0 001 @ 00000009 n 0000 | a pot for tea; used daily; "filled it"
00000002 06 n 01 tea_caddy 0 000 | a can for tea leaves; "an empty one"; "a full one"
"""
ADJECTIVES = "00000003 00 a 01 steeped(p) 0 000 | left in hot water\n"


# --- the definitions


def bad_form(rows):
    out = []
    counts = Counter(row["word"] for row in rows)
    taken = {one.word.lower() for one in load_demonstrations()}
    for row in rows:
        word, text, where = row["word"], row["definition"], row["where"]
        if not re.fullmatch(r"[a-z]+", word) or counts[word] > 1 or word in taken:
            out.append(f"{where}: {word!r} is not a word of its own in lower case")
        if not 3 <= len(words(text)) <= 16 or not text.endswith(".") or '"' in text:
            out.append(f"{where}: 3 to 16 words, a final period and no double quote")
        for other in words(text):
            if other == word or (len(other) > 3 and word.startswith(other)):
                out.append(f"{where}: {word!r} stands in its own definition, as {other!r}")
            if len(word) > 3 and other.startswith(word):
                out.append(f"{where}: {word!r} stands in its own definition, as {other!r}")
    return out


def shared_passages(rows):
    owners = {}
    for name, columns in OTHERS.items():
        with open(DATA / name, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                for column in columns:
                    owners |= dict.fromkeys(passages(row[column]), name)
    out = []
    for row in rows:
        for passage in set(passages(row["definition"])):
            if (owner := owners.setdefault(passage, row["where"])) != row["where"]:
                out.append(f"{row['where']}: {passage!r} also stands in {owner}")
    return out


@pytest.fixture(scope="module")
def rows():
    return read(PATH, ["word", "definition"])


@pytest.mark.parametrize("rule", [bad_form, shared_passages])
def test_the_definitions_obey(rule, rows):
    assert len(rows) == 200
    assert not rule(rows)


@pytest.mark.parametrize(
    ("rule", "line", "change"),
    [
        (bad_form, 2, {"word": "Umbrella"}),
        (bad_form, 3, {"word": "umbrella"}),
        (bad_form, 4, {"word": "passport"}),
        (bad_form, 5, {"definition": "made of wax and lit when the power fails"}),
        (bad_form, 6, {"definition": "you see mirrors on the wall."}),
        (bad_form, 7, {"definition": "poles."}),
        (shared_passages, 8, {"definition": "a folding roof of cloth on deck."}),
        (shared_passages, 9, {"definition": "the onions had gone golden and sweet."}),
    ],
)
def test_a_spoilt_line_is_named(rule, line, change, rows):
    spoilt = [row | change if row["where"] == f"{PATH.name}:{line}" else row for row in rows]
    assert any(re.search(rf"{PATH.name}:{line}\b", told) for told in rule(spoilt))


def test_none_of_the_wording_is_wordnets(rows):
    folder = find_wordnet()
    if folder is None:
        pytest.skip("no WordNet here (Debian: apt install wordnet-base)")
    theirs, lemmas = set(), set()
    for entry, gloss in wordnet_entries(folder):
        theirs.update(passages(gloss))
        lemmas.update(entry)
    for row in rows:
        assert row["word"] in lemmas, row
        assert not theirs.intersection(passages(row["definition"])), row


def test_the_package_reads_them(rows):
    assert list(load_definitions().items()) == [(row["word"], row["definition"]) for row in rows]


def test_a_blank_definition_is_named(tmp_path):
    path = tmp_path / "short.csv"
    path.write_text("word,definition\nteapot,\n", encoding="utf-8")
    with pytest.raises(SentenceFileError, match=r"short\.csv:2"):
        load_definitions(path)


# --- WordNet


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """A machine without WordNet, whatever this one has."""
    monkeypatch.delenv("PROMPTEOL_WORDNET", raising=False)
    monkeypatch.setenv("NLTK_DATA", str(tmp_path / "nltk"))
    monkeypatch.setattr("prompteol_utils.data.dictionary.DEBIAN", str(tmp_path / "debian"))
    monkeypatch.setattr("prompteol_utils.data.dictionary.NLTK_FOLDERS", ())
    return tmp_path


def write(folder):
    folder.mkdir(parents=True)
    (folder / "data.noun").write_text(NOUNS)
    (folder / "data.adj").write_text(ADJECTIVES)


def check(found):
    assert found.words == (("teapot", "samovar"), ("tea caddy",), ("steeped",))
    texts = ("a pot for tea; used daily", "a can for tea leaves", "left in hot water")
    assert found.definitions == texts
    assert found.origin == "wordnet"
    assert found.of("samovar").tolist() == [0] and found.of("kettle").tolist() == []


def test_without_wordnet_it_is_the_definitions_of_this_project(nowhere):
    found = load_dictionary()
    assert found.origin == "project"
    assert dict(zip([word for (word,) in found.words], found.definitions, strict=True)) == (
        load_definitions()
    )


@pytest.mark.parametrize("place", ["debian", "nltk/corpora/wordnet", "mine"])
def test_wordnet_is_found(nowhere, place):
    write(nowhere / place)
    check(load_dictionary(nowhere / "mine" if place == "mine" else None))


def test_the_environment_names_a_folder(nowhere, monkeypatch):
    write(nowhere / "mine")
    monkeypatch.setenv("PROMPTEOL_WORDNET", str(nowhere / "mine"))
    check(load_dictionary())


def test_nltks_packed_download_is_read(nowhere):
    (nowhere / "nltk" / "corpora").mkdir(parents=True)
    with zipfile.ZipFile(nowhere / "nltk" / "corpora" / "wordnet.zip", "w") as archive:
        archive.writestr("wordnet/data.noun", NOUNS)
        archive.writestr("wordnet/data.adj", ADJECTIVES)
    check(load_dictionary())


def test_a_named_folder_without_wordnet_is_refused(nowhere):
    write(nowhere / "debian")
    with pytest.raises(FileNotFoundError, match="no WordNet database"):
        load_dictionary(nowhere / "none")


def test_a_sample_keeps_words_and_begins_a_larger_one(nowhere):
    keep = ["spider", "owl", "melt"]
    small, large = (load_dictionary(limit=n, keep=keep) for n in (10, 50))
    assert small.words == large.words[:10] and len(large) == 50 == len(set(large.words))
    assert {word for (word,) in small.words[:3]} == set(keep)
    other = load_dictionary(limit=10, keep=keep, seed=1)
    assert other.words[:3] == small.words[:3] and other.words != small.words
    assert np.array_equal(small.of("owl"), [list(small.words).index(("owl",))])
    with pytest.raises(ValueError, match="3 definitions are of words to keep"):
        load_dictionary(limit=2, keep=keep)
