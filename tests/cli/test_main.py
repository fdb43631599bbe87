"""The command line: what each verb writes, and one clear line for each wrong input."""

import csv
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from prompteol_utils.cli.main import main
from prompteol_utils.data import sentences
from prompteol_utils.encoder import Encoder
from prompteol_utils.models import save_tiny

TEXTS = [
    "The kettle sings.",
    'She said "no", twice',
    "Zwölf Boxkämpfer",
    "rain",
    "rain",
    "A late bus, again",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_tiny("llama", tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def expected(model) -> np.ndarray:
    return Encoder.from_pretrained(model).encode(TEXTS)


def write_input(path, texts=TEXTS) -> str:
    """The same sentences in the format that the name asks for."""
    if path.suffix == ".txt":
        path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text(
            "".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(texts))
        )
    elif path.suffix == ".parquet":
        import pandas

        pandas.DataFrame({"sentence": texts, "id": range(len(texts))}).to_parquet(path)
    else:
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            rows = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            rows.writerows([("id", "sentence"), *enumerate(texts)])
    return str(path)


def read_output(path) -> np.ndarray:
    if path.suffix == ".npy":
        return np.load(path, mmap_mode="r")
    import pandas

    frame = pandas.read_parquet(path)
    assert list(frame["sentence"]) == TEXTS
    return np.stack(frame["embedding"])


@pytest.mark.parametrize("source", ["a.txt", "a.csv", "a.tsv", "a.jsonl", "a.parquet"])
@pytest.mark.parametrize("target", ["out.npy", "out.parquet"])
def test_encode_reads_and_writes_every_format(tmp_path, model, expected, source, target, capsys):
    assert (
        main(
            [
                "encode",
                "--model",
                model,
                "--input",
                write_input(tmp_path / source),
                "--output",
                str(tmp_path / target),
            ]
        )
        == 0
    )
    vectors = read_output(tmp_path / target)
    assert vectors.dtype == np.float32 and vectors.shape == expected.shape
    assert min(np.linalg.norm(expected[0] - expected[i]) for i in (1, 2, 3, 5)) > 1e-2, (
        "the model cannot tell sentences apart"
    )
    np.testing.assert_allclose(vectors, expected, atol=1e-4)
    assert f"6 sentences x {expected.shape[1]}" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([source, target]), (
        "a partial file was left"
    )


def test_encode_options_reach_the_encoder(tmp_path, model):
    source = write_input(tmp_path / "a.txt")
    shown = ["--demonstration", "a cat sleeps=>Sleep", "--pooling", "mean", "--layer", "1"]
    assert (
        main(
            [
                "encode",
                "--model",
                model,
                "--input",
                source,
                "--output",
                str(tmp_path / "o.npy"),
                *shown,
            ]
        )
        == 0
    )
    from prompteol_utils.prompts import parse_demonstration, with_demonstrations

    prompt = with_demonstrations("prompteol", [parse_demonstration("a cat sleeps=>Sleep")])
    right = Encoder.from_pretrained(model, prompt, pooling="mean", layer=1).encode(TEXTS)
    np.testing.assert_allclose(np.load(tmp_path / "o.npy"), right, atol=1e-4)


def test_encode_of_an_empty_file_has_no_rows(tmp_path, model, expected):
    (tmp_path / "a.txt").write_text("")
    for target in ("o.npy", "o.parquet"):
        assert (
            main(
                [
                    "encode",
                    "--model",
                    model,
                    "--input",
                    str(tmp_path / "a.txt"),
                    "--output",
                    str(tmp_path / target),
                ]
            )
            == 0
        )
    assert np.load(tmp_path / "o.npy").shape == (0, expected.shape[1])


BAD_FILES = [
    ("a.txt", b"one\n\ntwo\n", "a.txt:2: a blank sentence"),
    ("a.txt", b"one\n\xff\xfe\n", "a.txt:2: no valid UTF-8"),
    ("a.csv", b"id,sentence\n1,x\n2\n", "a.csv:3: a string is needed, not None"),
    (
        "a.csv",
        b"id,words\n1,x\n",
        "name the column with the sentences (--text-column); there are: id, words",
    ),
    ("a.csv", b'id,sentence\n1,"x\ny"\n2,"z\n', "a.csv:4: unexpected end"),
    ("a.csv", b'id,sentence\n1,"x\ny"\n2, \n', "a.csv:4: a blank sentence"),
    ("a.jsonl", b'"one"\n{"sentence": 3}\n', "a.jsonl:2: a string is needed, not 3"),
    ("a.jsonl", b'"one"\n{"sentence": \n', "a.jsonl:2: no valid JSON"),
    ("a.jsonl", b'"one"\n"\\ud800"\n', "a.jsonl:2: a lone surrogate"),
    ("a.parquet", b"not parquet", "a.parquet: no readable Parquet file"),
    ("a.docx", b"x", "the input ends with one of .txt, .csv, .tsv, .jsonl, .parquet"),
]


@pytest.mark.parametrize("name, content, told", BAD_FILES)
def test_a_bad_file_is_named_with_its_line(tmp_path, model, name, content, told, capsys):
    (tmp_path / name).write_bytes(content)
    assert (
        main(
            [
                "encode",
                "--model",
                model,
                "--input",
                str(tmp_path / name),
                "--output",
                str(tmp_path / "o.npy"),
            ]
        )
        == 2
    )
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1 and "Traceback" not in error
    assert not (tmp_path / "o.npy").exists()


@pytest.mark.parametrize(
    "change, told",
    [
        ({"--input": "nowhere.txt"}, "nowhere.txt: there is no such file"),
        ({"--output": "o.bin"}, "the output ends with one of .npy, .parquet"),
        ({"--model": "gpt-17"}, "unknown model 'gpt-17'"),
        ({"--prompt": "prompteool"}, "prompteol"),
        ({"--demonstration": "no arrow"}, "=>"),
        ({"--layer": "99"}, "layer 99 does not exist"),
        (
            {"--text-column": "words", "--input": "a.csv"},
            "no column is called 'words'; there are: id, sentence",
        ),
        ({"--device": "cuda:7"}, "cuda"),
        ({"--dtype": "float7"}, "float7"),
    ],
)
def test_a_wrong_option_is_one_line_that_names_the_allowed(
    tmp_path, monkeypatch, model, change, told, capsys
):
    monkeypatch.chdir(tmp_path)
    write_input(tmp_path / "a.txt"), write_input(tmp_path / "a.csv")
    options = {"--model": model, "--input": "a.txt", "--output": "o.npy", **change}
    assert main(["encode", *(part for pair in options.items() for part in pair)]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


def test_debug_shows_the_traceback(tmp_path, model):
    with pytest.raises(sentences.SentenceFileError):
        main(
            [
                "encode",
                "--debug",
                "--model",
                model,
                "--input",
                str(tmp_path / "no.txt"),
                "--output",
                str(tmp_path / "o.npy"),
            ]
        )


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
def senteval(tmp_path):
    folder = tmp_path / "downstream" / "STS" / "STSBenchmark"
    folder.mkdir(parents=True)
    for split in ("train", "dev", "test"):
        lines = [
            f"genre\tfile\t2020\t{i:04}\t{grade}\t{a}\t{b}\n"
            for i, (a, b, grade) in enumerate(PAIRS)
        ]
        (folder / f"sts-{split}.csv").write_text("".join(lines))
    return tmp_path / "downstream"


def test_sts_appends_rows_once(tmp_path, model, senteval, capsys):
    rows = tmp_path / "rows.jsonl"
    command = [
        "sts",
        "--model",
        model,
        "--split",
        "dev",
        "--root",
        str(senteval),
        "--output",
        str(rows),
        "--tasks",
        "stsb",
    ]
    assert main([*command, "--prompt", "prompteol", "mean"]) == 0
    first = capsys.readouterr().out
    written = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [row["prompt"] for row in written] == ["prompteol", "mean"]
    assert {row["n"] for row in written} == {6} and {row["origin"] for row in written} == {
        "senteval"
    }
    assert all(
        row["pooling"] and row["versions"] and row["commit"] and row["seconds"] >= 0
        for row in written
    )
    assert written[0]["spearman"] != written[1]["spearman"], (
        "the prompt made no difference: nothing was tested"
    )
    assert f"{written[0]['spearman']:.2f}" in first
    assert main([*command, "--prompt", "prompteol"]) == 0
    assert "done before" in capsys.readouterr().out and len(rows.read_text().splitlines()) == 2
    assert main([*command, "--prompt", "prompteol", "--limit", "5"]) == 0, (
        "another sample is another row"
    )
    assert len(rows.read_text().splitlines()) == 3


def test_sts_reference_gives_the_same_score(model, senteval, tmp_path):
    rows = tmp_path / "rows.jsonl"
    command = ["sts", "--model", model, "--root", str(senteval), "--output", str(rows)]
    assert main(command) == 0 and main([*command, "--reference"]) == 0
    ours, plain = (json.loads(line) for line in rows.read_text().splitlines())
    assert (ours["engine"], plain["engine"]) == ("encoder", "reference")
    assert ours["spearman"] == pytest.approx(plain["spearman"], abs=0.02)


@pytest.mark.parametrize(
    "change, told",
    [
        (["--tasks", "sts99"], "sts12"),
        (["--split", "final"], "dev"),
        (["--root", "nowhere"], "nowhere"),
        (["--tasks", "sts12"], "STS12"),
        (["--prompt", "nonsense"], "prompteol"),
    ],
)
def test_sts_errors_are_one_line(model, senteval, change, told, capsys):
    assert main(["sts", "--model", model, "--root", str(senteval), *change]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


def test_run_and_check_errors(tmp_path, monkeypatch, capsys):
    from tools.notebooks import rules

    monkeypatch.setattr(rules, "NOTEBOOKS", tmp_path)
    assert main(["run", "77"]) == 2 and "77" in capsys.readouterr().err
    (tmp_path / "00_a.ipynb").write_text(
        '{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'
    )
    assert main(["run", "00", "--profile", "fast"]) == 2
    assert "no profile is called 'fast'" in capsys.readouterr().err
    assert main(["check"]) == 1 and "1 notebooks" in capsys.readouterr().out
    assert main(["strip"]) == 0 and main(["clean", "00"]) == 0


def test_models_lists_the_registry(capsys):
    assert main(["models"]) == 0
    assert "smollm2-135m-instruct" in capsys.readouterr().out


@pytest.mark.parametrize(
    "verb", ["", "run", "encode", "sts", "check", "clean", "strip", "fetch", "models"]
)
def test_help_is_there_at_once(verb):
    start = time.perf_counter()
    run = subprocess.run(
        [sys.executable, "-m", "prompteol_utils", *verb.split(), "--help"],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0 and "usage" in run.stdout
    assert time.perf_counter() - start < 2.0, (
        "about 0.1 s is usual; the bound leaves room for a busy machine"
    )


def test_exit_codes_from_a_shell(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "prompteol_utils", "sing"], capture_output=True, text=True
    )
    assert run.returncode == 2 and "invalid choice" in run.stderr
    lines = subprocess.run(
        f"{sys.executable} -m prompteol_utils models | head -1",
        shell=True,
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert lines.stdout.startswith("name") and "Traceback" not in lines.stderr
