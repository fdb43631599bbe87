"""Own files: graded pairs, labelled sentences and triplets, in four formats; faults are named."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from prompteol_utils.data import (
    Labelled,
    Pairs,
    Triplet,
    load_demonstrations,
    load_mini_sts,
    load_mini_transfer,
    load_nli,
    load_sts,
    load_transfer,
    nli,
    senteval,
)
from prompteol_utils.evaluation import evaluate_sts, evaluate_transfer
from prompteol_utils.results import require_comparable
from prompteol_utils.results.store import check_row
from prompteol_utils.utils.files import DATA

pytestmark = pytest.mark.usefixtures("without_senteval")
PAIRS = [
    {"sentence1": "The lid is stuck.", "sentence2": "The jar won't open.", "score": 4.5},
    {"sentence1": 'Say "cheese", please.', "sentence2": "Two goats, one shed.", "score": 0},
    {"sentence1": "She waters the fern.", "sentence2": "The fern gets water.", "score": 5},
]
LABELLED = [
    {"text": f"The {thing} came {how}.", "label": label}
    for thing in ("parcel", "lamp", "kettle", "chair")
    for how, label in (("broken", 0), ("on time", 10), ("late", 2))
]
TRIPLETS = [
    {"sent0": "A hen, a duck.", "sent1": "Two birds.", "hard_neg": "No bird."},
    {"sent0": "It rains.", "sent1": "It is wet.", "hard_neg": "it is WET"},
    {"sent0": "He reads.", "sent1": "A man reads.", "hard_neg": "He swims."},
]
FORMATS = ["csv", "tsv", "jsonl", "parquet"]


def save(records: list[dict], path: Path) -> Path:
    frame = pd.DataFrame(records)
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".tsv":
        lines = [list(frame), *frame.astype(str).values.tolist()]
        path.write_text("".join("\t".join(line) + "\n" for line in lines))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        frame.to_parquet(path)
    return path


def letters(sentences) -> np.ndarray:
    """An embedding that needs no model: how often each letter occurs."""
    return np.array(
        [[text.lower().count(chr(97 + i)) + 0.1 for i in range(26)] for text in sentences]
    )


@pytest.mark.parametrize("suffix", FORMATS)
def test_graded_pairs_of_every_format_are_one_set(tmp_path, suffix):
    path = save(PAIRS, tmp_path / f"mine.{suffix}")
    pairs = Pairs.from_csv(path)
    assert pairs.left == tuple(one["sentence1"] for one in PAIRS)
    assert pairs.right[1] == "Two goats, one shed." and pairs.gold.tolist() == [4.5, 0, 5]
    assert (pairs.name, pairs.text_form, pairs.subset) == ("mine", "natural", ("mine",) * 3)
    for given in (path, str(path)):
        assert load_sts(given).origin == pairs.origin
    assert pairs.origin == Pairs.from_csv(save(PAIRS, tmp_path / "same.csv")).origin
    assert load_sts(path, limit=np.int64(2), seed=np.int64(3)).gold.size == 2
    assert evaluate_sts(letters, pairs)["origin"].tolist() == [pairs.origin]


def test_an_edited_file_is_another_data_set(tmp_path):
    path = tmp_path / "mine.csv"
    before = load_sts(save(PAIRS, path)).origin
    after = load_sts(save([*PAIRS[:2], PAIRS[2] | {"score": 4}], path)).origin
    assert before.startswith("own:") and after.startswith("own:") and before != after


def test_a_results_record_takes_the_origin(tmp_path):
    numbers = {"n": 3, "spearman": 1.0, "spearman_subset_mean": 1.0, "seconds": 1.0, "seed": 0}
    text = dict.fromkeys(("model", "prompt", "split", "weight_origin", "dtype", "commit"), "x")
    task = {"task": "mine", "origin": "own:0123", "text_form": "natural"}
    empty = {"demonstrations": [], "quantization": None, "adapter": None, "versions": {}}
    assert check_row({**numbers, **text, **task, **empty})["origin"] == "own:0123"
    with pytest.raises(ValueError, match="unknown origin 'mine:0123'"):
        check_row({**numbers, **text, **task, **empty, "origin": "mine:0123"})


def test_two_own_files_are_two_tasks_but_an_edited_one_is_not_the_same():
    rows = [{"task": "a", "origin": "own:1", "model": "m"}]
    frame = pd.DataFrame([*rows, {"task": "b", "origin": "own:2", "model": "m"}])
    assert require_comparable(frame) is frame
    for other in ({"task": "a", "origin": "own:2"}, {"task": "b", "origin": "mini"}):
        with pytest.raises(ValueError, match="origin is mixed"):
            require_comparable(pd.DataFrame([*rows, other | {"model": "m"}]))


def test_a_column_split_is_obeyed(tmp_path):
    path = save([one | {"split": "dev"} for one in PAIRS], tmp_path / "mine.csv")
    assert len(load_sts(path, "dev")) == 3
    with pytest.raises(ValueError, match=r"mine\.csv holds no pair of split 'test'; .*: dev"):
        load_sts(path, "test")


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("names", [("0", "2", "10"), ("bad", "good", "slow")])
def test_labelled_sentences_of_every_format_are_one_task(tmp_path, suffix, names):
    words = dict(zip((0, 2, 10), names, strict=True)) if names[0] == "bad" else {}
    records = [one | {"label": words.get(one["label"], one["label"])} for one in LABELLED]
    path = save(records, tmp_path / f"mine.{suffix}")
    task = load_transfer(str(path))
    assert task.label_names == names and task.label.tolist()[:3] == [0, 2, 1]
    assert task.text[1] == "The parcel came on time." and task.sizes == {"all": 12}
    assert task.origin == Labelled.from_csv(save(records, tmp_path / "same.csv")).origin
    assert load_transfer(path, limit=6).sizes == {"all": 6}
    table = evaluate_transfer(letters, task, solvers=["lbfgs"], folds=2)
    assert table["task"].tolist() == ["mine"] and table["n_test"].tolist() == [12]


def test_own_parts_and_pairs(tmp_path):
    parts = ["train"] * 9 + ["test"] * 3
    records = [
        one | {"split": part, "text2": "A second text."}
        for one, part in zip(LABELLED, parts, strict=True)
    ]
    task = Labelled.from_csv(save(records, tmp_path / "mine.csv"))
    assert task.sizes == {"train": 9, "test": 3} and len(task.text2) == 12


BAD = [
    ("sentence1,sentence2,score\na,b, 1\na,b\n", Pairs, ":3: 2 cells, but the header has 3"),
    ("sentence1,sentence2,score\na, b, c,1\n", Pairs, ":2: 4 cells, but the header has 3"),
    ("sentence1,sentence2,score\na,b,\n", Pairs, ":2: the grade is ''"),
    ("sentence1,sentence2,score\na,b,nan\n", Pairs, ":2: the grade is 'nan'"),
    ('sentence1,sentence2,score\na,b,"3,5"\n', Pairs, ":2: the grade is '3,5'.*decimal point"),
    ("sentence1,sentence2,score\na, ,3\n", Pairs, ":2: an empty or blank sentence"),
    ("a,b,score\na,b,3\n", Pairs, ":1: needs the columns sentence1.*there are: a, b, score"),
    ("score,score\na,b\n", Pairs, ":1: a column name stands twice"),
    ("sentence1,sentence2,score\n", Pairs, "holds no pair"),
    ("text,label\na,x\nb,x\n", Labelled, "all sentences have the label 'x'"),
    ("text,label\na,x\nb,x\nc,y\n", Labelled, "at least two .* there are fewer of 'y'"),
    ("text,label\na,x\nb,x\nc,\n", Labelled, ":4: the label is ''"),
    ("text,label,split\na,x,train\nb,x,train\nc,y,test\nc,y,test\n", Labelled, "fewer of 'y'"),
    ("text,label,split\na,x,train\nb,y,train\n", Labelled, "needed are both train and test"),
    ("text,label,split\na,x,Test\nb,x,train\n", Labelled, "has the splits 'Test', 'train'"),
    ("text,label\n", Labelled, "holds no sentence"),
    ("text;label\na;x\n", Labelled, "there are: text;label; separate cells by commas"),
]


@pytest.mark.parametrize(("text", "kind", "told"), BAD)
def test_what_is_wrong_with_a_file_is_said(tmp_path, text, kind, told):
    path = tmp_path / "mine.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"mine.*{told}"):
        kind.from_csv(path)


def test_a_missing_file_is_not_taken_for_a_task(tmp_path):
    for load in (load_sts, load_transfer, load_nli):
        with pytest.raises(FileNotFoundError, match=r"nowhere\.tsv: there is no"):
            load(str(tmp_path / "nowhere.tsv"))
    for load in (load_sts, load_transfer):
        with pytest.raises(ValueError, match=r"unknown .* 'stsbb'; allowed: .*\.parquet"):
            load("stsbb")


def test_objects_made_by_hand_are_checked():
    lists = Pairs("x", ["a"], ["b"], [1], ["s"], "own", "natural")
    assert lists.sentences == ["a", "b"]
    for missing in (None, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="x: the grade of pair 1 is"):
            Pairs("x", ("a", "c"), ("b", "d"), [1, missing], ("s", "s"), "own", "natural")
    labelled = Labelled("x", ["a", "b"], (), [0, 1], ["all"] * 2, ["n", "y"], "own", "natural")
    assert labelled.sentences == ["a", "b"]
    with pytest.raises(ValueError, match=r"labels are whole numbers.* got 0\.7"):
        Labelled("x", ("a", "b"), (), [0.7, 1.2], ("all",) * 2, ("n", "y"), "own", "natural")
    with pytest.raises(ValueError, match="allowed: 'all' alone, or 'train', 'test'"):
        Labelled("x", ("a", "b"), (), [0, 1], ("train", "Test"), ("n", "y"), "own", "natural")


@pytest.mark.parametrize("limit", [np.int64(5), 5])
def test_numpys_integers_are_taken_as_limits_and_seeds(limit):
    seed = type(limit)(3)
    assert load_mini_sts(limit=limit, seed=seed).left == load_mini_sts(limit=5, seed=3).left
    assert load_nli("mini", limit=limit, seed=seed).examples == load_nli(limit=5, seed=3).examples
    assert load_mini_transfer("cr", limit=limit, seed=seed).text == (
        load_mini_transfer("cr", limit=5, seed=3).text
    )


@pytest.mark.parametrize("limit", [np.bool_(True), True, 1.5, "5", 0])
def test_other_limits_are_refused_everywhere(limit):
    for load in (load_mini_sts, load_nli, lambda **k: load_mini_transfer("cr", **k)):
        with pytest.raises(ValueError, match=r"limit is .*; allowed: None"):
            load(limit=limit)


# --- triplets


@pytest.mark.parametrize("suffix", FORMATS)
def test_simcses_columns_are_read(tmp_path, suffix):
    triplets = load_nli(save(TRIPLETS, tmp_path / f"mine.{suffix}"))
    assert list(triplets) == [Triplet(*TRIPLETS[0].values()), Triplet(*TRIPLETS[2].values())]
    assert triplets.dropped["positive equals negative"] == 1
    assert (triplets.origin, triplets.text_form) == (f"mine.{suffix}", "natural")


def test_sources_are_joined_without_repeats(tmp_path):
    path = save(TRIPLETS, tmp_path / "mine.jsonl")
    both = load_nli(["mini", path, path])
    mini = load_nli("mini")
    assert list(both) == [*mini, *load_nli(path)]
    assert both.origin == "mini + mine.jsonl + mine.jsonl"
    assert both.dropped["a repeated triplet"] == 2
    with pytest.raises(ValueError, match="no source of triplets; allowed: hub"):
        load_nli([])


def test_sets_that_are_not_at_hand_are_named(tmp_path):
    triplets = load_nli("mini")
    assert triplets.compared == ("mini dev", "mini test")
    assert "sts14 test" in triplets.not_compared and "sickr dev" in triplets.not_compared


def test_what_a_named_folder_lacks_is_looked_for_in_the_hubs_archive(tmp_path, monkeypatch):
    hub = tmp_path / "hub"
    named = tmp_path / "named"
    named.mkdir()
    (hub / "SICK").mkdir(parents=True)
    (hub / "SICK/SICK_trial.txt").write_text("id\ta\tb\tc\td\n1\the reads !\tHe eats .\t2\tX\n")
    monkeypatch.setattr(senteval, "hub_folder", lambda: hub)
    triplets = load_nli(save(TRIPLETS, tmp_path / "mine.csv"), root=named)
    assert [one.anchor for one in triplets] == ["A hen, a duck."]
    assert triplets.dropped["a sentence of an evaluation set"] == 1
    assert "sickr dev" in triplets.compared and "sickr test" in triplets.not_compared


def test_a_named_folder_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        nli.load_nli("mini", root=tmp_path / "nowhere")


def test_the_example_of_labelled_sentences_is_balanced_and_repeats_nothing():
    example = Labelled.from_csv(DATA / "complaint_topics.csv")
    assert example.label_names == ("billing", "defect", "delivery")
    assert np.bincount(example.label).tolist() == [20, 20, 20]
    runs = [run for text in example.text for run in {*five_words(text)}]
    assert len(runs) == len(set(runs)) > 200


def five_words(text: str) -> list[tuple[str, ...]]:
    words = text.lower().split()
    return [tuple(words[i : i + 5]) for i in range(len(words) - 4)]


# --- candidates for demonstrations


@pytest.mark.parametrize("suffix", FORMATS)
def test_candidates_need_a_sentence_and_a_word_only(tmp_path, suffix):
    records = [{"sentence": "A goat sleeps.", "word": "Rest"}]
    (one,) = load_demonstrations(save(records, tmp_path / f"pool.{suffix}"))
    assert (one.sentence, one.word, one.kind, one.topic) == ("A goat sleeps.", "Rest", "", "")
    path = save([records[0] | {"topic": "animals"}], tmp_path / f"more.{suffix}")
    assert load_demonstrations(path)[0].topic == "animals"
