"""The sentences and demonstrations that come with this project."""

import os

from prompteol_utils.data.readers import SentenceFileError, clean, read_records
from prompteol_utils.prompts import Demonstration
from prompteol_utils.utils.files import DATA


def load_corpus(path: str | os.PathLike = DATA / "corpus.csv") -> list[str]:
    """Read the 80 sentences of the semantic-search example, in file order."""
    return [clean(record["sentence"], where) for where, record in read_records(path, ["sentence"])]


def load_demonstrations(
    path: str | os.PathLike = DATA / "demonstrations.csv",
) -> list[Demonstration]:
    """Read candidate demonstrations.

    Args:
        path: CSV, TSV, JSONL or Parquet with the columns sentence and word; kind, topic, source
            and names are optional.

    Raises:
        SentenceFileError: A malformed line, a blank sentence, or a word with a quote or a space.

    Source: the demonstration set of the paper (300 candidates).
    """
    optional = ("kind", "topic", "source", "names")
    return [
        _demonstration(
            where,
            record["sentence"],
            record["word"],
            *(record.get(name) or "" for name in optional),
        )
        for where, record in read_records(path, ("sentence", "word"), optional=optional)
    ]


def paper_demonstrations(
    path: str | os.PathLike = DATA / "paper" / "demonstrations.csv",
) -> dict[str, Demonstration]:
    """Read the demonstration that the paper chose for each model size, by model name.

    `kind` says where it comes from. Source: the paper's table of chosen demonstrations.
    """
    columns = ("model", "sentence", "word", "origin", "source")
    return {
        record["model"]: _demonstration(
            where, record["sentence"], record["word"], record["origin"], "", record["source"]
        )
        for where, record in read_records(path, columns)
    }


def _demonstration(where: str, *fields: str) -> Demonstration:
    try:
        return Demonstration(*fields)
    except ValueError as error:
        raise SentenceFileError(f"{where}: {error}") from None
