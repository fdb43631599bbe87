"""The reverse dictionary: what is found, what is recorded, what is not measured twice."""

import json

import numpy as np
import pytest

from prompteol_utils.cli.main import main
from prompteol_utils.data import Dictionary, load_definitions
from prompteol_utils.encoder import Encoder
from prompteol_utils.experiments import labelled_records, search_dictionary
from prompteol_utils.models import load_model, save_tiny
from prompteol_utils.results import Store

# Written for this test.
DICTIONARY = Dictionary(
    (("kettle",), ("jug", "pitcher"), ("kettle", "boiler"), ("gale",)),
    (
        "vessel on the stove in which water is heated for tea",
        "vessel with a handle and a lip from which water is poured",
        "big tank that makes steam",
        "very strong wind at sea",
    ),
    "wordnet",
)
QUERIES = {"kettle": "we make tea water hot with it", "gale": "wind at sea breaking masts"}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return Encoder(load_model(str(save_tiny("llama", tmp_path_factory.mktemp("base")))))


def test_records_say_what_was_measured(encoder, tmp_path):
    found = search_dictionary(
        DICTIONARY, encoder, tmp_path / "vectors", definitions=QUERIES, output=tmp_path / "r.jsonl"
    )
    assert found["method"].tolist() == ["exact", "hybrid"]
    first = Store(tmp_path / "r.jsonl").rows()[0]
    assert first["n"] == 4 and first["queries"] == 2 and first["kind"] == "reverse_dictionary"
    assert first["dimension"] == encoder.dimension and first["versions"]["torch"]
    unit = encoder.encode(list(DICTIONARY.definitions) + list(QUERIES.values()))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosines = unit[4:] @ unit[:4].T
    expected = [
        1 + sum(cosines[0, [1, 3]] >= cosines[0, [0, 2]].max()),
        1 + sum(cosines[1, :3] >= cosines[1, 3]),
    ]
    assert first["ranks"] == expected


def test_a_measurement_is_not_repeated(encoder, tmp_path, monkeypatch):
    options = {"definitions": QUERIES, "output": tmp_path / "r.jsonl"}
    before = search_dictionary(DICTIONARY, encoder, tmp_path / "vectors", **options)
    module = "prompteol_utils.experiments.reverse_dictionary"
    monkeypatch.setattr(f"{module}.encode_file", lambda *_: pytest.fail("embedded again"))
    again = search_dictionary(DICTIONARY, encoder, tmp_path / "vectors", **options)
    assert again["ranks"].tolist() == before["ranks"].tolist()
    monkeypatch.undo()
    smaller = Dictionary(DICTIONARY.words[:4], DICTIONARY.definitions[:4], "project")
    search_dictionary(smaller, encoder, tmp_path / "vectors", **options)
    assert len(Store(tmp_path / "r.jsonl").rows()) == 4, "another dictionary is another measurement"


def test_records_name_their_system(encoder, tmp_path):
    output = tmp_path / "r.jsonl"
    options = {"definitions": QUERIES, "output": output}
    search_dictionary(DICTIONARY, None, tmp_path, **options)
    search_dictionary(DICTIONARY, encoder, tmp_path / "vectors", **options)
    Store(output).append({"kind": "other", "versions": {}, "commit": "", "seed": 0})
    found = labelled_records(output)
    name = f"{encoder.loaded.name}, prompteol"
    assert found["system"].tolist() == ["BM25", name, name]
    assert found["search"].tolist() == ["keywords", "vectors", "vectors and keywords"]


def test_keywords_alone_need_no_model(tmp_path):
    found = search_dictionary(DICTIONARY, None, tmp_path, definitions=QUERIES)
    assert found["method"].tolist() == ["bm25"] and found["ranks"][0] == [1, 1]
    assert found["accuracy_1"].tolist() == [100.0]


def test_queries_that_cannot_be_answered_are_refused(tmp_path):
    with pytest.raises(ValueError, match="lacks teapot: keep them"):
        search_dictionary(DICTIONARY, None, tmp_path, definitions={"teapot": "a pot for tea"})
    own = load_definitions()
    same = Dictionary(tuple((word,) for word in own), tuple(own.values()), "project")
    with pytest.raises(ValueError, match="holds the queries themselves"):
        search_dictionary(same, None, tmp_path)


def test_the_command_names_a_missing_folder_and_reads_a_given_one(tmp_path, capsys):
    assert main(["reverse-dictionary", "--wordnet", str(tmp_path)]) == 2
    assert "no WordNet database" in capsys.readouterr().err
    words = list(load_definitions())
    entries = "".join(
        f"{at:08} 06 n 01 {word} 0 000 | thing number {at}\n" for at, word in enumerate(words)
    )
    (tmp_path / "data.noun").write_text(entries)
    output = tmp_path / "records.jsonl"
    assert main(["reverse-dictionary", "--wordnet", str(tmp_path), "--output", str(output)]) == 0
    assert "median_rank" in capsys.readouterr().out
    record = json.loads(output.read_text())
    assert record["n"] == 200 and len(record["ranks"]) == 200 and record["method"] == "bm25"
