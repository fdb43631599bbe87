"""An exported folder gives the vectors of its encoder, through stock sentence-transformers."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from prompteol_utils.encoder import Encoder
from prompteol_utils.export import chat_template, export_sentence_transformer
from prompteol_utils.models import adapters, load_model, save_tiny
from prompteol_utils.prompts import PROMPTS, Demonstration, Prompt, with_demonstrations

TEXTS = ["The kettle sings.", "A late bus.", "Rain, again and again, on the tin roof.", "x"]
PLAIN = Prompt(PROMPTS["prompteol"].prefix, PROMPTS["prompteol"].suffix, "plain", punctuation=None)
ODD = Demonstration('She said {{ "no" }} {% raw %}\nand left\\.', "Refusal")


def rendered(template: str, text: str) -> str:
    jinja2 = pytest.importorskip("jinja2")
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    message = {"role": "user", "content": text}
    return environment.from_string(template).render(messages=[message])


@pytest.mark.parametrize("text", [*TEXTS, "  two  spaces ", "{{ m }}", 'a "quote"\nline'])
def test_the_template_is_the_prompt_to_the_character(text):
    prompt = with_demonstrations(PLAIN, [ODD])
    template = chat_template(prompt.prefix, prompt.suffix)
    assert rendered(template, text) == prompt.render(text)
    parts = [{"type": "text", "text": text}]
    assert rendered(template, parts) == prompt.render(text)


def encoder(tmp_path, architecture: str = "llama", demonstrations=(), **options) -> Encoder:
    folder = save_tiny(architecture, tmp_path / "base")
    prompt = with_demonstrations(PLAIN, demonstrations)
    return Encoder(load_model(str(folder), **options), prompt)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("architecture", ["llama", "opt", "gemma3"])
@pytest.mark.parametrize("demonstrations", [(), (ODD, Demonstration("Snow falls.", "Winter"))])
def test_stock_modules_give_the_same_vectors(tmp_path, architecture, demonstrations):
    library = pytest.importorskip("sentence_transformers")
    ours = encoder(tmp_path, architecture, demonstrations)
    expected = ours.encode(TEXTS)
    assert np.linalg.norm(expected[0] - expected[1]) > 1e-2, "the model cannot tell them apart"
    folder = export_sentence_transformer(ours, tmp_path / "out")
    assert not list(folder.rglob("*.py"))
    model = library.SentenceTransformer(str(folder), device="cpu")
    for side in ("left", "right"):
        model.tokenizer.padding_side = side
        for size in (1, 32):
            found = model.encode(TEXTS, batch_size=size)
            assert relative_error(found, expected) < 1e-4
    model.save_pretrained(str(tmp_path / "again"))
    again = library.SentenceTransformer(str(tmp_path / "again"), device="cpu")
    assert relative_error(again.encode(TEXTS), expected) < 1e-4
    np.testing.assert_array_equal(ours.encode(TEXTS), expected)


def test_another_prompt_gives_other_vectors(tmp_path):
    library = pytest.importorskip("sentence_transformers")
    ours = encoder(tmp_path)
    folder = export_sentence_transformer(ours, tmp_path / "out")
    model = library.SentenceTransformer(str(folder), device="cpu")
    template = model.tokenizer.chat_template
    model.tokenizer.chat_template = template.replace("one word", "two words")
    assert relative_error(model.encode(TEXTS), ours.encode(TEXTS)) > 1e-2


def test_a_template_that_the_tokenizer_brings_does_not_wrap_twice(tmp_path):
    library = pytest.importorskip("sentence_transformers")
    ours = encoder(tmp_path)
    own = "{% for m in messages %}<|user|>{{ m['content'] }}<|assistant|>{% endfor %}"
    ours.loaded.tokenizer.chat_template = own
    folder = export_sentence_transformer(ours, tmp_path / "out")
    assert ours.loaded.tokenizer.chat_template == own
    model = library.SentenceTransformer(str(folder), device="cpu")
    assert relative_error(model.encode(TEXTS), ours.encode(TEXTS)) < 1e-4


def test_a_sentence_beyond_the_limit_keeps_the_suffix(tmp_path):
    library = pytest.importorskip("sentence_transformers")
    ours = encoder(tmp_path)
    folder = export_sentence_transformer(ours, tmp_path / "out", max_tokens=48)
    model = library.SentenceTransformer(str(folder), device="cpu")
    suffix = ours.loaded.tokenizer(PLAIN.suffix, add_special_tokens=False)["input_ids"]
    ids = model.preprocess(["rain " * 200])["input_ids"][0].tolist()
    assert len(ids) <= 48
    assert ids[-len(suffix) + 1 :] == suffix[1:]


def test_an_adapter_is_merged_and_the_callers_model_left_alone(tmp_path):
    library = pytest.importorskip("sentence_transformers")
    base = save_tiny("llama", tmp_path / "base")
    loaded = load_model(str(base))
    model = adapters.add_lora(loaded.model, rank=4, alpha=8, dropout=0.0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    from dataclasses import replace

    ours = Encoder(replace(loaded, model=model.eval(), adapter="made-here"), PLAIN)
    expected = ours.encode(TEXTS)
    folder = export_sentence_transformer(ours, tmp_path / "out")
    np.testing.assert_allclose(ours.encode(TEXTS), expected, atol=1e-6)
    found = library.SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    assert relative_error(found, expected) < 1e-4
    plain = Encoder(load_model(str(base)), PLAIN).encode(TEXTS)
    assert relative_error(plain, expected) > 1e-2
    assert "made-here, merged" in (folder / "README.md").read_text()


def test_what_cannot_be_exported_is_refused(tmp_path):
    pytest.importorskip("sentence_transformers")
    ours = encoder(tmp_path)
    for options, told in (({"pooling": "mean"}, "mean"), ({"layer": 1}, "last layer")):
        with pytest.raises(ValueError, match=told):
            other = Encoder(ours.loaded, PLAIN, **options)
            export_sentence_transformer(other, tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ValueError, match="not empty"):
        export_sentence_transformer(ours, tmp_path / "full")


def test_without_the_library_one_line_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match=r"prompteol-utils\[export\]"):
        export_sentence_transformer(encoder(tmp_path), tmp_path / "out")


def test_what_is_pushed_to_the_hub_loads_and_gives_the_same_vectors(tmp_path, monkeypatch):
    """The hub is a stub that keeps what is uploaded."""
    library = pytest.importorskip("sentence_transformers")
    from huggingface_hub import HfApi

    hub = tmp_path / "hub"

    def upload(self, *, folder_path, repo_id, **_):
        assert repo_id == "you/eol"
        shutil.copytree(folder_path, hub)
        return SimpleNamespace(commit_url="https://hub.invalid/you/eol")

    monkeypatch.setattr(HfApi, "create_repo", lambda self, **_: SimpleNamespace(repo_id="you/eol"))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    ours = encoder(tmp_path, demonstrations=(ODD,))
    folder = export_sentence_transformer(ours, tmp_path / "out")
    model = library.SentenceTransformer(str(folder), device="cpu")
    model.push_to_hub("you/eol", private=True, local_model_path=str(folder))
    assert (hub / "README.md").read_text() == (folder / "README.md").read_text()
    assert not list(hub.rglob("*.py")), "no code is needed to load it"
    found = library.SentenceTransformer(str(hub), device="cpu").encode(TEXTS)
    assert relative_error(found, ours.encode(TEXTS)) < 1e-4
