"""Run, check and clean the notebooks: python -m tools.notebooks COMMAND."""

import argparse
import ast
import sys
from collections.abc import Sequence

from tools.notebooks import rules
from tools.notebooks.run import run, smoke_copies


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: As on the command line, without the program's name; None takes them from there.

    Returns:
        The exit code: 0, 1 where a notebook or a check failed, 2 for wrong input, 130 after Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.notebooks", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(command=function)
        return made

    execute = command("run", _run, "execute notebooks in order; the copies go to build/notebooks")
    execute.add_argument(
        "notebooks",
        nargs="*",
        metavar="NOTEBOOK",
        help="a file, a name or its first letters (00); all of them by default",
    )
    execute.add_argument(
        "--profile", help="a name in notebooks/profiles.yml; by default the values in the notebooks"
    )
    execute.add_argument(
        "-p",
        "--parameter",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="override one parameter",
    )
    execute.add_argument("--output", metavar="FOLDER", help="where the executed copies go")
    execute.add_argument(
        "--publish",
        action="store_true",
        help="write the outputs of the default profile into notebooks/",
    )
    for name, text in (
        ("check", "say what breaks the rules for notebooks"),
        ("clean", "take out of notebooks what differs between machines; outputs stay"),
        ("strip", "clean, and take the outputs out too"),
    ):
        made = command(name, _check if name == "check" else _rewrite, text)
        made.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="all of them by default")
        made.set_defaults(change=name)
    copies = command("copies", _copies, "temporary copies with smoke values, for nbval")
    copies.add_argument("folder", help="where the copies go")
    return parser


def _run(options: argparse.Namespace) -> int:
    outcomes = run(
        options.notebooks,
        profile=options.profile,
        overrides={name: _literal(value) for name, value in options.parameter},
        output=options.output,
        publish=options.publish,
    )
    if any(outcome.status == "interrupted" for outcome in outcomes):
        return 130
    return int(any(outcome.status != "ok" for outcome in outcomes))


def _literal(text: str):
    """A value as Python writes it; a word without quotes is a string."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _check(options: argparse.Namespace) -> int:
    paths = rules.find(options.notebooks)
    problems = rules.check(options.notebooks)
    for problem in problems:
        print(problem)
    print(f"{len(paths)} notebooks, {len(problems)} problems")
    return int(bool(problems))


def _rewrite(options: argparse.Namespace) -> int:
    changed = getattr(rules, options.change)(options.notebooks)
    print("\n".join([*map(rules.show, changed), f"{len(changed)} notebooks changed"]))
    return 0


def _copies(options: argparse.Namespace) -> int:
    print(len(smoke_copies(options.folder)), "copies")
    return 0


if __name__ == "__main__":
    sys.exit(main())
