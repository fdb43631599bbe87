"""The search for demonstrations: its table against a plain calculation, what is kept, and
kills at random moments.
"""

import json
import os
import random

import numpy as np
import pytest
from kills import kill_at
from scipy.stats import spearmanr

from prompteol_utils import data
from prompteol_utils.cli.main import main
from prompteol_utils.demonstrations import DemonstrationScores, sample_order, search
from prompteol_utils.encoder import baselines
from prompteol_utils.models import save_tiny, tiny_model
from prompteol_utils.prompts import Demonstration, with_demonstrations
from prompteol_utils.results import Store

POOL = [
    Demonstration("A baker kneads the dough.", "Baking", "sentence", "kitchen"),
    Demonstration("Snow covers the quiet valley.", "Winter", "sentence", "weather"),
    Demonstration('She said "no"\nand then left the room.', "Refusal", "sentence", "talk"),
    Demonstration(
        "a tool that measures the pressure of the air.",
        "Electroencephalographically",
        "dictionary",
        "tools",
    ),
]
SEED = 3


@pytest.fixture(scope="module")
def loaded():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def dev():
    return data.load_mini_sts("dev", limit=40)


def order(dev):
    return sample_order(dev.gold, SEED)


@pytest.mark.parametrize("n", [1, 7, 10, 40, 333])
def test_sample_takes_every_pair_once_and_spreads_the_grades(n):
    gold = np.random.default_rng(n).permutation(np.arange(n) % 50 / 10)
    order = sample_order(gold, 1)
    assert sorted(order) == list(range(n)) and sample_order(gold, 1) == order
    if n == 40:
        assert order != sample_order(gold, 2)
        tenth = np.argsort(np.argsort(gold)) * 10 // n
        assert all(
            sorted(tenth[order[start : start + 10]]) == list(range(10)) for start in range(0, n, 10)
        )


