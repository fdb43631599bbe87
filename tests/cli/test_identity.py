"""Two things are never taken for one, by any command: each result is right, or refused."""

import json
import shlex
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from prompteol_utils.cli.main import main
from prompteol_utils.encoder import Encoder
from prompteol_utils.models import adapters, load_model, save_tiny

SIZE = {"hidden_size": 64, "intermediate_size": 128}  # the least that is stored in 4 bits
TEXTS = [
    f"The {thing} stands {place}."
    for thing in ("lamp", "kettle")
    for place in ("there", "by", "on", "near")
]
FILES = {
    "texts.txt": "\n".join(TEXTS),
    "mine.csv": "text,label\n" + "".join(f"{text},{i % 2}\n" for i, text in enumerate(TEXTS)),
    "pool.csv": "sentence,word\nA goat sleeps.,Rest\nSnow falls.,Winter\n",
    "nli.csv": "anchor,positive,negative\nA goat.,An animal.,No goat.\nIt snows.,Snow.,Sun.\n",
}
COMMANDS = {
    "encode": "--input texts.txt --output {out}.npy",
    "sts": "--limit 40 --split dev --output {out}.jsonl",
    "transfer": "--tasks mine.csv --folds 2 --solvers lbfgs --output {out}.jsonl",
    "search": "--candidates pool.csv --pairs 4 --step 4 --output {out}.jsonl",
    "finetune": "--triplets nli.csv --batch-size 2 --max-steps 1 --dev-limit 0 --rank 4 --alpha 8 "
    "--output {out}",
    "grid": "--limit 40 --split dev --output {out}.jsonl",
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PROMPTEOL_SENTEVAL", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PROMPTEOL_CACHE", str(tmp_path / "cache"))
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    return tmp_path


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two bases in folders of one name, and an adapter of the first."""
    folder = tmp_path_factory.mktemp("saved")
    for seed, name in enumerate("ab"):
        save_tiny("llama", folder / name / "merged", seed=seed, **SIZE)
    for name, quantization in (("lora", None), ("lora-nf4", "nf4")):
        encoder = Encoder(load_model(str(folder / "a" / "merged"), quantization=quantization))
        model = adapters.add_lora(encoder.loaded.model, rank=4, alpha=8, dropout=0.0)
        for weight_name, weight in model.named_parameters():
            if "lora_B" in weight_name:
                torch.nn.init.normal_(weight, 0, 0.2)
        tuned = replace(encoder.loaded, model=model)
        adapters.save(tuned, folder / name, prompt=encoder.key["prompt"])
    return folder


def run(command, model, adapter=None, out="out", more="") -> int:
    with_adapter = {"finetune": "--start"}.get(command, "--adapter")
    line = f"{command} --model {model} {COMMANDS[command].format(out=out)} {more}"
    return main(shlex.split(line) + ([with_adapter, str(adapter)] if adapter else []))


def numbers(here, command, out="out") -> list:
    """What was computed, in the order in which it was written."""
    if command == "encode":
        return np.load(here / f"{out}.npy").tolist()
    if command == "finetune":
        weights = load_file(here / out / "adapter" / "adapter_model.safetensors")
        return [weights[name].tolist() for name in sorted(weights)]
    rows = map(json.loads, (here / f"{out}.jsonl").read_text().splitlines())
    return [row.get("spearman", row.get("accuracy", row.get("cosines"))) for row in rows]


def change_alpha(adapter):
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"lora_alpha": 64}))


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("change", ["two folders of one name", "an overwritten folder", "alpha"])
def test_another_model_in_the_same_place(here, saved, command, change, capsys, monkeypatch):
    model = shutil.copytree(saved / "a" / "merged", here / "first" / "merged")
    adapter = shutil.copytree(saved / "lora", here / "lora") if change == "alpha" else None
    assert run(command, model, adapter) == 0
    first = numbers(here, command)
    if change == "alpha":
        change_alpha(adapter)
    elif change == "an overwritten folder":
        shutil.copytree(saved / "b" / "merged", model, dirs_exist_ok=True)
    else:
        model = saved / "b" / "merged"
    capsys.readouterr()
    code = run(command, model, adapter)
    error = capsys.readouterr().err
    if command in ("encode", "finetune"):  # their output holds one model's work
        assert code == 2 and error.strip().splitlines()[-1].startswith("error: ")
        assert numbers(here, command) == first, "what was there stays"
        return
    assert code == 0
    second = numbers(here, command)[len(first) :]
    monkeypatch.setenv("PROMPTEOL_CACHE", str(here / "other-cache"))
    assert run(command, model, adapter, out="fresh") == 0
    assert second == numbers(here, command, "fresh") != first


@pytest.mark.parametrize("command", COMMANDS)
def test_an_adapter_of_another_base_is_refused(here, saved, command, capsys):
    assert run(command, saved / "b" / "merged", saved / "lora") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "trained on other weights" in error
    assert not list(here.glob("out*")), "nothing was written"


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("what", ["precision", "prompt"])
def test_an_adapter_used_in_another_way_is_said(here, saved, command, what, caplog, capsys):
    model = saved / "a" / "merged"
    assert run(command, model, saved / "lora") == 0
    assert "adapter lora" not in caplog.text
    more = "--demonstration 'It rains.=>Weather'" if what == "prompt" else ""
    adapter = saved / ("lora" if what == "prompt" else "lora-nf4")
    assert run(command, model, adapter, "other", more) == 0
    said = [one.getMessage() for one in caplog.records if "adapter lora" in one.getMessage()]
    told = {"prompt": "0 demonstrations; here", "precision": "quantization='nf4', here it is None"}
    assert len(said) == 1 and told[what] in said[0]


def test_other_triplets_of_the_same_name_and_number(here, saved, capsys):
    model = saved / "a" / "merged"
    assert run("finetune", model, more="--records runs.jsonl") == 0
    assert run("finetune", model, out="again", more="--records runs.jsonl") == 0
    assert "found in runs.jsonl" in capsys.readouterr().out
    (here / "nli.csv").write_text(FILES["nli.csv"].replace("goat", "hen"))
    assert run("finetune", model, more="--records runs.jsonl") == 2
    assert "holds another run (triplets was" in capsys.readouterr().err
    assert run("finetune", model, out="again", more="--records runs.jsonl") == 0
    assert "found in" not in capsys.readouterr().out
    assert len((here / "runs.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("setting", ["--rank 2", "--alpha 16", "--layers 1"])
def test_an_adapter_is_trained_further_with_its_own_settings_only(here, saved, setting, capsys):
    model = saved / "a" / "merged"
    assert run("finetune", model, saved / "lora", more=setting) == 2
    assert setting.split()[0].strip("-") in capsys.readouterr().err
    assert run("finetune", model, saved / "lora") == 0, "the refused run does not hold the folder"


@pytest.mark.parametrize(
    "options, told",
    [
        ("--model x --weights f", "--weights has no effect without --paper"),
        ("--model x --transfer", "--transfer has no effect without --paper"),
        ("--paper opt-125m --limit 5", "--limit has no effect with --paper"),
        ("--paper opt-125m --prompt mean", "--prompt has no effect with --paper"),
        (
            "--paper opt-125m --dtype float32 bfloat16",
            "--paper takes one precision, got fp32, bf16",
        ),
    ],
)
def test_grid_ignores_no_option(options, told, capsys):
    assert main(shlex.split(f"grid --output out.jsonl {options}")) == 2
    assert told in capsys.readouterr().err
