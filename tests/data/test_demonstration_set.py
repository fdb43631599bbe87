"""The 300 demonstrations obey the rules of data/README.md: form, balance, no repeated word, frame
or passage.

Each rule is a function from rows to a list of complaints that name file and line, so that the same
function is run on the set (no complaint) and on a spoilt copy of it (the complaint it was written
for).
"""

import csv
import re
from collections import Counter, defaultdict

import pytest
from texts import passages, read, words

from prompteol_utils.data import load_demonstrations, paper_demonstrations
from prompteol_utils.utils.files import DATA

PATH = DATA / "demonstrations.csv"
COLUMNS = ["sentence", "word", "kind", "topic", "names"]
KINDS = {"sentence": 100, "dictionary": 200}
NAMES = {"sentence": {"topic", "action"}, "dictionary": {"topic", "action", "thing"}}
PROMPT_WORDS = {"this", "sentence", "means", "in", "one", "word"}


# Words that carry grammar: what a sentence keeps when its content is taken out is its frame.
FUNCTION_WORDS = set(
    words("""
    a about above across after against ahead all already amid among an and another any anyone
    are as at away back be because been before behind being below beneath beside between but by
    can cannot could did do does down during each either else enough even every for from had has
    have having he her herself him his how i if in inside into is it its itself me much my
    neither no nobody none not nothing now of off on once one only or other others our out over
    own she since so some somebody someone something still such than that the their them then
    there they this those through till to together too under until up upon us very was we were
    what when where whether which while who whoever whom whose will with within without would
    you your s""")
)


def frame(sentence):
    """The sentence with every content word replaced by a gap: "a _ that _ its _ in _"."""
    return " ".join(word if word in FUNCTION_WORDS else "_" for word in words(sentence))


def repeated(rows, what, key):
    """A complaint for each row whose key an earlier row has."""
    seen, out = {}, []
    for row in rows:
        if (first := seen.setdefault(key(row), row["where"])) != row["where"]:
            out.append(f"{row['where']}: {what} {key(row)!r} also stands in {first}")
    return out


def bad_form(rows):
    out = []
    for row in rows:
        sentence, where = row["sentence"], row["where"]
        if not 4 <= len(words(sentence)) <= 14:
            out.append(f"{where}: {len(words(sentence))} words; allowed: 4 to 14")
        if not sentence.endswith(".") or sentence != " ".join(sentence.split()) or '"' in sentence:
            out.append(
                f"{where}: a sentence ends with a period, and has no double quote, line break or "
                f"space too many"
            )
        if sentence[:1].isupper() != (row["kind"] == "sentence") or (
            row["kind"] == "dictionary" and sentence != sentence.lower()
        ):
            out.append(f"{where}: a sentence starts with a capital, a definition has none")
        if row["names"] not in NAMES.get(row["kind"], ()):
            out.append(
                f"{where}: kind {row['kind']!r} with names {row['names']!r}; allowed: {NAMES}"
            )
        if not re.fullmatch(r"[a-z]+", row["topic"]):
            out.append(f"{where}: topic {row['topic']!r} is not one lower-case word")
    return out


def bad_words(rows):
    taken = {
        demonstration.word.lower() for demonstration in paper_demonstrations().values()
    } | PROMPT_WORDS
    out = repeated(rows, "word", lambda row: row["word"].lower())
    for row in rows:
        if not re.fullmatch(r"[A-Z][a-z]+(-[a-z]+)?", row["word"]):
            out.append(
                f"{row['where']}: word {row['word']!r} is not one capitalised word of letters"
            )
        if row["word"].lower() in taken:
            out.append(
                f"{row['where']}: word {row['word']!r} is the prompt's own or one that the paper "
                f"chose"
            )
    if (hyphens := sum("-" in row["word"] for row in rows)) > 3:
        out.append(f"{PATH.name}: {hyphens} words with a hyphen; allowed: 3")
    return out


def given_away(rows):
    """A sentence that holds its word, or another form of it: one begins with the other
    ("water", "Watering").
    """
    out = []
    for row in rows:
        word = row["word"].lower().replace("-", "")
        for other in words(row["sentence"]):
            if (
                other == word
                or (len(other) > 3 and word.startswith(other))
                or (len(word) > 3 and other.startswith(word))
            ):
                out.append(
                    f"{row['where']}: {row['word']!r} stands in its own sentence, as {other!r}"
                )
    return out


def same_frame(rows):
    out = repeated(rows, "frame", lambda row: frame(row["sentence"]))
    return out + repeated(rows, "beginning", lambda row: " ".join(words(row["sentence"])[:3]))


