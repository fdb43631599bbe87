"""Sentence embeddings from large language models with one prompt (PromptEOL): the package behind the notebooks."""
