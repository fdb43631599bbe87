"""Scores stand beside published ones, and beside each other, only where they may be compared."""

import math

import pandas as pd
import pytest
from samples import RECORD as ROW

from prompteol_utils import results


def paper(**change):
    table = results.paper_table("sts")
    row = table[
        (table["system"] == "PromptEOL OPT-125M")
        & (table["group"] == "PromptEOL")
        & (table["task"] == "stsb")
    ]
    assert len(row) == 1
    return row.assign(**change)


def test_a_difference_only_for_the_same_measurement():
    (row,) = results.compare(pd.DataFrame([ROW]), paper()).to_dict("records")
    assert row == {
        "model": "opt-125m",
        "prompt": "prompteol",
        "task": "stsb",
        "system": "PromptEOL OPT-125M",
        "ours": 60.5,
        "paper": 67.89,
        "difference": pytest.approx(-7.39),
    }


def test_the_archive_on_the_hub_is_the_same_set():
    assert (
        results.compare(pd.DataFrame([ROW | {"origin": "hub"}]), paper())["difference"]
        .notna()
        .all()
    )


@pytest.mark.parametrize(
    "change",
    [
        {"model": "smollm2-135m-instruct"},
        {"prompt": "means"},
        {"demonstrations": ["A man is smoking.=>Smoking"]},
        {"quantization": "nf4"},
        {"adapter": "some/adapter"},
        {"pooling": "mean"},
        {"layer": -2},
        {"split": "dev"},
        {"n": 250},
        {"origin": "mini"},
        {"text_form": "natural"},
        {"aggregation": "mean of subsets"},
    ],
)
def test_anything_else_is_context(change):
    (row,) = results.compare(pd.DataFrame([ROW | change]), paper()).to_dict("records")
    assert row["paper"] == 67.89 and math.isnan(row["difference"])


def test_the_icl_row_is_met_by_its_demonstration():
    table = results.paper_table("sts")
    icl = table[(table["model"] == "opt-125m") & (table["group"] == "PromptEOL+ICL")]
    ours = pd.DataFrame([ROW | {"demonstrations": ["A man is smoking.=>Smoking"]}])
    assert results.compare(ours, icl)["difference"].tolist() == [pytest.approx(60.5 - 67.80)]


def test_compare_keeps_tasks_the_paper_lacks_and_names_missing_columns():
    frame = results.compare(pd.DataFrame([ROW | {"task": "mini"}, ROW]), results.paper_table("sts"))
    assert (
        frame["paper"].isna().tolist()[:1] == [True]
        and len(frame) == 1 + (results.paper_table("sts")["task"] == "stsb").sum()
    )
    assert frame["difference"].notna().sum() == 1
    with pytest.raises(ValueError, match="ours lacks spearman"):
        results.compare(pd.DataFrame([{"model": "", "prompt": "", "task": ""}]), paper())


def test_unknown_paper_table_names_the_known_ones():
    for name in ("nope", "../mini_sts", ""):
        with pytest.raises(
            ValueError, match=r"there are: demonstrations, followups, sts, text_facts, transfer"
        ):
            results.paper_table(name)


@pytest.mark.parametrize(
    "field, other, place",
    [
        ("origin", "mini", "one column"),
        ("text_form", "natural", "task 'stsb'"),
        ("weight_origin", "gguf", "model 'opt-125m'"),
        ("dtype", "bfloat16", "model 'opt-125m'"),
    ],
)
def test_one_origin_refuses_a_mixture(field, other, place):
    frame = pd.DataFrame([ROW, ROW | {"prompt": "means", field: other}])
    with pytest.raises(ValueError, match=f"{field} is mixed within {place}: .*{other}"):
        results.require_comparable(frame)
    assert results.require_comparable(frame, "prompt") is frame
    assert results.require_comparable(frame, shown=[field]) is frame
    with pytest.raises(ValueError, match=f"{field} is mixed within split 'test'"):
        results.require_comparable(frame, "split")
    with pytest.raises(ValueError, match=f"{field} is mixed within one column"):
        results.require_comparable(frame.drop(columns=["task", "model"]))
    assert len(results.require_comparable(frame.drop(columns=field))) == 2


def test_one_origin_looks_across_tasks_for_the_set_but_within_one_for_its_text():
    sick = ROW | {"task": "sickr", "text_form": "tokenised"}
    frame = pd.DataFrame([ROW, sick])
    assert results.require_comparable(frame) is frame
    with pytest.raises(ValueError, match="origin is mixed within one column: mini, senteval"):
        results.require_comparable(pd.DataFrame([ROW, sick | {"origin": "mini"}]))
    two_models = pd.DataFrame(
        [ROW, ROW | {"model": "all-minilm-l6-v2", "weight_origin": "hub fp32"}]
    )
    assert results.require_comparable(two_models) is two_models
