"""The store and the embedding cache keep finished work through kills, races and damage, and never show two kinds of score as one."""

import hashlib
import json
import math
import random
import signal
import sqlite3
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from prompteol_utils import results
from prompteol_utils.results import embedding_cache
from prompteol_utils.results import store as store_module
from prompteol_utils.utils import files

ROW = {
    "model": "opt-125m", "prompt": "prompteol", "demonstrations": [], "quantization": None, "adapter": None, "pooling": "last", "layer": -1,
    "task": "stsb", "split": "test", "n": 1379, "spearman": 60.5, "spearman_subset_mean": 60.25, "origin": "senteval",
    "text_form": "tokenised lower case", "weight_origin": "hub fp16, base", "dtype": "float32", "seed": 0, "seconds": 1.5, "versions": {},
    "commit": "unknown",
}  # fmt: skip


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
    with pytest.raises(ValueError, match="a row is a dict"):
        store.append([("kind", "bench")])


def test_provenance_names_versions_and_commit(monkeypatch):
    found = results.provenance(7)
    assert found["seed"] == 7 and {"python", "torch", "transformers", "numpy"} <= set(
        found["versions"]
    )
    head = subprocess.run(
        ["git", "-C", results.ROOT, "rev-parse", "HEAD"], capture_output=True, text=True
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
    monkeypatch.setattr(store, "ROOT", tmp_path / "inner")
    assert commit() == "unknown"
    (package / "a.py").write_text("1")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "x")
    assert commit() == "unknown", "another project's checkout around an installed package"
    git("mv", "inner/prompteol_utils", "prompteol_utils")
    git("commit", "-q", "-m", "y")
    monkeypatch.setattr(store, "ROOT", tmp_path)
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


def test_fifteen_thousand_lookups_are_quick(store):
    store.append(*[ROW | {"n": n} for n in range(1, 3001)])
    key = {name: ROW[name] for name in ("model", "prompt", "demonstrations", "task", "split")}
    start = time.process_time()
    assert sum(store.done(key | {"n": n}) for n in range(15_000)) == 3000
    assert time.process_time() - start < 3  # about 0.4 s


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
        ("[]", "line 2: a row is an object"),
        ('{"a": 1}', "line 2: .*lacks model"),
        (json.dumps(ROW | {"spearman": math.nan}), "line 2: NaN"),
        (json.dumps(ROW | {"origin": "web"}), "line 2: unknown origin"),
    ],
)
def test_a_broken_line_in_the_middle_names_file_and_line(store, line, words):
    store.append(ROW)
    whole = store.path.read_text()
    store.path.write_text(whole + line + "\n" + whole)
    for call in (
        store.read,
        lambda: store.append(ROW),
        lambda: store.done({"a": 1}),
        results.Store(store.path).read,
    ):
        with pytest.raises(ValueError, match=rf"rows\.jsonl, {words}"):
            call()
    store.path.write_text(whole + "\n" + whole)
    assert len(store.read()) == 2, "repaired by hand, with an empty line"


def test_a_full_disk_leaves_no_part_of_a_line(store, monkeypatch):
    store.append(ROW)
    before, write = store.path.read_bytes(), store.os.write
    monkeypatch.setattr(store.os, "write", lambda handle, data: write(handle, data[:30]))
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


# --- the embedding cache


class Fake:
    """Vectors that tell any two sentences apart, and a count of what was really run."""

    def __init__(self, width=8, **key):
        self.key, self.width, self.seen = {"model": "fake/model", "prompt": "p"} | key, width, []

    def encode(self, sentences, *, show_progress_bar=None):
        for index, sentence in enumerate(sentences):
            if not isinstance(sentence, str) or not sentence.strip():
                raise ValueError(f"sentence {index}")
        self.seen += sentences
        rows = [
            np.frombuffer(hashlib.sha512(repr((self.key, s)).encode()).digest(), np.uint32)[
                : self.width
            ]
            for s in sentences
        ]
        return np.array(rows, np.float32).reshape(len(sentences), self.width)


@pytest.fixture
def cache(tmp_path):
    return results.EmbeddingCache(tmp_path / "embeddings")


