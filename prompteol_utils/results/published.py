"""Numbers published in papers, and what may be compared with them."""

import math
import re
from collections.abc import Sequence

import pandas as pd

from prompteol_utils.utils.files import DATA

PAPER = DATA / "paper"


SAME = (
    "model",
    "prompt",
    "demonstrations",
    "quantization",
    "adapter",
    "pooling",
    "layer",
    "split",
    "n",
    "origin",
    "text_form",
    "aggregation",
)


_COMPARED = {"origin": None, "text_form": "task", "weight_origin": "model", "dtype": "model"}


def paper_table(name: str) -> pd.DataFrame:
    """A table of published numbers, each row with its source.

    Args:
        name: "sts" (with and without fine-tuning), "demonstrations", "transfer", "followups" or
            "text_facts"; described in data/README.md.

    Raises:
        ValueError: no such table; the message lists them.
    """
    file = PAPER / f"{name}.csv"
    if not re.fullmatch(r"\w+", name) or not file.is_file():
        known = ", ".join(sorted(one.stem for one in PAPER.glob("*.csv")))
        raise ValueError(f"unknown paper table {name!r}; there are: {known}")
    table = pd.read_csv(file)
    texts = [column for column in table.columns if not pd.api.types.is_numeric_dtype(table[column])]
    return table.fillna(dict.fromkeys(texts, ""))


def compare(ours: pd.DataFrame, paper: pd.DataFrame) -> pd.DataFrame:
    """Our STS rows beside published ones of the same task.

    A difference is filled in only where both are the same measurement: every field of `SAME`
    agrees. Anywhere else the published number is context, and the difference is NaN.

    Args:
        ours: rows of a store; ``spearman`` is taken, which is the "all" aggregation.
        paper: rows of ``paper_table("sts")``, those that are to stand beside ours.

    Returns:
        Columns model, prompt, task, system, ours, paper, difference; one row for each pair.
    """
    for frame, name, needed in (
        (ours, "ours", ("model", "prompt", "task", "spearman")),
        (paper, "paper", ("system", "task", "score")),
    ):
        if missing := [column for column in needed if column not in frame.columns]:
            raise ValueError(
                f"{name} lacks {', '.join(missing)}; it has {', '.join(map(str, frame.columns))}"
            )
    published: dict[str, list[dict]] = {}
    for row in paper.to_dict("records"):
        published.setdefault(row["task"], []).append(row)
    rows = []
    for row in ours.to_dict("records"):
        for other in published.get(row["task"], [{"system": "", "score": math.nan}]):
            same = all(
                _alike({"aggregation": "all"} | row, name) == _alike(other, name) for name in SAME
            )
            difference = row["spearman"] - other["score"] if same else math.nan
            both = {
                "system": other["system"],
                "ours": row["spearman"],
                "paper": other["score"],
                "difference": difference,
            }
            rows.append({name: row[name] for name in ("model", "prompt", "task")} | both)
    return pd.DataFrame(
        rows, columns=["model", "prompt", "task", "system", "ours", "paper", "difference"]
    )


def _alike(row: dict, name: str) -> str:
    """A field as a CSV has it: None is "", a list is joined, 3 is 3.0; hub is SentEval."""
    value = row.get(name)
    if name == "origin" and value == "hub":
        return "senteval"
    if name == "adapter" and isinstance(value, str) and "/" in value:
        return value.partition("@")[0]  # of the hub; papers do not name the commit
    if isinstance(value, list | tuple):
        return " | ".join(map(str, value))
    return (
        ""
        if value is None or value != value
        else str(int(value) if isinstance(value, float) and value.is_integer() else value)
    )


def require_comparable(
    frame: pd.DataFrame, column: str | None = None, *, shown: Sequence[str] = ()
) -> pd.DataFrame:
    """Refuse to show scores as comparable that are not. Tables and plots call it.

    In one column of a table there is one origin, one text form a task (SentEval's SICK keeps its
    upper case, the other sets do not), and one weight origin and one dtype a model.

    Args:
        frame: Records of scores; those of the four fields that it has are checked.
        column: The field whose values become separate columns; None: all stand in one.
        shown: Fields that the table shows beside each score, which may therefore differ;
            "precision" stands for dtype and quantization.

    Returns:
        The frame itself.

    Raises:
        ValueError: A field is mixed; its values are named.
    """
    visible = {column, *shown} | ({"dtype"} if "precision" in shown else set())
    for field, within in (*_COMPARED.items(), ("origin", "task")):
        if field not in frame or field in visible:
            continue
        by = [name for name in (column, within) if name is not None and name in frame]
        groups = frame.groupby(by, dropna=False, sort=False)[field] if by else [((), frame[field])]
        for where, values in groups:
            kinds = set(map(str, values))
            if within is None:  # two files of one's own are two tasks, not two copies of one
                kinds = {kind.partition(":")[0] for kind in kinds}
            if len(kinds := sorted(kinds)) > 1:
                places = [f"{name} {one!r}" for name, one in zip(by, where, strict=True)]
                raise ValueError(
                    f"{field} is mixed within {' and '.join(places) or 'one column'}: "
                    f"{', '.join(kinds)}; show them in separate columns, or leave one out"
                )
    return frame