def by_hand(loaded, dev, demonstrations, pairs):
    """Cosines of the first pairs of the sample, from the plain loop."""
    sample = dev.take(order(dev)[:pairs])
    prompt = with_demonstrations("prompteol", demonstrations)
    left, right = (
        baselines.reference(loaded, prompt, side) for side in (sample.left, sample.right)
    )
    return (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(
        right, axis=1
    ), sample.gold


def test_table_is_what_the_plain_loop_gives(loaded, dev):
    table = search.search_demonstrations(loaded, POOL, dev, pairs=12, seed=SEED)
    scores = {}
    for demonstrations in ([], *([one] for one in POOL)):
        cosine, gold = by_hand(loaded, dev, demonstrations, 12)
        scores[demonstrations[0].word if demonstrations else ""] = (
            100 * spearmanr(np.round(cosine, 6), gold).statistic
        )
    assert len({round(score, 3) for score in scores.values()}) > 3, (
        "the candidates cannot be told apart"
    )
    assert list(table["word"]) == sorted((one.word for one in POOL), key=lambda word: -scores[word])
    np.testing.assert_allclose(
        table["spearman"], [scores[word] for word in table["word"]], atol=1e-6
    )
    np.testing.assert_allclose(table["gain"], table["spearman"] - scores[""], atol=1e-6)
    assert set(table["n"]) == {12}


def test_chosen_ones_stand_before_each_candidate(loaded, dev):
    table = search.search_demonstrations(
        loaded, POOL[1:], dev, pairs=10, seed=SEED, chosen=POOL[:1]
    )
    cosine, gold = by_hand(loaded, dev, [POOL[0], POOL[2]], 10)
    row = table[table["word"] == "Refusal"].iloc[0]
    assert row["spearman"] == pytest.approx(
        100 * spearmanr(np.round(cosine, 6), gold).statistic, abs=1e-6
    )
    other, _ = by_hand(loaded, dev, [POOL[2], POOL[0]], 10)
    assert np.abs(other - cosine).max() > 1e-3, (
        "the order makes no difference, so this test could not tell"
    )


def test_growing_a_sample_reads_only_what_is_new(loaded, dev, tmp_path):
    store = tmp_path / "rows.jsonl"
    small = DemonstrationScores.live(loaded, dev, store=store, seed=SEED)
    search.exact(small, POOL, 6, step=3)
    asked = []

    def watch(trials):
        measure = trials._measure

        def measured(demonstrations, start, stop):
            asked.append((start, stop))
            return measure(demonstrations, start, stop)

        trials._measure = measured
        return trials

    grown = search.exact(
        watch(DemonstrationScores.live(loaded, dev, store=store, seed=SEED)), POOL, 10, step=5
    )
    assert asked == [(6, 10)] * 5
    at_once = search.exact(DemonstrationScores.live(loaded, dev, seed=SEED), POOL, 10, step=10)
    np.testing.assert_allclose(grown["spearman"], at_once["spearman"], atol=1e-6)
    asked.clear()
    search.exact(watch(DemonstrationScores.live(loaded, dev, store=store, seed=SEED)), POOL, 10)
    assert asked == []
    search.exact(watch(DemonstrationScores.live(loaded, dev, store=store, seed=SEED + 1)), POOL, 3)
    assert asked == [(0, 3)] * 5, "another sample took this one's rows"


def test_recorded_trials_need_neither_model_nor_benchmark(loaded, dev, tmp_path):
    live = DemonstrationScores.live(loaded, dev, store=tmp_path / "rows.jsonl", seed=SEED)
    table = search.exact(live, POOL, 8, step=4)
    recorded = DemonstrationScores.recorded(tmp_path / "rows.jsonl")
    assert (
        len(recorded) == 8
        and recorded.about["model"] == "tiny-llama"
        and recorded.about["origin"] == "mini"
    )
    np.testing.assert_array_equal(recorded.gold, dev.gold[order(dev)[:8]])
    assert search.rank(recorded, POOL).equals(table)
    with pytest.raises(ValueError, match="9 pairs asked of a sample of 8"):
        recorded.cosines([POOL[0]], 9)
    with pytest.raises(ValueError, match=r"Winter \| .*Baking is recorded on 0 pairs"):
        recorded.cosines([POOL[1], POOL[0]], 4)
    rows = Store(tmp_path / "rows.jsonl").rows()
    assert max(len(json.dumps(row)) for row in rows if row["demonstrations"]) < 450
    text = (tmp_path / "rows.jsonl").read_text()
    assert not any(sentence in text for sentence in dev.sentences), (
        "sentences of the set were written down"
    )


def test_a_search_cut_short_is_a_search_on_fewer_pairs(loaded, dev, tmp_path):
    store = tmp_path / "rows.jsonl"
    search.exact(DemonstrationScores.live(loaded, dev, store=store, seed=SEED), POOL, 5)
    search.exact(
        DemonstrationScores.live(loaded, dev, store=store, seed=SEED), POOL[:2], 9
    )  # two went further
    table = search.rank(DemonstrationScores.recorded(store), POOL)
    assert set(table["n"]) == {5}
    with pytest.raises(ValueError, match="1 of 2 candidates were not tried"):
        search.rank(
            DemonstrationScores.recorded(store), [POOL[0], Demonstration("Night falls.", "Dusk")]
        )


def test_rows_that_two_processes_wrote_count_once(loaded, dev, tmp_path):
    one, other = (
        DemonstrationScores.live(loaded, dev, store=tmp_path / "rows.jsonl", seed=SEED)
        for _ in range(2)
    )
    whole = one.cosines([POOL[0]], 9)
    other.cosines([POOL[0]], 4)  # does not know of the first one's rows
    np.testing.assert_allclose(
        DemonstrationScores.recorded(tmp_path / "rows.jsonl").cosines([POOL[0]], 9), whole
    )
    assert len(Store(tmp_path / "rows.jsonl").rows()) == 4


def test_bad_input_is_named(loaded, dev):
    with pytest.raises(ValueError, match="no candidates"):
        search.search_demonstrations(loaded, [], dev)
    with pytest.raises(ValueError, match="0 and 4 are the same"):
        search.search_demonstrations(loaded, [*POOL, POOL[0]], dev)
    with pytest.raises(ValueError, match="candidate 1 is a str"):
        search.search_demonstrations(loaded, [POOL[0], "rain=>Weather"], dev)
    flat = dev.take([i for i in range(len(dev)) if dev.gold[i] == dev.gold[0]])
    with pytest.raises(ValueError, match=r"all \d+ grades are"):
        search.search_demonstrations(loaded, POOL, flat)
    with pytest.raises(ValueError, match="41 pairs asked of a sample of 40"):
        DemonstrationScores.live(loaded, dev).score([], 41)
    one = search.search_demonstrations(loaded, POOL[:1], dev, pairs=6)
    assert len(one) == 1 and np.isfinite(one["gain"]).all()


def test_recorded_needs_one_search(loaded, dev, tmp_path):
    store = tmp_path / "rows.jsonl"
    with pytest.raises(ValueError, match="holds 0 searches"):
        DemonstrationScores.recorded(store)
    first, second = (
        DemonstrationScores.live(loaded, dev, store=store, seed=seed) for seed in (1, 2)
    )
    for trials in (first, second):
        trials.cosines([POOL[0]], 3)
    with pytest.raises(ValueError, match=f"holds 2 searches.*{first.id}"):
        DemonstrationScores.recorded(store)
    np.testing.assert_array_equal(
        DemonstrationScores.recorded(store, second.id).gold, second.gold[:3]
    )


# --- the command line, killed


def command(folder, model) -> list[str]:
    with (folder / "pool.csv").open("w") as file:
        file.write("sentence,word,kind,topic\n")
        file.writelines(
            f"the {thing} of the {place}.,Word{thing}{place},sentence,x\n"
            for thing in "abcdef"
            for place in "uvw"
        )
    pool, output = str(folder / "pool.csv"), str(folder / "rows.jsonl")
    return [
        "search",
        "--model",
        model,
        "--candidates",
        pool,
        "--pairs",
        "12",
        "--step",
        "4",
        "--output",
        output,
    ]


def final_table(capsys, arguments) -> str:
    assert main(arguments) == 0
    return capsys.readouterr().out


def test_three_kills_leave_the_same_final_table(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("PROMPTEOL_SENTEVAL", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = str(save_tiny("llama", tmp_path / "tiny"))
    (tmp_path / "unbroken").mkdir()
    whole = command(tmp_path / "unbroken", model)
    expected = final_table(capsys, whole)
    rows = len(Store(tmp_path / "unbroken" / "rows.jsonl").rows())
    assert rows == 19 * 3 and "12 pairs: best" in expected
    (tmp_path / "killed").mkdir()
    broken, store = command(tmp_path / "killed", model), tmp_path / "killed" / "rows.jsonl"
    left = kill_at(broken, store, random.Random(0).sample(range(2, rows - 2), 3))
    assert 0 < left[0] < left[1] < left[2] < rows
    assert final_table(capsys, broken) == expected
    lines = store.read_text().splitlines()
    seen = [(tuple(row["demonstrations"]), row["start"]) for row in map(json.loads, lines)]
    assert len(seen) == len(set(seen)) == rows, "finished work was done again"
    before = os.stat(store).st_mtime_ns
    assert final_table(capsys, broken) == expected and os.stat(store).st_mtime_ns == before


def test_a_demonstration_reads_as_records_name_it():
    assert str(POOL[1]) == "Snow covers the quiet valley.=>Winter"
