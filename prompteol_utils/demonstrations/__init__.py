"""A demonstration set: built, scored, chosen, and what a choice is worth."""

from prompteol_utils._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "analysis": ["honest_choice", "replay_halving", "expected_best", "random_shots", "orders"],
        "build": ["build_demonstrations", "clean_answer", "reject", "save_demonstrations"],
        "labelling": ["LabelError", "endpoint_labeller", "chat", "estimate_cost", "local_labeller"],
        "scores": ["text_of", "sample_order", "Trials"],
        "search": [
            "search_demonstrations",
            "exact",
            "rank",
            "halving",
            "halving_plan",
            "encoded",
            "demonstrations_of",
            "check_candidates",
            "greedy_shots",
        ],
        "wordnet": ["read_wordnet"],
    },
)
