"""A vector database in a folder: what its index finds of the exact answer, and how fast.

LanceDB keeps vectors, words and texts in one table on disk: exact search, an index for
approximate search, keyword search and filters, without a server. It comes with the extra
`search`.
"""

import os
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from prompteol_utils.data import Dictionary, load_definitions
from prompteol_utils.encoder import Encoder
from prompteol_utils.evaluation.retrieval import TOP, cosine_scores, retrieval_scores
from prompteol_utils.experiments.reverse_dictionary import embed_texts
from prompteol_utils.results import MeasurementKey, Store
from prompteol_utils.results.store import provenance

MISSING = "this needs the package lancedb: pip install prompteol-utils[search]"
KIND = "vector_index"
NAME = "definitions"
PROBES = (1, 2, 4, 8, 16, 32, 64)


def open_table(folder: str | os.PathLike, dictionary: Dictionary, vectors: np.ndarray):
    """Write a dictionary with its vectors as a LanceDB table, with an index of its keywords.

    Args:
        folder: Of the database; a table that is there is replaced.
        dictionary: Its words and definitions become columns.
        vectors: (n, d), kept as float32.

    Returns:
        The table: columns id, words, definition, vector.

    Raises:
        ImportError: lancedb is not installed.
        ValueError: Not one vector a definition.
    """
    try:
        import lancedb
        from lancedb.index import FTS
    except ImportError as error:
        raise ImportError(MISSING) from error
    import pyarrow as pa

    if len(vectors) != len(dictionary):
        raise ValueError(f"{len(vectors)} vectors for {len(dictionary)} definitions")
    flat = pa.array(np.asarray(vectors, np.float32).ravel())
    columns = {
        "id": pa.array(range(len(dictionary)), pa.int64()),
        "words": pa.array([", ".join(words) for words in dictionary.words]),
        "definition": pa.array(dictionary.definitions),
        "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
    }
    database = lancedb.connect(str(folder))
    table = database.create_table(NAME, pa.table(columns), mode="overwrite")
    table.create_index("definition", config=FTS())
    return table


