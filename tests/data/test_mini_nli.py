"""The mini NLI set obeys its rules: form, variety, no repeated text, nothing from the rest of
data/, and negatives that really are hard.

Each rule is a function from rows to a list of complaints that name file and line, so that the same
function is run on the set (no complaint) and on a spoilt copy of it (the complaint it was written
for). That a positive follows from its anchor and a negative
contradicts it cannot be tested: it was judged by whoever wrote the triplet.
"""

import csv
import re
from collections import Counter
from pathlib import Path

import pytest
from texts import RUN, passages, read, words

DATA = Path(__file__).resolve().parents[2] / "data"
FILE = DATA / "mini_nli.csv"
ROLES = ("anchor", "positive", "negative")
COLUMNS = [*ROLES, "genre"]
OTHERS = [path for path in sorted(DATA.rglob("*.csv")) if path != FILE]
NEGATIONS = {
    "no",
    "not",
    "t",
    "none",
    "nobody",
    "nothing",
    "nowhere",
    "never",
    "neither",
    "nor",
    "cannot",
    "without",
    "hardly",
}


def sentences(rows):
    return [(row, role, row[role]) for row in rows for role in ROLES]


def overlap(row, role):
    """Share of words that the anchor and another sentence have in common (Jaccard's index)."""
    left, right = set(words(row["anchor"])), set(words(row[role]))
    return len(left & right) / len(left | right)


def too_few(rows):
    genres = Counter(row["genre"] for row in rows)
    last = rows[-1]["where"]
    out = (
        []
        if len(rows) >= 420
        else [f"{last}: the set ends here with {len(rows)} triplets; at least 420"]
    )
    out += (
        []
        if len(genres) >= 8
        else [f"{last}: the set ends here with {len(genres)} genres; at least 8"]
    )
    first = {row["genre"]: row["where"] for row in reversed(rows)}
    return out + [
        f"{first[genre]}: genre {genre}, which begins here, has {n} triplets; at least 20"
        for genre, n in genres.items()
        if n < 20
    ]


def bad_form(rows):
    out = [
        f"{row['where']}: genre {row['genre']!r} is not one lower-case word"
        for row in rows
        if not re.fullmatch(r"[a-z]+", row["genre"])
    ]
    for row, role, text in sentences(rows):
        if not 5 <= len(text.split()) <= 20:
            out.append(f"{row['where']}: {role} has {len(text.split())} words; 5 to 20 are allowed")
        if (
            text != " ".join(text.split())
            or not re.match(r"[A-Z0-9]", text)
            or not re.search(r"[.?!]$", text)
        ):
            out.append(
                f"{row['where']}: {role} needs a capital, a final . ? or !, and single spaces"
            )
        if not text.isascii() or '"' in text:
            out.append(
                f"{row['where']}: {role} has a quotation mark or a sign outside ASCII; write ' "
                f"and -"
            )
    return out


def repeated_sentences(rows):
    """The same words twice, in one triplet or in two: a positive that equals its negative
    is one case of it.
    """
    out, first = [], {}
    for row, role, text in sentences(rows):
        key = " ".join(words(text))
        if key in first:
            out.append(f"{row['where']}: {role} stands in {first[key]} as well")
        first.setdefault(key, row["where"])
    return out


