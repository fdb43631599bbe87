"""STS scores against a by-hand version, what must not change them, and bad embeddings that
name their sentence.
"""

import os
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, rankdata

from prompteol_utils.data import Pairs, load_mini_sts, load_sts
from prompteol_utils.evaluation import (
    alignment,
    anisotropy,
    cosines,
    embed_pairs,
    embedding_geometry,
    evaluate_sts,
    rank_errors_by_kind,
    spearman,
    spearman_by_subset,
    uniformity,
)


def letters(sentences):
    """A tiny but real encoder: how often each letter occurs."""
    counts = [[sentence.lower().count(chr(97 + i)) for i in range(26)] for sentence in sentences]
    return np.asarray(counts, dtype=np.float32)


def pairs_of(gold, left=None, right=None, subset=None, name="toy", kind=()):
    n = len(gold)
    left = left or tuple(f"left {i}" for i in range(n))
    right = right or tuple(f"right {i}" for i in range(n))
    return Pairs(
        name,
        tuple(left),
        tuple(right),
        np.asarray(gold, float),
        tuple(subset or ["s"] * n),
        "mini",
        "natural",
        tuple(kind),
    )


def lookup(table):
    return lambda sentences: np.asarray([table[sentence] for sentence in sentences])


def vectors_of(pairs, left, right):
    return lookup(dict(zip(pairs.left + pairs.right, [*left, *right], strict=True)))


DEV = load_mini_sts("dev")


# --- the score ---


def test_the_score_is_senteval_all_and_the_plain_mean_of_subsets():
    """Written out with Pearson on ranks: one ranking over all pairs, and one in each subset."""
    sides = zip(letters(DEV.left).astype(float), letters(DEV.right).astype(float), strict=True)
    similarity = np.array([a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in sides]).round(
        9
    )  # equal cosines are ties
    by_hand = 100 * pearsonr(rankdata(similarity), rankdata(DEV.gold)).statistic
    parts = []
    for genre in sorted(set(DEV.subset)):
        at = [i for i, name in enumerate(DEV.subset) if name == genre]
        parts.append(100 * pearsonr(rankdata(similarity[at]), rankdata(DEV.gold[at])).statistic)
    table = evaluate_sts(letters, DEV)
    assert list(table.columns) == [
        "task",
        "spearman",
        "spearman_subset_mean",
        "n",
        "origin",
        "text_form",
    ]
    assert table.loc[0, "spearman"] == pytest.approx(by_hand, abs=1e-6)
    assert table.loc[0, "spearman_subset_mean"] == pytest.approx(np.mean(parts), abs=1e-6)
    assert abs(by_hand - np.mean(parts)) > 0.1  # or the two could be exchanged unseen
    assert table.loc[0, ["task", "n", "origin", "text_form"]].tolist() == [
        "mini",
        len(DEV),
        "mini",
        "natural",
    ]


def test_perfect_and_reversed_orders_score_100():
    angles = np.linspace(0, 1.5, 6)
    pairs = pairs_of(range(5, -1, -1))
    right = np.column_stack([np.cos(angles), np.sin(angles)])
    encode = vectors_of(pairs, [[1.0, 0.0]] * 6, right)
    assert evaluate_sts(encode, pairs).loc[0, "spearman"] == pytest.approx(100)
    assert evaluate_sts(encode, pairs_of(range(6))).loc[0, "spearman"] == pytest.approx(-100)


def test_each_distinct_sentence_is_encoded_once_also_across_tasks():
    seen = []

    def spy(sentences):
        seen.append(list(sentences))
        return letters(sentences)

    one = pairs_of([1, 2, 3], left=["ab", "cd", "ab"], right=["xy", "ab", "zzb"], name="one")
    two = pairs_of([3, 2, 1], left=["cd", "q", "abq"], right=["dxy", "cd", "rsb"], name="two")
    table = evaluate_sts(spy, [one, two])
    assert (
        len(seen) == 1
        and sorted(seen[0]) == sorted({*one.sentences, *two.sentences})
        and len(seen[0]) == len(set(seen[0]))
    )
    assert table["task"].tolist() == ["one", "two"]
    for row, task in zip(table["spearman"], (one, two), strict=True):
        assert row == pytest.approx(evaluate_sts(letters, task).loc[0, "spearman"])