def index_tradeoff(
    table,
    queries: np.ndarray,
    exact: np.ndarray,
    *,
    top: int = 10,
    probes: Iterable[int] = PROBES,
    refine: Iterable[int] = (1, 10),
) -> pd.DataFrame:
    """Build an IVF-PQ index; what it finds of the exact neighbours, and the time of a query.

    The index sorts vectors into partitions and keeps a short code of each. A query looks into the
    nearest partitions (`probes`) only, and may rank the best by their whole vectors again.

    Args:
        table: From `open_table`.
        queries: (q, d).
        exact: (q, >= top) positions, nearest first, by brute force.
        top: Neighbours that are asked for.
        probes: How many partitions are looked into.
        refine: How many times `top` candidates are ranked again by their whole vectors.

    Returns:
        method, probes, refine, recall (x 100), milliseconds (median of a query), build_seconds.
        The first line is LanceDB's own brute force.
    """
    from lancedb.index import IvfPq

    size, width = table.count_rows(), queries.shape[1]
    partitions = max(2, round(size**0.5))
    start = time.perf_counter()
    settings = {"num_partitions": partitions, "num_sub_vectors": width // 8}
    table.create_index("vector", config=IvfPq(distance_type="cosine", **settings), replace=True)
    build = round(time.perf_counter() - start, 2)
    lines = [_asked(table, queries, exact, top, method="brute force")]
    for candidates in refine:
        for count in (one for one in probes if one <= partitions):
            options = {"method": "ivf-pq", "probes": count, "refine": candidates}
            lines.append(_asked(table, queries, exact, top, **options))
    return pd.DataFrame(lines).assign(build_seconds=build, partitions=partitions)


def _asked(
    table,
    queries: np.ndarray,
    exact: np.ndarray,
    top: int,
    *,
    method: str,
    probes=None,
    refine=None,
) -> dict:
    found, seconds = [], []
    for query in queries:
        start = time.perf_counter()
        search = table.search(query).distance_type("cosine").select(["id", "_distance"]).limit(top)
        if probes is None:
            search = search.bypass_vector_index()
        else:
            search = search.nprobes(probes).refine_factor(refine)
        answer = search.to_arrow()
        seconds.append(time.perf_counter() - start)
        found.append(answer["id"].to_numpy())
    shared = [len(np.intersect1d(a, b[:top])) for a, b in zip(found, exact, strict=True)]
    recall = 100 * float(np.mean(shared)) / top
    settings = {"method": method, "probes": probes, "refine": refine, "top": top}
    return settings | {"recall": recall, "milliseconds": 1000 * float(np.median(seconds))}


def keyword_ids(table, text: str, vector: np.ndarray | None, top: int) -> np.ndarray:
    """Ids that LanceDB's keyword search finds, best first; a vector is not looked at."""
    query = table.search(text, query_type="fts").select(["id", "_score"]).limit(top)
    return query.to_arrow()["id"].to_numpy()


def hybrid_ids(table, text: str, vector: np.ndarray, top: int) -> np.ndarray:
    """Ids found by LanceDB's hybrid search (vectors and keywords, joined by rank), best first."""
    query = table.search(query_type="hybrid", vector_column_name="vector").vector(vector).text(text)
    return query.distance_type("cosine").limit(top).to_arrow()["id"].to_numpy()


def folder_bytes(folder: str | os.PathLike) -> int:
    """Size of a folder on disk."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def measure_index(
    dictionary: Dictionary,
    encoder: Encoder,
    folder: str | os.PathLike,
    *,
    output: "Store | str | os.PathLike | None" = None,
    seed: int = 0,
    top: int = 10,
) -> pd.DataFrame:
    """Put a dictionary into LanceDB, and measure its index, keyword and hybrid search.

    Args:
        dictionary: The corpus, from `load_dictionary(keep=load_definitions())`.
        encoder: Embeds both sides.
        folder: Where vectors and the database are kept.
        output: A store of records; what it holds is not measured again.
        seed: Of the dictionary's sample, for the record.
        top: Neighbours whose recall is measured.

    Returns:
        The lines of `index_tradeoff`, and a line each for "keywords" and "hybrid" with accuracy x
        100 at 1, 10 and 100. All say how many bytes the table takes with and without the index.
    """
    definitions = load_definitions()
    settings = MeasurementKey.of(encoder, kind=KIND, seed=seed).record()
    key = settings | {"n": len(dictionary), "origin": dictionary.origin}
    store = Store(output) if isinstance(output, str | os.PathLike) else output
    if store and (found := store.find_all(key)):
        return pd.DataFrame(found)
    queries, _ = embed_texts(encoder, tuple(definitions.values()), folder)
    documents, _ = embed_texts(encoder, dictionary.definitions, folder)
    database = Path(folder) / "lancedb"
    table = open_table(database, dictionary, documents)
    plain = folder_bytes(database)
    lines = index_tradeoff(table, queries, exact_neighbours(queries, documents, top), top=top)
    records = [line.dropna().to_dict() for _, line in lines.iterrows()]
    relevant = [set(dictionary.of(word)) for word in definitions]
    searches = {"keywords": keyword_ids, "hybrid": hybrid_ids}
    asked = list(zip(definitions.values(), queries, strict=True))
    for method, search in searches.items():
        ranks, seconds = [], []
        for (text, vector), right in zip(asked, relevant, strict=True):
            start = time.perf_counter()
            found = search(table, text, vector, max(TOP))
            seconds.append(time.perf_counter() - start)
            places = [place for place, at in enumerate(found, 1) if int(at) in right]
            ranks.append(min(places, default=max(TOP) + 1))
        accuracy = retrieval_scores(np.array(ranks))
        del accuracy["median_rank"]  # ranks beyond the last place asked for are not known
        records.append(
            {"method": method, "milliseconds": 1000 * float(np.median(seconds)), **accuracy}
        )
    size = {"table_bytes": plain, "bytes_with_index": folder_bytes(database)}
    records = [key | size | record | provenance(seed) for record in records]
    if store:
        store.append(*records)
    return pd.DataFrame(records)


def exact_neighbours(queries: np.ndarray, vectors: np.ndarray, top: int) -> np.ndarray:
    """Positions of the `top` vectors with the highest cosine, nearest first: int (q, top)."""
    scores = cosine_scores(queries, np.asarray(vectors))
    return np.argsort(-scores, axis=1, kind="stable")[:, :top]
