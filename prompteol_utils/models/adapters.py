"""LoRA adapters: new on a model, saved with base and prompt, attached where they belong, merged."""

import copy
import hashlib
import json
import logging
import os
import re
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import torch

from prompteol_utils.models.download import silence_transformers
from prompteol_utils.models.hub import hub_commit
from prompteol_utils.utils import files

RECORD = "prompteol.json"  # beside peft's own two files, and in a merged model's folder
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_CONFIG = "adapter_config.json"
# Entries of peft's configuration that do not change what a trained adapter computes.
_INDIFFERENT = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "lora_dropout",
    "peft_version",
    "revision",
    "task_type",
}
log = logging.getLogger(__name__)


def add_lora(model, *, rank: int, alpha: int, dropout: float, layers: int | None = None):
    """Put new LoRA matrices on every linear layer but the head; untrained, they change nothing.

    Args:
        model: A transformers model.
        rank: r, the matrices' smaller side.
        alpha: Their product is scaled by alpha / rank.
        dropout: Of their input.
        layers: Only on the last so many layers; None takes all.

    Returns:
        The peft model.
    """
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    where: dict = {"target_modules": "all-linear"}
    if layers is not None:  # peft takes numbers of layers only beside the names of their parts
        linear = [
            name
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear | Conv1D)
        ]
        inside = {name.rpartition(".")[2] for name in linear if re.search(r"\.\d+\.", name)}
        depth = model.config.get_text_config().num_hidden_layers
        where = {
            "target_modules": sorted(inside),
            "layers_to_transform": list(range(depth - layers, depth)),
        }
    lora = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, task_type="FEATURE_EXTRACTION", **where
    )
    with warnings.catch_warnings():  # peft asks transformers by a name that it will drop
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")
        return get_peft_model(model, lora)