def shared_passages(rows):
    """Five words in a row that also stand in another demonstration, or in another text of
    the project.
    """
    owners = defaultdict(set)
    for row in rows:
        for passage in set(passages(row["sentence"])):
            owners[passage].add(row["where"])
    for name, columns in (
        ("mini_sts.csv", ("left", "right")),
        ("corpus.csv", ("sentence",)),
        ("paper/demonstrations.csv", ("sentence",)),
    ):
        with open(DATA / name, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            for row in reader:
                for passage in (
                    set().union(*(passages(row[column]) for column in columns)) & owners.keys()
                ):
                    owners[passage].add(f"{name}:{reader.line_num}")
    return [
        f"{', '.join(sorted(where))}: share {passage!r}"
        for passage, where in owners.items()
        if len(where) > 1
    ]


def out_of_balance(rows):
    out = []
    if (kinds := dict(Counter(row["kind"] for row in rows))) != KINDS:
        out.append(f"{PATH.name}: {kinds}; there should be {KINDS}")
    if (named := Counter(row["names"] for row in rows if row["kind"] == "sentence")) != {
        "topic": 50,
        "action": 50,
    }:
        out.append(
            f"{PATH.name}: words of everyday sentences name {dict(named)}; there should be 50 "
            f"topics and 50 actions"
        )
    counts = Counter((row["topic"], row["kind"]) for row in rows)
    if len(topics := {row["topic"] for row in rows}) != 20:
        out.append(f"{PATH.name}: {len(topics)} topics; there should be 20")
    for topic in sorted(topics):
        for kind, count in KINDS.items():
            if (found := counts[topic, kind]) != count // 20:
                out.append(
                    f"{PATH.name}: topic {topic!r} has {found} of kind {kind!r}; there should be "
                    f"{count // 20}"
                )
    return out


RULES = [bad_form, bad_words, given_away, same_frame, shared_passages, out_of_balance]


@pytest.fixture(scope="module")
def rows():
    return read(PATH, COLUMNS)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_set_obeys(rule, rows):
    complaints = rule(rows)
    assert not complaints, "\n".join(complaints)


def test_the_package_reads_it(rows):
    loaded = load_demonstrations()
    assert [(one.sentence, one.word, one.kind, one.topic) for one in loaded] == [
        tuple(row[column] for column in ("sentence", "word", "kind", "topic")) for row in rows
    ]


SPOILT = [  # the rule that must complain, the line that it must name, and what is changed there
    (bad_form, 2, {"sentence": "Grandma rolled the dough thin and pinched every dumpling shut"}),
    (bad_form, 3, {"sentence": "We ate sandwiches."}),
    (bad_form, 4, {"sentence": 'Crumbs led from the "pantry" to my pillow.'}),
    (bad_form, 5, {"sentence": "Nobody at table nine has eaten meat\nsince college."}),
    (bad_form, 6, {"sentence": "those little red peppers brought tears to his eyes."}),
    (bad_form, 102, {"sentence": "Dried grapes, often baked into buns."}),
    (bad_form, 7, {"names": "thing"}),
    (bad_form, 8, {"topic": "Old music"}),
    (bad_words, 9, {"word": "COOKING"}),
    (bad_words, 9, {"word": "Cooking"}),
    (bad_words, 10, {"word": "Venison"}),
    (bad_words, 11, {"word": "Word"}),
    (bad_words, 12, {"word": "Bad weather"}),
    (given_away, 13, {"word": "Frozen"}),
    (
        given_away,
        14,
        {"word": "Raining", "sentence": "The rain has come at last and it is raining still."},
    ),
    (given_away, 112, {"word": "Songs"}),
    (same_frame, 114, {"sentence": "to stand in water that hardly moves."}),
    (
        same_frame,
        20,
        {"sentence": "Those little red apples are for grandmother and nobody else at all."},
    ),
    (shared_passages, 15, {"sentence": "The quartet went over the hill in large white flakes."}),
    (
        shared_passages,
        16,
        {"sentence": "Nobody here forgets the onions had gone golden and sweet."},
    ),
    (shared_passages, 17, {"sentence": "My sister keeps her winter boots under the bed."}),
    (shared_passages, 18, {"sentence": "The man is riding a motorcycle up the hill."}),
]


@pytest.mark.parametrize(("rule", "line", "change"), SPOILT)
def test_a_spoilt_line_is_named(rule, line, change, rows):
    spoilt = [row | change if row["where"] == f"{PATH.name}:{line}" else row for row in rows]
    assert spoilt != rows and any(
        re.search(rf"{PATH.name}:{line}\b", complaint) for complaint in rule(spoilt)
    )


@pytest.mark.parametrize(
    "change", [{"kind": "dictionary"}, {"names": "topic"}, {"topic": "gossip"}]
)
def test_a_set_out_of_balance_is_seen(change, rows):
    assert out_of_balance([rows[0] | change, *rows[1:]])


def test_a_missing_column_is_named(tmp_path):
    path = tmp_path / "short.csv"
    path.write_text("sentence,word,kind,topic\n", encoding="utf-8")
    with pytest.raises(AssertionError, match=r"short\.csv:1: columns are"):
        read(path, COLUMNS)
