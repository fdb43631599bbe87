"""The command line: `prompteol COMMAND`. A command imports what it needs when it is called."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from prompteol_utils import __version__
from prompteol_utils.cli.options import HelpFormatter

# Each has add_commands(subcommand), and imports what is heavy inside its functions.
COMMAND_MODULES = ("encode", "evaluate", "demonstrations", "finetune", "experiments", "export")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: As on the command line, without the program's name; None takes them from there.

    Returns:
        The exit code: 0; 1 where a measurement failed; 2 for wrong input; 130 after Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    for variable in ("HF_HUB_DISABLE_PROGRESS_BARS", "TRANSFORMERS_NO_ADVISORY_WARNINGS"):
        os.environ.setdefault(variable, "1")
    try:
        return options.command(options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output (head, say) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if options.debug:
            raise
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 2


def _one_line(error: Exception) -> str:
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.filename and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    if not isinstance(error, ValueError | OSError | RuntimeError | ImportError):
        text = f"{type(error).__name__}: {text} (--debug shows where)"
    return " ".join(text.split())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prompteol", description="Sentence embeddings from language models (PromptEOL)."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def subcommand(name: str, function, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            parents=[common],
            formatter_class=HelpFormatter,
        )
        made.set_defaults(command=function)
        return made

    for module in COMMAND_MODULES:
        importlib.import_module(f"prompteol_utils.cli.{module}").add_commands(subcommand)
    return parser
