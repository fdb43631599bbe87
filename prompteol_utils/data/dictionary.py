"""Dictionaries: WordNet where the reader has it, and 200 definitions written for this project."""

import os
import re
import zipfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prompteol_utils.data.readers import check_limit, clean, read_records
from prompteol_utils.utils.files import DATA

VARIABLE = "PROMPTEOL_WORDNET"
DEBIAN = "/usr/share/wordnet"
NLTK_FOLDERS = ("~/nltk_data", "/usr/local/share/nltk_data", "/usr/share/nltk_data")
FILES = ("data.noun", "data.verb", "data.adj", "data.adv")


@dataclass(frozen=True)
class Dictionary:
    """Definitions, each with the words that it defines.

    Args:
        words: For each definition, its words; those of one definition are synonyms.
        definitions: Their texts.
        origin: "wordnet", or "project" for the definitions written for this project.
    """

    words: tuple[tuple[str, ...], ...]
    definitions: tuple[str, ...]
    origin: str

    def __len__(self) -> int:
        return len(self.definitions)

    def of(self, word: str) -> np.ndarray:
        """Positions of a word's definitions, one for each of its senses."""
        return np.array([at for at, words in enumerate(self.words) if word in words], dtype=int)


def load_definitions(path: str | os.PathLike = DATA / "definitions.csv") -> dict[str, str]:
    """Read the 200 definitions of this project: word -> definition, in file order."""
    return {
        clean(record["word"], where): clean(record["definition"], where)
        for where, record in read_records(path, ("word", "definition"))
    }


def load_dictionary(
    root: str | os.PathLike | None = None,
    *,
    limit: int | None = None,
    keep: Collection[str] = (),
    seed: int = 0,
) -> Dictionary:
    """Load WordNet's definitions, or without WordNet those of this project.

    Args:
        root: A folder with WordNet's data files (Debian's wordnet-base), or one of NLTK's
            downloads. None looks where PROMPTEOL_WORDNET says, then where Debian and NLTK put it.
        limit: At most so many definitions; None: all. Those that are kept come first, then a
            seeded order, so that a small sample is the beginning of a larger one.
        keep: Words whose definitions are in every sample, all senses.
        seed: Of that order.

    Raises:
        FileNotFoundError: A folder was named and holds no WordNet.
        ValueError: A malformed line, or a limit that does not hold what is kept.
    """
    limit = check_limit(limit)
    folder = find_wordnet(root)
    if folder is None:
        own = load_definitions()
        whole = Dictionary(tuple((word,) for word in own), tuple(own.values()), "project")
    else:
        entries = [(words, definition(gloss)) for words, gloss in wordnet_entries(folder)]
        words, texts = zip(*entries, strict=True)
        whole = Dictionary(words, texts, "wordnet")
    if limit is None or limit >= len(whole):
        return whole
    keep = set(keep)
    kept = [at for at, words in enumerate(whole.words) if keep.intersection(words)]
    if len(kept) > limit:
        raise ValueError(f"limit is {limit}, but {len(kept)} definitions are of words to keep")
    rest = np.setdiff1d(np.arange(len(whole)), kept)
    order = [*kept, *np.random.default_rng(seed).permutation(rest).tolist()][:limit]
    texts = tuple(whole.definitions[at] for at in order)
    return Dictionary(tuple(whole.words[at] for at in order), texts, whole.origin)


def find_wordnet(root: str | os.PathLike | None = None) -> "Path | zipfile.Path | None":
    """Find WordNet's data files: in a named folder, else where Debian or NLTK put them.

    Raises:
        FileNotFoundError: A folder was named and holds none.
    """
    if named := root or os.environ.get(VARIABLE):
        if (found := _wordnet_in(Path(named).expanduser())) is not None:
            return found
        raise FileNotFoundError(
            f"{named} holds no WordNet database: data.noun is missing "
            "(Debian and Ubuntu: apt install wordnet-base)"
        )
    nltk = [os.environ.get("NLTK_DATA"), *NLTK_FOLDERS]
    places = (Path(place).expanduser() for place in (DEBIAN, *filter(None, nltk)))
    return next(filter(None, map(_wordnet_in, places)), None)


def _wordnet_in(folder: Path) -> "Path | zipfile.Path | None":
    for inside in (folder, folder / "corpora" / "wordnet"):
        if (inside / FILES[0]).is_file():
            return inside
    archive = folder / "corpora" / "wordnet.zip"  # NLTK leaves this one packed
    return zipfile.Path(archive, "wordnet/") if archive.is_file() else None


def wordnet_entries(folder: "Path | zipfile.Path") -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the words and the gloss of each entry of a WordNet 3 database, in file order.

    A gloss is the definition and, after semicolons, examples in quotes. None of WordNet's text is
    part of this project.

    Raises:
        ValueError: A malformed line (file and number are named).

    Format: wndb(5WN).
    """
    for name in FILES:
        path = folder / name
        if not path.is_file():
            continue
        with path.open("r", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.startswith("  ") or not line.strip():  # the licence heads each file
                    continue
                yield _entry(line, f"{path}, line {number}")


def _entry(line: str, where: str) -> tuple[tuple[str, ...], str]:
    entry, bar, gloss = line.partition(" | ")
    fields = entry.split()
    if not bar or len(fields) < 6 or not re.fullmatch(r"[0-9a-fA-F]{2}", fields[3]):
        raise ValueError(
            f"{where}: not an entry of a WordNet database "
            "(offset file type count word … | definition)"
        )
    words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
    words = (re.sub(r"\((a|p|ip)\)$", "", word) for word in words)  # an adjective's place
    return tuple(word.replace("_", " ") for word in words), gloss.strip()


def definition(gloss: str) -> str:
    """A gloss without its examples."""
    return " ".join(re.split(r';\s*"', gloss)[0].strip().rstrip(";").split())
