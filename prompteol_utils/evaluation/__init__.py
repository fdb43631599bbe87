"""Embedding to score: STS, geometry, transfer tasks."""

from prompteol_utils._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "geometry": ["geometry", "anisotropy", "alignment", "uniformity"],
        "probes": ["Problem", "Fits", "fit_senteval", "fit_lbfgs"],
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
            "few_labels",
            "summarise",
            "spread",
            "reported_split",
            "senteval_order",
        ],
    },
)
