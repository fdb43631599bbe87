"""The store of finished work: records with provenance, cached embeddings, published numbers."""

from prompteol_utils._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "embedding_cache": ["CachedEncoder", "EmbeddingCache"],
        "key": ["MeasurementKey"],
        "published": ["paper_table", "compare", "require_comparable", "PAPER"],
        "store": ["Store", "check_row", "provenance"],
    },
)
