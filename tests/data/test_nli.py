"""Triplets: SentEval's SNLI, the hub's file, a file of one's own.

What is left out is counted, what is malformed names itself.
"""

import huggingface_hub
import pytest

from prompteol_utils import data
from prompteol_utils.data import Triplet, load_nli, nli, senteval

pytestmark = pytest.mark.usefixtures("without_senteval")
SNLI = {  # premise, hypothesis, label
    "dev": [
        ("A man paints a wall .", "A man works .", "entailment"),
        ("A man paints a wall .", "A person paints .", "entailment"),
        ("A man paints a wall .", "A man sleeps .", "contradiction"),
        ("Two dogs run .", "Animals move .", "entailment"),
        ("Two dogs run .", "They are brown .", "neutral"),
        ("A girl reads .", "Nobody reads .", "contradiction"),
        ("A girl reads .", "Someone reads .", "entailment"),
    ],
    "test": [
        ("A bus stops .", "A vehicle stops .", "entailment"),
        ("A bus stops .", "The bus drives on .", "contradiction"),
    ],
}


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "downstream"
    (folder / "SNLI").mkdir(parents=True)
    for split, rows in SNLI.items():
        for name, column in zip(("s1", "s2", "labels"), zip(*rows, strict=True), strict=True):
            (folder / "SNLI" / f"{name}.{split}").write_text(
                "".join(f"{cell}\n" for cell in column)
            )
    return folder


def with_stsb(root, left: str, right: str = "Something else entirely .", split: str = "test"):
    (root / "STS/STSBenchmark").mkdir(parents=True, exist_ok=True)
    (root / f"STS/STSBenchmark/sts-{split}.csv").write_text(
        f"main\tx\t2012\t1\t3.0\t{left}\t{right}\n"
    )


def test_one_triplet_a_premise_that_has_both(root):
    triplets = load_nli(root=root)
    assert list(triplets) == [
        Triplet("A man paints a wall .", "A man works .", "A man sleeps ."),
        Triplet("A girl reads .", "Someone reads .", "Nobody reads ."),
        Triplet("A bus stops .", "A vehicle stops .", "The bus drives on ."),
    ]
    assert (triplets.origin, triplets.text_form, triplets[:2].origin, len(triplets[:2])) == (
        "snli",
        "tokenised",
        "snli",
        2,
    )
    assert (
        load_nli(root=root, limit=2, seed=3).examples
        == load_nli(root=root, limit=2, seed=3).examples
    )


@pytest.mark.parametrize("split", ["dev", "test"])
@pytest.mark.parametrize("left", ["a girl reads.", "Someone Reads", "nobody reads !"])
def test_sentences_of_an_evaluation_set_are_left_out_and_counted(root, left, split):
    with_stsb(root, left, split=split)
    triplets = load_nli(root=root)
    assert [t.anchor for t in triplets] == ["A man paints a wall .", "A bus stops ."]
    assert triplets.dropped["a sentence of an evaluation set"] == 1
    assert (
        f"stsb {split}" in triplets.compared
        and "mini test" in triplets.compared
        and "sts14 test" not in triplets.compared
    )


def test_training_part_of_stsb_is_no_evaluation_set(root):
    with_stsb(root, "a girl reads .", split="train")
    assert len(load_nli(root=root)) == 3


def test_without_folder_and_hub_the_mini_set_is_read():
    triplets = load_nli()
    assert triplets.origin == "mini" and triplets.text_form == "natural" and len(triplets) >= 400
    assert triplets.dropped["a sentence of an evaluation set"] == 0, (
        "the project's own sets share no sentence"
    )


def test_the_hubs_file(monkeypatch, tmp_path):
    file = tmp_path / "nli.csv"
    file.write_text('sent0,sent1,hard_neg\n"One, two.",A count.,Silence.\nA.,B.,b\n')
    asked = []

    def download(filename, **options):
        asked.append(filename)
        return str(file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(nli, "evaluation_sentences", lambda root: (set(), (), ()))
    triplets = load_nli()
    assert (
        list(triplets) == [Triplet("One, two.", "A count.", "Silence.")]
        and triplets.origin == "hub"
    )
    assert triplets.dropped["positive equals negative"] == 1 and set(asked) == {
        "nli_for_simcse.csv"
    }
    monkeypatch.undo()


def test_the_hub_out_of_reach_is_said_when_it_was_asked_for():
    with pytest.raises(
        senteval.Unreachable, match=r"no nli_for_simcse\.csv .* HF_HUB_OFFLINE is set"
    ):
        load_nli("hub")


@pytest.mark.parametrize(
    "text, message",
    [
        ("anchor,positive\na,b\n", "1: needs the columns anchor, positive, negative or sent0"),
        ("anchor,positive,negative\na,b,c\na,b\n", "3: 2 cells, but the header has 3"),
        ("anchor,positive,negative\na, ,c\n", "2: an empty or blank sentence"),
        (
            "anchor,positive,negative\na,b,c\na,The end.,the end\n",
            "3: positive and negative are the same",
        ),
    ],
)
def test_a_malformed_row_names_file_and_line(tmp_path, text, message):
    (tmp_path / "mine.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"mine\.csv:{message}"):
        load_nli(tmp_path / "mine.csv")


def test_a_malformed_snli_file_is_named(root):
    labels = root / "SNLI" / "labels.dev"
    labels.write_text(labels.read_text().replace("neutral", "perhaps"))
    with pytest.raises(ValueError, match=r"labels\.dev:5: the label is 'perhaps'"):
        load_nli(root=root)
    labels.write_text("entailment\n")
    with pytest.raises(
        ValueError, match=r"differ in length \(s1\.dev 7, s2\.dev 7, labels\.dev 1\)"
    ):
        load_nli(root=root)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"source": "multi"}, "unknown triplets 'multi'"),
        ({"limit": 1}, "limit is 1"),
        ({"limit": True}, "limit"),
    ],
)
def test_wrong_arguments(wrong, message):
    with pytest.raises(ValueError, match=message):
        load_nli(**wrong)


def test_a_named_folder_that_lacks_snli_is_an_error(tmp_path):
    (tmp_path / "STS").mkdir()
    with pytest.raises(FileNotFoundError, match="has no SNLI"):
        load_nli(root=tmp_path)
    assert data.load_mini_sts("dev")
