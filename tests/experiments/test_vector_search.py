"""LanceDB's index against brute force; without LanceDB, one line that names the extra."""

import numpy as np
import pytest

from prompteol_utils.cli.main import main
from prompteol_utils.data import Dictionary, load_definitions
from prompteol_utils.encoder import Encoder
from prompteol_utils.evaluation import BM25
from prompteol_utils.experiments import (
    exact_neighbours,
    hybrid_ids,
    index_tradeoff,
    keyword_ids,
    measure_index,
    open_table,
)
from prompteol_utils.models import load_model, save_tiny
from prompteol_utils.results import Store


def clusters(n: int, width: int = 32, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(20, width))
    return (centres[np.arange(n) % 20] + 0.4 * rng.normal(size=(n, width))).astype(np.float32)


def dictionary(n: int) -> Dictionary:
    texts = [f"thing number {at} of colour {'red' if at % 7 else 'blue'}" for at in range(n)]
    return Dictionary(tuple((f"word{at}",) for at in range(n)), tuple(texts), "wordnet")


def test_exact_neighbours_are_sorted_by_cosine():
    vectors = np.array([[1, 0], [0, 5], [3, 1], [-1, 0]], np.float32)
    assert exact_neighbours(np.array([[2, 0]], np.float32), vectors, 3).tolist() == [[0, 2, 1]]


def test_the_index_finds_more_the_more_it_looks_at(tmp_path):
    pytest.importorskip("lancedb")
    vectors, queries = clusters(900), clusters(30, seed=1)
    exact = exact_neighbours(queries, vectors, 10)
    table = open_table(tmp_path, dictionary(900), vectors)
    found = index_tradeoff(table, queries, exact, probes=(1, 8, 30), refine=(10,))
    assert found["method"].tolist() == ["brute force"] + 3 * ["ivf-pq"]
    recall = found["recall"].tolist()
    assert recall[0] == 100.0, "cosine, as in the exact search"
    assert recall[1] < recall[3] and recall[3] > 90
    wrong = index_tradeoff(table, queries, exact[::-1], probes=(30,), refine=(10,))
    assert wrong["recall"].max() < 50, "the neighbours of other queries"


def test_keywords_and_hybrid_search_agree_with_ours(tmp_path):
    pytest.importorskip("lancedb")
    vectors, corpus = clusters(300), dictionary(300)
    table = open_table(tmp_path, corpus, vectors)
    ours = BM25(corpus.definitions).scores(["blue 49"])[0]
    assert keyword_ids(table, "blue 49", None, 1).tolist() == [int(ours.argmax())] == [49]
    assert int(hybrid_ids(table, "blue 49", vectors[49], 5)[0]) == 49


def test_a_vector_too_few_is_refused(tmp_path):
    pytest.importorskip("lancedb")
    with pytest.raises(ValueError, match="299 vectors for 300 definitions"):
        open_table(tmp_path, dictionary(300), clusters(299))


def test_records_are_made_once(tmp_path, monkeypatch):
    pytest.importorskip("lancedb")
    encoder = Encoder(load_model(str(save_tiny("llama", tmp_path / "base"))))
    words = [*load_definitions(), *(f"other{at}" for at in range(300))]
    corpus = Dictionary(
        tuple((word,) for word in words),
        tuple(f"a text about case {at}, number {at * at}" for at in range(500)),
        "wordnet",
    )
    output = tmp_path / "records.jsonl"
    first = measure_index(corpus, encoder, tmp_path / "vectors", output=output)
    assert {"brute force", "ivf-pq", "keywords", "hybrid"} == set(first["method"])
    rows = Store(output).rows()
    assert len(rows) == len(first) and all(row["bytes_with_index"] > 0 for row in rows)
    module = "prompteol_utils.experiments.vector_search"
    monkeypatch.setattr(f"{module}.open_table", lambda *_: pytest.fail("measured again"))
    again = measure_index(corpus, encoder, tmp_path / "vectors", output=output)
    assert again["method"].tolist() == first["method"].tolist()


def test_without_lancedb_one_line_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lancedb", None)
    with pytest.raises(ImportError, match=r"prompteol-utils\[search\]"):
        open_table(tmp_path, dictionary(3), clusters(3))


def test_an_index_needs_a_model(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("PROMPTEOL_WORDNET", raising=False)
    assert main(["reverse-dictionary", "--index"]) == 2
    assert "--index needs a model" in capsys.readouterr().err
