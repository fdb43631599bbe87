"""QLoRA fine-tuning with the contrastive loss."""

from prompteol_utils._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "config": ["CPU", "FinetuneConfig"],
        "contrastive": ["contrastive_loss", "triplet_loss", "cached_backward"],
        "sampler": ["BatchSampler"],
        "trainer": ["NothingTrainedError", "Plan", "TrainingDiverged", "finetune", "run_folder"],
    },
)
