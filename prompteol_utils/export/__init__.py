"""What leaves the project: stock sentence-transformers folders, MTEB scores, model cards."""

from prompteol_utils._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "benchmark": ["evaluate_mteb", "local_tasks"],
        "model_card": ["write_model_card"],
        "sentence_transformer": ["chat_template", "export_sentence_transformer"],
    },
)
