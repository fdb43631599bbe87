"""The published numbers are copied right: what can be recomputed is, what has no source is not
there, and no file changes unseen.

Run as a script, it writes the checksums of data/README.md anew.
"""

import re
from pathlib import Path

import pandas as pd
import pytest

from prompteol_utils.data import STS_TASKS, paper_demonstrations
from prompteol_utils.models import MODELS
from prompteol_utils.prompts import PROMPTS
from prompteol_utils.results import PAPER, paper_table
from prompteol_utils.utils import files

DATA = PAPER.parent
NAMES = ("sts", "demonstrations", "transfer", "followups", "text_facts")
SIZES = ("125m", "350m", "1.3b", "2.7b", "6.7b", "13b", "30b", "66b")
CLOSE = 0.0101  # both the average and the scores in it were rounded to two places
NOT_THE_MEAN = {("PromptBERT", "unsupervised fine-tuned"): 78.52}  # seed-averaged in its own paper


def wide(name: str, index: list[str]) -> pd.DataFrame:
    return paper_table(name).pivot(index=index, columns="task", values="score")


def means(table: pd.DataFrame) -> pd.DataFrame:
    """(published, recomputed) of every complete row."""
    whole = table.dropna()
    return pd.DataFrame(
        {"published": whole["avg"], "recomputed": whole.drop(columns="avg").mean(axis=1)}
    )


def test_every_sts_row_is_complete_and_has_its_mean():
    table = wide("sts", ["group", "system"])
    assert sorted(table.columns) == sorted([*STS_TASKS, "avg"]) and table.notna().all(axis=None)
    both = means(table)
    off = (both["published"] - both["recomputed"]).abs()
    exceptions = [(group, system) for system, group in NOT_THE_MEAN]
    assert off[~off.index.isin(exceptions)].max() <= CLOSE, off[off > 0.01].to_string()
    for (system, group), mean in NOT_THE_MEAN.items():
        assert (
            round(both.loc[(group, system), "recomputed"], 2)
            == mean
            != both.loc[(group, system), "published"]
        )


def test_all_systems_are_there():
    systems = paper_table("sts").groupby("group")["system"].unique().map(sorted).to_dict()
    sizes = ["OPT-" + size.upper() for size in SIZES]
    assert systems == {
        "unsupervised fine-tuned": ["PromptBERT", "PromptRoBERTa", "SimCSE-BERT", "SimCSE-RoBERTa"],
        "no fine-tuning": ["BERT avg.", "BERT prompt", "ST5-Enc"],
        "PromptEOL": sorted(f"PromptEOL {size}" for size in sizes),
        "PromptEOL+ICL": sorted(f"PromptEOL+ICL {size}" for size in sizes),
        "PromptEOL fine-tuned (NLI, QLoRA)": sorted(
            f"PromptEOL+CSE {size}"
            for size in (
                "OPT-1.3B",
                "OPT-2.7B",
                "OPT-6.7B",
                "OPT-13B",
                "LLaMA-7B",
                "LLaMA-13B",
                "LLaMA-30B",
            )
        ),
        "supervised fine-tuned baseline": ["PromptRoBERTa", "SGPT", "ST5-Enc", "SimCSE-RoBERTa"],
    }


def test_each_gain_is_the_difference_of_two_averages():
    averages = (
        paper_table("sts")
        .query("task == 'avg'")
        .pivot_table(index="model", columns="group", values="score")
    )
    gains = paper_table("demonstrations").set_index("model")["gain"]
    assert list(gains.index) == [f"opt-{size}" for size in SIZES]
    assert (averages["PromptEOL+ICL"] - averages["PromptEOL"]).reindex(gains.index).round(
        2
    ).to_dict() == gains.to_dict()


def test_each_icl_row_names_the_demonstration_that_was_chosen():
    chosen = {model: str(one) for model, one in paper_demonstrations().items()}
    table = paper_table("sts")
    assert table[table["group"] == "PromptEOL+ICL"].groupby("model")["demonstrations"].unique().map(
        list
    ).to_dict() == {model: [demonstration] for model, demonstration in chosen.items()}
    assert set(table.loc[table["group"] != "PromptEOL+ICL", "demonstrations"]) == {""}


def test_the_corrected_row_is_not_its_neighbour():
    icl = wide("sts", ["group", "system"]).loc["PromptEOL+ICL"]
    assert (
        icl.loc["PromptEOL+ICL OPT-30B", "avg"] == 78.94
        and (icl.loc["PromptEOL+ICL OPT-30B"] != icl.loc["PromptEOL+ICL OPT-66B"]).all()
    )
    assert not icl.duplicated().any()
    notes = paper_table("sts").query("system == 'PromptEOL+ICL OPT-30B'")["note"]
    assert notes.str.startswith("corrected").all()


