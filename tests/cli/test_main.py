"""The command line: what each command writes, and one clear line for each wrong input."""

import csv
import json
import os
import shlex
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from prompteol_utils import __version__
from prompteol_utils.cli.main import main
from prompteol_utils.encoder import Encoder
from prompteol_utils.models import save_tiny
from prompteol_utils.prompts import parse_demonstration, with_demonstrations

TEXTS = [
    "The kettle sings.",
    'She said "no", twice',
    "Zwölf Boxkämpfer",
    "rain",
    "rain",
    "A late bus, again",
]
COMMANDS = [
    "encode",
    "sts",
    "transfer",
    "search",
    "kshot",
    "build",
    "finetune",
    "merge",
    "grid",
    "fetch",
    "models",
    "export",
    "mteb",
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Embeddings of tiny models do not go into the user's cache."""
    monkeypatch.setenv("PROMPTEOL_CACHE", str(tmp_path / "cache"))


def run(line: str, *more: str) -> int:
    return main([*shlex.split(line), *more])


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_tiny("llama", tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def expected(model) -> np.ndarray:
    return Encoder.from_pretrained(model).encode(TEXTS)


def write_input(path) -> str:
    """The sentences in the format that the name asks for."""
    if path.suffix == ".txt":
        path.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"id": 1, "text": text}) + "\n" for text in TEXTS))
    elif path.suffix == ".parquet":
        pd.DataFrame({"sentence": TEXTS, "id": range(len(TEXTS))}).to_parquet(path)
    elif path.suffix == ".tsv":  # quotes are text there
        path.write_text("id\tsentence\n" + "".join(f"1\t{text}\n" for text in TEXTS))
    else:
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            csv.writer(file).writerows([("id", "sentence"), *enumerate(TEXTS)])
    return str(path)


def read_output(path) -> np.ndarray:
    if path.suffix == ".npy":
        return np.load(path, mmap_mode="r")
    frame = pd.read_parquet(path)
    assert list(frame["sentence"]) == TEXTS
    return np.stack(frame["embedding"])


@pytest.mark.parametrize("source", ["a.txt", "a.csv", "a.jsonl", "a.parquet"])
@pytest.mark.parametrize("target", ["out.npy", "out.parquet"])
def test_encode_reads_and_writes_every_format(tmp_path, model, expected, source, target, capsys):
    write_input(tmp_path / source)
    files = f"--input {tmp_path / source} --output {tmp_path / target}"
    assert run(f"encode --model {model} {files}") == 0
    vectors = read_output(tmp_path / target)
    assert vectors.dtype == np.float32
    assert min(np.linalg.norm(expected[0] - expected[i]) for i in (1, 2, 3, 5)) > 1e-2
    np.testing.assert_allclose(vectors, expected, atol=1e-4)
    assert f"6 sentences x {expected.shape[1]}" in capsys.readouterr().out
    left = {path.name for path in tmp_path.iterdir()} - {"cache"}
    assert left == {source, target, f"{target}.json"}, "a partial file is left"


def test_encode_options_reach_the_encoder(tmp_path, model):
    source = write_input(tmp_path / "a.txt")
    shown = '--demonstration "a cat sleeps=>Sleep" --pooling mean --layer 1'
    assert run(f"encode --model {model} --input {source} --output {tmp_path}/o.npy {shown}") == 0
    prompt = with_demonstrations("prompteol", [parse_demonstration("a cat sleeps=>Sleep")])
    right = Encoder.from_pretrained(model, prompt, pooling="mean", layer=1).encode(TEXTS)
    np.testing.assert_allclose(np.load(tmp_path / "o.npy"), right, atol=1e-4)