def test_rounding_does_not_break_ties():
    """Pairs of equal sentences have cosine 1, whatever the length of their vectors."""
    pairs = pairs_of([5, 4, 3, 5, 1], left="abcde", right="abcdf")
    vectors = {
        "a": [0.1, 0.2],
        "b": [0.3, 0.7],
        "c": [1.1, 9.0],
        "d": [3.3, 0.1],
        "e": [1.0, 0.0],
        "f": [0.0, 1.0],
    }
    by_hand = pearsonr([3.5, 3.5, 3.5, 3.5, 1], rankdata(pairs.gold)).statistic
    assert evaluate_sts(lookup(vectors), pairs).loc[0, "spearman"] == pytest.approx(100 * by_hand)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_what_must_not_change_a_score(data):
    n, seed = data.draw(st.integers(3, 30)), data.draw(st.integers(0, 10**6))
    rng = np.random.default_rng(seed)
    gold = rng.integers(0, 11, n) / 2
    assume(np.ptp(gold) > 0)
    left, right = rng.normal(size=(2, n, 5))
    pairs = pairs_of(gold)
    score = evaluate_sts(vectors_of(pairs, left, right), pairs).loc[0, "spearman"]
    rotation, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    same = {
        "length of the vectors": evaluate_sts(
            vectors_of(pairs, left * rng.uniform(0.1, 9, (n, 1)), right), pairs
        ),
        "rotation of the space": evaluate_sts(
            vectors_of(pairs, left @ rotation, right @ rotation), pairs
        ),
        "sides exchanged": evaluate_sts(vectors_of(pairs, right, left), pairs),
        "a rising function of the grades": evaluate_sts(
            vectors_of(pairs, left, right), pairs_of(np.expm1(gold) / 30)
        ),
    }
    order = rng.permutation(n)
    shuffled = pairs.take(order.tolist())
    same["order of the pairs"] = evaluate_sts(vectors_of(pairs, left, right), shuffled)
    for what, table in same.items():
        assert table.loc[0, "spearman"] == pytest.approx(score, abs=1e-6), what
    upside_down = evaluate_sts(vectors_of(pairs, left, right), pairs_of(5 - gold)).loc[
        0, "spearman"
    ]
    assert upside_down == pytest.approx(-score, abs=1e-6) and -100.0001 <= score <= 100.0001


def test_a_subset_too_small_for_a_ranking_makes_the_mean_undefined_not_smaller():
    pairs = pairs_of(
        [1, 2, 3, 4, 5, 5],
        subset=["a", "a", "a", "a", "b", "b"],
        left=["let", "frig", "b", "the left", "a", "q"],
    )
    table = spearman_by_subset(cosines(letters(pairs.left), letters(pairs.right)), pairs)
    assert table["subset"].tolist() == ["a", "b"] and table["n"].tolist() == [4, 2]
    assert np.isfinite(table["spearman"][0]) and np.isnan(table["spearman"][1])
    scored = evaluate_sts(letters, pairs)
    assert np.isfinite(scored.loc[0, "spearman"]) and np.isnan(
        scored.loc[0, "spearman_subset_mean"]
    )


def test_rank_errors_say_which_kind_is_overrated():
    pairs = pairs_of(
        [0, 1, 2, 3, 4, 5], kind=["topic", "topic", "negation", "negation", "same", "same"]
    )
    table = rank_errors_by_kind(np.array([0.1, 0.2, 0.8, 0.9, 0.3, 0.4]), pairs)
    assert table["kind"].tolist() == ["negation", "topic", "same"]
    assert table["shift"].tolist() == pytest.approx([100 * 2 / 6, 0, -100 * 2 / 6])
    assert table["error"].tolist() == pytest.approx([100 * 2 / 6, 0, 100 * 2 / 6]) and table[
        "n"
    ].tolist() == [2, 2, 2]
    with pytest.raises(ValueError, match=r"does not say of what kind.*load_mini_sts"):
        rank_errors_by_kind(np.ones(2), pairs_of([1, 2]))


