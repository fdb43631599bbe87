"""Transfer: SentEval's classifier to the number, scikit-learn's nested cross-validation, no
leak, a killed run that goes on.
"""

import random
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from prompteol_utils import results
from prompteol_utils.cli import main
from prompteol_utils.data import Labelled
from prompteol_utils.evaluation import ProbeTask, probes, transfer
from prompteol_utils.evaluation.probes import GRID
from prompteol_utils.models import tiny


def toy(n=120, classes=2, width=6, seed=0, split=None, name="cr", apart=0.8):
    """A task and features in which the classes overlap.

    Columns of very different size, as real embeddings have.
    """
    random_ = np.random.default_rng(seed)
    label = random_.integers(0, classes, n)
    x = random_.normal(size=(n, width)) + apart * random_.normal(size=(classes, width))[label]
    text = tuple(" ".join(["word"] * random_.integers(1, 9)) + f" {i}" for i in range(n))
    task = Labelled(
        name,
        text,
        (),
        label,
        split or ("all",) * n,
        tuple(map(str, range(classes))),
        "mini",
        "natural",
    )
    return task, (x * np.logspace(-1, 1, width)).astype(np.float32)


def alone(x, y, train, dev, l2, seed, classes):
    """SentEval's classifier, one at a time, with torch's own layer, loss and Adam."""
    np.random.seed(seed)
    torch.manual_seed(seed)
    x, y = torch.tensor(x), torch.tensor(y)
    model = torch.nn.Linear(x.shape[1], classes)
    adam = torch.optim.Adam(model.parameters(), weight_decay=l2)
    if dev is None:
        mixed = np.random.permutation(len(train))
        share = int(0.05 * len(train))
        train, dev = train[mixed[share:]], train[mixed[:share]]
    best, epochs, idle, stop = -1, 0, 0, False
    while not stop and epochs <= 200:
        for _ in range(4):
            mixed = np.random.permutation(len(train))
            for start in range(0, len(train), 64):
                rows = train[mixed[start : start + 64]]
                adam.zero_grad()
                torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
                adam.step()
        epochs += 4
        accuracy = (model(x[dev]).argmax(dim=1) == y[dev]).double().mean().item()
        if accuracy > best:
            best, weights = accuracy, (model.weight.detach().clone(), model.bias.detach().clone())
        else:
            stop = idle >= 5
            idle += 1
    return best, *weights


@pytest.mark.parametrize("classes", [2, 3])
def test_all_at_once_is_one_by_one(classes):
    """Training sets of unlike size too: 129 rows make a last batch that 128 rows do not have."""
    task, x = toy(240, classes)
    rows = np.random.default_rng(1).permutation(240)
    problems = [ProbeTask(rows[:size], rows[200:], (1e-5, 1e-2)) for size in (128, 129, 190)]
    problems.append(ProbeTask(rows[:150], None, (1e-3, 1.0)))
    fits = probes.fit_senteval(x, task.label, problems, classes=classes, seed=7)
    assert len({fits.weight[p, g].tobytes() for p in range(4) for g in range(2)}) == 8, (
        "no two are the same by chance"
    )
    for p, problem in enumerate(problems):
        for g, l2 in enumerate(problem.l2):
            best, weight, bias = alone(x, task.label, problem.train, problem.dev, l2, 7, classes)
            assert np.allclose(fits.weight[p, g].T, weight, atol=2e-5) and np.allclose(
                fits.bias[p, g], bias, atol=2e-5
            ), (p, g)
            assert fits.dev[p, g] == best if problem.dev is not None else np.isnan(fits.dev[p, g])


