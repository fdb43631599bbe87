"""Retrieval: does a query find its document? Exact vector search, BM25, and both together."""

from collections.abc import Sequence

import numpy as np

from prompteol_utils.evaluation.significance import Difference

TOP = (1, 10, 100)


class BM25:
    """Keyword search: rare words that a document repeats count, long documents count less.

    Args:
        documents: The texts to search.
        k1: How soon repetitions of a word stop counting.
        b: How much a document's length matters, 0 to 1.

    Source: Robertson and Zaragoza, The Probabilistic Relevance Framework: BM25 and Beyond (2009).
    """

    def __init__(self, documents: Sequence[str], *, k1: float = 1.2, b: float = 0.75):
        from sklearn.feature_extraction.text import CountVectorizer

        self._counter = CountVectorizer(token_pattern=r"\w+")
        counts = self._counter.fit_transform(documents).astype(np.float64).tocsr()
        n = counts.shape[0]
        holding = np.bincount(counts.indices, minlength=counts.shape[1])
        rarity = np.log1p((n - holding + 0.5) / (holding + 0.5))
        lengths = np.asarray(counts.sum(axis=1)).ravel()
        norm = k1 * (1 - b + b * lengths / lengths.mean())
        rows = np.repeat(np.arange(n), np.diff(counts.indptr))
        frequency = counts.data
        counts.data = frequency * (k1 + 1) / (frequency + norm[rows]) * rarity[counts.indices]
        self._weights = counts.T.tocsr()  # the inverted index: a word's documents in a row

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """Score every document for every query: float64 (queries, documents)."""
        return (self._counter.transform(queries) @ self._weights).toarray()


def cosine_scores(queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Cosine of each query with each document: float32 (queries, documents)."""
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, documents)]
    return unit[0] @ unit[1].T


def reciprocal_rank_fusion(*scores: np.ndarray, k: int = 60) -> np.ndarray:
    """Join rankings by place, so that scores of different kinds need no common scale.

    Args:
        *scores: Of each method, (queries, documents). Documents that tie share a place, so what
            BM25 finds no word in gains nothing over the rest.
        k: How much the first places stand out.

    Source: Cormack, Clarke and Büttcher, Reciprocal Rank Fusion (2009).
    """
    from scipy.stats import rankdata

    return sum(1 / (k + rankdata(-one, method="min", axis=1)) for one in scores)


def retrieval_ranks(scores: np.ndarray, relevant: Sequence[Sequence[int]]) -> np.ndarray:
    """The place of each query's best relevant document.

    Args:
        scores: (queries, documents), higher is better.
        relevant: For each query, the positions of the documents that answer it.

    Returns:
        int (queries,), from 1. An irrelevant document with the same score stands before it, so
        that a method that cannot tell documents apart gets no credit.

    Raises:
        ValueError: A query without a relevant document.
    """
    ranks = np.empty(len(scores), dtype=int)
    for query, (row, right) in enumerate(zip(scores, relevant, strict=True)):
        if len(right) == 0:
            raise ValueError(f"no document answers query {query}")
        before = row >= row[right].max()
        before[right] = False
        ranks[query] = 1 + before.sum()
    return ranks


def retrieval_scores(ranks: np.ndarray) -> dict[str, float]:
    """Accuracy x 100 at 1, 10 and 100, and the median rank."""
    accuracy = {f"accuracy_{top}": 100 * float(np.mean(ranks <= top)) for top in TOP}
    return accuracy | {"median_rank": float(np.median(ranks))}


def compare_retrieval(
    ours: np.ndarray,
    baseline: np.ndarray,
    *,
    top: int = 10,
    samples: int = 1_000,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """The difference of two accuracies at `top` on the same queries, with a bootstrap interval.

    Args:
        ours: (queries,), the ranks of our system.
        baseline: (queries,), those of the other one.
        top: Ranks up to this one count as found.
        samples: How many draws of queries.
        level: Share of the draws' differences that the interval holds.
        seed: Of the draws.

    Raises:
        ValueError: Ranks of different numbers of queries.
    """
    ours, baseline = np.asarray(ours) <= top, np.asarray(baseline) <= top
    if ours.shape != baseline.shape:
        raise ValueError(f"the same queries are needed, got {len(ours)} and {len(baseline)}")
    gain = 100.0 * (ours.astype(float) - baseline)
    drawn = np.random.default_rng(seed).integers(0, len(gain), (samples, len(gain)))
    return Difference.resampled(gain.mean(), gain[drawn].mean(axis=1), level, len(gain))
