"""What the tests of the sets written for this project share: rows that know their line, and
passages that may not stand twice.
"""

import csv
import re

RUN = 5  # so many words in a row are a passage


def read(path, columns):
    """Rows of a CSV with exactly these columns; each also says `where` it stands."""
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        assert reader.fieldnames == columns, (
            f"{path.name}:1: columns are {reader.fieldnames}; write {columns}"
        )
        rows = []
        for row in reader:
            where = f"{path.name}:{reader.line_num}"
            # DictReader files surplus cells under None and fills missing ones with None.
            assert None not in row and None not in row.values(), (
                f"{where}: not {len(columns)} cells; quote a text that has a comma"
            )
            rows.append(row | {"where": where})
    return rows


def words(text):
    """Its words in lower case."""
    return re.findall(r"[a-z0-9]+", text.lower())


def passages(text):
    """All runs of `RUN` words, in order."""
    tokens = words(text)
    return [" ".join(tokens[start : start + RUN]) for start in range(len(tokens) - RUN + 1)]
