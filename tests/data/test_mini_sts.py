"""The mini STS set obeys the rules of data/mini_sts_rubric.md: form, balance, no repeated text, and
near misses that really are near.

Each rule is a function from rows to a list of complaints that name file and line, so that the same
function is run on the set (no complaint) and on a spoilt copy of it (the complaint it was written
for).
"""

import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from texts import passages, read, words

DATA = Path(__file__).resolve().parents[2] / "data"
COLUMNS = ["split", "genre", "kind", "score", "left", "right"]
# Lowest and highest grade that the rubric gives a kind.
GRADES = {
    "same": (4.6, 5),
    "paraphrase_no_overlap": (4, 5),
    "negation": (1.5, 3),
    "role_swap": (1.8, 3),
    "number": (2, 4.3),
    "detail": (2.6, 4.4),
    "topic": (0.7, 1.5),
    "unrelated": (0, 0.5),
}
NEAR_MISSES = ("negation", "role_swap", "number", "paraphrase_no_overlap")
BIN_TOPS = (0.5, 1.5, 2.5, 3.5, 4.5, 5)


def files():
    """The merged set when there is one, else the parts that it will be merged from."""
    merged = DATA / "mini_sts.csv"
    return [merged] if merged.exists() else sorted(DATA.glob("mini_sts_part*.csv"))


# Words that a paraphrase without overlap may still repeat: they carry grammar, not content.
FUNCTION_WORDS = set(
    words("""
    a about after all an and any are as at be been before being both but by can could did do
    does for from get gets got had has have he her his how i if in into is it its just many me
    more most much my no not of off on one only or our out over own she should so some than that
    the their them then there these they this those to too until up very was we were what when
    where which while who whose will with without would you your s t re ve ll d m""")
)


def content(sentence):
    """Content words, with a plural or third-person s taken off so that "road" meets "roads"."""
    return {re.sub(r"(?<=\w{3})s$", "", word) for word in set(words(sentence)) - FUNCTION_WORDS}


def sides(rows):
    return [(row, side, row[side]) for row in rows for side in ("left", "right")]


def bad_labels(rows):
    out = []
    for row in rows:
        if row["split"] not in ("dev", "test"):
            out.append(f"{row['where']}: split {row['split']!r} is neither dev nor test")
        if not re.fullmatch(r"[a-z]+", row["genre"]):
            out.append(f"{row['where']}: genre {row['genre']!r} is not one lower-case word")
        if row["kind"] not in GRADES:
            out.append(f"{row['where']}: kind {row['kind']!r} is not one of {sorted(GRADES)}")
    return out


def bad_grades(rows):
    out = []
    for row in rows:
        low, high = GRADES.get(row["kind"], (0, 5))
        if not re.fullmatch(r"[0-4](\.\d)?|5(\.0)?", row["score"]):
            out.append(
                f"{row['where']}: score {row['score']!r} is not a number from 0 to 5 with at most "
                f"one decimal"
            )
        elif not low <= float(row["score"]) <= high:
            out.append(
                f"{row['where']}: the rubric grades {row['kind']} {low} to {high}, not "
                f"{row['score']}; change the grade or the kind"
            )
    return out


def bad_sentences(rows):
    out = []
    for row, side, text in sides(rows):
        if not 4 <= len(text.split()) <= 25:
            out.append(f"{row['where']}: {side} has {len(text.split())} words; 4 to 25 are allowed")
        if (
            text != " ".join(text.split())
            or not re.match(r'["\']?[A-Z0-9]', text)
            or not re.search(r'[.?!]["\']?$', text)
        ):
            out.append(
                f"{row['where']}: {side} needs a capital, a final . ? or !, and single spaces"
            )
        if set(text) & set("‘’‚“”„«»`´"):
            out.append(f"{row['where']}: {side} has a typographic quote; write \" or '")
    return out


def repeated_sentences(rows):
    out, first = [], {}
    for row, side, text in sides(rows):
        key = " ".join(words(text))
        if key in first:
            seen = first[key]
            halves = ", and in both halves" if seen["split"] != row["split"] else ""
            out.append(f"{row['where']}: {side} stands in {seen['where']} as well{halves}")
        first.setdefault(key, row)
    return out


def repeated_passages(rows):
    """Five words in a row that two pairs share; inside one pair they are welcome."""
    out, first = [], {}
    for number, row in enumerate(rows):
        for side in ("left", "right"):
            for passage in passages(row[side]):
                owner = first.setdefault(passage, number)
                if owner != number:
                    out.append(
                        f"{row['where']}: {side} shares {passage!r} with {rows[owner]['where']}"
                    )
    return out


def unbalanced(rows):
    out = []
    for split in ("dev", "test"):
        scores = [(float(row["score"]), row["where"]) for row in rows if row["split"] == split]
        bins = Counter(next(top for top in BIN_TOPS if score <= top) for score, _ in scores)
        for top in BIN_TOPS:
            share = bins[top] / max(len(scores), 1)
            if not 0.12 <= share <= 0.22:
                names = sorted({where.split(":")[0] for _, where in scores})
                out.append(
                    f"{', '.join(names)}: {share:.0%} of {split} is graded up to {top} in its "
                    f"bin; 12 to 22 % are allowed"
                )
    for genre in sorted({row["genre"] for row in rows}):
        mine = [row for row in rows if row["genre"] == genre]
        where = mine[0]["where"]
        share = sum(row["split"] == "dev" for row in mine) / len(mine)
        if not 0.45 <= share <= 0.55:
            out.append(
                f"{where}: {share:.0%} of genre {genre}, which begins here, is dev; 45 to 55 % "
                f"are allowed"
            )
        kinds = Counter(row["kind"] for row in mine)
        out += [
            f"{where}: genre {genre}, which begins here, has {kinds[k]} pairs of {k}; at least 5"
            for k in NEAR_MISSES
            if kinds[k] < 5
        ]
    return out


