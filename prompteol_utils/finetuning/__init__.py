"""QLoRA fine-tuning with the contrastive loss."""

from prompteol_utils._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "checkpoints": ["claim", "save", "load", "save_batch"],
        "config": ["FinetuneConfig"],
        "contrastive": ["contrastive_loss", "triplet_loss", "gather", "sum_gradients", "processes", "rank", "cached_backward"],
        "trainer": ["TrainingDiverged", "finetune", "run_folder"],
    },
)
