"""Halving, greedy shots, orders, random lists and honest choice, on cosines that are made
up and on a tiny model.
"""

import itertools

import numpy as np
import pandas as pd
import pytest

from prompteol_utils import data
from prompteol_utils.cli.main import main
from prompteol_utils.demonstrations import DemonstrationScores, analysis, search
from prompteol_utils.evaluation import spearman
from prompteol_utils.models import save_tiny, tiny_model
from prompteol_utils.prompts import Demonstration
from prompteol_utils.results import Store

POOL = [
    Demonstration(f"sentence number {i}.", f"Word{i}", names="topic" if i % 2 else "action")
    for i in range(120)
]
PAIRS = 60


def quality(demonstrations) -> float:
    """What a made-up list is worth: a later place counts more, and the words' numbers count
    against each other.
    """
    return (
        sum((int(one.word[4:]) + 1) * (place + 1) for place, one in enumerate(demonstrations)) / 500
    )


def made_up(quality=quality, noise: float = 1.0, seed: int = 0) -> DemonstrationScores:
    """DemonstrationScores whose cosines follow the grades the closer, the better the
    demonstrations; asked pairs are counted in `.asked`.
    """
    gold = np.random.default_rng(seed).permutation(np.linspace(0, 5, PAIRS))
    asked = []

    def measure(demonstrations, start, stop):
        asked.append((demonstrations, start, stop))
        own = np.random.default_rng([seed, *(int(one.word[4:]) for one in demonstrations)]).normal(
            size=PAIRS
        )
        return ((gold * (0.2 + quality(demonstrations)) + noise * own) / 50 + 0.5)[start:stop]

    trials = DemonstrationScores(gold, {"seed": seed}, measure=measure)
    trials.asked = asked
    return trials


def paid(trials: DemonstrationScores) -> int:
    """Pairs that were really measured."""
    return sum(stop - start for _, start, stop in trials.asked)


@pytest.mark.parametrize(
    "candidates, pairs", [(300, 150), (300, 60), (120, 60), (300, 1500), (40, 150)]
)
def test_plan_stays_within_its_share_and_uses_it(candidates, pairs):
    plan = search.halving_plan(candidates, pairs)
    cost, before = pairs, 0  # the plain prompt
    for kept, stop in plan:
        cost, before = cost + kept * (stop - before), stop
    assert 0.8 < cost / (0.1 * (candidates + 1) * pairs) <= 1, plan
    assert plan[-1][1] == pairs and [kept for kept, _ in plan] == sorted(
        (kept for kept, _ in plan), reverse=True
    )
    assert all(after == 2 * stop for (_, stop), (_, after) in itertools.pairwise(plan[:-1]))


def test_plan_refuses_what_it_cannot_do():
    assert search.halving_plan(1, 50) == [(1, 50)]
    with pytest.raises(ValueError, match="larger share"):
        search.halving_plan(12, 400)
    with pytest.raises(ValueError, match="share above 0"):
        search.halving_plan(30, 20, share=0)


def test_halving_spends_a_tenth_and_finds_a_good_one():
    live = made_up(noise=0.5)
    table = search.halving(live, POOL, PAIRS)
    exact = made_up(noise=0.5)
    whole = search.exact(exact, POOL, PAIRS)
    assert search.count_encoded_sentences(whole) == 2 * paid(exact) == 2 * 121 * PAIRS
    assert (
        search.count_encoded_sentences(table)
        == 2 * paid(live)
        <= search.count_encoded_sentences(whole) / 10
    )
    words = list(whole["word"])
    assert words.index(table["word"].iloc[0]) < 12, (
        "the winner of halving is not among the best tenth"
    )
    assert list(table["n"]) == sorted(table["n"], reverse=True) and table["n"].iloc[0] == PAIRS
    worst = table[table["n"] == table["n"].min()]
    assert np.mean([words.index(word) for word in worst["word"]]) > 60, "it dropped the better half"


def test_halving_is_the_same_live_and_replayed():
    exact = made_up()
    search.exact(exact, POOL, PAIRS)
    measured = len(exact.asked)
    replayed = search.halving(exact, POOL, PAIRS)
    assert len(exact.asked) == measured, "a replay encodes nothing"
    pd.testing.assert_frame_equal(replayed, search.halving(made_up(), POOL, PAIRS))


