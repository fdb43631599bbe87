"""What several tests read: a record of results, words for made-up sentences, scripts."""

import importlib.util
from pathlib import Path

RECORD = {
    "model": "opt-125m",
    "prompt": "prompteol",
    "demonstrations": [],
    "quantization": None,
    "adapter": None,
    "pooling": "last",
    "layer": -1,
    "task": "stsb",
    "split": "test",
    "n": 1379,
    "spearman": 60.5,
    "spearman_subset_mean": 60.25,
    "origin": "senteval",
    "text_form": "tokenised lower case",
    "weight_origin": "hub fp16, base",
    "dtype": "float32",
    "seed": 0,
    "seconds": 1.5,
    "versions": {},
    "commit": "unknown",
}

WORDS = [
    "cat",
    "dog",
    "river",
    "boat",
    "garden",
    "night",
    "bridge",
    "child",
    "bread",
    "rain",
    "music",
    "street",
    "winter",
    "market",
]


def load_script(path: Path):
    """Import a script that is no part of a package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
