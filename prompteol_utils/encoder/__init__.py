"""Sentence to embedding: prompts, tokenization, backbone, packing, batching, baselines."""

from prompteol_utils._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "backbone": [
            "Backbone",
            "find_body",
            "is_causal",
            "has_plain_cache",
            "probe_packing_support",
        ],
        "baselines": ["reference", "paper_loop", "next_words"],
        "encode_file": ["check_target"],
        "encoder": ["BadSentenceError", "Encoder"],
        "tokenization": ["token_ids"],
    },
)
