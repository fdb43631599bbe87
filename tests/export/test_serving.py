"""A served folder answers the openai client with the vectors of its encoder."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest

from prompteol_utils import export
from prompteol_utils.cli.main import main
from prompteol_utils.encoder import Encoder
from prompteol_utils.export import export_sentence_transformer
from prompteol_utils.models import load_model, save_tiny
from prompteol_utils.prompts import PROMPTS, Prompt

PLAIN = Prompt(PROMPTS["prompteol"].prefix, PROMPTS["prompteol"].suffix, "plain", punctuation=None)
TEXTS = ["The kettle sings.", "A late bus."]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    pytest.importorskip("litserve")
    pytest.importorskip("sentence_transformers")
    openai = pytest.importorskip("openai")
    folder = tmp_path_factory.mktemp("served")
    encoder = Encoder(load_model(str(save_tiny("llama", folder / "base"))), PLAIN)
    export_sentence_transformer(encoder, folder / "out")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "prompteol_utils", "serve", "--device", "cpu"]
    command += ["--model", str(folder / "out"), "--name", "tiny", "--port", port]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, start_new_session=True, **quiet)
    address = f"http://127.0.0.1:{port}"
    for _ in range(600):
        assert process.poll() is None, "the server stopped"
        try:
            urllib.request.urlopen(f"{address}/health", timeout=1)
            break
        except OSError:
            time.sleep(0.5)
    yield openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0), encoder
    os.killpg(process.pid, signal.SIGKILL)  # its workers are processes, too
    process.wait(30)


def test_vectors_are_the_encoders(served):
    client, encoder = served
    expected = encoder.encode(TEXTS)
    assert np.linalg.norm(expected[0] - expected[1]) > 1e-2, "cannot tell them apart"
    answer = client.embeddings.create(model="tiny", input=TEXTS)
    found = np.array([one.embedding for one in answer.data])
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 1e-4
    single = client.embeddings.create(model="tiny", input=TEXTS[1]).data
    assert len(single) == 1 and np.allclose(single[0].embedding, found[1], atol=1e-5)


def test_what_cannot_be_answered_is_told(served):
    import openai

    client, _ = served
    with pytest.raises(openai.NotFoundError, match="this server has 'tiny'"):
        client.embeddings.create(model="other", input=TEXTS)
    for empty in ("", "  ", ["A late bus.", ""], []):
        with pytest.raises(openai.BadRequestError, match="input is empty"):
            client.embeddings.create(model="tiny", input=empty)


def test_a_folder_without_a_model_is_refused(tmp_path, capsys):
    pytest.importorskip("litserve")
    assert main(["serve", "--model", str(tmp_path)]) == 2
    assert "make one with `prompteol export`" in capsys.readouterr().err


def test_without_litserve_one_line_names_the_extra(tmp_path, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "prompteol_utils.export.serving", raising=False)
    monkeypatch.delattr(export, "serving", raising=False)
    monkeypatch.setitem(sys.modules, "litserve", None)
    assert main(["serve", "--model", str(tmp_path)]) == 2
    assert "prompteol-utils[serve]" in capsys.readouterr().err
