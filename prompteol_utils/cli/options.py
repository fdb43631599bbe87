"""Options of the command line: each declared once, with one word and one meaning everywhere."""

import argparse
from collections.abc import Mapping

DEFAULT_MODEL = "smollm2-135m-instruct"
_TASKS = "sts12 sts13 sts14 sts15 sts16 stsb sickr, or a file with sentence1, sentence2, score"


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a number of at least 1 is needed, not {text!r}")
    return int(text)


_OPTIONS: Mapping[str, dict] = {
    "model": {"required": True, "help": "a name from `prompteol models`, a hub id, or a folder"},
    "adapter": {"metavar": "DIR", "help": "LoRA adapter: a folder or a hub id"},
    "quantization": {"choices": ("nf4", "int8"), "help": "through bitsandbytes (default: none)"},
    "dtype": {
        "choices": ("float32", "bfloat16", "float16"),
        "help": "(default: float32 on a CPU, 16 bits on a GPU)",
    },
    "device": {"help": "cpu, cuda, cuda:1, mps (default: the GPU if there is one)"},
    "prompt": {"help": "a name from PROMPTS (default: the model's own, prompteol for an LLM)"},
    "demonstration": {
        "action": "append",
        "default": [],
        "metavar": '"SENTENCE=>WORD"',
        "help": "in-context example before the prompt; repeat for more (default: none)",
    },
    "pooling": {"choices": ("last", "mean", "cls", "mask"), "help": "(default: the prompt's own)"},
    "layer": {"type": int, "default": -1, "help": "index of the hidden states"},
    "tasks": {"nargs": "+", "default": ["stsb"], "metavar": "TASK", "help": _TASKS},
    "split": {"default": "test", "help": "test, or dev and train where the set has them"},
    "root": {
        "metavar": "FOLDER",
        "help": "SentEval's downstream folder (default: PROMPTEOL_SENTEVAL, else the hub, "
        "else the small set of this project)",
    },
    "limit": {"type": positive, "metavar": "N", "help": "a seeded sample of N (default: all)"},
    "seed": {"type": int, "default": 0, "help": "of that sample"},
    "batch-tokens": {
        "type": positive,
        "metavar": "N",
        "help": "tokens in a batch (default: 512 on a CPU, 16384 on a GPU)",
    },
    "output": {
        "metavar": "FILE",
        "help": "JSON lines; finished measurements are appended, and skipped when found there",
    },
}
ENCODER = ("model", "adapter", "quantization", "dtype", "device", "demonstration", "pooling")
ENCODER += ("layer",)
SAMPLE = ("root", "limit", "seed")


class HelpFormatter(argparse.HelpFormatter):
    """Show the default of every option that does not say it itself."""

    def _get_help_string(self, action: argparse.Action) -> str:
        said = "(default" in action.help or action.required
        shown = action.default not in (None, argparse.SUPPRESS, False) and action.option_strings
        return action.help if said or not shown else f"{action.help} (default: %(default)s)"


def add(parser: argparse.ArgumentParser, *names: str, **changes) -> None:
    """Add shared options to a subcommand.

    Args:
        parser: The subcommand's parser.
        *names: Of the options, without dashes.
        **changes: What differs from the shared declaration, for all of these options.
    """
    for name in names:
        parser.add_argument(f"--{name}", **{**_OPTIONS[name], **changes})


def load(options: argparse.Namespace):
    """Load the model that the options name, and make its prompts.

    Returns:
        The loaded model, and a list with one prompt for each that was asked for. Wrong prompts
        are refused before a model is loaded.
    """
    from prompteol_utils.models.registry import MODELS
    from prompteol_utils.prompts import parse_demonstration, with_demonstrations

    own = MODELS[options.model].prompt if options.model in MODELS else "prompteol"
    demonstrations = [parse_demonstration(text) for text in options.demonstration]
    names = options.prompt if isinstance(options.prompt, list) else [options.prompt]
    prompts = [with_demonstrations(name or own, demonstrations) for name in names]
    from prompteol_utils.models.loading import load_model

    settings = {
        name: getattr(options, name, None)
        for name in ("dtype", "quantization", "device", "adapter")
    }
    return load_model(options.model, **settings), prompts


def print_table(table, columns: list[str] | None = None) -> None:
    """Print a DataFrame, two decimals, without its index."""
    shown = table.reindex(columns=columns) if columns else table
    print(shown.to_string(index=False, float_format="{:.2f}".format, na_rep=""), flush=True)