def save(loaded, folder: str | os.PathLike, **record) -> None:
    """Save the adapter of a model, whole or not at all.

    Args:
        loaded: A `LoadedModel` whose model is a peft model.
        folder: Replaced if it is there.
        **record: Plain values to keep beside the weights, such as prompt and training.

    Raises:
        files.CacheError: Disk full or folder read-only; what was there before is untouched.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    weights = get_peft_model_state_dict(loaded.model, save_embedding_layers=False)
    config = copy.copy(loaded.model.peft_config["default"])
    config.base_model_name_or_path = loaded.hub_id or loaded.name  # not a path on this machine
    config.inference_mode = True
    names = ("name", "hub_id", "weight_origin", "quantization", "dtype", "commit")
    base = {name: getattr(loaded, name) for name in names}
    base |= {"sample": _embedding_sample(loaded.model), "weights": weights_sample(loaded.model)}
    with files.atomic_folder(folder) as work:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        save_file(tensors, work / _WEIGHTS[0], {"format": "pt"})
        config.save_pretrained(work)
        facts = {"base": base, "adapter_config": _config_digest(work), **record}
        (work / RECORD).write_text(json.dumps(facts, indent=1, ensure_ascii=False))


def read(adapter: str | os.PathLike) -> dict:
    """Return what was kept beside an adapter's weights; {} for one from elsewhere.

    Args:
        adapter: Its folder, or that of the run that made it.
    """
    file = Path(find(adapter)) / RECORD
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def find(adapter: str | os.PathLike) -> str:
    """Return where an adapter lies: its folder, the folder `adapter` of a run, or a hub id.

    Raises:
        ValueError: The folder holds no adapter, or the name can be no hub id.
    """
    folder = Path(adapter).expanduser()
    for place in (folder, folder / "adapter"):
        files.restore_folder(place)
        if (place / _CONFIG).is_file():
            return str(place)
    if folder.is_dir():
        raise ValueError(
            f"folder {str(adapter)!r} holds no adapter: "
            f"{_CONFIG} is missing, there and in its folder adapter/"
        )
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(adapter)):
        raise ValueError(
            f"no adapter {str(adapter)!r}: it is no folder, and no hub id like 'org/name'"
        )
    return str(adapter)


def attach(loaded, adapter: str | os.PathLike, folder: str | os.PathLike = ""):
    """Put a saved adapter on its base model, wholly or not at all.

    Args:
        loaded: The base, a `LoadedModel`.
        adapter: As for `find`.
        folder: Where the base was read from, to see whether it is a merged model.

    Returns:
        The same with the peft model, the adapter's name, which is another one whenever its weights
        or the settings that scale them are, and the prompt that it was trained with.

    Raises:
        ValueError: There is no adapter, it is of a kind that is not read, it belongs to another
            base, or a part of it has no place in the model.
        OSError: An adapter of the hub cannot be had.
    """
    place = find(adapter)
    label = None
    if not Path(place).is_dir():
        label, place = _from_hub(place)
    place = Path(place)
    label = label or name_of(place)
    _check_kind(place)
    check_base(loaded, place, label, folder)
    tuned = _load(loaded, place).eval()
    return replace(loaded, model=tuned, adapter=label, trained_prompt=read(place).get("prompt"))


def check_prompt(loaded, prompt) -> None:
    """Warn when an adapter is used with another prompt than the one it was trained with.

    Args:
        loaded: A `LoadedModel`.
        prompt: The `Prompt` that an encoder puts around each sentence.
    """
    trained = loaded.trained_prompt
    if trained is None:
        return
    here = asdict(prompt) | {
        "demonstrations": [f"{d.sentence}=>{d.word}" for d in prompt.demonstrations]
    }
    differ = [name for name in trained if name != "name" and trained[name] != here.get(name)]
    if differ:
        log.warning(
            "adapter %s was trained with prompt %r and %d demonstrations; here %s differ",
            loaded.adapter,
            trained["name"],
            len(trained["demonstrations"]),
            ", ".join(differ),
        )


def merge(loaded, folder: str | os.PathLike) -> None:
    """Write the sum of base and adapter as a plain model that needs no peft, with its provenance.

    Args:
        loaded: From `load_model(…, adapter=…)`, not quantised: into 4-bit weights the adapter would
            be rounded away.
        folder: A new one.

    Raises:
        ValueError: No adapter, a quantised base, or a folder that is not empty.
    """
    if loaded.adapter is None or loaded.quantization is not None:
        raise ValueError(
            "merging needs an adapter on a base that is not quantised, got "
            f"quantization={loaded.quantization!r}, adapter={loaded.adapter!r}; "
            "load it with quantization=None"
        )
    if Path(folder).exists() and any(Path(folder).iterdir()):
        raise ValueError(f"{str(folder)!r} is not empty; choose another folder")
    names = ("name", "hub_id", "weight_origin", "commit", "adapter", "dtype")
    merged = loaded.model.merge_and_unload()
    with files.atomic_folder(folder) as work:
        with silence_transformers():
            merged.save_pretrained(work)
        loaded.tokenizer.save_pretrained(work)
        facts = {"merged": {name: getattr(loaded, name) for name in names}}
        (work / RECORD).write_text(json.dumps(facts, indent=1))


def weights_sample(model) -> list[float]:
    """Return numbers of up to 64 linear layers, on which two loads in one precision agree.

    An adapter merged into the base changes them: two weights of each layer, or the mean scale of a
    quantised one, whose few levels are too coarse to show a small change.
    """
    from transformers.pytorch_utils import Conv1D

    layers = [
        module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
        and not re.search(r"\.lora_|modules_to_save\.", name)
    ]
    layers = layers[:: -(-len(layers) // 64)] if layers else []
    return [float(f"{number:.9g}") for layer in layers for number in _statistics(layer)]


def _statistics(layer: torch.nn.Module) -> list[float]:
    state = getattr(layer.weight, "quant_state", None)  # bitsandbytes, 4 bits
    if state is not None:
        return [float(state.absmax.float().mean() if state.offset is None else state.offset)]
    scales = getattr(layer.weight, "SCB", None)  # 8 bits; after the first call they move
    scales = getattr(getattr(layer, "state", None), "SCB", None) if scales is None else scales
    if scales is not None:
        return [float(scales.float().mean())]
    values = layer.weight.detach().reshape(-1)
    return values[[len(values) // 3, len(values) // 2]].tolist()


def _embedding_sample(model) -> list[float]:
    """The diagonal of the word embeddings, one number in 16."""
    return torch.diagonal(model.get_input_embeddings().weight.detach())[::16].float().tolist()


def _from_hub(hub_id: str) -> tuple[str, str]:
    """Download an adapter; returns its name with the commit, and its folder."""
    from huggingface_hub import snapshot_download

    commit = hub_commit(hub_id, None, _CONFIG)
    wanted = [_CONFIG, *_WEIGHTS, RECORD]
    try:
        folder = snapshot_download(hub_id, revision=commit, allow_patterns=wanted)
    except Exception as error:
        raise OSError(f"adapter {hub_id!r} cannot be had from the hub: {_first(error)}") from error
    return f"{hub_id}@{commit[:8]}", folder


def name_of(place: Path) -> str:
    """Folder and weights' checksum; with the settings' digest where the record has no equal one."""
    folder = place.resolve()
    label = folder.parent.name if folder.name == "adapter" else folder.name
    digest = _config_digest(place)
    suffix = "" if read(place).get("adapter_config") == digest else f"-{digest}"
    return f"{label}@{files.sha256(weights_file(place))[:8]}{suffix}"


def weights_file(adapter: str | os.PathLike) -> Path:
    """Find the weights of a saved adapter, given its folder or that of its run."""
    place = Path(find(adapter))
    for name in _WEIGHTS:
        if (place / name).is_file():
            return place / name
    raise ValueError(f"adapter {str(adapter)!r} has no weights: {' or '.join(_WEIGHTS)} is missing")


def settings(adapter: str | os.PathLike) -> dict:
    """Read peft's configuration of a saved adapter, given its folder or that of its run."""
    return json.loads((Path(find(adapter)) / _CONFIG).read_text(encoding="utf-8"))


