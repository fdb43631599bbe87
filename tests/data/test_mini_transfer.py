"""The mini transfer set obeys its rules: form, balance, no repeated text, no template, and no
shortcut that makes a task trivial.

Each rule is a function from rows to a list of complaints that name file and line, so that the same
function is run on the set (no complaint) and on a spoilt copy of it (the complaint it was written
for).
"""

import csv
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from texts import RUN, passages, read, words

DATA = Path(__file__).resolve().parents[2] / "data"
NAME = "mini_transfer.csv"
COLUMNS = ["task", "split", "label", "text", "text2"]
BINARY = ("0", "1")
LABELS = dict.fromkeys(("mr", "cr", "subj", "mpqa", "sst2", "mrpc"), BINARY) | {
    "trec": ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
}
# Fewest and most words of a text.
LENGTHS = {
    "mr": (4, 30),
    "cr": (4, 30),
    "subj": (4, 30),
    "mpqa": (1, 5),
    "sst2": (5, 30),
    "trec": (4, 20),
    "mrpc": (7, 30),
}
AT_LEAST = {"train": 80, "test": 40}
OTHER_SETS = ("mini_sts.csv", "mini_nli.csv", "corpus.csv", "demonstrations.csv")
NEGATION = re.compile(
    r"(?:no|not|nor|none|never|nothing|nobody|neither|hardly|rarely|seldom|without|cannot|\w+n't)"
)


def sides(rows):
    return [(row, side, row[side]) for row in rows for side in ("text", "text2") if row[side]]


def by_task(rows):
    out = defaultdict(list)
    for row in rows:
        out[row["task"]].append(row)
    return out


def bad_cells(rows):
    out = []
    for row in rows:
        if row["task"] not in LABELS:
            out.append(f"{row['where']}: task {row['task']!r} is not one of {sorted(LABELS)}")
        elif row["label"] not in LABELS[row["task"]]:
            out.append(
                f"{row['where']}: label {row['label']!r} is not one of {row['task']}'s: "
                f"{LABELS[row['task']]}"
            )
        if row["split"] not in AT_LEAST:
            out.append(f"{row['where']}: split {row['split']!r} is neither train nor test")
        if bool(row["text2"]) != (row["task"] == "mrpc"):
            out.append(f"{row['where']}: mrpc needs a text2, and no other task has one")
    return out


def bad_texts(rows):
    out = []
    for row, side, text in sides(rows):
        low, high = LENGTHS[row["task"]]
        if not low <= len(text.split()) <= high:
            out.append(
                f"{row['where']}: {side} has {len(text.split())} words; {row['task']} allows "
                f"{low} to {high}"
            )
        if text != " ".join(text.split()) or set(text) & set("‘’‚“”„«»`´"):
            out.append(f"{row['where']}: {side} needs single spaces and plain quotes")
        phrase = row["task"] == "mpqa"
        if phrase and not re.fullmatch(r"[a-z][a-z', -]*[a-z]", text):
            out.append(f"{row['where']}: {side} is a phrase: lower case, no final mark")
        if not phrase and not re.fullmatch(r"[A-Z0-9].*[.?]", text):
            out.append(f"{row['where']}: {side} needs a capital and a final . or ?")
    return out


def repeated_texts(rows):
    out, first = [], {}
    for row, side, text in sides(rows):
        seen = first.setdefault(" ".join(words(text)), (row, side))
        if seen != (row, side):
            out.append(f"{row['where']}: {side} stands in {seen[0]['where']} as well")
    return out


def repeated_passages(rows):
    """Five words in a row that two rows share, or a row and another set written for this project.

    Inside one pair they are welcome.
    """
    out, first = [], {}
    for name in OTHER_SETS:
        with open(DATA / name, encoding="utf-8", newline="") as file:
            first |= {
                passage: name
                for line in csv.reader(file)
                for cell in line
                for passage in passages(cell)
            }
    for row, side, text in sides(rows):
        for passage in passages(text):
            owner = first.setdefault(passage, row["where"])
            if owner != row["where"]:
                out.append(f"{row['where']}: {side} shares {passage!r} with {owner}")
    return out


