"""The model card of an exported encoder: what it is, how it scores, what may be done with it."""

import os
from pathlib import Path

from prompteol_utils import __version__
from prompteol_utils.encoder import Encoder
from prompteol_utils.models.registry import MODELS
from prompteol_utils.results import Store
from prompteol_utils.utils.files import DATA

_CARD = """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
license: {licence_id}
base_model: {hub_id}
tags: [sentence-transformers, sentence-similarity, prompteol]
---

# {title}

Sentence embeddings from a language model with one prompt (PromptEOL, arXiv 2307.16645). Stock
sentence-transformers modules: no code of another package is needed, and no `trust_remote_code`.

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{folder}")
vectors = model.encode(["The cat sleeps.", "A kitten is having a nap."])  # (2, {dimension})
```

| | |
|---|---|
| base | `{name}` ({hub_id}) |
| weights | {weight_origin} |
| adapter | {adapter} |
| licence | {licence} |
| prompt | `{prompt}` |
| demonstrations | {demonstrations} |
| longest input | {max_tokens} tokens, prompt included; the end of the sentence is cut |
| made with | prompteol-utils {version} |

The prompt is the tokenizer's chat template: `encode` wraps every text in it. Do not pass `prompt=`.

## Scores

{scores}

The paper cleans a sentence before it goes into the prompt (a final period is added, double quotes
become single ones, a final `?` becomes `.`). A template cannot do that; sentences that come without
a final period, or with double quotes, get other vectors than in the table. Clean them yourself with
`prompteol_utils.prompts.paper_punctuation` to get the same.
"""


def write_model_card(encoder: Encoder, folder: str | os.PathLike, *, max_tokens: int) -> Path:
    """Write README.md into an exported folder.

    Args:
        encoder: What was exported.
        folder: Where to.
        max_tokens: Longest input.

    Returns:
        The card's path.
    """
    loaded = encoder.loaded
    spec = MODELS.get(loaded.name)
    licence = spec.licence if spec else "see the base model"
    prompt = encoder.prompt
    shown = f"{prompt.prefix}{{sentence}}{prompt.suffix}".replace("\n", "\\n")
    demonstrations = "; ".join(map(str, prompt.demonstrations)) or "none"
    title = f"{loaded.name}, {prompt.name}"
    if prompt.demonstrations:
        title += f", {len(prompt.demonstrations)} demonstrations"
    card = _CARD.format(
        licence_id="apache-2.0" if licence == "Apache-2.0" else "other",
        hub_id=loaded.hub_id or loaded.name,
        title=title,
        folder=Path(folder).name,
        dimension=encoder.dimension,
        name=loaded.name,
        weight_origin=loaded.weight_origin,
        adapter=f"{loaded.adapter}, merged" if loaded.adapter else "none",
        licence=licence,
        prompt=shown,
        demonstrations=demonstrations,
        max_tokens=max_tokens,
        version=__version__,
        scores=_scores(encoder),
    )
    path = Path(folder) / "README.md"
    path.write_text(card, encoding="utf-8")
    return path


def _scores(encoder: Encoder) -> str:
    """A table of recorded scores of exactly this encoder, or a sentence that there are none."""
    file = DATA / "results" / "sts.jsonl"
    if not file.exists():  # results do not travel with an installed package
        return "No scores of this encoder are recorded in the installed package."
    names = ("model", "weight_origin", "adapter", "quantization", "dtype")
    wanted = {name: encoder.key[name] for name in names}
    wanted["prompt"] = encoder.prompt.name
    wanted["demonstrations"] = list(map(str, encoder.prompt.demonstrations))
    found = {}
    for record in Store(file).rows():
        same = all(record.get(name) == value for name, value in wanted.items())
        if same and record["split"] == "test" and record["origin"] == "senteval":
            found[record["task"]] = record
    if not found:
        return "No scores of exactly this encoder are recorded in the project."
    lines = ["Spearman × 100 (SentEval's files, all pairs, the paper's punctuation):", ""]
    lines += ["| set | pairs | score |", "|---|--:|--:|"]
    lines += [f"| {task} | {one['n']} | {one['spearman']:.2f} |" for task, one in found.items()]
    return "\n".join(lines)