def test_nested_folds_are_those_of_senteval():
    """Its whole protocol in plain loops: order by length, outer and inner folds, l2 by the
    rounded mean, a twentieth held back.
    """
    task, x = toy(90, apart=0.4)
    order = sorted(range(len(task)), key=lambda i: (len(task.text[i].split()), task.label[i]))
    x_sorted, y = x[order], task.label[order]
    cut, accuracies, chosen = StratifiedKFold(3, shuffle=True, random_state=5), [], []
    for train, test in cut.split(x_sorted, y):
        scores = []
        for l2 in GRID["senteval"]:
            dev = [
                alone(x_sorted, y, train[a], train[b], l2, 5, 2)[0]
                for a, b in cut.split(x_sorted[train], y[train])
            ]
            scores.append(round(100 * np.mean(dev), 2))
        chosen.append(GRID["senteval"][np.argmax(scores)])
        _, weight, bias = alone(x_sorted, y, train, None, chosen[-1], 5, 2)
        guess = (torch.tensor(x_sorted[test]) @ weight.T + bias).argmax(dim=1).numpy()
        accuracies.append(100 * (guess == y[test]).mean())
    row = transfer.score(x, task, solver="senteval", seed=5, folds=3)
    assert row["l2"] == chosen and row["accuracy"] == pytest.approx(np.mean(accuracies))
    assert row["fold_std"] == pytest.approx(np.std(accuracies)) and np.std(accuracies) > 0


def test_equals_a_plain_scikit_learn_nested_cross_validation():
    task, x = toy(300, width=12, apart=0.5)
    order = transfer.senteval_order(task)
    x_sorted, y = x[order], task.label[order]
    cut, guesses, chosen = StratifiedKFold(5, shuffle=True, random_state=1111), {}, []
    for train, test in cut.split(x_sorted, y):

        def model(l2, n):
            return make_pipeline(
                StandardScaler(), LogisticRegression(C=1 / (l2 * n), max_iter=1000)
            )

        inner = [
            np.mean(cross_val_score(model(l2, 0.8 * len(train)), x_sorted[train], y[train], cv=cut))
            for l2 in GRID["lbfgs"]
        ]
        chosen.append(GRID["lbfgs"][np.argmax(np.round(100 * np.array(inner), 2))])
        fitted = model(chosen[-1], len(train)).fit(x_sorted[train], y[train])
        guesses |= dict(
            zip(order[test].tolist(), fitted.predict(x_sorted[test]).tolist(), strict=True)
        )
    found = transfer.classify(x, task, solver="lbfgs", folds=5)
    assert dict(zip(found["index"], found["predicted"], strict=True)) == guesses
    assert found.groupby("fold")["l2"].first().tolist() == chosen and len(set(chosen)) > 1, (
        "the choice must matter for this to tell"
    )


# --- leakage


def sees_outside(solver) -> bool:
    """Whether a probe changes when the features of sentences do that it may not see."""
    task, x = toy(120, split=("train",) * 90 + ("test",) * 30, apart=0.3)
    changed = x.copy()
    changed[100:] = changed[100:] * 1000 + 77
    before, after = (transfer.classify(one, task, solver=solver, folds=3) for one in (x, changed))
    same = before["index"] < 100
    columns = ["predicted", "l2", "dev_accuracy"]
    return not before.loc[same, columns].equals(after.loc[same, columns])


@pytest.mark.parametrize("solver", ["lbfgs", "senteval"])
def test_nothing_outside_a_fold_is_seen(solver):
    assert not sees_outside(solver)


def test_a_scaler_that_sees_the_test_set_is_noticed(monkeypatch):
    """The features reach the probe as scaled by everything, which the test above must tell."""
    classify = transfer.classify

    def leaky(x, task, **options):
        return classify(StandardScaler().fit_transform(x) ** 3, task, **options)

    monkeypatch.setattr(transfer, "classify", leaky)
    assert sees_outside("lbfgs")


class Recorder(BaseEstimator, TransformerMixin):
    """Passes features on, and keeps which sentences (first column) were fitted and which tested."""

    seen: ClassVar[list] = []

    def fit(self, x, y=None):
        self.fitted_ = set(x[:, 0])
        return self

    def fit_transform(self, x, y=None):
        return self.fit(x).rest(x)

    def transform(self, x):
        self.seen.append((self.fitted_, set(x[:, 0])))
        return self.rest(x)

    def rest(self, x):
        return x[:, 1:]