def repeated_passages(rows):
    """Five words in a row that two triplets share; inside one triplet they are welcome."""
    out, first = [], {}
    for number, (row, role, text) in enumerate(sentences(rows)):
        for passage in passages(text):
            owner = first.setdefault(passage, number // len(ROLES))
            if owner != number // len(ROLES):
                out.append(f"{row['where']}: {role} shares {passage!r} with {rows[owner]['where']}")
    return out


def passages_elsewhere():
    """Where each passage of the other tables in data/ stands: what embeddings are judged
    on, and what demonstrations are made of.
    """
    seen = {}
    for path in OTHERS:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            for cells in reader:
                for passage in (passage for cell in cells for passage in passages(cell)):
                    seen.setdefault(passage, f"{path.name}:{reader.line_num}")
    return seen


def text_from_elsewhere(rows):
    """Five words in a row that stand in another file too.

    A model may not learn from what it is judged on.
    """
    seen = passages_elsewhere()
    return [
        f"{row['where']}: {role} shares {passage!r} with {seen[passage]}"
        for row, role, text in sentences(rows)
        for passage in passages(text)
        if passage in seen
    ]


def repeated_openings(rows):
    """A template shows in how sentences begin: no three first words in more than four
    anchors, positives, or negatives.
    """
    out = []
    for role in ROLES:
        openings = {}
        for row in rows:
            openings.setdefault(" ".join(words(row[role])[:3]), []).append(row["where"])
        out += [
            f"{lines[4]}: {len(lines)} {role}s begin {start!r}; at most 4"
            for start, lines in openings.items()
            if len(lines) > 4
        ]
    return out


def easy_negatives(rows):
    """A negative keeps to its anchor's topic: a word of four letters or more is the same."""
    out = []
    for row in rows:
        anchor, negative = (
            {word for word in words(row[role]) if len(word) > 3} for role in ("anchor", "negative")
        )
        if not anchor & negative:
            out.append(
                f"{row['where']}: negative shares no longer word with its anchor; use one of "
                f"{sorted(anchor)}"
            )
    return out


RULES = (
    too_few,
    bad_form,
    repeated_sentences,
    repeated_passages,
    text_from_elsewhere,
    repeated_openings,
    easy_negatives,
)


@pytest.fixture(scope="module")
def rows():
    return read(FILE, COLUMNS)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_holds(rule, rows):
    complaints = rule(rows)
    assert not complaints, "\n" + "\n".join(complaints[:20])


def test_counting_shared_words_is_fooled(rows):
    """Most negatives repeat more of the anchor than the positive does, and many repeat
    less: neither is a rule to learn.
    """
    closer = Counter(
        (overlap(row, "negative") > overlap(row, "positive"))
        - (overlap(row, "negative") < overlap(row, "positive"))
        for row in rows
    )
    assert 0.5 < closer[1] / len(rows) < 0.8, (
        f"{FILE.name}: the negative repeats more in {closer[1]} of {len(rows)} triplets"
    )
    assert 0.2 < closer[-1] / len(rows) < 0.5, (
        f"{FILE.name}: the positive repeats more in {closer[-1]} of {len(rows)} triplets"
    )


def test_a_negation_does_not_give_the_negative_away(rows):
    with_one = {
        role: sum(bool(NEGATIONS & set(words(row[role]))) for row in rows) / len(rows)
        for role in ROLES
    }
    assert (
        all(0.15 <= part <= 0.45 for part in with_one.values())
        and abs(with_one["positive"] - with_one["negative"]) < 0.15
    ), with_one


def spoil(rows, change):
    copy = [dict(row) for row in rows]
    change(copy)
    return copy


def passage_of(name):
    return next(
        passage for passage, where in passages_elsewhere().items() if where.startswith(name)
    )


SPOILT = {
    "a set cut short": (too_few, lambda rows: rows.__delitem__(slice(419, None))),
    "a genre of one": (too_few, lambda rows: rows[7].update(genre="law")),
    "a genre of two words": (bad_form, lambda rows: rows[7].update(genre="how to")),
    "a sentence of four words": (
        bad_form,
        lambda rows: rows[7].update(positive="This is too short."),
    ),
    "a sentence of 21 words": (
        bad_form,
        lambda rows: rows[7].update(anchor="Word " * 20 + "word."),
    ),
    "a typographic quote": (
        bad_form,
        lambda rows: rows[7].update(negative="This isn’t a plain quote mark."),
    ),
    "no final stop": (
        bad_form,
        lambda rows: rows[7].update(negative=rows[7]["negative"].rstrip(".")),
    ),
    "an empty cell": (bad_form, lambda rows: rows[7].update(negative="")),
    "a positive that is the anchor": (
        repeated_sentences,
        lambda rows: rows[7].update(positive=rows[7]["anchor"].upper()),
    ),
    "a positive that is the negative": (
        repeated_sentences,
        lambda rows: rows[7].update(positive=rows[7]["negative"]),
    ),
    "a sentence of another triplet": (
        repeated_sentences,
        lambda rows: rows[7].update(negative=rows[9]["positive"]),
    ),
    "five words of another triplet": (
        repeated_passages,
        lambda rows: rows[7].update(
            negative="Yesterday " + " ".join(words(rows[9]["anchor"])[:RUN]) + "."
        ),
    ),
    "five words of the STS set": (
        text_from_elsewhere,
        lambda rows: rows[7].update(positive=f"Today {passage_of('mini_sts.csv')}."),
    ),
    "five words of the corpus": (
        text_from_elsewhere,
        lambda rows: rows[7].update(anchor=f"Today {passage_of('corpus.csv')}."),
    ),
    "five words of a demonstration": (
        text_from_elsewhere,
        lambda rows: rows[7].update(anchor=f"Today {passage_of('demonstrations')}."),
    ),
    "five openings alike": (
        repeated_openings,
        lambda rows: [row.update(anchor="This is how " + row["anchor"]) for row in rows[:5]],
    ),
    "a negative about something else": (
        easy_negatives,
        lambda rows: rows[7].update(negative="Parliament debates tax reform tomorrow."),
    ),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_set_is_refused(case, rows):
    rule, change = SPOILT[case]
    complaints = rule(spoil(rows, change))
    assert complaints and all(
        re.match(r"mini_nli\.csv:\d+: ", complaint) for complaint in complaints
    ), f"{rule.__name__} missed {case}"


@pytest.mark.parametrize(
    "text",
    [
        "anchor,positive,negative\na,b,c\n",
        f"{','.join(COLUMNS)}\nHello, you,b,c,work\n",
        f"{','.join(COLUMNS)}\na,b\n",
    ],
)
def test_a_malformed_file_names_the_line(text, tmp_path):
    path = tmp_path / "broken.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(AssertionError, match=r"broken\.csv:[12]: "):
        read(path, COLUMNS)