def _config_digest(place: Path) -> str:
    config = settings(place)
    kept = {
        name: sorted(value) if isinstance(value, list) else value
        for name, value in config.items()
        if value and name not in _INDIFFERENT
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]


def _check_kind(place: Path) -> None:
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(str(place))
    if config.is_prompt_learning or getattr(config, "is_adaption_prompt", False):
        raise ValueError(
            f"adapter {str(place)!r} is of kind {config.peft_type.value}, which adds virtual "
            "tokens that an encoder does not read; allowed: adapters of weights, such as LoRA"
        )


def check_base(
    loaded, adapter: str | os.PathLike, label: str | None = None, folder: str | os.PathLike = ""
) -> None:
    """Hold a base against what an adapter was trained on, by sampled weights.

    Args:
        loaded: The base, a `LoadedModel`.
        adapter: Its folder, or that of the run that made it.
        label: What messages call it; None takes its name.
        folder: Where the base was read from, to see whether it is a merged model.

    Raises:
        ValueError: The adapter belongs to other weights. Another precision is only a warning.
    """
    place = Path(find(adapter))
    label = label or name_of(place)
    merged = Path(folder) / RECORD
    if merged.is_file():
        inside = json.loads(merged.read_text(encoding="utf-8")).get("merged", {}).get("adapter")
        if inside and inside.split("@")[-1] == label.split("@")[-1]:
            raise ValueError(
                f"{loaded.name} already holds adapter {inside}, merged: load it without an adapter"
            )
    base = read(place).get("base")
    if base is None:  # from elsewhere: the shapes have to fit
        return
    same_name = loaded.name == base["name"] or (loaded.hub_id and loaded.hub_id == base["hub_id"])
    if same_name and loaded.weight_origin != base["weight_origin"]:
        log.warning(
            "adapter %s was trained on weights of another origin (%s, here %s)",
            label,
            base["weight_origin"],
            loaded.weight_origin,
        )
        return
    fits = _close(_embedding_sample(loaded.model), base["sample"], 0.02)
    same_precision = loaded.quantization == base["quantization"]
    if fits and same_precision and "weights" in base:
        tolerance = 2e-5 if loaded.quantization else 0.004  # means of scales, or rounded weights
        fits = _close(weights_sample(loaded.model), base["weights"], tolerance)
    if not fits:
        raise ValueError(
            f"adapter {label} was trained on other weights than those of {loaded.name} (on "
            f"{base['name']}, {base['weight_origin']}): load that model, or another adapter"
        )
    if not same_precision:
        log.warning(
            "adapter %s was trained on a base with quantization=%r, here it is %r; scores differ",
            label,
            base["quantization"],
            loaded.quantization,
        )


def _close(here: list[float], there: list[float], tolerance: float) -> bool:
    """Whether nine of ten numbers agree: devices and 16-bit formats round a few differently."""
    if len(here) != len(there):
        return False
    pair = torch.tensor([here, there], dtype=torch.float64)
    return bool(torch.isclose(*pair, rtol=tolerance, atol=tolerance / 100).double().mean() >= 0.9)


def _load(loaded, place: Path):
    """Attach with peft, then see that every stored weight has its place and every place its weight.

    An adapter that was trained on a model without its head lacks the head's level in its names.
    """
    from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
    from peft.utils import load_peft_weights

    what = f"adapter {str(place)!r} does not fit {loaded.name}"
    stored = load_peft_weights(str(place), device="cpu")
    level = f"base_model.model.{loaded.model.base_model_prefix}."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # missing names are looked at below
            tuned = PeftModel.from_pretrained(loaded.model, str(place))
            places = set(get_peft_model_state_dict(tuned, save_embedding_layers=False))
            known = places | set(tuned.state_dict())
            if not set(stored) & places:
                outer = "base_model.model."
                inside = {level + name.removeprefix(outer): t for name, t in stored.items()}
                outside = {outer + name.removeprefix(level): t for name, t in stored.items()}
                stored = inside if places <= set(inside) else outside
                if places <= set(stored):
                    set_peft_model_state_dict(tuned, stored)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:  # sizes or modules differ
        raise ValueError(f"{what}: it was trained on another model ({_first(error)})") from None
    if wrong := sorted(places - set(stored)) + sorted(set(stored) - known):
        raise ValueError(
            f"{what}: {len(wrong)} of its weights have no place or are missing, such as {wrong[0]}"
        )
    return tuned


def _first(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200]