def unbalanced(rows):
    out, tasks = [], by_task(rows)
    for task, labels in LABELS.items():
        where = tasks[task][0]["where"] if tasks[task] else f"{NAME}:1"
        for split, fewest in AT_LEAST.items():
            counts = Counter(row["label"] for row in tasks[task] if row["split"] == split)
            if sum(counts.values()) < fewest or len({counts[label] for label in labels}) > 1:
                out.append(
                    f"{where}: {task}, which begins here, has {dict(counts)} in {split}; each "
                    f"label equally often, {fewest} in all"
                )
        counts = Counter(row["label"] for row in tasks[task])
        out += [
            f"{where}: {task}, which begins here, has {counts[x]} of label {x}; at least 20"
            for x in labels
            if counts[x] < 20
        ]
    return out


def templated(rows):
    """Openings of three words that come back.

    Questions may repeat theirs ("What is the"), other texts once.
    """
    out = []
    for task, mine in by_task(rows).items():
        seen = Counter()
        for row in mine:
            opening = " ".join(words(row["text"])[:3])
            seen[opening] += opening.count(" ") == 2
            if seen[opening] > (12 if task == "trec" else 2):
                out.append(
                    f"{row['where']}: {opening!r} opens {seen[opening]} texts of {task} by now"
                )
    return out


def giveaways(rows):
    """What would let a classifier be right without reading: negation as a sign of
    "negative", the question word, counting shared words.
    """
    out, tasks = [], by_task(rows)
    for task in ("mr", "cr", "sst2", "mpqa"):
        for label in BINARY:
            mine = [row for row in tasks[task] if row["label"] == label]
            negated = sum(
                any(map(NEGATION.fullmatch, re.findall(r"[a-z']+", row["text"].lower())))
                for row in mine
            )
            if negated < 6:
                out.append(
                    f"{mine[0]['where']}: {task}, label {label}, has {negated} texts with a "
                    f"negation; at least 6"
                )
    for label in LABELS["trec"]:
        mine = [row for row in tasks["trec"] if row["label"] == label]
        plain = sum(words(row["text"])[0] in ("what", "which") for row in mine)
        if plain < 5:
            out.append(
                f"{mine[0]['where']}: trec, label {label}, has {plain} questions that open with "
                f"What or Which; at least 5"
            )
    pairs = [
        (set(words(row["text"])), set(words(row["text2"])), row["label"] == "1")
        for row in tasks["mrpc"]
    ]
    overlaps = [(len(left & right) / len(left | right), same) for left, right, same in pairs]
    right_above = [
        sum((overlap > limit) == same for overlap, same in overlaps) / len(overlaps)
        for limit, _ in overlaps
    ]
    best = max(max(share, 1 - share) for share in right_above)
    if best > 0.7:
        where = tasks["mrpc"][0]["where"]
        out.append(
            f"{where}: mrpc, which begins here: counting shared words is right for {best:.0%} of "
            f"the pairs; at most 70 %"
        )
    return out


RULES = (bad_cells, bad_texts, repeated_texts, repeated_passages, unbalanced, templated, giveaways)


@pytest.fixture(scope="module")
def rows():
    return read(DATA / NAME, COLUMNS)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_holds(rule, rows):
    complaints = rule(rows)
    assert not complaints, "\n" + "\n".join(complaints[:20])


def of(rows, **wanted):
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def other_set_sentence():
    with open(DATA / OTHER_SETS[0], encoding="utf-8", newline="") as file:
        return next(row["left"] for row in csv.DictReader(file) if len(words(row["left"])) > RUN)


def set_all(rows, **values):
    for row in rows:
        row.update(values)


def keep_all_words(rows):
    """Every paraphrase repeats its sentence but for one word, so that counting shared words
    finds them.
    """
    for row in of(rows, task="mrpc", label="1"):
        row["text2"] = row["text"].replace(" ", " indeed ", 1)


