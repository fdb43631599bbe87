"""The store and the embedding cache keep finished work through kills, races and damage, and
never show two kinds of score as one.
"""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from samples import RECORD as ROW

from prompteol_utils import results
from prompteol_utils.results import store as store_module
from prompteol_utils.utils import files


@pytest.fixture
def store(tmp_path):
    return results.Store(tmp_path / "new" / "rows.jsonl")


# --- rows


def test_rows_come_back_as_they_went(store):
    rows = [
        ROW | {"demonstrations": ["Ein Café.=>Café\u2028"], "versions": {"torch": "2"}},
        ROW | {"task": "sts12", "extra": [1, {"a": None}]},
    ]
    for row in rows:
        store.append(row)
    assert [json.loads(line) for line in store.path.read_bytes().split(b"\n")[:-1]] == rows
    for again in (store, results.Store(store.path)):
        frame = again.read()
        assert (
            again.rows() == rows
            and list(frame["task"]) == ["stsb", "sts12"]
            and frame["demonstrations"][0] == rows[0]["demonstrations"]
        )


def test_an_absent_store_is_empty_and_not_created(store):
    assert list(store.read().columns) == list(store_module.STS_FIELDS) and len(store.read()) == 0
    assert not store.done({"model": "opt-125m"}) and not store.path.parent.exists()


def test_numpy_and_tuples_become_plain(store):
    store.append(
        ROW
        | {
            "spearman": np.float64(61.0),
            "n": np.int64(7),
            "demonstrations": ("a=>b",),
            "other": np.float32(0.5),
        }
    )
    row = json.loads(store.path.read_text())
    assert (row["spearman"], row["n"], row["demonstrations"], row["other"]) == (
        61.0,
        7,
        ["a=>b"],
        0.5,
    )


@pytest.mark.parametrize("field", list(store_module.STS_FIELDS))
def test_a_missing_field_is_named(store, field):
    with pytest.raises(ValueError, match=rf"lacks {field};"):
        store.append({name: value for name, value in ROW.items() if name != field})
    assert not store.path.exists()


@pytest.mark.parametrize(
    "change, words",
    [
        ({"spearman": math.nan}, "'spearman'"),
        ({"spearman_subset_mean": math.inf}, "'spearman_subset_mean'"),
        ({"seconds": math.nan}, "'seconds'"),
        ({"extra": [math.nan]}, "'extra'"),
        ({"extra": {1, 2}}, "'extra'.*set is not a plain value"),
        ({"extra": "\ud800"}, "'extra'"),
        ({"spearman": 100.5}, "spearman is a correlation x 100"),
        ({"spearman": "60.5"}, "spearman is int or float, got '60.5'"),
        ({"spearman": None}, "spearman is int or float, got None"),
        ({"n": 0}, "n is at least 1"),
        ({"n": 3.5}, "n is int"),
        ({"n": True}, "n is int, got True"),
        ({"seconds": -1}, "seconds at least 0"),
        ({"model": None}, "model is str"),
        ({"demonstrations": "a=>b"}, "demonstrations is list"),
        ({"quantization": 4}, "quantization is str or NoneType"),
        ({"origin": "web"}, "unknown origin 'web'; allowed: senteval, hub, mini"),
        ({"text_form": "upper"}, "unknown text_form 'upper'; allowed: tokenised lower case"),
        ({"kind": 3}, "kind is a name"),
    ],
)
def test_a_bad_value_is_named_and_nothing_is_written(store, change, words):
    store.append(ROW)
    with pytest.raises(ValueError, match=words):
        store.append(ROW, ROW | change)
    assert len(store.read()) == 1


def test_other_kinds_need_only_provenance(store):
    store.append({"kind": "bench", "ratio": 2.5, **results.provenance(seed=3)})
    assert store.done({"kind": "bench", "seed": 3})
    with pytest.raises(ValueError, match="'bench' lacks versions, commit, seed"):
        store.append({"kind": "bench"})
    with pytest.raises(ValueError, match="a record is a dict"):
        store.append([("kind", "bench")])


