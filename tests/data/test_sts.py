"""The readers: SentEval's layout to the letter, one rule for which folder is read, and bad
lines that name themselves.
"""

import io
import os
import tarfile
import threading
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompteol_utils.data import (
    STS_TASKS,
    Pairs,
    load_corpus,
    load_demonstrations,
    load_mini_sts,
    load_sts,
    paper_demonstrations,
    senteval,
)

SENTEVAL = os.environ.get("PROMPTEOL_SENTEVAL")
PAIRS = [
    ("the kettle sings .", "a kettle whistles .", "4.2"),
    ("nobody came .", "rain fell .", "0"),
    ("two cats sat .", "a cat sat .", "3"),
]
_SUBSETS = {
    "sts12": "MSRpar MSRvid SMTeuroparl surprise.OnWN surprise.SMTnews",
    "sts13": "FNWN headlines OnWN",
    "sts14": "deft-forum deft-news headlines images OnWN tweet-news",
    "sts15": "answers-forums answers-students belief headlines images",
    "sts16": "answer-answer headlines plagiarism postediting question-question",
}


def write(path: Path, text: str, encoding="utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def make_senteval(root: Path, pairs=PAIRS) -> Path:
    """A whole STS tree in SentEval's layout with the same few pairs everywhere."""
    for task, subsets in _SUBSETS.items():
        for subset in subsets.split():
            folder = root / "STS" / f"{task.upper()}-en-test"
            write(
                folder / f"STS.input.{subset}.txt",
                "".join(f"{left}\t{right}\n" for left, right, _ in pairs),
            )
            write(folder / f"STS.gs.{subset}.txt", "".join(f"{gold}\n" for *_, gold in pairs))
    for split in ("train", "dev", "test"):
        lines = (
            f"main-news\theadlines\t2015\t{i:04}\t{gold or 1}\t{left}\t{right}\n"
            for i, (left, right, gold) in enumerate(pairs)
        )
        write(root / f"STS/STSBenchmark/sts-{split}.csv", "".join(lines))
    for name in ("SICK_train", "SICK_trial", "SICK_test_annotated"):
        lines = (
            f"{i}\t{left}\t{right}\t{gold or 1}\tNEUTRAL\n"
            for i, (left, right, gold) in enumerate(pairs)
        )
        write(
            root / f"SICK/{name}.txt",
            "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n"
            + "".join(lines),
        )
    return root


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """Every test starts without a named folder, with an empty cache, and with a hub that
    must not be asked.
    """
    monkeypatch.delenv(senteval.VARIABLE, raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("PROMPTEOL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(senteval, "failure", None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", asked)


def asked(*arguments, **options):
    pytest.fail("the hub was asked")


# --- SentEval's layout ---


@pytest.mark.parametrize("task", STS_TASKS)
def test_every_task_is_read(task, tmp_path):
    pairs = load_sts(task, root=make_senteval(tmp_path))
    subsets = _SUBSETS.get(task, "main-news" if task == "stsb" else "sickr").split()
    assert pairs.left == tuple(left for left, *_ in PAIRS) * len(subsets)
    assert pairs.right == tuple(right for _, right, _ in PAIRS) * len(subsets)
    assert pairs.gold.tolist() == [4.2, 0, 3] * len(subsets)
    assert pairs.subset == tuple(subset for subset in subsets for _ in PAIRS)
    assert (pairs.name, pairs.origin) == (task, "senteval")
    assert pairs.text_form == ("tokenised" if task == "sickr" else "tokenised lower case")


@pytest.mark.parametrize(
    ("task", "split", "file"),
    [("stsb", "dev", "STS/STSBenchmark/sts-dev.csv"), ("sickr", "dev", "SICK/SICK_trial.txt")],
)
def test_splits_have_their_own_file(task, split, file, tmp_path):
    path = make_senteval(tmp_path) / file
    path.write_text(path.read_text().replace("kettle", "pan"))
    assert "pan" in load_sts(task, split, root=tmp_path).left[0]
    assert "kettle" in load_sts(task, "test", root=tmp_path).left[0]


def test_ungraded_pairs_are_skipped_and_the_rest_stays_aligned(tmp_path):
    pairs = load_sts(
        "sts13", root=make_senteval(tmp_path, [PAIRS[0], (*PAIRS[1][:2], ""), PAIRS[2]])
    )
    assert (pairs.left[:2], pairs.gold[:2].tolist()) == ((PAIRS[0][0], PAIRS[2][0]), [4.2, 3])
    assert len(pairs) == 2 * 3


def test_an_extra_subset_in_the_folder_is_not_read(tmp_path):
    write(make_senteval(tmp_path) / "STS/STS13-en-test/STS.input.SMT.txt", "a\tb\n")
    assert set(load_sts("sts13", root=tmp_path).subset) == {"FNWN", "headlines", "OnWN"}


def test_cased_text_is_called_natural(tmp_path):
    pairs = [("The kettle sings.", "A kettle whistles.", "4"), *PAIRS]
    assert load_sts("stsb", root=make_senteval(tmp_path, pairs)).text_form == "natural"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            *[
                st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1).filter(
                    str.strip
                )
            ]
            * 2,
            st.one_of(st.just(""), st.floats(0, 5).map(str)),
        ),
        min_size=1,
    ).filter(lambda rows: any(gold for *_, gold in rows)),
    st.sampled_from(["\n", "\r\n"]),
)
def test_what_is_written_is_what_is_read(tmp_path_factory, rows, newline):
    """Quotes, odd Unicode line separators and Windows line ends included."""
    root = tmp_path_factory.mktemp("senteval")
    for subset in ("FNWN", "headlines", "OnWN"):
        folder = root / "STS/STS13-en-test"
        write(
            folder / f"STS.input.{subset}.txt",
            "".join(f"{left}\t{right}{newline}" for left, right, _ in rows),
        )
        write(folder / f"STS.gs.{subset}.txt", "".join(f"{gold}{newline}" for *_, gold in rows))
    pairs = load_sts("sts13", root=root)
    kept = [
        (" ".join(left.split()), " ".join(right.split()), float(gold))
        for left, right, gold in rows
        if gold
    ]
    assert list(zip(pairs.left, pairs.right, pairs.gold.tolist(), strict=True)) == kept * 3