def without_negation(rows):
    for row in of(rows, task="cr", label="1"):
        row["text"] = re.sub(
            r"\b(no|not|nothing|never|cannot|without|hardly|\w+n't)\b", "well", row["text"]
        )


SPOILT = {
    "a task that does not exist": (bad_cells, lambda rows: rows[3].update(task="sst5")),
    "a label of another task": (bad_cells, lambda rows: of(rows, task="trec")[0].update(label="1")),
    "a split that does not exist": (bad_cells, lambda rows: rows[3].update(split="dev")),
    "a second text where none belongs": (
        bad_cells,
        lambda rows: rows[3].update(text2="There is no pair here to speak of."),
    ),
    "a pair with one text": (bad_cells, lambda rows: of(rows, task="mrpc")[3].update(text2="")),
    "a phrase of six words": (
        bad_texts,
        lambda rows: of(rows, task="mpqa")[3].update(text="far too long to be one"),
    ),
    "a phrase with a capital": (
        bad_texts,
        lambda rows: of(rows, task="mpqa")[3].update(text="Deeply hurt"),
    ),
    "a sentence without its end": (
        bad_texts,
        lambda rows: rows[3].update(text="This one just stops"),
    ),
    "a typographic quote": (
        bad_texts,
        lambda rows: rows[3].update(text="This isn’t a plain quote."),
    ),
    "a text of the test split in train": (
        repeated_texts,
        lambda rows: of(rows, task="sst2", split="train")[0].update(
            text=of(rows, task="sst2", split="test")[0]["text"].upper()
        ),
    ),
    "a pair of one sentence with itself": (
        repeated_texts,
        lambda rows: of(rows, task="mrpc")[3].update(text2=of(rows, task="mrpc")[3]["text"]),
    ),
    "five words of another task": (
        repeated_passages,
        lambda rows: of(rows, task="mr")[3].update(
            text="Yesterday " + " ".join(words(of(rows, task="sst2")[8]["text"]))
        ),
    ),
    "five words of the mini STS set": (
        repeated_passages,
        lambda rows: rows[3].update(text="Yesterday " + other_set_sentence()),
    ),
    "one label more often": (
        unbalanced,
        lambda rows: of(rows, task="cr", split="test", label="1")[0].update(label="0"),
    ),
    "too few in test": (
        unbalanced,
        lambda rows: set_all(of(rows, task="mpqa", split="test")[:2], split="train"),
    ),
    "a task that is missing": (unbalanced, lambda rows: set_all(of(rows, task="subj"), task="mr")),
    "an opening that comes back": (
        templated,
        lambda rows: [
            row.update(text="I think that " + row["text"]) for row in of(rows, task="mr")[:3]
        ],
    ),
    "negations in one class only": (giveaways, without_negation),
    "question words that tell": (
        giveaways,
        lambda rows: [
            row.update(text="Who " + row["text"]) for row in of(rows, task="trec", label="HUM")
        ],
    ),
    "paraphrases that share every word": (giveaways, keep_all_words),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_set_is_refused(case, rows):
    rule, change = SPOILT[case]
    copy = [dict(row) for row in rows]
    change(copy)
    complaints = rule(copy)
    assert complaints and all(re.match(rf"{NAME}:\d+: ", complaint) for complaint in complaints), (
        f"{rule.__name__} missed {case}"
    )


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("mr,train,0,Too few cells.\n", "2: not 5 cells"),
        ("mr,train,0,Commas, unquoted, spill over.,\n", "2: not 5 cells"),
        (None, "1: columns are"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, complaint):
    path = tmp_path / NAME
    path.write_text(
        "task,label,text\nmr,0,No split.\n" if line is None else ",".join(COLUMNS) + "\n" + line,
        encoding="utf-8",
    )
    with pytest.raises(AssertionError, match=f"{NAME}:{complaint}"):
        read(path, COLUMNS)
