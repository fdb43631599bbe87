"""What a restructuring must not change: vectors, and the names under which finished work is found.

The data in tests/golden/ was written by the flat modules, before they were moved into subpackages:

- `vectors.npz`: embeddings of 200 sentences by nine encoders, projected to 32 dimensions;
- `identity.json`: keys of encoders, records, caches and training runs.

This file imports only names that stay valid, so it must pass unchanged before and after the move.
`python tests/test_golden.py --write` makes the data anew. NEVER run it to make a failing test
pass: a failure says that results differ, or that caches, run folders and records made so far are
lost. Only a change of vectors or keys that is wanted, and explained in its commit, is a reason.
"""

import csv
import functools
import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import zlib
from collections import Counter
from dataclasses import MISSING, asdict, fields
from pathlib import Path

import numpy as np
import pytest

from prompteol_utils.data import load_sts
from prompteol_utils.encoder import Encoder
from prompteol_utils.finetuning import FinetuneConfig, finetune, run_folder
from prompteol_utils.models import load_model
from prompteol_utils.prompts import PROMPTS, Demonstration, Prompt, with_demonstrations
from prompteol_utils.results import EmbeddingCache, Store

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).resolve().parent / "golden"
RESULTS = ROOT / "data" / "results"
ADAPTER = ROOT / "data" / "adapters" / "nli-nf4-r16"
SMOLLM2 = "smollm2-135m-instruct"
GEMMA3 = "gemma3-270m"
NUM_SENTENCES = 200
PUNCTUATED = (  # what the paper's punctuation rule changes; the set of the project begins without
    "Who left the garden gate open?",
    'The sign says "closed" all year!',
    "No bicycles beyond this point",
    "Stop  shouting   at the referee",
)
PROJECTED = 32

# Another processor, number of threads or batch size adds up in another order, so the last digits
# differ. Largest relative differences of a sentence, measured on an Intel Xeon (AVX-512) when the
# data was written: 5e-7 with batches of 64 in place of 512 tokens; 7e-6 (fp32) and 9e-6 (NF4) with
# the kernels of a processor that has AVX2 only (ONEDNN_MAX_CPU_ISA, ATEN_CPU_CAPABILITY and
# MKL_ENABLE_INSTRUCTIONS set to AVX2). NF4 needs no more than fp32: its weights are unpacked to the
# same numbers, and multiplied in fp32. The tolerance is five times the largest difference, and less
# than a hundredth of the distance of the two nearest sentences (0.009: Gemma, a demonstration).
TOLERANCE = 5e-5

# case: (model, quantization, number of demonstrations, with the committed adapter)
ENCODERS = {
    "smollm2-fp32-0": (SMOLLM2, None, 0, False),
    "smollm2-fp32-1": (SMOLLM2, None, 1, False),
    "smollm2-nf4-0": (SMOLLM2, "nf4", 0, False),
    "smollm2-nf4-1": (SMOLLM2, "nf4", 1, False),
    "smollm2-nf4-adapter": (SMOLLM2, "nf4", 0, True),
    "gemma3-fp32-0": (GEMMA3, None, 0, False),
    "gemma3-fp32-1": (GEMMA3, None, 1, False),
    "gemma3-nf4-0": (GEMMA3, "nf4", 0, False),
    "gemma3-nf4-1": (GEMMA3, "nf4", 1, False),
}
DEMONSTRATION = Demonstration("The last ferry leaves before the fog comes in.", "Departure")

TRIPLETS = [
    ("A potter shapes a tall vase.", "Somebody works with clay.", "The workshop is empty."),
    ("Two girls row across the lake.", "Children are in a boat.", "The lake has dried up."),
    ("He reads the map by torchlight.", "A man looks at a map.", "Nobody has brought a map."),
    ("Snow covers the old orchard.", "The fruit trees are white.", "It is a hot afternoon."),
]
TINY_RUN = FinetuneConfig(batch_size=2, max_steps=1, warmup_steps=0, rank=2, dropout=0.0, layers=1)
CONFIGS = {
    "default": FinetuneConfig(batch_size=2),
    "layers": FinetuneConfig(batch_size=2, layers=4, max_steps=7, learning_rate=1e-4, seed=3),
    "tiny": TINY_RUN,
}
DEV_FILE = (
    "main-golden\tdev\t2000\t0001\t4.200\tA baker opens the oven.\tThe oven is opened.\n"
    "main-golden\tdev\t2000\t0002\t0.400\tA heron stands still.\tThe printer is jammed.\n"
    "main-golden\tdev\t2000\t0003\t2.500\tThe bus is late again.\tThe train was late.\n"
)