# --- bad embeddings ---


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("side", "index"), [("left", 3), ("right", 0)])
def test_a_nan_or_infinite_embedding_is_named_without_its_text(value, side, index):
    pairs = pairs_of([1, 2, 3, 4])
    bad = getattr(pairs, side)[index]

    def encode(sentences):
        x = np.random.default_rng(0).normal(size=(len(sentences), 4))
        x[sentences.index(bad), 2] = value
        return x

    with pytest.raises(
        ValueError, match=f"toy: the embedding of {side} sentence {index} holds NaN or infinity"
    ) as error:
        evaluate_sts(encode, pairs)
    assert bad not in str(error.value)


@pytest.mark.parametrize("value", [0.0, 0.25])
def test_a_constant_embedding_is_named(value):
    pairs = pairs_of([1, 2, 3, 4])

    def encode(sentences):
        x = np.random.default_rng(0).normal(size=(len(sentences), 4))
        x[sentences.index(pairs.right[2])] = value
        return x

    with pytest.raises(ValueError, match="toy: the embedding of right sentence 2 is constant"):
        evaluate_sts(encode, pairs)


def test_an_encoder_that_ignores_its_input_is_refused():
    with pytest.raises(
        ValueError,
        match=r"toy: all 3 similarities are 1\.0000; does the embedding depend on the sentence",
    ):
        evaluate_sts(
            lambda sentences: np.tile([0.1, 0.7, -0.3], (len(sentences), 1)), pairs_of([1, 2, 3])
        )


def test_equal_grades_cannot_be_ranked():
    with pytest.raises(ValueError, match="toy: all 3 grades are 2"):
        evaluate_sts(letters, pairs_of([2, 2, 2], left=["a", "ab", "b"]))


@pytest.mark.parametrize("shape", ["one short", "flat", "cube"])
def test_a_wrong_shape_is_refused(shape):
    wrong = {"one short": lambda x: x[1:], "flat": lambda x: x[:, 0], "cube": lambda x: x[None]}[
        shape
    ]
    with pytest.raises(
        ValueError,
        match=r"returned an array of shape \(.*\) for 4 sentences, expected \(4, dimension\)",
    ):
        evaluate_sts(lambda sentences: wrong(letters(sentences)), pairs_of([1, 2]))


def test_something_that_is_no_function_and_no_pairs_are_refused():
    with pytest.raises(TypeError, match=r"got str; pass encoder\.encode"):
        evaluate_sts("prompteol", pairs_of([1, 2]))
    with pytest.raises(ValueError, match="no pairs"):
        evaluate_sts(letters, [])
    with pytest.raises(ValueError, match="at least two pairs, got 1"):
        spearman(np.ones(1), np.ones(1))


def test_torch_tensors_and_half_precision_are_accepted():
    full = evaluate_sts(letters, DEV).loc[0, "spearman"]
    assert evaluate_sts(lambda s: torch.tensor(letters(s)), DEV).loc[
        0, "spearman"
    ] == pytest.approx(full)
    assert evaluate_sts(lambda s: letters(s).astype(np.float16), DEV).loc[
        0, "spearman"
    ] == pytest.approx(full)


def test_tensors_with_a_gradient_or_in_bfloat16_are_accepted():
    full = evaluate_sts(letters, DEV).loc[0, "spearman"]
    for convert in (
        lambda x: torch.tensor(x, requires_grad=True),
        lambda x: torch.tensor(x).bfloat16(),
        lambda x: [torch.tensor(row, requires_grad=True) for row in x],
    ):
        score = evaluate_sts(lambda s, convert=convert: convert(letters(s)), DEV)
        assert score.loc[0, "spearman"] == pytest.approx(full)