def test_provenance_names_versions_and_commit(monkeypatch):
    found = results.provenance(7)
    assert found["seed"] == 7 and {"python", "torch", "transformers", "numpy"} <= set(
        found["versions"]
    )
    head = subprocess.run(
        ["git", "-C", store_module.ROOT, "rev-parse", "HEAD"], capture_output=True, text=True
    )
    expected = head.stdout.strip() if head.returncode == 0 else "unknown"
    store_module._commit.cache_clear()
    assert results.provenance()["commit"].removesuffix("+dirty") == expected


def test_commit_is_unknown_outside_and_inside_another_checkout_and_marks_changes(
    tmp_path, monkeypatch
):
    def commit():
        store_module._commit.cache_clear()
        return results.provenance()["commit"]

    def git(*arguments):
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a", *arguments],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )

    package = tmp_path / "inner" / "prompteol_utils"
    package.mkdir(parents=True)
    monkeypatch.setattr(store_module, "ROOT", tmp_path / "inner")
    assert commit() == "unknown"
    (package / "a.py").write_text("1")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "x")
    assert commit() == "unknown", "another project's checkout around an installed package"
    git("mv", "inner/prompteol_utils", "prompteol_utils")
    git("commit", "-q", "-m", "y")
    monkeypatch.setattr(store_module, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    assert len(commit()) == 40
    (tmp_path / "data" / "results").mkdir(parents=True)
    (tmp_path / "data" / "results" / "rows.jsonl").write_text("")
    assert len(commit()) == 40, "the rows that a run writes do not change its code"
    (tmp_path / "prompteol_utils" / "new.py").write_text("")
    assert commit().endswith("+dirty")
    store_module._commit.cache_clear()


# --- done


def test_done_compares_every_field_as_plain_values(store):
    store.append(ROW | {"demonstrations": ["a=>b", "c=>d"], "seconds": 2.0})
    for key in (
        {"task": "stsb"},
        {"demonstrations": ["a=>b", "c=>d"], "quantization": None},
        {"demonstrations": ("a=>b", "c=>d")},
    ):
        assert store.done(key)
    assert (
        store.done({"seconds": 2})
        and store.done({"n": 1379.0})
        and store.done({"n": np.int64(1379)})
    )
    for key in (
        {"task": "sts12"},
        {"demonstrations": ["c=>d", "a=>b"]},
        {"demonstrations": ["a=>b"]},
        {"quantization": "nf4"},
    ):
        assert not store.done(key)
    assert (
        not store.done({"task": "stsb", "n": 5})
        and not store.done({"unknown": 1})
        and not store.done({"n": "1379"})
    )
    assert store.done({"a field of later days": None})
    with pytest.raises(ValueError, match="at least one field"):
        store.done({})


def test_done_sees_rows_of_other_processes_and_rewritten_files(store):
    store.append(ROW)
    assert not store.done({"task": "sts12"})
    results.Store(store.path).append(ROW | {"task": "sts12"})
    assert store.done({"task": "sts12"})
    lines = store.path.read_bytes().splitlines(keepends=True)
    with files.atomic_file(store.path) as file:
        file.write(lines[0].replace(b'"stsb"', b'"sts9"') + lines[1])
    assert store.done({"task": "sts9"}) and not store.done({"task": "stsb"}), (
        "another file of the same length and last line"
    )
    store.path.write_bytes(lines[0])
    assert store.done({"task": "stsb"}) and not store.done({"task": "sts12"})
    store.path.unlink()
    assert not store.done({"task": "stsb"})


def test_the_last_record_of_a_key_is_found(store):
    store.append(ROW | {"spearman": 1.0}, ROW | {"spearman": 2.0}, ROW | {"task": "sts12"})
    assert store.find({"task": "stsb"})["spearman"] == 2.0
    assert store.find({"task": "sts13"}) is None


def test_a_failed_measurement_is_not_done(store):
    failed = {name: value for name, value in ROW.items() if not name.startswith("spearman")}
    store.append(failed | {"kind": "failed", "reason": "out of memory"})
    key = {"model": ROW["model"], "task": "stsb"}
    assert not store.done(key)
    assert store.find(key) is None
    assert store.find(key, failed=True)["reason"] == "out of memory"
    store.append(ROW)
    assert store.done(key)


# --- damage


@pytest.mark.parametrize("cut", [1, 20, -2])
def test_a_torn_last_line_is_left_out_then_repaired(store, cut):
    store.append(ROW)
    whole = store.path.read_bytes()
    store.path.write_bytes(whole + whole[:cut])
    fresh = results.Store(store.path)
    with pytest.warns(UserWarning, match="cut off by a kill"):
        assert len(fresh.read()) == 1
    assert store.path.read_bytes() == whole + whole[:cut], "reading changes nothing"
    with pytest.warns(UserWarning, match="dropped"):
        fresh.append(ROW | {"task": "sts12"})
    assert [row["task"] for row in map(json.loads, store.path.read_text().splitlines())] == [
        "stsb",
        "sts12",
    ]
    assert fresh.done({"task": "sts12"}) and len(results.Store(store.path).read()) == 2


def test_a_last_line_without_its_newline_is_kept(store):
    store.append(ROW)
    store.path.write_bytes(store.path.read_bytes()[:-1])
    for reader in (store, results.Store(store.path)):
        assert len(reader.read()) == 1
    store.append(ROW | {"task": "sts12"})
    assert len(store.read()) == len(results.Store(store.path).read()) == 2
    assert store.path.read_bytes().count(b"\n") == 2


@pytest.mark.parametrize(
    "line, words",
    [
        ("{", "line 2: not JSON"),
        ("\x00" * 9, "line 2: not JSON"),
        ("[]", "line 2: a record is an object"),
        ('{"a": 1}', "line 2: .*lacks model"),
        (json.dumps(ROW | {"spearman": math.nan}), "line 2: NaN"),
        (json.dumps(ROW | {"origin": "web"}), "line 2: unknown origin"),
    ],
)
def test_a_broken_line_in_the_middle_names_file_and_line(store, line, words):
    store.append(ROW)
    whole = store.path.read_text()
    store.path.write_text(whole + line + "\n" + whole)
    for call in (store.read, lambda: store.done({"a": 1}), results.Store(store.path).read):
        with pytest.raises(ValueError, match=rf"rows\.jsonl, {words}"):
            call()
    store.path.write_text(whole + "\n" + whole)
    assert len(store.read()) == 2, "repaired by hand, with an empty line"


def test_a_full_disk_leaves_no_part_of_a_line(store, monkeypatch):
    store.append(ROW)
    before, write = store.path.read_bytes(), os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[:30]))
    with pytest.raises(files.CacheError, match="free some space"):
        store.append(ROW)
    assert store.path.read_bytes() == before


