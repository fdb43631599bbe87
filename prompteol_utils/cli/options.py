"""What several verbs of the command line share: options of an encoder, the model and prompts they name, a row's identity."""

import argparse

DEFAULT_MODEL = "smollm2-135m-instruct"


def encoder_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which encoder a verb uses."""
    parser.add_argument(
        "--model", required=True, help="a name from `models`, a hub id like org/name, or a folder"
    )
    parser.add_argument(
        "--demonstration",
        action="append",
        default=[],
        metavar='"SENTENCE=>WORD"',
        help="in-context example; repeat for more",
    )
    parser.add_argument("--quantization", choices=("nf4", "int8"), help="needs bitsandbytes")
    parser.add_argument("--adapter", metavar="DIR", help="a LoRA adapter on top of the model")
    parser.add_argument(
        "--device", help="cpu, cuda, cuda:1, mps; by default the GPU if there is one"
    )
    parser.add_argument("--dtype", help="float32, bfloat16 or float16; by default float32 on a CPU")
    parser.add_argument(
        "--pooling", choices=("last", "mean", "cls", "mask"), help="by default the prompt's own"
    )
    parser.add_argument(
        "--layer", type=int, default=-1, help="index of the hidden states (default: the last)"
    )


def positive(text: str) -> int:
    """An option's whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a number of at least 1 is needed, not {text!r}")
    return int(text)


def load(options: argparse.Namespace):
    """The model and its prompts; wrong prompts are said before a model is loaded."""
    from prompteol_utils.prompts import parse_demonstration, with_demonstrations

    demonstrations = [parse_demonstration(text) for text in options.demonstration]
    names = options.prompts if hasattr(options, "prompts") else [options.prompt]
    prompts = [
        with_demonstrations(name or own_prompt(options.model), demonstrations)
        for name in names or [None]
    ]
    from prompteol_utils.models.loading import load_model

    loaded = load_model(
        options.model,
        dtype=options.dtype,
        quantization=options.quantization,
        device=options.device,
        adapter=options.adapter,
    )
    return loaded, prompts


def own_prompt(model: str) -> str:
    """The prompt that a model's row in the registry names, PromptEOL for any other model."""
    from prompteol_utils.models.registry import MODELS

    return MODELS[model].prompt if model in MODELS else "prompteol"


def row_key(encoder, task: str, pairs, options: argparse.Namespace) -> dict:
    """What makes a row the same measurement: all its settings, none of its results."""
    loaded = encoder.loaded
    return {
        "model": loaded.name,
        "prompt": encoder.prompt.name,
        "demonstrations": [f"{d.sentence}=>{d.word}" for d in encoder.prompt.demonstrations],
        "quantization": loaded.quantization,
        "adapter": loaded.adapter,
        "pooling": encoder.pooling,
        "layer": options.layer,
        "engine": "reference" if options.reference else "encoder",
        "task": task,
        "split": options.split,
        "n": len(pairs),
        "origin": pairs.origin,
        "text_form": pairs.text_form,
        "weight_origin": loaded.weight_origin,
        "model_commit": loaded.commit,
        "dtype": loaded.dtype,
        "seed": options.seed,
    }