def model_folder(name: str) -> Path:
    """Where an offline model lies once it was fetched."""
    own = os.environ.get("PROMPTEOL_CACHE")
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    if own:
        cache = Path(own).expanduser()
    elif os.path.isabs(xdg):
        cache = Path(xdg) / "prompteol"
    else:
        cache = Path.home() / ".cache" / "prompteol"
    return cache / "models" / name


def need_model(name: str) -> None:
    """Skips where weights with terms of their own would have to be downloaded."""
    if name == GEMMA3 and not (model_folder(name) / "MANIFEST.json").is_file():
        pytest.skip(f"{name} is not in the cache folder, and this test downloads nothing")


@functools.cache
def loaded_model(name: str, quantization: str | None = None, with_adapter: bool = False):
    """A model in fp32 on the CPU, loaded once for all tests of a process."""
    return load_model(
        name,
        dtype="float32",
        quantization=quantization,
        device="cpu",
        adapter=str(ADAPTER) if with_adapter else None,
    )


def golden_encoder(case: str) -> Encoder:
    """The encoder of one case."""
    name, quantization, shots, with_adapter = ENCODERS[case]
    prompt = with_demonstrations(PROMPTS["prompteol"], [DEMONSTRATION] * shots)
    return Encoder(loaded_model(name, quantization, with_adapter), prompt)