def test_sts_rows_speak_the_words_of_our_own_rows():
    table = paper_table("sts")
    tasks = table[table["task"] != "avg"]
    assert tasks.groupby("task")["n"].unique().map(list).to_dict() == {
        "sts12": [3108],
        "sts13": [1500],
        "sts14": [3750],
        "sts15": [3000],
        "sts16": [1186],
        "stsb": [1379],
        "sickr": [4927],
    }
    assert (
        set(tasks["aggregation"]) == {"all"}
        and set(table["origin"]) == {"senteval"}
        and set(table["split"]) == {"test"}
    )
    assert set(tasks.loc[tasks["task"] == "sickr", "text_form"]) == {"tokenised"}
    assert set(tasks.loc[tasks["task"] != "sickr", "text_form"]) == {"tokenised lower case"}
    assert set(table.loc[table["group"].isin(["PromptEOL", "PromptEOL+ICL"]), "model"]) <= set(
        MODELS
    )
    assert set(table["prompt"]) == {"", "prompteol"} and "prompteol" in PROMPTS
    tuned = table[table["group"].str.startswith("PromptEOL fine-tuned")]
    assert (tuned["adapter"] == "royokong/prompteol-" + tuned["model"]).all() and (
        tuned["adapter"] != ""
    ).sum() == (table["adapter"] != "").sum()


def test_transfer_has_sourced_rows_only():
    table = paper_table("transfer")
    both = means(wide("transfer", ["group", "system"]))
    assert len(both) == 10 and ((both["published"] - both["recomputed"]).abs() <= CLOSE).all()
    own = table[
        table["source"].str.contains("2307.16645")
    ]  # the paper's table was not found: only what its text says
    assert own[["model", "task", "score"]].to_numpy().tolist() == [
        ["opt-6.7b", "avg", 91.34],
        ["opt-6.7b", "avg", 91.78],
    ]
    rest = table.drop(own.index)
    assert (
        set(rest["model"]) == {"llama-2-7b", ""}
        and rest["source"].str.contains("2505.12831|2412.11556").all()
    )
    assert set(rest.loc[rest["model"] == "", "system"]) == {"SimCSE-RoBERTa", "ST5-Enc"}
    assert len(table) == 10 * 8 + 2


def test_followups_have_their_means():
    both = means(wide("followups", ["model", "system"]))
    assert len(both) == 12 and ((both["published"] - both["recomputed"]).abs() <= CLOSE).all()
    assert not paper_table("followups").duplicated(["system", "model", "task"]).any()


@pytest.mark.parametrize("name", NAMES)
def test_every_row_cites_a_paper_and_its_grade(name):
    table = paper_table(name)
    assert table["source"].str.contains(r"\b2\d{3}\.\d{5}\b").all()
    assert set(table["grade"]) <= {"as printed", "cross-checked"}
    assert (
        table["source"].str.contains("cross-checked:") == (table["grade"] == "cross-checked")
    ).all()
    numbers = table["gain" if name == "demonstrations" else "score"]
    assert numbers.between(0, 100).all()
    text = (PAPER / f"{name}.csv").read_text(encoding="utf-8")
    assert not re.search(r"\[[SCMX]\]|recalled|\bSEED\b|\r| ,|, (?=,)", text)


def test_no_other_table_is_there():
    assert {path.stem for path in PAPER.iterdir()} == set(NAMES)


# --- checksums


def checksum_table() -> str:
    paths = sorted(
        path for path in DATA.rglob("*") if path.is_file() and not path.name.startswith(".")
    )
    names = [path.relative_to(DATA).as_posix() for path in paths]
    rows = [
        f"| `{name}` | `{files.sha256(DATA / name)}` |"
        for name in names
        if name != "README.md" and not name.startswith("results/")
    ]
    return "\n".join(["| file | sha256 |", "|---|---|", *rows]) + "\n"


def readme_parts() -> tuple[str, str]:
    head, found, table = (
        (DATA / "README.md").read_text(encoding="utf-8").partition("| file | sha256 |\n")
    )
    return head, found + table


def test_checksums_are_those_of_the_readme():
    right = checksum_table()
    assert readme_parts()[1] == right, (
        f"a file in data/ changed; if on purpose, run `python "
        f"tests/results/{Path(__file__).name}`:\n{right}"
    )


if __name__ == "__main__":
    (DATA / "README.md").write_text(
        readme_parts()[0] + checksum_table(), encoding="utf-8", newline="\n"
    )
