"""The classification tasks: SentEval's files to the letter, odd bytes, bad lines that name
themselves, samples that keep proportions.
"""

import os
from collections import Counter
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest

from prompteol_utils import data
from prompteol_utils.data import (
    TRANSFER_TASKS,
    load_mini_transfer,
    load_transfer,
    senteval,
    stratified,
)
from prompteol_utils.data.transfer import BLANK, SPLITS

SENTEVAL = os.environ.get("PROMPTEOL_SENTEVAL")
SIZES = {
    "mr": {"all": 10_662},
    "cr": {"all": 3_775},
    "subj": {"all": 10_000},
    "mpqa": {"all": 10_606},
    "sst2": {"train": 67_349, "dev": 872, "test": 1_821},
    "trec": {"train": 5_452, "test": 500},
    "mrpc": {"train": 4_076, "test": 1_725},
}
MINI = "task,split,label,text,text2\n" + "".join(
    f"{task},{split},{label},{task} {split} {label} "
    f"{i},{'its other half' if task == 'mrpc' else ''}\n"
    for task in TRANSFER_TASKS
    for split in SPLITS[task]
    for label in (("HUM", "LOC") if task == "trec" else "01")
    for i in range(3)
)


def write(path: Path, text: "str | bytes") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def make_transfer(root: Path) -> Path:
    """All seven tasks in SentEval's layout, with a few lines of our own."""
    for folder, stem, ends in (
        ("MR", "rt-polarity", "neg pos"),
        ("CR", "custrev", "neg pos"),
        ("MPQA", "mpqa", "neg pos"),
    ):
        for end in ends.split():
            write(
                root / folder / f"{stem}.{end}", f"a {end} line of {folder} \nanother  {end} line\n"
            )
    for end in ("subjective", "objective"):
        write(root / f"SUBJ/subj.{end}", f"an {end} line \n\nthe third {end} line\n")
    for split in ("train", "dev", "test"):
        write(
            root / f"SST/binary/sentiment-{split}",
            f"dull {split} soup \t0\nfine {split} soup \t1\n",
        )
    for name in ("train_5500", "TREC_10"):
        write(
            root / f"TREC/{name}.label",
            b"NUM:dist How far is the caf\xe9 ?\nHUM:ind Who sells  ink ?\nABBR:exp What is an "
            b"LBV ?\n",
        )
    for split in ("train", "test"):
        rows = (
            f"1\t7\t8\tThe {split} shop opens .\tThe shop will open .\n"
            '0\t7\t9\tIt " rains " .\tIt snows .\n'
        )
        write(
            root / f"MRPC/msr_paraphrase_{split}.txt",
            "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n" + rows,
        )
    return root


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    monkeypatch.delenv(senteval.VARIABLE, raising=False)
    monkeypatch.setenv("PROMPTEOL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(senteval, "failure", None)
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda **options: pytest.fail("the hub was asked")
    )


def test_files_are_read_to_the_letter(tmp_path):
    root = make_transfer(tmp_path)
    mr, subj, sst2, trec, mrpc = (
        load_transfer(task, root=root) for task in ("mr", "subj", "sst2", "trec", "mrpc")
    )
    assert mr.text == (
        "a neg line of MR",
        "another neg line",
        "a pos line of MR",
        "another pos line",
    ) and mr.label.tolist() == [0, 0, 1, 1]
    assert (mr.sizes, mr.text_form, mr.origin, mr.text2) == (
        {"all": 4},
        "tokenised lower case",
        "senteval",
        (),
    )
    assert subj.text[4] == BLANK and subj.label_names[subj.label[4]] == "objective"
    assert (
        sst2.sizes == {"train": 2, "dev": 2, "test": 2}
        and sst2.text[3] == "fine dev soup"
        and sst2.label.tolist() == [0, 1] * 3
    )
    assert trec.text[:2] == ("How far is the café ?", "Who sells ink ?") and [
        trec.label_names[i] for i in trec.label[:3]
    ] == ["NUM", "HUM", "ABBR"]
    assert (trec.sizes, trec.text_form) == ({"train": 3, "test": 3}, "tokenised")
    assert (
        mrpc.text[1] == 'It " rains " .'
        and mrpc.text2[1] == "It snows ."
        and mrpc.label.tolist() == [1, 0, 1, 0]
    )
    assert data.load_transfer is load_transfer


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_both_encodings_give_the_same_text(tmp_path, encoding):
    write(
        make_transfer(tmp_path) / "MR/rt-polarity.neg",
        "naïve and passé .\nplain .\n".encode(encoding),
    )
    assert load_transfer("mr", root=tmp_path).text[:2] == ("naïve and passé .", "plain .")