def test_only_new_sentences_are_run_and_the_order_is_kept(cache):
    fake, texts = Fake(), [f"sentence {n}" for n in range(3000)]
    assert np.array_equal(cache.encode(fake, texts), Fake().encode(texts))
    assert sorted(fake.seen) == sorted(texts)
    mixed = ["new", *reversed(texts), "new", texts[7], "Neu ü"]
    assert np.array_equal(cache.encode(fake, mixed), Fake().encode(mixed))
    assert fake.seen[3000:] == ["Neu ü", "new"]
    assert (
        np.array_equal(
            results.EmbeddingCache(cache.folder).encode(fake, iter(mixed)), Fake().encode(mixed)
        )
        and len(fake.seen) == 3002
    )
    assert (
        cache.encode(fake, mixed).dtype == np.float32
        and cache.encode(fake, "new").shape == (8,)
        and cache.encode(fake, []).shape == (0, 8)
    )


@pytest.mark.parametrize(
    "other",
    [{"prompt": "q"}, {"dtype": "bfloat16"}, {"weight_origin": "x"}, {"model": "fake-model"}],
)
def test_another_encoder_has_its_own_vectors(cache, other):
    one, two = Fake(), Fake(**other)
    assert not np.array_equal(cache.encode(one, ["a"]), cache.encode(two, ["a"]))
    assert one.seen == two.seen == ["a"] and len(list(cache.folder.glob("*.sqlite"))) == 2


def test_a_rise_of_its_version_forgets_all(cache, monkeypatch):
    fake = Fake()
    cache.encode(fake, ["a"])
    monkeypatch.setattr(embedding_cache, "VECTORS", embedding_cache.VECTORS + 1)
    cache.encode(fake, ["a"])
    assert fake.seen == ["a", "a"]


def test_wrap_gives_a_function_with_the_key(cache):
    fake = Fake()
    encode = cache.wrap(fake)
    assert (
        encode.key == fake.key
        and np.array_equal(encode(["a", "b"]), encode(["a", "b"]))
        and sorted(fake.seen) == ["a", "b"]
    )


@pytest.mark.parametrize("bad", ["", "  ", None, 3, b"a"])
def test_the_encoder_refuses_a_bad_sentence_by_its_own_index(cache, bad):
    fake = Fake()
    cache.encode(fake, ["a", "b"])
    with pytest.raises(ValueError, match=r"sentence 2$"):
        cache.encode(fake, ["a", "b", bad, "c"])


def test_vectors_that_are_not_numbers_are_returned_but_not_kept(cache):
    fake = Fake()
    fake.encode = lambda texts, show_progress_bar=None: (
        fake.seen.extend(texts) or np.full((len(texts), 8), np.nan, np.float32)
    )
    assert (
        np.isnan(cache.encode(fake, ["a"])).all()
        and np.isnan(cache.encode(fake, ["a"])).all()
        and fake.seen == ["a", "a"]
    )


def test_a_stream_is_used_where_there_is_one(cache):
    class Streaming(Fake):
        def stream(self, texts, *, chunk, show_progress_bar=None):
            for start in range(0, len(texts), chunk):
                yield Fake.encode(self, texts[start : start + chunk])

        encode = None

    texts = [f"sentence {n}" for n in range(2500)]
    assert np.array_equal(cache.encode(Streaming(), texts), Fake().encode(texts))


def test_vectors_come_back_quickly(cache):
    fake, texts = Fake(width=16), [f"sentence {n}" for n in range(15_000)]
    cache.encode(fake, texts)
    start = time.process_time()
    cache.encode(fake, texts)
    assert time.process_time() - start < 2  # about 0.1 s


