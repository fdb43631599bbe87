"""Sentence to embedding: tokenization, backbone, packing, batching, baselines, files."""

from prompteol_utils._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "backbone": [
            "Backbone",
            "find_backbone",
            "is_causal",
            "has_plain_cache",
            "probe_packing_support",
        ],
        "baselines": ["reference", "paper_loop", "next_words"],
        "encode_file": ["check_target"],
        "encoder": ["Encoder"],
        "tokenization": ["BadSentenceError", "token_ids"],
    },
)
