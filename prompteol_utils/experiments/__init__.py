"""Grids of measurements, and the tables of the paper as commands."""

from prompteol_utils._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "reproduction": [
            "Reproduction",
            "reproductions",
            "get_reproduction",
            "cost",
            "reproduce",
            "reproduce_transfer",
            "reproduction_status",
        ],
        "reverse_dictionary": ["labelled_records", "search_dictionary"],
        "vector_search": [
            "open_table",
            "index_tradeoff",
            "measure_index",
            "keyword_ids",
            "hybrid_ids",
            "exact_neighbours",
        ],
        "sweep": ["grid", "by_precision", "planned_key", "transfer_settings", "measure"],
    },
)