@pytest.mark.parametrize(
    "change, told",
    [
        ({"--input": "nowhere.txt"}, "nowhere.txt: there is no such file"),
        ({"--output": "o.bin"}, ".npy, .parquet"),
        ({"--model": "gpt-17"}, "unknown model 'gpt-17'"),
        ({"--prompt": "prompteool"}, "prompteol"),
        ({"--demonstration": "no arrow"}, "=>"),
        ({"--layer": "99"}, "layer 99 does not exist"),
        ({"--text-column": "words", "--input": "a.csv"}, "id, sentence"),
        ({"--device": "cuda:7"}, "cuda"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_allowed(
    tmp_path, monkeypatch, model, change, told, capsys
):
    monkeypatch.chdir(tmp_path)
    write_input(tmp_path / "a.txt")
    write_input(tmp_path / "a.csv")
    options = {"--model": model, "--input": "a.txt", "--output": "o.npy", **change}
    assert main(["encode", *(part for pair in options.items() for part in pair)]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not (tmp_path / "o.npy").exists()


def test_an_error_of_any_kind_is_one_line(monkeypatch, capsys):
    from prompteol_utils.models import download

    def broken(name):
        raise KeyError(name)

    monkeypatch.setattr(download, "fetch_model", broken)
    monkeypatch.setattr("prompteol_utils.models.fetch_model", broken, raising=False)
    assert run("fetch smollm2-135m-instruct") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: KeyError") and error.count("\n") == 1


def test_debug_shows_the_traceback(tmp_path, model):
    with pytest.raises(FileNotFoundError):
        run(f"encode --debug --model {model} --input {tmp_path}/no.txt --output {tmp_path}/o.npy")


# Written for this test.
PAIRS = [
    ("A goat climbs the shed roof.", "A goat is on top of the shed.", 4.0),
    ("The ferry left early.", "Nobody likes cold soup.", 0.0),
    ("He counts coins at night.", "He counts money in the dark.", 3.6),
    ("Snow blocks the mountain pass.", "The pass is closed by snow.", 4.8),
    ("Two boys share an umbrella.", "Two boys share a sandwich.", 1.4),
    ("The violin needs new strings.", "A tractor stands in the barn.", 0.2),
]


@pytest.fixture
def senteval(tmp_path) -> str:
    folder = tmp_path / "downstream" / "STS" / "STSBenchmark"
    folder.mkdir(parents=True)
    for split in ("train", "dev", "test"):
        lines = [f"genre\tfile\t2020\t0001\t{grade}\t{a}\t{b}\n" for a, b, grade in PAIRS]
        (folder / f"sts-{split}.csv").write_text("".join(lines))
    return str(tmp_path / "downstream")


def records(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_sts_measures_once(tmp_path, model, senteval, capsys):
    out = tmp_path / "sts.jsonl"
    command = f"sts --model {model} --split dev --root {senteval} --output {out} --tasks stsb"
    assert run(f"{command} --prompt prompteol mean") == 0
    first = capsys.readouterr().out
    written = records(out)
    assert [record["prompt"] for record in written] == ["prompteol", "mean"]
    assert written[0]["n"] == 6
    assert written[0]["origin"] == "senteval"
    assert written[0]["spearman"] != written[1]["spearman"], "the prompt made no difference"
    assert f"{written[0]['spearman']:.2f}" in first
    assert "quantization" in first and "adapter" in first
    assert run(f"{command} --prompt prompteol") == 0
    assert "found in" in capsys.readouterr().out
    assert len(records(out)) == 2
    assert run(f"{command} --prompt prompteol --limit 5") == 0, "another sample, another record"
    assert len(records(out)) == 3


def test_sts_reference_gives_the_same_score(model, senteval, tmp_path):
    out = tmp_path / "sts.jsonl"
    command = f"sts --model {model} --root {senteval} --output {out}"
    assert run(command) == 0
    assert run(f"{command} --reference") == 0
    ours, reference = records(out)
    assert (ours["engine"], reference["engine"]) == ("encoder", "reference")
    assert ours["spearman"] == pytest.approx(reference["spearman"], abs=0.02)


@pytest.mark.parametrize(
    "change, told",
    [
        ("--tasks sts99", "sts12"),
        ("--split final", "dev"),
        ("--root nowhere", "nowhere"),
        ("--tasks sts12", "STS12"),
        ("--prompt nonsense", "prompteol"),
    ],
)
def test_sts_errors_are_one_line(model, senteval, change, told, capsys):
    assert run(f"sts --model {model} --root {senteval} {change}") == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_models_lists_the_registry(capsys):
    assert run("models") == 0
    assert "smollm2-135m-instruct" in capsys.readouterr().out
    assert run("models --memory opt-1.3b") == 0
    assert "opt-1.3b" in capsys.readouterr().out
    assert run("models no-such-model") == 2


def test_grid_asks_for_models_or_a_system(capsys, tmp_path):
    assert run(f"grid --output {tmp_path}/g.jsonl") == 2
    assert "--paper" in capsys.readouterr().err
    assert run(f"grid --paper --output {tmp_path}/g.jsonl") == 0
    assert "opt-125m-icl" in capsys.readouterr().out


def shell(line: str) -> subprocess.CompletedProcess:
    return subprocess.run(line, shell=True, capture_output=True, text=True, env=os.environ)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_shows_defaults(command, capsys):
    with pytest.raises(SystemExit) as end:
        run(f"{command} --help")
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert "see FinetuneConfig" not in shown
    if command == "finetune":
        assert "(default: 256; cpu: 16)" in " ".join(shown.split())


def test_help_comes_at_once_without_torch():
    """What would cost seconds is imported by the commands that need it."""
    code = (
        "import atexit, sys; from prompteol_utils.cli.main import main\n"
        "slow = {'torch', 'transformers', 'pandas', 'scipy', 'sklearn', 'matplotlib'}\n"
        "atexit.register(lambda: print('slow:', *sorted(slow & set(sys.modules))))\n"
        "main(['--help'])"
    )
    shown = shell(f"{sys.executable} -c {shlex.quote(code)}").stdout
    assert "PromptEOL" in shown and shown.splitlines()[-1].strip() == "slow:"


def test_exit_codes_and_version_from_a_shell():
    prompteol = f"{sys.executable} -m prompteol_utils"
    wrong = shell(f"{prompteol} sing")
    assert wrong.returncode == 2
    assert "invalid choice" in wrong.stderr
    piped = shell(f"{prompteol} models | head -1")
    assert piped.stdout.strip().startswith("name")
    assert "Traceback" not in piped.stderr
    assert __version__ in shell(f"{prompteol} --version").stdout


def test_what_was_embedded_outlives_a_run_that_was_cut_off(tmp_path, model, senteval, monkeypatch):
    """Scored again after a kill, or in another task: nothing is embedded twice."""
    command = f"sts --model {model} --root {senteval}"
    with monkeypatch.context() as patch:
        patch.setattr("prompteol_utils.evaluation.evaluate_sts", lambda encode, pairs: stop(encode))
        with pytest.raises(SystemExit):
            run(f"{command} --output {tmp_path}/a.jsonl")
    assert run(f"{command} --output {tmp_path}/a.jsonl") == 0
    monkeypatch.setenv("PROMPTEOL_CACHE", str(tmp_path / "other"))
    assert run(f"{command} --output {tmp_path}/b.jsonl") == 0
    (again,), (whole,) = records(tmp_path / "a.jsonl"), records(tmp_path / "b.jsonl")
    assert (again["encoded"], whole["encoded"]) == (len(PAIRS), 2 * len(PAIRS))
    assert again["spearman"] == whole["spearman"]


def stop(encode):
    encode([left for left, _, _ in PAIRS])
    raise SystemExit


def test_a_cache_that_cannot_be_written_costs_no_score(
    tmp_path, model, senteval, monkeypatch, caplog
):
    """Classrooms share one that holds the models and is read-only."""
    monkeypatch.setattr(os, "access", lambda *_: False)  # the super-user may write everywhere
    assert run(f"sts --model {model} --root {senteval} --output {tmp_path}/a.jsonl") == 0
    assert "no embedding is kept for later runs" in caplog.text
    (record,) = records(tmp_path / "a.jsonl")
    assert record["encoded"] == 2 * len(PAIRS)
    assert not (tmp_path / "cache" / "embeddings").exists()


def test_models_plans_a_folder_as_well(model, capsys):
    assert run(f"models --memory opt-125m {model}") == 0
    assert "opt-125m" in (shown := capsys.readouterr().out) and model.split("/")[-1] in shown
    assert run(f"models --training {model}") == 0


def test_one_fold_is_refused_before_any_work(capsys):
    with pytest.raises(SystemExit) as end:
        run("transfer --model nowhere --folds 1")
    assert end.value.code == 2
    assert "at least 2 folds are needed, not 1" in capsys.readouterr().err


def test_a_search_is_kept_without_being_asked_to(tmp_path, model, senteval):
    (tmp_path / "pool.csv").write_text("sentence,word\nA goat sleeps.,Rest\n")
    pool = f"--candidates {tmp_path}/pool.csv --pairs 4 --step 2"
    command = f"search --model {model} --root {senteval} {pool}"
    kept = tmp_path / "cache" / "searches.jsonl"
    assert run(command) == 0
    before = records(kept)
    assert len(before) == 2 * 2, "plain prompt and candidate, two steps each"
    assert run(command) == 0
    assert records(kept) == before
