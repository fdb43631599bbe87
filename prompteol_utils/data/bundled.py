"""The sentences and demonstrations that come with this project."""

import os

from prompteol_utils.data.readers import csv_rows as _csv_rows
from prompteol_utils.data.readers import sentence as _sentence
from prompteol_utils.prompts import Demonstration
from prompteol_utils.utils.files import DATA


def load_corpus(path: str | os.PathLike = DATA / "corpus.csv") -> list[str]:
    """Read the sentences of the search example, in file order (columns topic, sentence). Built in notebook 00."""
    return [
        _sentence(row["sentence"], path, line)
        for line, row in _csv_rows(path, ("topic", "sentence"))
    ]


def load_demonstrations(
    path: str | os.PathLike = DATA / "demonstrations.csv",
) -> list[Demonstration]:
    """Read candidate demonstrations from a CSV.

    Args:
        path: Its columns are sentence, word, kind, topic, and, if they are there, source and names.

    Raises:
        ValueError: A malformed row, a blank sentence or word, a word with a quote or space (file and line named).

    Source: the demonstration set of the paper (300 candidates). Built in notebook 02.
    """
    return [
        _demonstration(
            path,
            line,
            row["sentence"],
            row["word"],
            row["kind"],
            row["topic"],
            row.get("source", ""),
            row.get("names", ""),
        )
        for line, row in _csv_rows(path, ("sentence", "word", "kind", "topic"))
    ]


def paper_demonstrations(
    path: str | os.PathLike = DATA / "paper" / "demonstrations.csv",
) -> dict[str, Demonstration]:
    """The one demonstration that the paper chose for each model size, by model name; `kind` is where it comes from.

    Source: the paper's table of chosen demonstrations, cited per row in the file. Built in notebook 02.
    """
    columns = ("model", "sentence", "word", "gain", "origin", "source")
    return {
        row["model"]: _demonstration(
            path, line, row["sentence"], row["word"], row["origin"], "", row["source"]
        )
        for line, row in _csv_rows(path, columns)
    }


def _demonstration(path: str | os.PathLike, line: int, *fields: str) -> Demonstration:
    try:
        return Demonstration(*fields)
    except ValueError as error:
        raise ValueError(f"{path}, line {line}: {error}") from None
