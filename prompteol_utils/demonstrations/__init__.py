"""A demonstration set: built, scored, chosen, and what a choice is worth."""

from prompteol_utils._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "analysis": [
            "split_half_validation",
            "replay_halving",
            "expected_max_of_k",
            "random_shots",
            "orders",
        ],
        "build": [
            "build_demonstrations",
            "clean_answer",
            "read_wordnet",
            "reject",
            "save_demonstrations",
        ],
        "labelling": ["LabelError", "endpoint_labeller", "chat", "estimate_cost", "local_labeller"],
        "scores": ["sample_order", "DemonstrationScores"],
        "search": [
            "search_demonstrations",
            "exact",
            "rank",
            "halving",
            "halving_plan",
            "count_encoded_sentences",
            "demonstrations_of",
            "check_candidates",
            "greedy_shots",
        ],
    },
)