def test_a_missing_grade_is_named():
    with pytest.raises(ValueError, match=r"1 of 3 grades are missing or infinite.* at index 1"):
        spearman(np.arange(3.0), np.array([1, np.nan, 3]))


# --- the cloud ---


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.integers(2, 6), st.integers(0, 10**6))
def test_anisotropy_and_uniformity_equal_their_definition(n, d, seed):
    x = np.random.default_rng(seed).normal(0.5, 1, size=(n, d))
    u = x / np.linalg.norm(x, axis=1, keepdims=True)
    couples = list(combinations(range(n), 2))
    assert anisotropy(x) == pytest.approx(np.mean([u[i] @ u[j] for i, j in couples]), abs=1e-9)
    assert uniformity(x) == pytest.approx(
        np.log(np.mean([np.exp(-2 * np.sum((u[i] - u[j]) ** 2)) for i, j in couples])), abs=1e-9
    )


def test_uniformity_does_not_depend_on_the_blocks():
    x = np.random.default_rng(0).normal(size=(2500, 3))
    u = x / np.linalg.norm(x, axis=1, keepdims=True)
    kernel = np.exp(-2 * np.square(u[:, None] - u[None]).sum(-1))
    assert uniformity(x) == pytest.approx(
        np.log(kernel[~np.eye(2500, dtype=bool)].mean()), abs=1e-9
    )


def test_alignment_by_hand_and_its_extremes():
    assert alignment(np.array([[2.0, 0.0]]), np.array([[0.0, 5.0]])) == pytest.approx(2)
    assert alignment(np.array([[1.0, 1.0]]), np.array([[3.0, 3.0]])) == pytest.approx(0, abs=1e-12)
    assert anisotropy(np.array([[1.0, 0.0], [7.0, 0.0]])) == pytest.approx(1)
    assert uniformity(np.array([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(-8)


def test_geometry_takes_the_high_grades_for_alignment_and_each_sentence_once_for_the_rest():
    pairs = pairs_of(
        [5, 4, 3.9, 0], left=["aab", "abc", "aab", "xyz"], right=["ab", "acc", "bq", "aab"]
    )
    found = embedding_geometry(letters, pairs)
    cloud = letters(["aab", "abc", "xyz", "ab", "acc", "bq"])
    assert found["alignment"] == pytest.approx(
        alignment(letters(["aab", "abc"]), letters(["ab", "acc"]))
    )
    assert found["anisotropy"] == pytest.approx(anisotropy(cloud)) and found[
        "uniformity"
    ] == pytest.approx(uniformity(cloud))
    with pytest.raises(ValueError, match="no pair is graded 4 or more"):
        embedding_geometry(letters, pairs_of([1, 2]))


def test_degenerate_clouds_are_refused():
    with pytest.raises(ValueError, match="n of 2 or more"):
        anisotropy(np.ones((1, 3)))
    with pytest.raises(ValueError, match="row 1 is zero"):
        uniformity(np.array([[1.0, 2.0], [0.0, 0.0]]))
    with pytest.raises(ValueError, match="row 0 is zero, NaN"):
        cosines(np.array([[np.nan, 1.0]]), np.ones((1, 2)))


def test_sides_are_not_exchanged():
    pairs = pairs_of([1, 2], left=["a", "b"], right=["c", "d"])
    (left,), (right,) = embed_pairs(letters, [pairs])
    assert np.array_equal(left, letters(["a", "b"])) and np.array_equal(right, letters(["c", "d"]))


@pytest.mark.skipif(
    not os.environ.get("PROMPTEOL_SENTEVAL"), reason="PROMPTEOL_SENTEVAL is not set"
)
def test_all_and_mean_differ_on_real_subsets_as_they_are_known_to():
    row = evaluate_sts(letters, load_sts("sts13")).iloc[0]
    assert row["n"] == 1500 and abs(row["spearman"] - row["spearman_subset_mean"]) > 1
