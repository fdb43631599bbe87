"""A reverse dictionary: from a definition in one's own words to the word.

The corpus is a dictionary's definitions, the queries are the 200 definitions written for this
project; a query is answered by any definition (any sense) of its word.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from prompteol_utils.data import Dictionary, load_definitions
from prompteol_utils.encoder import Encoder
from prompteol_utils.encoder.encode_file import encode_file
from prompteol_utils.evaluation.retrieval import (
    BM25,
    cosine_scores,
    reciprocal_rank_fusion,
    retrieval_ranks,
    retrieval_scores,
)
from prompteol_utils.results import MeasurementKey, Store
from prompteol_utils.results.key import digest
from prompteol_utils.results.store import provenance
from prompteol_utils.utils import files

KIND = "reverse_dictionary"


def embed_texts(
    encoder: Encoder, texts: tuple[str, ...], folder: str | os.PathLike
) -> tuple[np.ndarray, dict]:
    """Embed texts once, resumable: float32 (n, d) kept in a folder, and what it cost.

    The second value is {"seconds": …}, or {} where the vectors were there.
    """
    stem = Path(folder) / f"{digest(encoder.key)[:12]}-{digest(list(texts))[:12]}"
    with files.atomic_file(source := stem.with_suffix(".txt"), "w") as file:
        file.writelines(f"{text}\n" for text in texts)
    target, start = stem.with_suffix(".npy"), time.perf_counter()
    fresh = not target.exists() and not target.with_name(f"{target.name}.part").exists()
    encode_file(source, target, encoder)
    cost = {"seconds": round(time.perf_counter() - start, 2)} if fresh else {}
    return np.load(target, mmap_mode="r"), cost


def search_dictionary(
    dictionary: Dictionary,
    encoder: Encoder | None,
    folder: str | os.PathLike,
    *,
    definitions: Mapping[str, str] | None = None,
    output: "Store | str | os.PathLike | None" = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Ask a dictionary for words by their definitions.

    Args:
        dictionary: The corpus, from `load_dictionary(keep=definitions)`.
        encoder: Embeds both sides; None: BM25 alone.
        folder: Where vectors are kept.
        definitions: word -> definition; None: the 200 of this project.
        output: A store of records; a measurement that it holds is not repeated.
        seed: Of the dictionary's sample, for the record.

    Returns:
        Records: `method` ("bm25", or "exact" cosine and "hybrid", its fusion with BM25),
        accuracy x 100 at 1, 10 and 100, the median rank and all ranks.

    Raises:
        ValueError: A word that the dictionary lacks, or a dictionary that holds the queries.
    """
    definitions = load_definitions() if definitions is None else definitions
    if not set(definitions.values()).isdisjoint(dictionary.definitions):
        raise ValueError(
            "the dictionary holds the queries themselves, so each would find itself: name a "
            "WordNet folder (Debian and Ubuntu: apt install wordnet-base)"
        )
    relevant = [dictionary.of(word) for word in definitions]
    missing = [word for word, at in zip(definitions, relevant, strict=True) if len(at) == 0]
    if missing:
        raise ValueError(f"the dictionary lacks {', '.join(missing[:5])}: keep them in its sample")
    store = Store(output) if isinstance(output, str | os.PathLike) else output
    wanted = _keys(dictionary, encoder, len(definitions), seed)
    found = [store.find(key) if store else None for key in wanted]
    if all(found):
        return pd.DataFrame(found)
    scores = {"bm25": BM25(dictionary.definitions).scores(list(definitions.values()))}
    measured = {}
    if encoder is not None:
        queries, _ = embed_texts(encoder, tuple(definitions.values()), folder)
        documents, cost = embed_texts(encoder, dictionary.definitions, folder)
        scores["exact"] = cosine_scores(queries, documents)
        scores["hybrid"] = reciprocal_rank_fusion(scores["exact"], scores["bm25"])
        measured = {"dimension": encoder.dimension, **cost}
    records = []
    for key in wanted:
        ranks = retrieval_ranks(scores[key["method"]], relevant)
        result = retrieval_scores(ranks) | {"ranks": ranks.tolist()}
        records.append(key | measured | result | provenance(seed))
    if store:
        store.append(*records)
    return pd.DataFrame(records)


def _keys(dictionary: Dictionary, encoder: Encoder | None, queries: int, seed: int) -> list[dict]:
    """What is to be measured: all that makes two measurements the same."""
    corpus = {"n": len(dictionary), "queries": queries, "origin": dictionary.origin}
    if encoder is None:
        return [{"kind": KIND, "method": "bm25", **corpus, "seed": seed}]
    settings = MeasurementKey.of(encoder, kind=KIND, seed=seed).record()
    return [settings | corpus | {"method": method} for method in ("exact", "hybrid")]


def labelled_records(path: str | os.PathLike) -> pd.DataFrame:
    """Read the records of reverse dictionaries, with a name for each system.

    Args:
        path: A store of records.

    Returns:
        The newest record of each measurement; `system` says model, prompt, demonstrations and
        adapter, `search` what was searched with.
    """
    table = Store(path).read()
    table = table[table["kind"] == KIND].copy()
    searches = {"bm25": "keywords", "exact": "vectors", "hybrid": "vectors and keywords"}
    table["search"] = table["method"].map(searches)
    table["system"] = [_system(record) for record in table.to_dict("records")]
    return table.drop_duplicates(["system", "search", "n", "seed"], keep="last")


def _system(record: Mapping) -> str:
    if record["method"] == "bm25":
        return "BM25"
    name = record["model"]
    if record["prompt"] != "mean" or record["pooling"] != "mean":
        name += f", {record['prompt']}"
    elif not name.startswith("all-"):
        name += ", mean of tokens"
    if count := len(record["demonstrations"]):
        name += f" + {count} demonstration{'s' * (count > 1)}"
    return name + (", fine-tuned" if isinstance(record["adapter"], str) else "")