def test_replays_say_where_the_winner_stands():
    trials = made_up(noise=0.5)
    search.exact(trials, POOL, PAIRS)
    whole = search.rank(trials, POOL, PAIRS)
    replays = analysis.replay_halving(trials, POOL, PAIRS, repeats=12)
    for row in replays.itertuples():
        assert whole["word"].iloc[row.rank - 1] == row.word and row.behind == pytest.approx(
            whole["gain"].iloc[0] - row.gain
        )
    assert replays["share"].max() <= 0.1 and replays["rank"].median() < 20
    assert replays["rank"].nunique() > 1, "another order of the pairs made no difference at all"
    poor = analysis.replay_halving(trials, POOL, PAIRS, repeats=12, share=0.06, first=2)
    assert poor["rank"].mean() > replays["rank"].mean()


def test_honest_choice_sees_the_luck_of_the_best():
    """All candidates are equally good: what the best one gains is luck, and gone on the
    other half.
    """
    trials = made_up(lambda demonstrations: 0.05 * bool(demonstrations), noise=1.5)
    search.exact(trials, POOL, PAIRS)
    cuts = analysis.split_half_validation(trials, POOL, PAIRS, repeats=40)
    assert (cuts["chosen_seen"] > cuts["random_unseen"]).all()
    assert (
        abs(cuts["chosen_unseen"].mean() - cuts["random_unseen"].mean())
        < 0.25 * (cuts["chosen_seen"] - cuts["random_unseen"]).mean()
    )
    assert (cuts["best_unseen"] >= cuts["chosen_unseen"]).all() and cuts["word"].nunique() > 3
    real = made_up(noise=0.5)
    search.exact(real, POOL, PAIRS)
    cuts = analysis.split_half_validation(real, POOL, PAIRS, repeats=40)
    assert cuts["chosen_unseen"].mean() > cuts["random_unseen"].mean() + 1, (
        "a real difference survives"
    )
    with pytest.raises(ValueError, match="four pairs"):
        analysis.split_half_validation(real, POOL, 3)


def test_expected_best_is_the_mean_over_all_choices():
    gains = [3.0, -1.0, 4.0, 1.5, 9.0, 2.6]
    by_hand = [
        np.mean([max(some) for some in itertools.combinations(gains, k)]) for k in range(1, 7)
    ]
    np.testing.assert_allclose(analysis.expected_max_of_k(gains), by_hand)
    assert np.isfinite(analysis.expected_max_of_k(np.arange(300.0))).all()


def test_greedy_adds_the_one_that_helps_most_each_time():
    trials, pool = made_up(noise=0.3), POOL[20:26]
    table = search.greedy_shots(trials, pool, 3, 40, held_out=20)
    chosen = []
    for k in range(1, 4):
        left = [one for one in pool if one not in chosen]
        scores = [spearman(trials.cosines([*chosen, one], 40), trials.gold[:40]) for one in left]
        chosen.append(left[int(np.argmax(scores))])
        row = table.iloc[k]
        assert (
            row["word"] == chosen[-1].word
            and row["spearman"] == pytest.approx(max(scores))
            and row["shots"] == k
        )
        assert row["gain"] == pytest.approx(row["spearman"] - table["spearman"].iloc[k - 1])
        assert row["held_out"] == pytest.approx(
            spearman(trials.cosines(chosen, 60)[40:], trials.gold[40:])
        )
    assert search.demonstrations_of(table[1:], pool) == chosen
    assert list(table["encoded"]) == [80, 480, 400, 320]
    with pytest.raises(ValueError, match="7 shots from a pool of 6"):
        search.greedy_shots(trials, pool, 7, 40)


def test_orders_are_permutations_of_the_same():
    trials, three = made_up(noise=0.3), POOL[3:30:9]
    table = analysis.orders(trials, three, 50, limit=6)
    assert len(table) == 6 and {frozenset(words.split()) for words in table["words"]} == {
        frozenset(one.word for one in three)
    }
    assert (
        table["words"].iloc[0] == " ".join(one.word for one in three)
        and table["change"].iloc[0] == 0
    )
    assert table["words"].is_unique and table["spearman"].nunique() > 3
    reverse = spearman(trials.cosines(three[::-1], 50), trials.gold[:50])
    assert table.set_index("words")["spearman"][
        " ".join(one.word for one in three[::-1])
    ] == pytest.approx(reverse)
    many = analysis.orders(trials, POOL[:6], 50, limit=9)
    assert (
        len(many) == 9
        and many["words"].is_unique
        and many["words"].iloc[1] == " ".join(one.word for one in POOL[5::-1])
    )
    with pytest.raises(ValueError, match="two or more"):
        analysis.orders(trials, POOL[:1], 50)