@pytest.mark.parametrize("split", ["all", "train test", "train dev test"])
def test_what_is_tested_was_never_trained_on(monkeypatch, split):
    names = split.split()
    task, x = toy(120, split=tuple(names[i % len(names)] for i in range(120)))
    x = np.column_stack([np.arange(120), x])
    monkeypatch.setattr(Recorder, "seen", [])
    monkeypatch.setattr(
        transfer,
        "lbfgs_probe",
        lambda l2=1.0: make_pipeline(Recorder(), probes.MeanLogisticRegression(l2)),
    )
    found = transfer.classify(x, task, solver="lbfgs", folds=4)
    tested = [set(rows) for _, rows in found.groupby("fold")["index"]]
    assert set.union(*tested) == {i for i in range(120) if task.split[i] == names[-1]}
    assert len(found) == len(set(found["index"]))
    each = len(GRID["lbfgs"]) * (1 if len(names) == 3 else 4) + 1
    assert len(Recorder.seen) == each * len(tested)
    for fold, mine in enumerate(tested):
        *inner, last = Recorder.seen[each * fold : each * (fold + 1)]
        assert last[1] == mine and not last[0] & mine
        for fitted, asked in inner:
            assert not fitted & asked and not mine & (fitted | asked)
            if len(names) == 3:
                assert {task.split[int(i)] for i in asked} == {"dev"}


# --- features, tables, curves


def vectors(sentences):
    return np.array(
        [[len(one), sum(map(ord, one)) % 97, one.count("a")] for one in sentences], np.float32
    )


def test_each_sentence_is_encoded_once_and_pairs_become_two_halves():
    asked = []
    task = Labelled(
        "mrpc",
        ("a", "bb", "a"),
        ("bb", "bb", "ccc"),
        [0, 1, 1],
        ("train", "train", "test"),
        ("n", "y"),
        "mini",
        "natural",
    )
    x = transfer.features(lambda sentences: asked.extend(sentences) or vectors(sentences), task)
    assert asked == ["a", "bb", "ccc"] and x.dtype == np.float32
    u, v = vectors(task.text), vectors(task.text2)
    assert np.array_equal(x, np.concatenate([abs(u - v), u * v], axis=1))


def test_wrong_input_says_what_is_allowed():
    task, x = toy(30)
    with pytest.raises(TypeError, match=r"pass encoder\.encode"):
        transfer.evaluate_transfer("prompteol", task)
    with pytest.raises(ValueError, match="unknown solver 'svm'; allowed: senteval, lbfgs"):
        transfer.evaluate_transfer(vectors, task, solvers=["svm"])
    with pytest.raises(ValueError, match="unknown transfer task 'sst5'"):
        transfer.evaluate_transfer(vectors, "sst5")
    with pytest.raises(ValueError, match=r"shape \(2, 3\) for 30 sentences"):
        transfer.features(lambda sentences: vectors(sentences[:2]), task)
    with pytest.raises(ValueError, match="sentence 4 holds NaN"):
        transfer.features(
            lambda sentences: np.where(
                np.arange(len(sentences))[:, None] == 4, np.nan, vectors(sentences)
            ),
            task,
        )
    with pytest.raises(ValueError, match="30 sentences and x 29 rows"):
        transfer.classify(x[1:], task)
    with pytest.raises(ValueError, match="cannot be cut into folds"):
        transfer.score(x[:2], task.take([int(np.argmin(task.label)), int(np.argmax(task.label))]))


def test_settings_are_checked_before_anything_is_encoded():
    def never(sentences):
        raise AssertionError("encoded")

    task, _ = toy(30)
    with pytest.raises(ValueError, match="2 folds or more, got 1"):
        transfer.evaluate_transfer(never, task, folds=1)
    with pytest.raises(ValueError, match="unknown transfer task 'sst5'"):
        transfer.evaluate_transfer(never, [task, "sst5"])