# --- kills and races


JOB = """
import sys
from prompteol_utils import results
store, row = results.Store("rows.jsonl"), {row!r}
for n in range({first}, {last}):
    if not store.done({{"n": n}}):
        store.append(row | {{"n": n, "extra": "x" * n * 50}})
    print(n, file=sys.stderr, flush=True)
"""


def job(folder, first, last):
    return subprocess.Popen(
        [sys.executable, "-c", JOB.format(row=ROW, first=first, last=last)],
        cwd=folder,
        stderr=subprocess.PIPE,
    )


def test_three_kills_then_the_same_bytes_as_an_unbroken_run(tmp_path):
    for name in ("killed", "unbroken"):
        (tmp_path / name).mkdir()
    chance, finished = random.Random(5), 0
    for part in range(3):
        process = job(tmp_path / "killed", 1, 400)
        for _ in range(90 * part + chance.randint(1, 90)):
            process.stderr.readline()
        time.sleep(chance.uniform(0, 0.005))
        process.send_signal(signal.SIGKILL)
        finished += process.wait() == 0
    assert finished == 0, "every kill met a run at work"
    assert job(tmp_path / "killed", 1, 400).wait() == 0
    assert job(tmp_path / "unbroken", 1, 400).wait() == 0
    assert (tmp_path / "killed" / "rows.jsonl").read_bytes() == (
        tmp_path / "unbroken" / "rows.jsonl"
    ).read_bytes()


def test_two_processes_add_to_one_file(tmp_path):
    processes = [job(tmp_path, 1, 150), job(tmp_path, 150, 300)]
    assert [process.wait() for process in processes] == [0, 0], (
        processes[0].stderr.read() + processes[1].stderr.read()
    )
    frame = results.Store(tmp_path / "rows.jsonl").read()
    assert (
        sorted(frame["n"]) == list(range(1, 300))
        and (frame["extra"].str.len() == frame["n"] * 50).all()
    )
