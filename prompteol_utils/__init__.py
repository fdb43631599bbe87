"""Sentence embeddings from large language models with one prompt (PromptEOL): the package behind the notebooks."""

import warnings

# transformers draws its bars with tqdm.auto, which warns in every notebook when ipywidgets is not installed; plain bars are what we want.
warnings.filterwarnings("ignore", message="IProgress not found")
