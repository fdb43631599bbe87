"""Where sentences come from: STS pairs, NLI triplets, transfer tasks, the project's small sets."""

from prompteol_utils._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "bundled": ["load_corpus", "load_demonstrations", "paper_demonstrations"],
        "dictionary": ["Dictionary", "load_definitions", "load_dictionary"],
        "nli": ["Triplet", "Triplets", "load_nli", "evaluation_sentences", "comparable"],
        "readers": ["SentenceFileError", "read_sentences", "numbered_sentences", "read_records"],
        "senteval": ["find_folder"],
        "sts": ["Pairs", "load_sts", "load_mini_sts", "STS_TASKS"],
        "transfer": [
            "Labelled",
            "load_transfer",
            "load_mini_transfer",
            "stratified",
            "TRANSFER_TASKS",
        ],
        "prompteol_utils.utils.files": ["DATA"],
    },
)
