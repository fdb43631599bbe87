"""Methods that came after PromptEOL and train nothing either, on the same models."""

from prompteol_utils._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "linear": ["EmbedFilter", "Whitening"],
        "measuring": ["ViewStates", "best_layer", "differences", "layer_cosines", "measure"],
        "methods": ["METHODS", "Method", "few_shot", "get_method", "whitened"],
        "prompts": ["PRETENDED_COT", "KNOWLEDGE", "IRRELEVANT", "ECHO", "META", "meta_prompt"],
        "rewriting": ["KINDS", "geneol", "rewrite"],
        "tables": ["curves", "gains", "pareto_front", "recommended", "summary"],
        "views": ["Contrastive", "Echo", "Prompted", "TokenPrepending"],
    },
)