@functools.cache
def sentences() -> tuple[str, ...]:
    """The first distinct sentences of the project's own STS set, and the punctuated ones."""
    with open(ROOT / "data" / "mini_sts.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    texts = dict.fromkeys(row[side] for row in rows for side in ("left", "right"))
    return tuple(texts)[: NUM_SENTENCES - len(PUNCTUATED)] + PUNCTUATED


def project(vectors: np.ndarray) -> np.ndarray:
    """A seeded random projection, which keeps lengths and distances well enough and the file small.

    `RandomState` and not `default_rng`: numpy promises that its numbers never change.
    """
    shape = (vectors.shape[1], PROJECTED)
    matrix = np.random.RandomState(20240).standard_normal(shape) / np.sqrt(PROJECTED)
    return (vectors.astype(np.float64) @ matrix).astype(np.float32)


def relative_errors(vectors: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Length of each vector's difference, as a part of the expected vector's length."""
    return np.linalg.norm(vectors - expected, axis=-1) / np.linalg.norm(expected, axis=-1)


def nearest(vectors: np.ndarray) -> float:
    """The smallest distance between two different sentences, as a part of a vector's length."""
    pairs = relative_errors(vectors[:, None], vectors[None])
    np.fill_diagonal(pairs, np.inf)
    return float(pairs.min())


def digest(value: object) -> str:
    """SHA-256 of a plain value as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@functools.cache
def identity() -> dict:
    """The stored keys."""
    return json.loads((GOLDEN / "identity.json").read_text(encoding="utf-8"))


@functools.cache
def stored_vectors() -> dict[str, np.ndarray]:
    """The stored projections by case."""
    with np.load(GOLDEN / "vectors.npz") as archive:
        return {case: archive[case] for case in archive.files}


def defaults(kind: type) -> dict:
    """The fields of a dataclass in order, each with its default."""
    found = {}
    for field in fields(kind):
        found[field.name] = "required" if field.default is MISSING else field.default
    return found


def written_fields() -> dict:
    """The dataclasses whose fields are hashed, and the prompts."""
    kinds = (Prompt, Demonstration, FinetuneConfig)
    found = {kind.__name__: defaults(kind) for kind in kinds}
    found["prompts"] = {name: asdict(prompt) for name, prompt in PROMPTS.items()}
    demonstrated = with_demonstrations("prompteol", [DEMONSTRATION])
    found["rendered"] = demonstrated.render('Who said "wait" twice?')
    return json.loads(json.dumps(found))


def dev_pairs(folder: Path):
    """Three pairs of our own in SentEval's layout, read by the public function."""
    target = folder / "STS" / "STSBenchmark" / "sts-dev.csv"
    target.parent.mkdir(parents=True)
    target.write_text(DEV_FILE, encoding="utf-8")
    return load_sts("stsb", "dev", root=folder)


def run_folders(folder: Path) -> dict[str, str]:
    """The folders of a few training runs, below the cache folder, which is `folder` meanwhile."""
    encoder = golden_encoder("smollm2-fp32-0")
    demonstrated = golden_encoder("smollm2-fp32-1")
    dev = dev_pairs(folder / "senteval")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROMPTEOL_CACHE", str(folder))
        found = {name: run_folder(encoder, TRIPLETS, config) for name, config in CONFIGS.items()}
        found["dev"] = run_folder(encoder, TRIPLETS, CONFIGS["default"], dev)
        found["demonstration"] = run_folder(demonstrated, TRIPLETS, CONFIGS["default"], dev)
    return {name: path.relative_to(folder).as_posix() for name, path in found.items()}


class Recalled:
    """Stands for an encoder by its key, so that caches are tested without a model."""

    def __init__(self, key: dict):
        self.key = key
        self.asked = Counter()

    def encode(self, texts, show_progress_bar=None) -> np.ndarray:
        """Vectors that depend on the text alone."""
        self.asked.update(texts)
        return np.array([[len(text), ord(text[0]), 0.5] for text in texts], np.float32)


# --- fields and keys


def test_fields_that_are_hashed_and_prompts_are_as_before():
    assert written_fields() == identity()["fields"]


@pytest.mark.bundled
@pytest.mark.parametrize("case", ENCODERS)
def test_key_of_the_encoder(case):
    need_model(ENCODERS[case][0])
    key = golden_encoder(case).key
    assert key == identity()["encoders"][case]["key"]
    assert digest(key) == identity()["encoders"][case]["sha256"]


def test_keys_tell_the_encoders_apart():
    digests = [stored["sha256"] for stored in identity()["encoders"].values()]
    assert len(set(digests)) == len(ENCODERS)
    for stored in identity()["encoders"].values():
        assert digest(stored["key"]) == stored["sha256"]


# --- vectors


@pytest.mark.parametrize("case", ENCODERS)
def test_stored_vectors_can_tell(case):
    """Two sentences, and two encoders, are much farther apart than the tolerance."""
    expected = stored_vectors()
    assert digest(sentences()) == identity()["sentences"], "data/mini_sts.csv begins otherwise"
    assert expected[case].shape == (NUM_SENTENCES, PROJECTED)
    assert expected[case].dtype == np.float32
    assert nearest(expected[case]) >= 100 * TOLERANCE
    for other in ENCODERS:
        if other != case:
            assert relative_errors(expected[other], expected[case]).min() >= 100 * TOLERANCE


@pytest.mark.bundled
@pytest.mark.parametrize("case", ENCODERS)
def test_vectors(case):
    need_model(ENCODERS[case][0])
    vectors = golden_encoder(case).encode(list(sentences()), show_progress_bar=False)
    assert vectors.dtype == np.float32
    assert vectors.shape[0] == NUM_SENTENCES
    errors = relative_errors(project(vectors), stored_vectors()[case])
    assert errors.max() <= TOLERANCE


# --- records

RECORDS = ["plain", "demonstrations", "nf4", "int8", "adapter", "gemma"]
RECORDS += ["transfer", "search", "finetune"]


@pytest.mark.parametrize("name", RECORDS)
def test_committed_record_is_found(name, tmp_path):
    stored = identity()["records"][name]
    copy = shutil.copy(RESULTS / stored["file"], tmp_path)
    store = Store(copy)
    key = stored["key"]
    assert store.done(key)
    for field in ("n", "start", "dtype", "demonstrations"):
        if field in key:
            assert not store.done(key | {field: "another"})


@pytest.mark.bundled
def test_committed_adapter_has_its_name():
    loaded = golden_encoder("smollm2-nf4-adapter").loaded
    assert loaded.adapter == "nli-nf4-r16@2295f19a"
    assert Store(RESULTS / "finetune.jsonl").done({"adapter": loaded.adapter})


def demonstration_options(name: str) -> list[str]:
    """The options that stand for the demonstrations of a stored record."""
    texts = identity()["records"][name]["key"]["demonstrations"]
    return [part for text in texts for part in ("--demonstration", text)]


# name: (model, file in data/results, subcommand, its options)
FINISHED = {
    "sts": (SMOLLM2, "sts.jsonl", "sts", ["--dtype", "float32"]),
    "sts-demonstrations": (GEMMA3, "sts.jsonl", "sts", ["--dtype", "float32"]),
    "sts-adapter": (
        SMOLLM2,
        "sts.jsonl",
        "sts",
        ["--dtype", "float32", "--quantization", "nf4", "--adapter", str(ADAPTER)],
    ),
    "transfer": (SMOLLM2, "transfer.jsonl", "transfer", ["--dtype", "bfloat16", "--tasks", "trec"]),
    "search": (SMOLLM2, f"search_{SMOLLM2}.jsonl", "search", ["--dtype", "bfloat16"]),
}


@pytest.mark.bundled
@pytest.mark.parametrize("name", FINISHED)
def test_command_finds_its_committed_records(name, tmp_path):
    """A finished command, run again, computes nothing: not a byte is added to its records."""
    root = os.environ.get("PROMPTEOL_SENTEVAL")
    if not root:
        pytest.skip("PROMPTEOL_SENTEVAL names no folder with SentEval's data")
    model, file, subcommand, options = FINISHED[name]
    need_model(model)
    if subcommand == "sts":
        options = [*options, "--tasks", "stsb", "sts12", "sts13", "sts15"]
    if name == "sts-demonstrations":
        options = [*options, *demonstration_options("gemma")]
    copy = Path(shutil.copy(RESULTS / file, tmp_path))
    before = copy.read_bytes()
    command = [sys.executable, "-m", "prompteol_utils", subcommand, "--model", model]
    command += [*options, "--root", root, "--output", str(copy)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    assert copy.read_bytes() == before, done.stdout


# --- embedding cache


@pytest.mark.parametrize("case", ["smollm2-fp32-0", "smollm2-nf4-adapter", "gemma3-fp32-1"])
def test_embedding_cache_takes_its_file(case, tmp_path, monkeypatch):
    monkeypatch.setenv("PROMPTEOL_CACHE", str(tmp_path))
    stored = identity()["encoders"][case]
    encoder = Recalled(stored["key"])
    first = EmbeddingCache().encode(encoder, ["A kite hangs in the wires."])
    again = EmbeddingCache().encode(encoder, ["A kite hangs in the wires."])
    found = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.sqlite")]
    assert found == [stored["cache"]]
    assert np.array_equal(first, again)
    assert encoder.asked.total() == 1


def test_embedding_cache_reads_a_file_of_before(tmp_path, monkeypatch):
    monkeypatch.setenv("PROMPTEOL_CACHE", str(tmp_path))
    stored = identity()["encoders"]["smollm2-fp32-0"]
    text = "The tide table hangs by the door."
    vector = np.array([0.25, -3.0, 7.5], np.float32)
    file = tmp_path / stored["cache"]
    file.parent.mkdir(parents=True)
    database = sqlite3.connect(file)
    with database:
        columns = "text BLOB PRIMARY KEY, vector BLOB NOT NULL, crc INTEGER NOT NULL"
        database.execute(f"CREATE TABLE vectors ({columns})")
        database.execute("CREATE TABLE key (json TEXT PRIMARY KEY)")
        key = json.dumps(stored["key"], sort_keys=True)
        database.execute("INSERT INTO key VALUES (?)", [key])
        content = vector.tobytes()
        row = [hashlib.sha256(text.encode()).digest(), content, zlib.crc32(content)]
        database.execute("INSERT INTO vectors VALUES (?, ?, ?)", row)
    database.close()
    encoder = Recalled(stored["key"])
    assert np.array_equal(EmbeddingCache().encode(encoder, text), vector)
    assert not encoder.asked


# --- training runs


@pytest.mark.bundled
def test_run_folders(tmp_path):
    found = run_folders(tmp_path)
    assert found == identity()["runs"]
    assert len(set(found.values())) == len(found)


@pytest.mark.bundled
def test_training_takes_its_folder_and_refuses_another(tmp_path):
    """The run file of before is recognised, and the loss of the first step is the same."""
    stored = identity()["training"]
    encoder = golden_encoder("smollm2-fp32-0")
    run_file = tmp_path / "run" / "run.json"
    run_file.parent.mkdir()
    run_file.write_text(json.dumps(stored["run"]), encoding="utf-8")
    history = finetune(encoder, TRIPLETS, TINY_RUN, run_file.parent)
    assert history["loss"].iloc[-1] == pytest.approx(stored["loss"], rel=1e-3)
    other = FinetuneConfig(**{**asdict(TINY_RUN), "seed": 7})
    with pytest.raises(ValueError, match="seed"):
        finetune(encoder, TRIPLETS, other, run_file.parent)


# --- making the data


RECORD_FIELDS = [
    *("model", "prompt", "demonstrations", "quantization", "adapter", "pooling", "layer"),
    *("engine", "task", "split", "n", "origin", "text_form"),
    *("weight_origin", "model_commit", "dtype", "seed"),
]
TRANSFER_FIELDS = ["kind", *RECORD_FIELDS, "solver", "folds", "limit", "sample_seed"]
FINETUNE_FIELDS = [
    *("kind", "model", "weight_origin", "quantization", "dtype", "prompt", "demonstrations"),
    *("config", "triplets", "dev"),
]
SEARCH_FIELDS = ["kind", "search", "demonstrations", "start"]


def committed_keys() -> dict:
    """Identities of committed records, as the command line asks for them."""
    sts = [json.loads(line) for line in (RESULTS / "sts.jsonl").open(encoding="utf-8")]
    sts = [row for row in sts if (row["task"], row["split"]) == ("stsb", "test")]
    smollm2 = [row for row in sts if row["model"] == SMOLLM2]
    plain = [row for row in smollm2 if row["adapter"] is None]
    chosen = {
        "plain": plain[0],
        "demonstrations": next(row for row in plain if len(row["demonstrations"]) == 4),
        "nf4": next(row for row in plain if row["quantization"] == "nf4"),
        "int8": next(row for row in plain if row["quantization"] == "int8"),
        "adapter": next(row for row in smollm2 if row["adapter"] == "nli-nf4-r16@2295f19a"),
    }
    gemma = [row for row in sts if row["model"] == GEMMA3]
    chosen["gemma"] = next(row for row in gemma if len(row["demonstrations"]) == 1)
    keys = {}
    for name, row in chosen.items():
        key = {field: row.get(field) for field in RECORD_FIELDS}
        keys[name] = {"file": "sts.jsonl", "key": key}
    others = (
        ("transfer", "transfer.jsonl", TRANSFER_FIELDS),
        ("finetune", "finetune.jsonl", FINETUNE_FIELDS),
        ("search", f"search_{SMOLLM2}.jsonl", SEARCH_FIELDS),
    )
    for name, file, names in others:
        row = json.loads((RESULTS / file).read_text(encoding="utf-8").splitlines()[3])
        keys[name] = {"file": file, "key": {field: row.get(field) for field in names}}
    return keys


def write(scratch: Path) -> None:
    """Makes the data of this test; see the module's docstring for when.

    Args:
        scratch: An empty folder.
    """
    encoders, vectors = {}, {}
    for case in ENCODERS:
        encoder = golden_encoder(case)
        key = json.loads(json.dumps(encoder.key))
        EmbeddingCache(scratch / case).encode(Recalled(key), ["A kite hangs in the wires."])
        (cache,) = (scratch / case).glob("*.sqlite")
        encoders[case] = {"key": key, "sha256": digest(key), "cache": f"embeddings/{cache.name}"}
        exact = encoder.encode(list(sentences()), show_progress_bar=False)
        vectors[case] = project(exact)
        for batch_tokens in (64, 4_096):
            other = encoder.encode(
                list(sentences()), batch_tokens=batch_tokens, show_progress_bar=False
            )
            error = relative_errors(project(other), vectors[case]).max()
            print(f"{case}: relative difference {error:.1e} with batch_tokens={batch_tokens}")
        print(f"{case}: nearest two sentences {nearest(vectors[case]):.2f}", flush=True)
    history = finetune(golden_encoder("smollm2-fp32-0"), TRIPLETS, TINY_RUN, scratch / "run")
    found = {
        "sentences": digest(sentences()),
        "fields": written_fields(),
        "encoders": encoders,
        "records": committed_keys(),
        "runs": run_folders(scratch / "runs"),
        "training": {
            "run": json.loads((scratch / "run" / "run.json").read_text(encoding="utf-8")),
            "loss": float(history["loss"].iloc[-1]),
        },
    }
    GOLDEN.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN / "vectors.npz", **vectors)
    text = json.dumps(found, indent=1, ensure_ascii=False)
    (GOLDEN / "identity.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    import tempfile

    with tempfile.TemporaryDirectory() as temporary:
        write(Path(temporary))
