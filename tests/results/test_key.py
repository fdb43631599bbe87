"""What makes two measurements the same: committed records are found, others are not."""

import json
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest

from prompteol_utils.prompts import get_prompt, parse_demonstration, with_demonstrations
from prompteol_utils.results import MeasurementKey, Store
from prompteol_utils.results.key import UNKNOWN, record_identity
from prompteol_utils.utils.files import DATA

RESULTS = DATA / "results"


def encoder_of(record: dict, **change):
    """An encoder without a model that has the settings of a record."""
    loaded = {name: record.get(name) for name in ("weight_origin", "quantization", "dtype")}
    loaded |= {"name": record["model"], "commit": record.get("model_commit")}
    if record.get("kind") != "finetune":  # there it is the result
        loaded["adapter"] = record["adapter"]
    prompt = with_demonstrations(
        record["prompt"], map(parse_demonstration, record["demonstrations"])
    )
    names = ("weight_origin", "quantization", "dtype")
    key = {name: loaded.get(name) for name in (*names, "commit", "adapter")}
    key |= {"model": record["model"], "pooling": record.get("pooling", prompt.pooling)}
    key |= {"layer": 30, "max_sentence_tokens": None, "normalize": False}
    prompt = change.pop("prompt", prompt)
    return SimpleNamespace(key=key | change, prompt=prompt)


class Data(SimpleNamespace):
    def __len__(self):
        return self.size


def data_of(record: dict) -> Data:
    names = ("origin", "text_form")
    return Data(name=record["task"], size=record["n"], **{name: record[name] for name in names})


def key_of(record: dict) -> MeasurementKey:
    """The key that a command makes for the measurement of a record."""
    encoder, kind = encoder_of(record), record.get("kind", "sts")
    if kind == "finetune":
        settings = {name: record[name] for name in ("config", "triplets", "dev")}
        return MeasurementKey.of(encoder, kind=kind, **settings)
    names = ("solver", "folds", "limit", "sample_seed") if kind == "transfer" else ()
    return MeasurementKey.of(
        encoder,
        data_of(record),
        record["split"],
        kind=kind,
        seed=record["seed"],
        layer=record["layer"],
        engine=record["engine"],
        **{name: record[name] for name in names},
    )


def records(name: str) -> list[dict]:
    return [json.loads(line) for line in (RESULTS / name).read_text().splitlines()]


@pytest.mark.parametrize(
    "name", ["sts.jsonl", "reference.jsonl", "transfer.jsonl", "finetune.jsonl"]
)
def test_every_committed_record_is_found_and_no_other(name, tmp_path):
    for record in records(name):
        key, store = key_of(record), Store(tmp_path / "records.jsonl")
        store.path.write_text(json.dumps(record) + "\n")
        assert store.done(key)
        assert {name: record.get(name) for name in key.record()} == key.record()
        for setting, value in key.record().items():
            if setting != "kind":
                other = "another" if value != "another" else "one"
                assert not store.done(key.record() | {setting: other}), setting


@pytest.mark.parametrize("name, field", [("sts.jsonl", "spearman"), ("transfer.jsonl", "accuracy")])
def test_records_of_one_key_have_one_score(name, field):
    scores: dict[str, float] = {}
    for record in records(name):
        score = scores.setdefault(record_identity(record), record[field])
        assert abs(score - record[field]) < 0.01
        assert record_identity(record) == record_identity(key_of(record).record())
    assert len(scores) >= len(records(name)) - 1  # one was measured twice


RECORD = {
    "model": "m", "prompt": "prompteol", "demonstrations": [], "quantization": None,
    "adapter": None, "pooling": "last",
    "layer": -1, "engine": "encoder", "task": "stsb", "split": "test", "n": 9,
    "origin": "mini", "text_form": "natural",
    "weight_origin": "local folder", "model_commit": "a1", "dtype": "float32", "seed": 0,
}  # fmt: skip


def test_every_setting_makes_another_measurement():
    key = key_of(RECORD)
    assert key.record() == RECORD
    for field in fields(key):
        changed = {"settings": {"folds": 3}}.get(field.name, "another")
        other = replace(key, **{field.name: changed})
        assert record_identity(other.record()) != record_identity(key.record()), field.name


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": replace(get_prompt("prompteol"), suffix='" means, in one word:"')},
        {"prompt": replace(get_prompt("prompteol"), punctuation=None)},
        {"max_sentence_tokens": 8},
        {"normalize": True},
    ],
)
def test_an_encoder_with_other_vectors_is_another_although_its_names_are_the_same(change):
    of = {"data": data_of(RECORD), "split": "test"}
    plain = MeasurementKey.of(encoder_of(RECORD), **of)
    other = MeasurementKey.of(encoder_of(RECORD, **change), **of)
    assert record_identity(plain.record()) != record_identity(other.record())


def test_what_is_unknown_before_a_model_is_loaded_is_not_compared(tmp_path):
    key = replace(key_of(RECORD), weight_origin=UNKNOWN, model_commit=UNKNOWN)
    assert {name for name in RECORD if name not in key.record()} == {
        "weight_origin",
        "model_commit",
    }