@pytest.mark.parametrize(
    ("task", "file", "line", "broken", "words"),
    [
        (
            "sst2",
            "SST/binary/sentiment-dev",
            2,
            "no label here",
            "1 tab-separated columns, expected 2",
        ),
        (
            "sst2",
            "SST/binary/sentiment-train",
            2,
            "good soup \t3",
            "the label is '3', expected one of 0, 1",
        ),
        ("sst2", "SST/binary/sentiment-test", 1, " \t1", "an empty or blank sentence"),
        ("trec", "TREC/train_5500.label", 3, "What is it ?", "no colon"),
        (
            "trec",
            "TREC/TREC_10.label",
            1,
            "FOOD:soup What is it ?",
            "the label is 'FOOD', expected one of ABBR",
        ),
        ("trec", "TREC/TREC_10.label", 2, "NUM:dist", "an empty or blank sentence"),
        (
            "mrpc",
            "MRPC/msr_paraphrase_train.txt",
            3,
            "1\t7\t8\tOne cell only .",
            "4 tab-separated columns, expected 5",
        ),
        ("mrpc", "MRPC/msr_paraphrase_test.txt", 2, "x\t7\t8\tOne .\tTwo .", "the label is 'x'"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, task, file, line, broken, words):
    path = make_transfer(tmp_path) / file
    kept = path.read_bytes().split(b"\n")
    kept[line - 1] = broken.encode()
    path.write_bytes(b"\n".join(kept))
    with pytest.raises(ValueError, match=rf"{path.name}:{line}: .*{words}"):
        load_transfer(task, root=tmp_path)


def test_wrong_arguments_say_what_is_allowed(tmp_path):
    root = make_transfer(tmp_path)
    with pytest.raises(ValueError, match="unknown transfer task 'sst5'; allowed: mr, cr"):
        load_transfer("sst5", root=root)
    for limit in (0, 1, True, 2.5, "9"):
        with pytest.raises(ValueError, match="limit is"):
            load_transfer("mr", root=root, limit=limit)
    with pytest.raises(ValueError, match=r"trec has 6 classes.* from 6 up"):
        load_transfer("trec", root=root, limit=5)
    with pytest.raises(FileNotFoundError, match="has no MPQA"):
        load_transfer("mpqa", root=tmp_path / "MR")


# --- the mini sets


def test_without_senteval_the_mini_set_is_read(tmp_path, monkeypatch, without_senteval):
    monkeypatch.setattr(
        load_mini_transfer,
        "__kwdefaults__",
        load_mini_transfer.__kwdefaults__ | {"path": write(tmp_path / "m.csv", MINI)},
    )
    trec, mrpc, cr = (load_transfer(task) for task in ("trec", "mrpc", "cr"))
    assert (
        trec.origin == "mini"
        and trec.text_form == "natural"
        and [trec.label_names[i] for i in trec.label[:4]] == ["HUM"] * 3 + ["LOC"]
    )
    assert mrpc.text2 == ("its other half",) * 12 and cr.sizes == {"all": 6}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("sst5,train,0,a,", "unknown transfer task 'sst5'"),
        ("trec,train,1,a,", "the label is '1', expected one of ABBR"),
        ("trec,dev,HUM,a,", "trec has no split 'dev'; allowed: train, test"),
        ("mrpc,train,1,a,", "an empty or blank sentence"),
        ("cr,,0,a", "4 cells, but the header has 5"),
    ],
)
def test_a_malformed_mini_row_is_named(tmp_path, row, words):
    path = write(tmp_path / "mini.csv", MINI + row + "\n")
    with pytest.raises(ValueError, match=rf"mini.csv:{MINI.count(chr(10)) + 1}: {words}"):
        load_mini_transfer(row.split(",")[0].replace("sst5", "sst2"), path=path)


# --- samples


def test_a_sample_keeps_proportions_order_and_seed(tmp_path):
    label = np.array([0] * 700 + [1] * 290 + [2] * 10)
    assert label[stratified(label, 3, 4)].tolist() == [0, 1, 2]
    for size in (17, 100, 999):
        at = stratified(label, size, 4)
        counts = Counter(label[at].tolist())
        assert len(at) == size and (np.diff(at) > 0).all() and len(counts) == 3
        assert all(
            abs(counts[one] - size * share) <= 1 for one, share in ((0, 0.7), (1, 0.29), (2, 0.01))
        ), counts
    assert np.array_equal(
        stratified(label, 50, 4), stratified(label, 50, 4)
    ) and not np.array_equal(at, stratified(label, 999, 5))
    assert stratified(label, 2000, 0).tolist() == list(range(1000))
    assert set(stratified(label, 100, 4)) <= set(stratified(label, 500, 4))
    path = write(tmp_path / "mini.csv", MINI)
    sst2 = load_mini_transfer("sst2", path=path, limit=2)
    assert sst2.sizes == {"train": 2, "dev": 2, "test": 2} and sst2.label.tolist() == [0, 1] * 3


@pytest.mark.skipif(not SENTEVAL, reason="PROMPTEOL_SENTEVAL names no SentEval folder")
@pytest.mark.parametrize("task", TRANSFER_TASKS)
def test_sizes_of_the_real_files(task):
    """The sizes that SentEval documents; labels in every split.

    No line lost to an odd character.
    """
    real = load_transfer(task, root=SENTEVAL)
    assert real.sizes == SIZES[task] and len(real) == sum(SIZES[task].values())
    for split in real.sizes:
        labels = real.label[np.asarray(real.split) == split]
        assert set(labels.tolist()) == set(range(len(real.label_names))), split
    assert all(one == " ".join(one.split()) and one for one in real.sentences)
    assert sum(text == BLANK for text in real.text) == {"cr": 4, "mpqa": 3}.get(task, 0)
