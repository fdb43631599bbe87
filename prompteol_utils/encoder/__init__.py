"""Sentence to embedding: prompts, tokenization, backbone, packing, batching, baselines."""

from prompteol_utils._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "backbone": ["Forward", "find_body", "is_causal", "has_plain_cache", "trial"],
        "baselines": ["reference", "paper_loop", "next_words"],
        "batching": ["batches", "even_budget", "pad", "read_at", "halve_on_oom", "streams", "side_by_side"],
        "encode_file": ["check_target"],
        "encoder": ["BadSentenceError", "Encoder"],
        "onednn": ["fast_linear", "sample"],
        "packing": ["CannotPackError", "Prefix", "run", "run_prefix"],
        "patching": ["patched"],
        "tokenization": ["token_ids"],
    },
)
