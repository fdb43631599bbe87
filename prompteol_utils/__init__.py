"""Sentence embeddings from large language models with one prompt (PromptEOL)."""

import warnings

from prompteol_utils._lazy import attach

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "prompteol_utils.encoder": ["Encoder"],
        "prompteol_utils.models": ["load_model", "fetch_model", "MODELS"],
        "prompteol_utils.prompts": ["PROMPTS", "Prompt", "Demonstration", "with_demonstrations"],
        "prompteol_utils.data": ["load_sts", "load_nli", "load_transfer", "load_demonstrations"],
        "prompteol_utils.evaluation": ["evaluate_sts", "evaluate_transfer"],
        "prompteol_utils.demonstrations": ["search_demonstrations"],
        "prompteol_utils.finetuning": ["finetune", "FinetuneConfig"],
        "prompteol_utils.results": ["Store"],
    },
)

# transformers draws its progress bars with tqdm.auto, which warns in every notebook where
# ipywidgets is not installed; plain bars are what we want.
warnings.filterwarnings("ignore", message="IProgress not found")