STSB, YEAR = "STS/STSBenchmark/sts-test.csv", "STS/STS12-en-test/STS.input.MSRvid.txt"


@pytest.mark.parametrize(
    ("task", "file", "change", "says"),
    [
        (
            "sts12",
            YEAR,
            lambda t: t.replace("nobody came .\t", "nobody came . "),
            r"STS\.input\.MSRvid\.txt:2: 1 tab",
        ),
        (
            "sts12",
            YEAR,
            lambda t: t.replace("two cats", "two\tcats"),
            r"STS\.input\.MSRvid\.txt:3: 3 tab",
        ),
        (
            "sts12",
            YEAR,
            lambda t: t.replace("nobody came .", " "),
            r"STS\.input\.MSRvid\.txt:2: an empty or blank sentence",
        ),
        (
            "sts12",
            YEAR.replace("input", "gs"),
            lambda t: t.replace("4.2", "four"),
            r"STS\.gs\.MSRvid\.txt:1: the grade is 'four'",
        ),
        (
            "sts12",
            YEAR.replace("input", "gs"),
            lambda t: t.replace("4.2", "nan"),
            r":1: the grade is 'nan'",
        ),
        (
            "sts12",
            YEAR.replace("input", "gs"),
            lambda t: t.replace("4.2", "42"),
            r":1: the grade is '42', expected a number from 0 to 5",
        ),
        (
            "sts12",
            YEAR.replace("input", "gs"),
            lambda t: t + "1\n",
            r"STS\.gs\.MSRvid\.txt has 4 lines and STS\.input\.MSRvid\.txt 3: line 4",
        ),
        (
            "sts12",
            YEAR.replace("input", "gs"),
            lambda t: "\n\n\n",
            r"STS\.gs\.MSRvid\.txt holds no grade",
        ),
        ("stsb", STSB, lambda t: t.replace("nobody", "\t"), r"sts-test\.csv:2: 8 tab"),
        ("stsb", STSB, lambda t: "", r"sts-test\.csv holds no pair"),
        (
            "sickr",
            "SICK/SICK_test_annotated.txt",
            lambda t: t.replace("\t0\t", "\tzero\t"),
            r"SICK_test_annotated\.txt:3: the grade",
        ),
    ],
)
def test_a_malformed_line_is_named(task, file, change, says, tmp_path):
    path = make_senteval(tmp_path) / file
    changed = change(path.read_text())
    assert changed != path.read_text()
    path.write_text(changed)
    with pytest.raises(ValueError, match=says):
        load_sts(task, root=tmp_path)


