"""A LoRA adapter: fresh on a model; saved with its base and prompt, put back only where it belongs, merged into plain weights."""

import copy
import json
import logging
import os
import re
from pathlib import Path

import torch

from prompteol_utils.utils import files

RECORD = "prompteol.json"  # beside peft's own two files
_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
log = logging.getLogger(__name__)


def add_lora(model, *, rank: int, alpha: int, dropout: float, layers: int | None = None):
    """Put new LoRA matrices on every linear layer but the head; the model computes as before until they are trained.

    Args:
        model: A transformers model.
        rank: r, the matrices' smaller side.
        alpha: Their product is scaled by alpha / rank.
        dropout: Of their input.
        layers: Only on the last so many layers; None takes all.

    Returns:
        The peft model.

    Built in notebook 04.
    """
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    where: dict = {"target_modules": "all-linear"}
    if layers is not None:  # peft takes numbers of layers only beside the names of their parts
        linear = {
            name
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear | Conv1D)
        }
        inside = {
            name.rpartition(".")[2] for name in linear if re.search(r"\.\d+\.", name)
        }  # of a layer; the head is in none
        depth = model.config.get_text_config().num_hidden_layers
        where = {
            "target_modules": sorted(inside),
            "layers_to_transform": list(range(depth - layers, depth)),
        }
    lora = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, task_type="FEATURE_EXTRACTION", **where
    )
    return get_peft_model(model, lora)


def save(loaded, folder: str | os.PathLike, **record) -> None:
    """Save the adapter of a model, whole or not at all.

    Args:
        loaded: A `LoadedModel` whose model is a peft model.
        folder: Replaced if it is there.
        **record: Plain values to keep beside the weights, such as the prompt and how it was trained.

    Raises:
        files.CacheError: The disk is full or the folder read-only; what was there before is untouched.

    Built in notebook 04.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    weights = get_peft_model_state_dict(loaded.model, save_embedding_layers=False)
    config = copy.copy(loaded.model.peft_config["default"])
    config.base_model_name_or_path, config.inference_mode = (
        loaded.hub_id or loaded.name,
        True,
    )  # not the path of a cache folder
    base = {
        name: getattr(loaded, name)
        for name in ("name", "hub_id", "weight_origin", "quantization", "dtype", "commit")
    }
    with files.atomic_folder(folder) as work:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()},
            work / _WEIGHTS,
            {"format": "pt"},
        )
        config.save_pretrained(work)
        (work / RECORD).write_text(
            json.dumps(
                {"base": base | {"sample": _sample(loaded.model)}, **record},
                indent=1,
                ensure_ascii=False,
            )
        )


def read(adapter: str | os.PathLike) -> dict:
    """What was kept beside an adapter's weights: its base, its prompt, how it was trained. Empty for one from elsewhere.

    Args:
        adapter: Its folder, or that of the run that made it.
    """
    file = Path(find(adapter)) / RECORD
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def find(adapter: str | os.PathLike) -> str:
    """Where an adapter lies: the folder itself, the folder `adapter` in that of a run, or the id of a hub repository.

    Raises:
        ValueError: The folder holds no adapter, or the name can be no hub id.
    """
    folder = Path(adapter).expanduser()
    for place in (folder, folder / "adapter"):
        if (place / _CONFIG).is_file():
            return str(place)
    if folder.is_dir():
        raise ValueError(
            f"folder {str(adapter)!r} holds no adapter: {_CONFIG} is missing, there and in its folder adapter/"
        )
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(adapter)):
        raise ValueError(
            f"no adapter {str(adapter)!r}: it is no folder, and no hub id like 'org/name'"
        )
    return str(adapter)


def attach(model, adapter: str | os.PathLike, name: str, hub_id: str, weight_origin: str):
    """Put a saved adapter on its base model.

    Args:
        model: The base, as transformers loads it.
        adapter: As for `find`.
        name: What rows call the base.
        hub_id: Its hub id, or "".
        weight_origin: How its weights came to be.

    Returns:
        The peft model, and a name for the adapter that is another one whenever its weights are.

    Raises:
        ValueError: There is no adapter, or it belongs to another base model.
    """
    from peft import PeftModel

    place = find(adapter)
    _check_base(model, place, name, hub_id, weight_origin)
    try:
        tuned = PeftModel.from_pretrained(model, place)
    except (RuntimeError, ValueError) as error:  # size mismatch, or modules that are not there
        raise ValueError(
            f"adapter {str(adapter)!r} does not fit {name}: it was trained on another model ({_first(error)})"
        ) from None
    except OSError as error:
        raise OSError(f"adapter {str(adapter)!r} cannot be had: {_first(error)}") from error
    folder = Path(place).resolve()
    if not folder.is_dir():
        return tuned, place  # a hub id, as the paper's table has it
    label = folder.parent.name if folder.name == "adapter" else folder.name
    return tuned, f"{label}@{files.sha256(folder / _WEIGHTS)[:8]}"


def merge(loaded, folder: str | os.PathLike) -> None:
    """Write the sum of base and adapter as a plain model that needs no peft.

    Args:
        loaded: From `load_model(…, adapter=…)`, not quantised: into 4-bit weights the adapter would be rounded away.
        folder: A new one.

    Raises:
        ValueError: No adapter, a quantised base, or a folder that is not empty.

    Built in notebook 04.
    """
    if loaded.adapter is None or loaded.quantization is not None:
        found = f"quantization={loaded.quantization!r}, adapter={loaded.adapter!r}"
        raise ValueError(
            f"merging needs an adapter on a base that is not quantised, got {found}; load it with quantization=None"
        )
    if Path(folder).exists() and any(Path(folder).iterdir()):
        raise ValueError(
            f"{str(folder)!r} is not empty, and nothing there is overwritten; choose another folder"
        )
    merged = loaded.model.merge_and_unload()
    with files.atomic_folder(folder) as work:
        merged.save_pretrained(work)
        loaded.tokenizer.save_pretrained(work)


def _check_base(model, place: str, name: str, hub_id: str, weight_origin: str) -> None:
    base = read(place).get("base") if Path(place).is_dir() else None
    if base is None:  # from elsewhere: peft says whether the shapes fit
        return
    if name == base["name"] or (hub_id and hub_id == base["hub_id"]):
        if weight_origin != base["weight_origin"]:
            log.warning(
                "the adapter was trained on weights of another origin (%s, here %s)",
                base["weight_origin"],
                weight_origin,
            )
        return
    here = _sample(model)
    if len(here) != len(base["sample"]) or not torch.allclose(
        torch.tensor(here), torch.tensor(base["sample"]), rtol=0.02, atol=1e-3
    ):
        raise ValueError(
            f"adapter {place!r} was trained on {base['name']}, not on {name}: load {base['name']}, or another adapter"
        )


def _sample(model) -> list[float]:
    """A few numbers by which a base is known again when its folder has moved: the diagonal of its word embeddings, one in 16."""
    return torch.diagonal(model.get_input_embeddings().weight.detach())[::16].float().tolist()


def _first(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200]