def overlapping_paraphrases(rows):
    out = []
    for row in rows:
        shared = content(row["left"]) & content(row["right"])
        if row["kind"] == "paraphrase_no_overlap" and shared:
            out.append(
                f"{row['where']}: a paraphrase without overlap shares {sorted(shared)}; reword it "
                f"or call it same"
            )
    return out


RULES = (
    bad_labels,
    bad_grades,
    bad_sentences,
    repeated_sentences,
    repeated_passages,
    unbalanced,
    overlapping_paraphrases,
)


@pytest.fixture(scope="module")
def rows():
    found = files()
    assert found, "data/ holds neither mini_sts.csv nor mini_sts_part*.csv"
    return [row for path in found for row in read(path, COLUMNS)]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_holds(rule, rows):
    complaints = rule(rows)
    assert not complaints, "\n" + "\n".join(complaints[:20])


def test_merged_set_is_whole_and_the_only_copy():
    rows = read(DATA / "mini_sts.csv", COLUMNS)
    assert len(rows) >= 1000, f"mini_sts.csv: {len(rows)} pairs; at least 1,000"
    halves = Counter(row["split"] for row in rows)
    assert abs(halves["dev"] - halves["test"]) <= 10, f"mini_sts.csv: uneven halves {halves}"
    assert len({row["genre"] for row in rows}) >= 5, "mini_sts.csv: fewer than five genres"
    left_over = [path.name for path in DATA.glob("mini_sts_part*.csv")]
    assert not left_over, f"{left_over} repeat what mini_sts.csv holds; remove them"


def test_rubric_examples_are_not_in_the_set(rows):
    rubric = " ".join(words((DATA / "mini_sts_rubric.md").read_text(encoding="utf-8")))
    quoted = [
        f"{row['where']}: {side} stands in the rubric"
        for row, side, text in sides(rows)
        if " ".join(words(text)) in rubric
    ]
    assert not quoted, "\n".join(quoted)


def test_counting_shared_words_is_fooled(rows):
    """Near misses share more words than paraphrases without overlap, and still are graded
    lower, in each half.
    """

    def overlap(row):
        left, right = content(row["left"]), content(row["right"])
        return len(left & right) / len(left | right)

    for split in ("dev", "test"):
        groups = defaultdict(list)
        for row in rows:
            if row["split"] == split:
                groups[row["kind"]].append(row)
        paraphrases = groups["paraphrase_no_overlap"]
        for kind in ("negation", "role_swap", "number"):
            shared = sum(map(overlap, groups[kind])) / len(groups[kind])
            assert shared > 0.4, (
                f"{split}: {kind} pairs share only {shared:.0%} of their content words"
            )
            highest, lowest = (
                pick(float(row["score"]) for row in g)
                for pick, g in ((max, groups[kind]), (min, paraphrases))
            )
            assert kind == "number" or highest < lowest, (
                f"{split}: a {kind} pair is graded {highest}, a paraphrase {lowest}"
            )


def spoil(rows, change):
    copy = [dict(row) for row in rows]
    change(copy)
    return copy


def graded_alike(rows):
    for row in rows:
        if row["split"] == "test" and float(row["score"]) <= 0.5:
            row["score"] = "1"


def first_of(rows, **wanted):
    return next(row for row in rows if all(row[key] == value for key, value in wanted.items()))


SPOILT = {
    "a split that does not exist": (bad_labels, lambda rows: rows[3].update(split="train")),
    "a score out of range": (bad_grades, lambda rows: rows[3].update(score="5.5")),
    "a role swap graded as a paraphrase": (
        bad_grades,
        lambda rows: first_of(rows, kind="role_swap").update(score="4.8"),
    ),
    "a sentence of three words": (
        bad_sentences,
        lambda rows: rows[3].update(left="Far too short."),
    ),
    "a typographic quote": (
        bad_sentences,
        lambda rows: rows[3].update(left="This isn’t a plain quote."),
    ),
    "a sentence of the other half": (
        repeated_sentences,
        lambda rows: first_of(rows, split="test").update(
            left=first_of(rows, split="dev")["right"].upper()
        ),
    ),
    "five words of another pair": (
        repeated_passages,
        lambda rows: rows[3].update(
            left="Yesterday "
            + " ".join(words(next(r["left"] for r in rows[9:] if len(words(r["left"])) > 5)))
        ),
    ),
    "a bin that is empty": (unbalanced, graded_alike),
    "a paraphrase that repeats a word": (
        overlapping_paraphrases,
        lambda rows: first_of(rows, kind="paraphrase_no_overlap").update(
            left="The plumber came.", right="A plumber arrived."
        ),
    ),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_set_is_refused(case, rows):
    rule, change = SPOILT[case]
    complaints = rule(spoil(rows, change))
    assert complaints and all(
        re.search(r"mini_sts\w*\.csv", complaint) for complaint in complaints
    ), f"{rule.__name__} missed {case}"