def test_latin1_bytes_are_named(tmp_path):
    write(
        make_senteval(tmp_path) / STSB,
        "g\tf\ty\t1\t3\ta b\tc\ng\tf\ty\t2\t3\tcafé\tc\n",
        encoding="latin-1",
    )
    with pytest.raises(ValueError, match=r"sts-test\.csv:2: no valid UTF-8"):
        load_sts("stsb", root=tmp_path)


def test_unknown_task_and_split_name_the_allowed_ones():
    with pytest.raises(ValueError, match=r"'sts17'; allowed: sts12, sts13, .*sickr"):
        load_sts("sts17")
    with pytest.raises(ValueError, match=r"sts14 has no split 'dev'; allowed: test$"):
        load_sts("sts14", "dev")
    with pytest.raises(ValueError, match=r"stsb has no split 'trial'; allowed: train, dev, test"):
        load_sts("stsb", "trial")


# --- samples ---


def test_a_sample_is_seeded_in_file_order_and_without_repeats(tmp_path):
    pairs = [(f"left {i}", f"right {i}", f"{i % 6}") for i in range(50)]
    root = make_senteval(tmp_path, pairs)
    whole, one, same, other = (
        load_sts("stsb", root=root, **k)
        for k in ({}, {"limit": 20}, {"limit": 20}, {"limit": 20, "seed": 1})
    )
    numbers = [int(sentence.split()[1]) for sentence in one.left]
    assert numbers == sorted(set(numbers)) and len(numbers) == 20 and numbers != list(range(20))
    assert one.left == same.left != other.left
    for pair in zip(one.left, one.right, one.gold, strict=True):
        assert pair in set(zip(whole.left, whole.right, whole.gold, strict=True))
    assert (
        load_sts("stsb", root=root, limit=50).left
        == load_sts("stsb", root=root, limit=999).left
        == whole.left
    )


@pytest.mark.parametrize("limit", [0, -1, 2.5, True, "10"])
def test_a_bad_limit_is_refused(limit, tmp_path):
    with pytest.raises(ValueError, match=r"limit is .*; allowed: None"):
        load_sts("stsb", root=make_senteval(tmp_path), limit=limit)


# --- which folder ---


def test_root_wins_over_the_variable_and_the_variable_over_the_hub(tmp_path, monkeypatch):
    named = make_senteval(tmp_path / "named", [("from root", "x", "1"), *PAIRS])
    monkeypatch.setenv(senteval.VARIABLE, str(make_senteval(tmp_path / "variable")))
    assert load_sts("stsb", root=named).left[0] == "from root"
    assert load_sts("stsb").left[0] == PAIRS[0][0]


@pytest.mark.parametrize("task", ["stsb", "sts12"])
@pytest.mark.parametrize("how", ["root", "variable"])
def test_a_named_folder_without_the_task_is_an_error_and_nothing_else_is_tried(
    task, how, tmp_path, monkeypatch
):
    for folder, wrong in ((tmp_path / "absent", "is not a folder"), (tmp_path, "has no STS/")):
        monkeypatch.setenv(
            senteval.VARIABLE,
            str(folder if how == "variable" else make_senteval(tmp_path / "good")),
        )
        with pytest.raises(
            FileNotFoundError,
            match=f"{'root' if how == 'root' else senteval.VARIABLE}={folder} {wrong}",
        ):
            load_sts(task, root=folder if how == "root" else None)


def test_the_folder_above_is_recognised(tmp_path):
    make_senteval(tmp_path / "downstream")
    with pytest.raises(FileNotFoundError, match=f"did you mean {tmp_path / 'downstream'}"):
        load_sts("stsb", root=tmp_path)