@pytest.mark.parametrize("damage", ["nonsense", "empty", "middle", "cut", "folder of pages"])
def test_a_corrupt_file_is_noticed_and_done_again(cache, damage):
    fake, texts = Fake(width=8), [f"sentence {n}" for n in range(3000)]
    cache.encode(fake, texts)
    (file,) = cache.folder.glob("*.sqlite")
    content = bytearray(file.read_bytes())
    if damage == "nonsense":
        content[:] = b"no database" * 1000
    elif damage == "empty":
        content[:] = b""
    elif damage == "middle":
        content[len(content) // 2 : len(content) // 2 + 40_000] = b"\xa5" * 40_000
    elif damage == "cut":
        del content[len(content) // 2 :]
    else:
        content[100:4096] = bytes(3996)
    file.write_bytes(content)
    for rest in ("-wal", "-shm"):
        file.with_name(file.name + rest).unlink(missing_ok=True)
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert np.array_equal(cache.encode(fake, texts), Fake(width=8).encode(texts))
    assert (damage == "empty") or any("is corrupt" in str(warning.message) for warning in caught)
    before = len(fake.seen)
    assert (
        np.array_equal(cache.encode(fake, texts), Fake(width=8).encode(texts))
        and len(fake.seen) == before
    )


def test_a_single_changed_bit_is_noticed(cache):
    fake = Fake()
    cache.encode(fake, ["a", "b"])
    (file,) = cache.folder.glob("*.sqlite")
    with sqlite3.connect(file) as database:
        digest = hashlib.sha256(b"a").digest()
        (blob,) = database.execute("SELECT vector FROM vectors WHERE text = ?", [digest]).fetchone()
        database.execute(
            "UPDATE vectors SET vector = ? WHERE text = ?",
            [bytes([blob[0] ^ 1]) + blob[1:], digest],
        )
    database.close()
    assert np.array_equal(cache.encode(fake, ["a", "b"]), Fake().encode(["a", "b"])) and sorted(
        fake.seen
    ) == ["a", "a", "b"]


def test_a_cache_that_cannot_be_written_says_so(tmp_path, cache, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(files.CacheError, match="PROMPTEOL_CACHE"):
        results.EmbeddingCache(tmp_path / "file" / "embeddings").encode(Fake(), ["a"])
    real = embedding_cache._open

    def small(*arguments):
        database = real(*arguments)
        database.execute("PRAGMA max_page_count = 8")
        return database

    monkeypatch.setattr(embedding_cache, "_open", small)
    with pytest.raises(files.CacheError, match=r"full.*free some space"):
        cache.encode(Fake(), [f"sentence {n}" for n in range(3000)])


ENCODE = """
import sys, time
sys.path.insert(0, {tests!r})
from test_results import Fake, results
class Slow(Fake):
    def encode(self, sentences, **rest):
        print(len(sentences), file=sys.stderr, flush=True)
        time.sleep(0.05)
        return Fake.encode(self, sentences)
slow = Slow()
results.EmbeddingCache("cache").encode(slow, [f"sentence {{n}}" for n in range(20_000)])
print(len(slow.seen), "run", file=sys.stderr)
"""


def encode_job(folder):
    code = ENCODE.format(tests=str(results.ROOT / "tests"))
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, stderr=subprocess.PIPE, text=True
    )


def test_a_kill_costs_one_chunk(tmp_path):
    texts, lost = [f"sentence {n}" for n in range(20_000)], 0
    for seed in range(3):
        process = encode_job(tmp_path)
        started = [process.stderr.readline() for _ in range(3)]
        time.sleep(random.Random(seed).uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        assert process.wait() != 0
        lost += len(started + process.stderr.readlines())
    process = encode_job(tmp_path)
    *rest, summary = process.stderr.readlines()
    assert process.wait() == 0
    runs = lost + len(rest)
    assert math.ceil(20_000 / 1024) <= runs <= math.ceil(20_000 / 1024) + 3, (
        f"{runs} chunks run; {summary}"
    )
    assert int(summary.split()[0]) <= 20_000 - 3 * 2 * 1024, (
        "each killed run left at least two chunks"
    )
    fake = Fake()
    assert (
        np.array_equal(
            results.EmbeddingCache(tmp_path / "cache").encode(fake, texts), Fake().encode(texts)
        )
        and not fake.seen
    )


def test_two_processes_fill_one_cache(tmp_path):
    processes = [encode_job(tmp_path) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0], [
        process.stderr.read() for process in processes
    ]
    fake, texts = Fake(), [f"sentence {n}" for n in range(20_000)]
    assert (
        np.array_equal(
            results.EmbeddingCache(tmp_path / "cache").encode(fake, texts), Fake().encode(texts)
        )
        and not fake.seen
    )


# --- beside the paper


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
        "model": "opt-125m", "prompt": "prompteol", "task": "stsb", "system": "PromptEOL OPT-125M", "ours": 60.5, "paper": 67.89,
        "difference": pytest.approx(-7.39),
    }  # fmt: skip


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
    ],
)
def test_one_origin_refuses_a_mixture(field, other, place):
    frame = pd.DataFrame([ROW, ROW | {"prompt": "means", field: other}])
    with pytest.raises(ValueError, match=f"{field} is mixed within {place}: .*{other}"):
        results.require_comparable(frame)
    assert results.require_comparable(frame, "prompt") is frame
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
