"""Retrieval scores against values worked out by hand, and BM25 against its formula."""

import math

import numpy as np
import pytest

from prompteol_utils.evaluation import (
    BM25,
    compare_retrieval,
    cosine_scores,
    reciprocal_rank_fusion,
    retrieval_ranks,
    retrieval_scores,
)

DOCUMENTS = ["a red kite, a kite", "the red door", "an old door of old oak wood", "rain"]


def naive_bm25(query: str, documents: list[str], k1: float = 1.2, b: float = 0.75) -> list[float]:
    """The formula, word by word."""
    texts = [document.replace(",", "").split() for document in documents]
    mean = sum(map(len, texts)) / len(texts)
    scores = []
    for text in texts:
        score = 0.0
        for word in query.split():
            holding = sum(word in other for other in texts)
            rarity = math.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
            count = text.count(word)
            length = 1 - b + b * len(text) / mean
            score += rarity * count * (k1 + 1) / (count + k1 * length)
        scores.append(score)
    return scores


@pytest.mark.parametrize("query", ["red kite", "old door", "a door a door", "nothing known"])
@pytest.mark.parametrize("settings", [{}, {"k1": 2.0, "b": 0.3}])
def test_bm25_is_its_formula(query, settings):
    found = BM25(DOCUMENTS, **settings).scores([query])
    np.testing.assert_allclose(found[0], naive_bm25(query, DOCUMENTS, **settings), atol=1e-12)


def test_bm25_ignores_case_and_marks():
    search = BM25(["Über die Brücke!", "under it"])
    assert (search.scores(["ÜBER"]) == search.scores(["über,"])).all()
    assert search.scores(["über"]).argmax() == 0


def test_cosine_does_not_care_about_length():
    rng = np.random.default_rng(0)
    queries, documents = rng.normal(size=(3, 8)), rng.normal(size=(5, 8))
    found = cosine_scores(queries, documents)
    assert np.allclose(found, cosine_scores(7 * queries, documents / 9))
    assert np.allclose(cosine_scores(queries, queries).diagonal(), 1)
    assert np.ptp(found) > 0.1


def test_ranks_take_the_best_relevant_document_and_lose_ties():
    scores = np.array([[0.9, 0.5, 0.7, 0.1], [0.0, 0.0, 0.0, 0.0], [0.3, 0.3, 0.8, 0.3]])
    ranks = retrieval_ranks(scores, [[1, 2], [3], [0, 1]])
    assert ranks.tolist() == [2, 4, 3]
    with pytest.raises(ValueError, match="no document answers query 1"):
        retrieval_ranks(scores, [[0], [], [1]])


def test_scores_of_ranks():
    found = retrieval_scores(np.array([1, 2, 11, 101]))
    assert found == {
        "accuracy_1": 25.0,
        "accuracy_10": 50.0,
        "accuracy_100": 75.0,
        "median_rank": 6.5,
    }


def test_fusion_needs_no_common_scale_and_ties_gain_nothing():
    words = np.array([[3.0, 0.0, 0.0, 0.0]])
    meaning = np.array([[0.2, 0.9, 0.8, 0.1]])
    found = reciprocal_rank_fusion(meaning, words)[0]
    assert np.allclose(found, reciprocal_rank_fusion(meaning * 9, words * 1e6)[0])
    assert np.allclose(found, 1 / (60 + np.array([3, 1, 2, 4])) + 1 / (60 + np.array([1, 2, 2, 2])))


def test_a_difference_is_paired():
    ours = np.array([1, 2, 3, 40, 50] * 40)
    baseline = np.array([1, 2, 30, 40, 50] * 40)
    found = compare_retrieval(ours, baseline)
    assert found.points == pytest.approx(20) and found.n == 200
    assert 13 < found.low < 20 < found.high < 27
    assert compare_retrieval(ours, ours).high == 0
    assert compare_retrieval(ours, baseline, top=2).points == 0
    with pytest.raises(ValueError, match="the same queries"):
        compare_retrieval(ours, baseline[:-1])
