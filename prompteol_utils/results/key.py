"""What makes two measurements the same: all settings, none of the results."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace

from prompteol_utils.prompts import Prompt, with_demonstrations

UNKNOWN = "unknown until the model is loaded"  # a field with this value is not compared
_MODEL = ("model", "weight_origin", "model_commit", "dtype", "quantization", "prompt")
_DATA = ("task", "split", "n", "origin", "text_form", "seed")
_ALWAYS = (*_MODEL, "demonstrations", "adapter", "pooling", "layer", "engine", *_DATA)
_ALWAYS_OF = {"finetune": (*_MODEL, "demonstrations")}  # there `adapter` is the result


@dataclass(frozen=True, kw_only=True)
class MeasurementKey:
    """The identity of a measurement. Two records with equal fields are the same measurement.

    Args:
        kind: "sts", "transfer" or "finetune".
        model: Registry name, hub id or folder name.
        weight_origin: How the weights came to be.
        model_commit: Commit on the hub, or fingerprint of a folder's content.
        dtype: "float32", "bfloat16" or "float16".
        quantization: None, "nf4" or "int8".
        adapter: Name and checksum of the adapter on top.
        prompt: The prompt's name.
        demonstrations: Each as "SENTENCE=>WORD".
        template: Text and punctuation rule of a prompt that is not the package's own of that name.
        pooling: "last", "mean", "cls" or "mask".
        layer: Index of the hidden states, as it was asked for.
        max_sentence_tokens: Where longer sentences are cut.
        normalize: True where vectors have length 1.
        engine: "encoder" or "reference".
        task: The set's name.
        split: Of the set.
        n: Sentences or pairs.
        origin: Which copy of the set; a digest of the content for one's own.
        text_form: How its text is written.
        seed: Of the sample or the classifier.
        settings: Those of this kind alone, such as solver and folds.
    """

    kind: str = "sts"
    model: str
    weight_origin: str | None = UNKNOWN
    model_commit: str | None = UNKNOWN
    dtype: str
    quantization: str | None = None
    adapter: str | None = None
    prompt: str
    demonstrations: tuple[str, ...] = ()
    template: str | None = None
    pooling: str = "last"
    layer: int = -1
    max_sentence_tokens: int | None = None
    normalize: bool | None = None
    engine: str = "encoder"
    task: str | None = None
    split: str | None = None
    n: int | None = None
    origin: str | None = None
    text_form: str | None = None
    seed: int = 0
    settings: Mapping = field(default_factory=dict, hash=False)

    @classmethod
    def of(
        cls,
        encoder,
        data=None,
        split: str | None = None,
        *,
        kind: str = "sts",
        seed: int = 0,
        layer: int = -1,
        engine: str = "encoder",
        **settings,
    ) -> "MeasurementKey":
        """The key of a measurement with an encoder.

        Args:
            encoder: An `Encoder`.
            data: `Pairs`, `Labelled` or None.
            split: Of the data.
            kind: As for the class.
            seed: As for the class.
            layer: As for the class.
            engine: As for the class.
            **settings: Of this kind alone.
        """
        key = encoder.key
        return cls(
            kind=kind,
            model_commit=key["commit"],
            **{name: key[name] for name in ("model", "weight_origin", "dtype", "quantization")},
            **{name: key[name] for name in ("adapter", "pooling", "max_sentence_tokens")},
            normalize=key["normalize"] or None,
            **prompt_fields(encoder.prompt),
            **data_fields(data),
            split=split,
            seed=seed,
            layer=layer,
            engine=engine,
            settings=settings,
        )

    def record(self) -> dict:
        """The fields as a record has them; options that are not in use are left out."""
        always = _ALWAYS_OF.get(self.kind, _ALWAYS)
        optional = () if self.kind in _ALWAYS_OF else _OPTIONAL
        names = [*always, *(name for name in optional if getattr(self, name) is not None)]
        found = {name: getattr(self, name) for name in names}
        found["demonstrations"] = list(self.demonstrations)
        kind = {} if self.kind == "sts" else {"kind": self.kind}
        known = {name: value for name, value in found.items() if value is not UNKNOWN}
        return kind | known | dict(self.settings)


_OPTIONAL = ("template", "max_sentence_tokens", "normalize")
_NAMES = [one.name for one in fields(MeasurementKey) if one.name not in ("kind", "settings")]
_SETTINGS = ("solver", "folds", "limit", "sample_seed", "config", "triplets", "dev")


def record_identity(record: Mapping, without: Iterable[str] = ()) -> str:
    """A string that is equal for two records of the same measurement.

    Args:
        record: Any record; fields that it lacks count as None.
        without: Names of fields that do not matter.
    """
    names = [name for name in ("kind", *_NAMES, *_SETTINGS) if name not in without]
    return json.dumps({name: record.get(name) for name in names if record.get(name) is not None})


def digest(value: object) -> str:
    """SHA-256 (hexadecimal) of a plain value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def prompt_fields(prompt: Prompt) -> dict:
    """The fields of a key that a prompt decides."""
    try:
        known = with_demonstrations(prompt.name, prompt.demonstrations)
    except ValueError:
        known = None
    same = known is not None and replace(known, pooling=prompt.pooling) == prompt
    template = None if same else f"{prompt.prefix}{{}}{prompt.suffix} ({prompt.punctuation})"
    return {
        "prompt": prompt.name,
        "demonstrations": tuple(map(str, prompt.demonstrations)),
        "template": template,
    }


def data_fields(data) -> dict:
    """The fields of a key that a set of sentences decides."""
    if data is None:
        return {}
    found = {"task": data.name, "n": len(data)}
    return found | {"origin": data.origin, "text_form": data.text_form}