@pytest.mark.parametrize("solver", ["lbfgs", "senteval"])
def test_a_class_that_is_missing_from_a_fold_is_named(solver):
    task, x = toy(12)
    task = replace(task, label=np.array([0] * 11 + [1]), label_names=("common", "rare"))
    with pytest.raises(ValueError, match="fold are all of class 'common'"):
        transfer.classify(x, task, solver=solver, folds=3)


@pytest.mark.parametrize("parts", [["train"], ["train", "dev"], ["test"]])
def test_a_task_without_what_it_is_tested_on_is_refused(parts):
    task, x = toy(12)
    task = replace(task, split=tuple((parts * 12)[:12]))
    with pytest.raises(ValueError, match=f"has only the part {', '.join(parts)}; a classifier is"):
        transfer.classify(x, task)


def test_the_callers_random_numbers_are_left_alone():
    task, x = toy(40)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    transfer.classify(x, task, solver="senteval", folds=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_sentevals_classifier_says_that_a_small_set_is_too_small_for_it(caplog):
    for n, solver, said in ((60, "senteval", True), (60, "lbfgs", False), (160, "senteval", False)):
        caplog.clear()
        task, x = toy(n, name="mine")
        transfer.classify(x, task, solver=solver, folds=3)
        assert ("mine: SentEval's classifier stops" in caplog.text) == said, (n, solver)


def test_an_own_task_has_its_column():
    rows = pd.concat(
        [
            pd.DataFrame({"task": [name], "solver": "lbfgs", "accuracy": 80.0})
            for name in (*transfer.TRANSFER_TASKS, "mine")
        ]
    )
    table = transfer.summarise(rows.assign(accuracy=[*range(7), 100.0]))
    assert table.columns.tolist() == [*transfer.TRANSFER_TASKS, "mine", "avg"]
    assert table.loc["lbfgs", "mine"] == 100
    assert table.loc["lbfgs", "avg"] == 3, "of the paper's seven only"


def test_rows_and_their_table():
    tasks = [toy(60, name=name)[0] for name in ("cr", "mr")]
    rows = transfer.evaluate_transfer(
        vectors, tasks, solvers=["lbfgs", "senteval"], seeds=(1, 2), folds=3
    )
    assert (
        len(rows) == 8
        and rows["accuracy"].between(0, 100).all()
        and (rows["fold_std"] >= 0).all()
        and (rows["n_test"] == 60).all()
    )
    table = transfer.summarise(rows)
    assert list(table.columns) == ["mr", "cr", "avg"] and table["avg"].isna().all(), (
        "never an average over fewer than seven"
    )
    two = rows[(rows["task"] == "cr") & (rows["solver"] == "lbfgs")]["accuracy"]
    assert table.loc["lbfgs", "cr"] == pytest.approx(two.mean())
    seven = pd.concat(
        [rows[rows["task"] == "cr"].assign(task=name) for name in transfer.TRANSFER_TASKS]
    )
    assert transfer.summarise(seven)["avg"].notna().all()
    with pytest.raises(ValueError, match="origin is mixed"):
        transfer.summarise(pd.concat([rows, rows.assign(origin="hub")]))


def test_spread_over_folds_and_seeds():
    task, x = toy(90, apart=0.4)
    rows = pd.DataFrame(
        [transfer.score(x, task, solver="lbfgs", seed=seed, folds=3) for seed in (1, 2, 3)]
    )
    assert rows["accuracy"].nunique() > 1, "other folds, another accuracy"
    found = transfer.spread(rows).loc[("cr", "lbfgs")]
    assert (
        found["accuracy"] == pytest.approx(np.mean(rows["accuracy"]))
        and found["seeds"] == 3
        and found["n_test"] == 90
    )
    assert found["seed_std"] == pytest.approx(np.std(rows["accuracy"], ddof=1)) and found[
        "fold_std"
    ] == pytest.approx(rows["fold_std"].mean())
    assert np.isnan(transfer.spread(rows[:1])["seed_std"].iloc[0]), "one seed has no spread"
    with pytest.raises(ValueError, match="n_test is mixed"):
        transfer.spread(pd.concat([rows, rows.assign(n_test=30)]))
    with pytest.raises(ValueError, match="origin is mixed"):
        transfer.spread(pd.concat([rows, rows.assign(origin="hub")]))


def test_a_learning_curve_keeps_its_test_set_and_rises():
    task, x = toy(400, width=20, apart=0.7)
    curve = transfer.learning_curve(x, task, [16, 64, 10_000], seeds=(0, 1))
    assert (
        sorted(set(curve["size"])) == [16, 64, 320]
        and set(curve["n_test"]) == {80}
        and len(curve) == 6
    )
    mean = curve.groupby("size")["accuracy"].mean()
    assert mean[16] < mean[320] > 75
    split = ("train",) * 300 + ("test",) * 100
    assert set(transfer.learning_curve(x, toy(400, split=split)[0], [16])["n_test"]) == {100}
    rare, x = toy(60, classes=6, split=("train",) * 40 + ("test",) * 20, name="trec")
    assert len(transfer.learning_curve(x, rare, [14, 16], seeds=(0,))) == 2, (
        "a class with a single sentence"
    )


# --- the command


def arguments(folder):
    senteval = folder / "senteval"
    if not senteval.exists():
        word = random.Random(3)
        for name, size in (("CR/custrev.pos", 210), ("CR/custrev.neg", 150)):
            (senteval / name).parent.mkdir(parents=True, exist_ok=True)
            lines = [
                " ".join(word.choices(["fine", "dull", "kettle", "warm", "lamp", "cold"], k=7))
                + "\n"
                for _ in range(size)
            ]
            (senteval / name).write_text("".join(lines))
    options = [
        "transfer",
        "--model",
        str(folder / "tiny"),
        "--tasks",
        "cr",
        "--folds",
        "3",
        "--seeds",
        "1",
        "2",
        "3",
    ]
    return [
        *options,
        "--prompt",
        "prompteol",
        "mean",
        "--root",
        str(senteval),
        "--output",
        str(folder / "rows.jsonl"),
    ]


def table(folder):
    rows = results.Store(folder / "rows.jsonl").read()
    times = ["encode_seconds", "classifier_seconds", "encoded", "commit"]
    return (
        rows.drop(columns=times)
        .to_json(orient="records", double_precision=15)
        .replace(str(folder), "")
    )


def test_an_interrupted_command_goes_on_and_encodes_nothing_twice(tmp_path, monkeypatch, capsys):
    class Stop(BaseException):
        """Ends a run as a kill does, past every handler."""

    for name in ("broken", "whole"):
        tiny.save_tiny("llama", tmp_path / name / "tiny")
    monkeypatch.setenv("PROMPTEOL_CACHE", str(tmp_path / "cache"))
    append, left = results.Store.append, []

    def stopping(self, *rows):
        if not left:
            raise Stop
        left.pop()
        append(self, *rows)

    for finished in (0, 2, 5):
        left[:] = [None] * finished
        with monkeypatch.context() as patch, pytest.raises(Stop):
            patch.setattr(results.Store, "append", stopping)
            main.main(arguments(tmp_path / "broken"))
    encoded = [line for line in capsys.readouterr().out.splitlines() if "encoded" in line]
    assert " 0 of" not in encoded[0] and all(" 0 of" in line for line in encoded[1:3]), encoded
    assert main.main(arguments(tmp_path / "broken")) == 0
    monkeypatch.setenv("PROMPTEOL_CACHE", str(tmp_path / "other"))
    assert main.main(arguments(tmp_path / "whole")) == 0
    assert table(tmp_path / "broken") == table(tmp_path / "whole")
    assert table(tmp_path / "whole").count('"cr"') == 12
    assert "seed_std" in capsys.readouterr().out
    assert main.main(arguments(tmp_path / "whole")) == 0
    assert capsys.readouterr().out.count("found in") == 2
    assert main.main([*arguments(tmp_path / "whole"), "--folds", "2", "--seeds", "1"]) == 0
    assert capsys.readouterr().out.count(": 0 of") == 2, "a second probe encodes nothing"
