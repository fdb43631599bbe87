"""Embedding to score: STS, geometry, transfer tasks."""

from prompteol_utils._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "geometry": ["embedding_geometry", "anisotropy", "alignment", "uniformity"],
        "probes": ["ProbeTask", "LinearProbes", "fit_senteval", "lbfgs_probe", "GRID"],
        "retrieval": [
            "BM25",
            "compare_retrieval",
            "cosine_scores",
            "reciprocal_rank_fusion",
            "retrieval_ranks",
            "retrieval_scores",
        ],
        "significance": ["Difference", "compare_scores"],
        "sts": [
            "evaluate_sts",
            "embed_pairs",
            "embed",
            "cosines",
            "spearman",
            "spearman_rows",
            "spearman_by_subset",
            "rank_errors_by_kind",
        ],
        "transfer": [
            "evaluate_transfer",
            "features",
            "score",
            "classify",
            "learning_curve",
            "summarise",
            "spread",
            "reported_split",
            "senteval_order",
        ],
    },
)