def test_random_lists_grow_and_are_scored_on_their_own_pairs():
    trials = made_up()
    table = analysis.random_shots(trials, POOL, [1, 3], 4, 50, start=20, seed=1)
    assert len(table) == 8 and set(table["n"]) == {30}
    by_word = {one.word: one for one in POOL}
    for _, draw in table.groupby("draw"):
        one, three = draw["words"]
        assert len(three.split()) == 3 and three.startswith(one + " ")
        score = spearman(
            trials.cosines([by_word[word] for word in three.split()], 50)[20:], trials.gold[20:50]
        )
        assert draw["spearman"].iloc[1] == pytest.approx(score)
    assert table[table["shots"] == 1]["words"].nunique() > 1


# --- the command line, on a tiny model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shots")
    save_tiny("llama", folder / "tiny")
    with (folder / "pool.csv").open("w") as file:
        file.write("sentence,word,kind,topic,names\n")
        file.writelines(f"{one.sentence},{one.word},sentence,x,{one.names}\n" for one in POOL[:30])
    return folder


def verb(folder, name, *more) -> list[str]:
    rows = str(folder / "rows.jsonl")
    return [
        name,
        "--model",
        str(folder / "tiny"),
        "--candidates",
        str(folder / "pool.csv"),
        "--output",
        rows,
        *more,
    ]


@pytest.fixture(autouse=True)
def own_set(monkeypatch):
    monkeypatch.delenv("PROMPTEOL_SENTEVAL", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_halving_shares_rows_with_a_later_exact_search(folder, capsys):
    assert main(verb(folder, "search", "--mode", "halving", "--share", "0.4", "--pairs", "40")) == 0
    said = capsys.readouterr().out
    before = {
        tuple(row["demonstrations"]): row
        for row in Store(folder / "rows.jsonl").rows()
        if row["start"] == 0
    }
    assert "sentences encoded for 30 candidates" in said and 0 < len(before) <= 31
    assert main(verb(folder, "search", "--pairs", "5")) == 0
    again = [
        row
        for row in Store(folder / "rows.jsonl").rows()
        if tuple(row["demonstrations"]) in before and row["start"] == 0
    ]
    assert len(again) == len(before), "pairs that halving had measured were measured again"
    assert "topic" in capsys.readouterr().out


def test_kshot_needs_a_search_and_goes_on_where_it_stopped(folder, tmp_path, capsys):
    assert main([*verb(folder, "kshot")[:-1], str(tmp_path / "none.jsonl")]) == 2
    assert "run the search first" in capsys.readouterr().err
    more = ["--top", "4", "--shots", "3", "--held-out", "10", "--orders", "3", "--random", "2"]
    assert main(verb(folder, "search", "--pairs", "5")) == 0
    capsys.readouterr()
    assert main(verb(folder, "kshot", *more)) == 0
    said, size = capsys.readouterr().out, (folder / "rows.jsonl").stat().st_size
    assert "the best 4 of 30 on 5 pairs; 10 held out" in said
    assert main(verb(folder, "kshot", *more)) == 0
    assert capsys.readouterr().out == said and (folder / "rows.jsonl").stat().st_size == size
    assert main(verb(folder, "kshot", "--demonstration", "a=>B")) == 2


def test_names_come_from_the_file_of_candidates(folder):
    (one, two, *_) = data.load_demonstrations(folder / "pool.csv")
    assert (one.names, two.names) == ("action", "topic")
    table = search.search_demonstrations(
        tiny_model("llama"), [one, two], data.load_mini_sts("dev", limit=20), pairs=5
    )
    assert set(table["names"]) == {"action", "topic"}
    with pytest.raises(ValueError, match="unknown mode"):
        search.search_demonstrations(
            tiny_model("llama"), [one, two], data.load_mini_sts("dev", limit=20), mode="fast"
        )