def test_a_missing_file_is_named(tmp_path):
    (make_senteval(tmp_path) / "SICK/SICK_test_annotated.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"SICK_test_annotated\.txt: there is no"):
        load_sts("sickr", root=tmp_path)


def test_without_folder_and_hub_only_stsb_has_a_small_set(without_senteval):
    pairs = load_sts("stsb", "dev")
    assert (pairs.name, pairs.origin, pairs.text_form) == ("stsb", "mini", "natural")
    assert pairs.left == load_mini_sts("dev").left
    with pytest.raises(ValueError, match="mini set has no split 'train'; allowed: dev, test"):
        load_sts("stsb", "train")
    with pytest.raises(
        senteval.Unreachable,
        match=(
            r"sts14: .*HF_HUB_OFFLINE is set.*datasets-for-simcse.*PROMPTEOL_SENTEVAL.*"
            r"small set for stsb"
        ),
    ):
        load_sts("sts14")


# --- the hub ---


class Answering:
    """The session of a hub that is in reach."""

    def head(self, url, timeout):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that serves a tiny archive; its calls are counted."""
    archive, calls = tmp_path / "senteval.tar", []

    def download(**kwargs):
        if kwargs.pop("local_files_only", False):
            raise huggingface_hub.errors.LocalEntryNotFoundError("not in the cache")
        calls.append(kwargs)
        return str(archive)

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.utils, "get_session", Answering)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return archive, calls


def pack(archive: Path, folder: Path, inside: str):
    with tarfile.open(archive, "w") as tar:
        tar.add(folder, inside)


@pytest.mark.parametrize("inside", [".", "downstream", "data/downstream"])
def test_the_archive_is_fetched_once_and_read_like_a_folder(hub, inside, tmp_path):
    archive, calls = hub
    pack(archive, make_senteval(tmp_path / "source"), inside)
    pairs = load_sts("sts16")
    assert (pairs.origin, len(pairs), pairs.left[0]) == ("hub", 15, PAIRS[0][0])
    assert load_sts("stsb", "train").origin == "hub"
    assert calls == [
        {
            "repo_id": "princeton-nlp/datasets-for-simcse",
            "filename": "senteval.tar",
            "repo_type": "dataset",
        }
    ]


def test_an_archive_that_points_outside_is_refused(hub, tmp_path):
    with tarfile.open(hub[0], "w") as tar:
        member = tarfile.TarInfo("../../escaped.txt")
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
    with pytest.raises(OSError, match=r"senteval\.tar cannot be unpacked"):
        load_sts("sts12")
    assert (
        not list(tmp_path.rglob("escaped.txt")) and not (tmp_path / "cache" / "senteval").exists()
    )


def test_a_damaged_archive_is_an_error_even_where_a_small_set_is_at_hand(hub):
    hub[0].write_bytes(b"not an archive")
    with pytest.raises(OSError, match=r"senteval\.tar cannot be unpacked"):
        load_sts("stsb")


def test_an_archive_without_the_task_is_an_error(hub, tmp_path):
    (tmp_path / "source" / "STS").mkdir(parents=True)
    pack(hub[0], tmp_path / "source", ".")
    with pytest.raises(FileNotFoundError, match="has no SICK"):
        load_sts("sickr")


def test_a_full_disk_is_not_mistaken_for_a_missing_network(hub, monkeypatch):
    def full(**kwargs):
        if kwargs.get("local_files_only"):
            raise huggingface_hub.errors.LocalEntryNotFoundError("not in the cache")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)
    with pytest.raises(OSError, match="No space left") as error:
        load_sts("stsb")
    assert not isinstance(error.value, senteval.Unreachable)


def test_a_broken_download_counts_as_out_of_reach(hub, monkeypatch):
    def broken(**kwargs):
        raise huggingface_hub.errors.LocalEntryNotFoundError("cut off")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", broken)
    with pytest.raises(senteval.Unreachable, match="cut off"):
        load_sts("sts12")


def test_offline_mode_asks_nobody(hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.utils, "get_session", asked)
    with pytest.raises(senteval.Unreachable, match="HF_HUB_OFFLINE is set"):
        load_sts("sts12")
    assert hub[1] == []


def test_a_hub_that_hangs_costs_its_time_limit_once(monkeypatch, tmp_path):
    heads, ended = [], threading.Event()

    class Hanging:
        def head(self, url, timeout):
            heads.append(url)
            ended.wait(60)

    def never(**kwargs):
        raise huggingface_hub.errors.LocalEntryNotFoundError("not in the cache")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", never)
    monkeypatch.setattr(huggingface_hub.utils, "get_session", Hanging)
    monkeypatch.setattr(senteval, "WAIT", 0.3)
    for _ in range(5):
        with pytest.raises(senteval.Unreachable, match=r"did not answer within 0\.3 s"):
            load_sts("sts12")
    ended.set()
    assert len(heads) == 1


def test_the_time_limit_is_short():
    assert senteval.WAIT <= 5


# --- the project's own files ---


@pytest.mark.parametrize("split", ["dev", "test"])
def test_the_mini_set(split):
    pairs = load_mini_sts(split)
    assert (pairs.name, pairs.origin, pairs.text_form) == ("mini", "mini", "natural")
    assert (
        len(pairs) >= 500
        and len(set(pairs.subset)) >= 5
        and {"negation", "role_swap", "number"} <= set(pairs.kind)
    )
    assert not set(pairs.sentences) & set(
        load_mini_sts("test" if split == "dev" else "dev").sentences
    )
    sample = load_mini_sts(split, limit=30)
    rows = set(zip(pairs.left, pairs.right, pairs.gold, pairs.subset, pairs.kind, strict=True))
    assert (
        len(sample) == 30
        and set(
            zip(sample.left, sample.right, sample.gold, sample.subset, sample.kind, strict=True)
        )
        <= rows
    )


def test_the_corpus():
    assert len(load_corpus()) == len(set(load_corpus())) == 80


MINI = "split,genre,kind,score,left,right\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            MINI + 'dev,news,same,5,"a, b",c\ndev,news,same,x,a,b\n',
            r"mini\.csv:3: the grade is 'x'",
        ),
        (MINI + "dev,news,same,5,a\n", r"mini\.csv:2: 5 cells, but the header has 6 columns"),
        (MINI + "dev,news,same,5,a,b,c\n", r"mini\.csv:2: 7 cells, but the header has 6"),
        (MINI + "train,news,same,5,a,b\n", r"mini\.csv:2: split is 'train'"),
        (MINI + "dev,news,same,5, ,b\n", r"mini\.csv:2: an empty or blank sentence"),
        (MINI + 'dev,news,same,5,"a"b,c\n', r"mini\.csv:2: "),
        (MINI + "test,news,same,5,a,b\n", r"mini\.csv: no pair of split 'dev'"),
        (
            "split,genre,score,left,right\n",
            r"mini\.csv:1: needs the columns split, genre, kind, score, left, right; there are: "
            r"split, genre",
        ),
        ("", r"mini\.csv:1: needs the columns split"),
    ],
)
def test_a_malformed_row_of_the_mini_set_is_named(text, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        load_mini_sts("dev", path=write(tmp_path / "mini.csv", text))


def test_demonstrations(tmp_path):
    path = write(
        tmp_path / "d.csv", 'sentence,word,kind,topic\n"Tea, then cake.",Snack,sentence,food\n'
    )
    (one,) = load_demonstrations(path)
    assert (one.sentence, one.word, one.kind, one.topic) == (
        "Tea, then cake.",
        "Snack",
        "sentence",
        "food",
    )
    write(path, path.read_text() + "A pot boils.,two words,sentence,food\n")
    with pytest.raises(ValueError, match=r"d\.csv:3: .*one word"):
        load_demonstrations(path)
    with pytest.raises(FileNotFoundError, match=r"none\.csv: there is no such file"):
        load_demonstrations(tmp_path / "none.csv")


def test_the_papers_demonstrations():
    chosen = paper_demonstrations()
    assert len(chosen) == 8
    assert {"Smoking", "Equestrian", "Venison"} <= {
        demonstration.word for demonstration in chosen.values()
    }


def test_pairs_of_unequal_columns_are_refused():
    with pytest.raises(ValueError, match="x differ in length"):
        Pairs("x", ("a",), ("b", "c"), np.ones(1), ("s",), "mini", "natural")


def test_gold_cannot_be_changed_by_accident():
    with pytest.raises(ValueError, match="read-only"):
        load_mini_sts("dev").gold[0] = 9


# --- the real files, where they are at hand ---


@pytest.mark.skipif(not SENTEVAL, reason="PROMPTEOL_SENTEVAL is not set")
@pytest.mark.parametrize(
    ("task", "split", "pairs", "sizes"),
    [
        ("sts12", "test", 3108, [750, 750, 459, 750, 399]),
        ("sts13", "test", 1500, [189, 750, 561]),
        ("sts14", "test", 3750, [450, 300, 750, 750, 750, 750]),
        ("sts15", "test", 3000, [375, 750, 375, 750, 750]),
        ("sts16", "test", 1186, [254, 249, 230, 244, 209]),
        ("stsb", "dev", 1500, None),
        ("stsb", "test", 1379, None),
        ("sickr", "train", 4500, None),
        ("sickr", "dev", 500, None),
        ("sickr", "test", 4927, None),
    ],
)
def test_the_real_sets_have_the_papers_size(task, split, pairs, sizes):
    try:
        real = load_sts(task, split, root=SENTEVAL)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert len(real) == pairs
    assert real.text_form == ("tokenised" if task == "sickr" else "tokenised lower case")
    assert 0 <= real.gold.min() < real.gold.max() <= 5
    if sizes:
        assert [real.subset.count(subset) for subset in _SUBSETS[task].split()] == sizes
