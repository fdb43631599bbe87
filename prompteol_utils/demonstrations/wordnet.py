"""Words and their definitions from a WordNet database folder that the reader has; none of its text is part of this project."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

PARTS = ("noun", "verb", "adj", "adv")


def read_wordnet(folder: str | os.PathLike, *, max_words: int = 12) -> Iterator[tuple[str, str]]:
    """Read dictionary pairs from the files data.noun, data.verb, data.adj and data.adv of a WordNet 3 database.

    Only entries whose first word is a single one in lower case, and whose definition is short, are taken. Examples and remarks after the
    definition are cut off.

    Args:
        folder: The database folder: on Debian and Ubuntu /usr/share/wordnet, from the package wordnet-base.
        max_words: Longest definition.

    Yields:
        (definition with a final period, word with a capital), in the order of the files.

    Raises:
        FileNotFoundError: There is no such folder, or no data file in it.
        ValueError: A malformed line (file and number are named).

    Source: the paper takes its dictionary pairs from the Oxford dictionary, which is not free; WordNet's licence allows use with its
    notice. Format: wndb(5WN). Built in notebook 02.
    """
    folder = Path(folder).expanduser()
    files = [folder / f"data.{part}" for part in PARTS if (folder / f"data.{part}").is_file()]
    if not files:
        raise FileNotFoundError(
            f"{folder} holds no WordNet database: data.noun is missing (Debian and Ubuntu: apt install wordnet-base)"
        )
    for path in files:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if (
                    line.startswith("  ") or not line.strip()
                ):  # the licence, at the head of each file
                    continue
                if pair := _pair(line, path, number, max_words):
                    yield pair


def _pair(line: str, path: Path, number: int, max_words: int) -> tuple[str, str] | None:
    fields, bar, gloss = line.partition(" | ")
    fields = fields.split()
    if not bar or len(fields) < 6 or not re.fullmatch(r"[0-9a-fA-F]{2}", fields[3]):
        raise ValueError(
            f"{path}, line {number}: not an entry of a WordNet database (offset file type count word … | definition)"
        )
    word = re.sub(r"\((a|p|ip)\)$", "", fields[4])  # where an adjective may stand
    definition = re.split(r';\s*"|;', gloss.strip())[0]
    definition = re.sub(r"\s*\([^)]*\)\s*", " ", definition).strip()
    if not re.fullmatch(r"[a-z]{3,}", word) or not 3 <= len(definition.split()) <= max_words:
        return None
    return definition.rstrip(".") + ".", word.capitalize()
