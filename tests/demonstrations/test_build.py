"""Building a set of demonstrations: an endpoint that misbehaves, a local model, a
dictionary in WordNet's format, checks, and kills.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from kills import kill_at

from prompteol_utils import data, demonstrations
from prompteol_utils.cli.main import main
from prompteol_utils.demonstrations import labelling, read_wordnet
from prompteol_utils.models import fetch_model, save_tiny, tiny_model
from prompteol_utils.results import Store

SENTENCES = [
    "The bakery opens at six.",
    "Our bus broke down.",
    "A goat ate my hat.",
    "The choir sang outside.",
    "Lightning hit the barn.",
]


def label_by_hand(sentences):
    return [[sentence.split()[1]] for sentence in sentences]


def test_words_are_checked_and_rejects_say_why():
    answers = [["Baking"], ["two words"], ["c3po"], ["sentence"], ["It"]]
    table = demonstrations.build_demonstrations(
        lambda part: [answers[SENTENCES.index(one)] for one in part], SENTENCES
    )
    reasons = [
        "",
        "more than one word",
        "not only letters",
        "a word of the prompt itself",
        "a form word or too short",
    ]
    assert list(table["reject"]) == reasons and table["word"].iloc[0] == "Baking"
    definitions = [
        ("bread that is baked.", "BAKING"),
        ("a small horse.", "Pony"),
        ("a small horse.", "Foal"),
    ]
    table = demonstrations.build_demonstrations(
        label_by_hand, SENTENCES[:1] * 2, definitions=definitions, taken=["pony"]
    )
    assert list(table["reject"]) == [
        "",
        "sentence given twice",
        "",
        "word already taken",
        "sentence given twice",
    ]
    assert list(table["kind"]) == ["sentence"] * 2 + ["dictionary"] * 3


def test_the_first_answer_that_passes_is_taken():
    table = demonstrations.build_demonstrations(
        lambda part: [["a", "not one", "*Dawn*."]] * len(part), SENTENCES[:1]
    )
    assert (table["word"].iloc[0], table["reject"].iloc[0]) == ("Dawn", "")


def test_an_interrupted_build_asks_only_for_what_is_missing(tmp_path):
    asked = []

    def label(part, fail=True):
        if fail and len(asked) == 2:
            raise labelling.LabelError("gone")
        asked.append(list(part))
        return label_by_hand(part)

    def again(part):
        return label(part, fail=False)

    label.name = again.name = "mine"
    with pytest.raises(labelling.LabelError):
        demonstrations.build_demonstrations(
            label, SENTENCES, store=tmp_path / "rows.jsonl", batch=2
        )
    assert len(Store(tmp_path / "rows.jsonl").rows()) == 4
    table = demonstrations.build_demonstrations(
        again, SENTENCES, store=tmp_path / "rows.jsonl", batch=2
    )
    assert asked == [SENTENCES[:2], SENTENCES[2:4], SENTENCES[4:]]
    assert table.equals(demonstrations.build_demonstrations(again, SENTENCES, batch=2))


def test_saved_set_is_one_that_the_search_reads(tmp_path):
    table = demonstrations.build_demonstrations(
        lambda part: [[one.split()[1]] for one in part],
        ['He "said" no,\nthen left.', *SENTENCES * 2],
    )
    n = demonstrations.save_demonstrations(table, tmp_path / "pool.csv")
    kept = table[table["reject"] == ""]
    assert [one.word for one in data.load_demonstrations(tmp_path / "pool.csv")] == list(
        kept["word"]
    ) and n == len(kept) < len(table)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="neither sentences nor definitions"):
        demonstrations.build_demonstrations(label_by_hand, [])
    with pytest.raises(ValueError, match="sentence 1 is '  '"):
        demonstrations.build_demonstrations(label_by_hand, ["A cow.", "  "])
    with pytest.raises(ValueError, match="1 answers for 5"):
        demonstrations.build_demonstrations(lambda part: [["Word"]], SENTENCES)


# --- a dictionary in WordNet's format, written for this test

ENTRIES = """  1 This line stands for a licence.
00000001 06 n 02 teapot 0 samovar 0 001 @ 00000009 n 0000 | a pot in which tea is made; "filled it"
00000002 06 n 01 tea_caddy 0 000 | a can for tea leaves
00000003 06 n 01 Ceylon 0 000 | a tea that has a name
00000004 00 a 01 steeped(p) 0 000 | (of tea) left in hot water; rarely of people
00000005 06 n 01 cup 0 000 | drinking vessel
"""


def test_wordnet_entries_become_pairs(tmp_path):
    (tmp_path / "data.noun").write_text(ENTRIES)
    pairs = list(read_wordnet(tmp_path))
    assert pairs == [("a pot in which tea is made.", "Teapot"), ("left in hot water.", "Steeped")]
    assert list(read_wordnet(tmp_path, max_words=5)) == pairs[1:]
    (tmp_path / "data.noun").write_text(ENTRIES + "what is this\n")
    with pytest.raises(ValueError, match=r"data.noun, line 7"):
        list(read_wordnet(tmp_path))
    with pytest.raises(FileNotFoundError, match="no WordNet database"):
        list(read_wordnet(tmp_path / "none"))


# --- a local model


def test_local_words_are_ranked_likeliest_first():
    label = labelling.local_labeller(tiny_model("llama"), beams=4, tokens=4)
    answers = label(SENTENCES)
    assert len(answers) == len(SENTENCES) and all(
        1 <= len(words) <= 4 and len(set(words)) == len(words) for words in answers
    )
    assert len({tuple(words) for words in answers}) > 1, (
        "the model says the same for every sentence"
    )
    assert label(SENTENCES[:1])[0][0] == answers[0][0], "batch mates change the answer"
    assert not any('"' in word for words in answers for word in words)
    with pytest.raises(ValueError, match="no LM head"):
        labelling.local_labeller(tiny_model("bert"))


# --- an endpoint


class Stub(BaseHTTPRequestHandler):
    """Answers as its server's `script` says, one entry a request; the last one stays."""

    def do_POST(self):
        server, body = self.server, json.loads(self.rfile.read(int(self.headers["content-length"])))
        with server.lock:
            server.seen.append(body)
            server.now += 1
            server.most = max(server.most, server.now)
            step = server.script.pop(0) if len(server.script) > 1 else server.script[0]
        status, text, wait = {
            "word": (200, None, 0),
            "slow": (200, None, 1.5),
            "busy": (200, None, 0.1),
        }.get(step, (step, "{}", 0))
        if step == "broken":
            status, text = 200, '{"choices": [{"mess'
        time.sleep(wait)
        word = server.word(body["messages"][-1]["content"])
        reply = {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
        reply["choices"] = [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": word}}
        ]
        with server.lock:
            server.now -= 1
        try:
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.end_headers()
            self.wfile.write((text if text is not None else json.dumps(reply)).encode())
        except OSError:
            pass  # the client has gone

    def log_message(self, *_):
        pass


@pytest.fixture
def endpoint(monkeypatch):
    pytest.importorskip("openai")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    server.lock, server.seen, server.script, server.now, server.most = (
        threading.Lock(),
        [],
        ["word"],
        0,
        0,
    )
    server.word = lambda sentence: sentence.split()[1]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
    monkeypatch.setenv("OPENAI_MODEL", "stub")
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    yield server
    server.shutdown()


@pytest.mark.parametrize("trouble", [[429, 429], [500], ["slow"]])
def test_trouble_that_passes_is_waited_out(endpoint, trouble):
    endpoint.script = [*trouble, "word"]
    label = labelling.endpoint_labeller(concurrency=1, timeout=0.7)
    assert label(SENTENCES[:2]) == [["bakery"], ["bus"]]
    assert len(endpoint.seen) == len(trouble) + 2
    assert (
        endpoint.seen[-1]["model"] == "stub"
        and endpoint.seen[-1]["messages"][0]["content"] == labelling.INSTRUCTION
    )


def test_trouble_that_stays_ends_with_one_clear_error_and_keeps_what_is_done(endpoint, tmp_path):
    label = labelling.endpoint_labeller(concurrency=1, retries=2)
    endpoint.script = ["word", "word", 500]
    with pytest.raises(labelling.LabelError, match="HTTP 500"):
        demonstrations.build_demonstrations(
            label, SENTENCES, store=tmp_path / "rows.jsonl", batch=2
        )
    before = len(endpoint.seen)
    assert before in (5, 8) and len(Store(tmp_path / "rows.jsonl").rows()) == 2
    endpoint.script = [401]
    with pytest.raises(labelling.LabelError, match="HTTP 401"):
        label(SENTENCES[:1])
    assert len(endpoint.seen) == before + 1, "a wrong key was tried again"
    endpoint.script = ["word"]
    table = demonstrations.build_demonstrations(
        label, SENTENCES, store=tmp_path / "rows.jsonl", batch=2
    )
    assert list(table["reject"]) == [""] * 5 and len(endpoint.seen) == before + 4


def test_a_broken_reply_is_one_clear_error(endpoint):
    endpoint.script = ["broken"]
    with pytest.raises(labelling.LabelError, match="no usable answer"):
        labelling.endpoint_labeller(retries=0)(SENTENCES[:1])


def test_two_words_are_rejected_with_their_reason(endpoint):
    endpoint.word = lambda sentence: "two words" if "bus" in sentence else '"Baking".'
    table = demonstrations.build_demonstrations(labelling.endpoint_labeller(), SENTENCES[:2])
    assert list(table["reject"]) == ["", "more than one word"] and list(table["word"]) == [
        "Baking",
        "Two words",
    ]


def test_no_more_requests_at_a_time_than_allowed(endpoint):
    endpoint.script = ["busy"]
    assert labelling.endpoint_labeller(concurrency=3)(SENTENCES * 3) == [
        [s.split()[1]] for s in SENTENCES * 3
    ]
    assert 2 <= endpoint.most <= 3


def test_no_endpoint_no_model_no_key(monkeypatch):
    pytest.importorskip("openai")
    for name in ("OPENAI_BASE_URL", "OPENAI_MODEL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="no model is named"):
        labelling.endpoint_labeller()
    with pytest.raises(ValueError, match="no key"):
        labelling.endpoint_labeller(model="m")
    label = labelling.endpoint_labeller(model="m", base_url="http://127.0.0.1:9/v1", retries=1)
    with pytest.raises(labelling.LabelError, match=r"no usable answer .*Connection"):
        label(SENTENCES[:1])


def test_without_openai_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r"prompteol-utils\[label\]"):
        labelling.endpoint_labeller(model="m")


def test_cost_is_said_before_it_starts():
    few, many = (
        labelling.estimate_cost(SENTENCES, 1.0, 2.0),
        labelling.estimate_cost(SENTENCES * 2, 1.0, 2.0),
    )
    assert few["requests"] == 5 and many["tokens in"] == pytest.approx(2 * few["tokens in"], abs=1)
    assert (
        few["cost"] == pytest.approx((few["tokens in"] + 2 * few["tokens out"]) / 1e6)
        and few["tokens in"] > 5 * 100
    )


@pytest.mark.slow
@pytest.mark.bundled
def test_a_real_endpoint_answers(tmp_path):
    """transformers serve with the bundled model on loopback.

    Needs the extra transformers[serving], so it is run by hand.
    """
    for package in ("openai", "fastapi", "uvicorn"):
        pytest.importorskip(package)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = str(fetch_model("smollm2-135m-instruct"))
    serve = "from transformers.cli.transformers import main; main()"
    server = subprocess.Popen(
        [sys.executable, "-c", serve, "serve", folder, "--port", str(port)],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    try:
        for _ in range(120):
            with socket.socket() as probe:
                if not probe.connect_ex(("127.0.0.1", port)):
                    break
            time.sleep(0.5)
        label = labelling.endpoint_labeller(
            model=folder, base_url=f"http://127.0.0.1:{port}/v1", timeout=120
        )
        table = demonstrations.build_demonstrations(label, SENTENCES)
        assert (table["reject"] == "").sum() >= 2 and table["word"].nunique() > 2
    finally:
        server.kill()
        server.wait()


# --- the command line


def test_three_kills_of_a_build_leave_the_same_file(tmp_path, capsys):
    model = str(save_tiny("llama", tmp_path / "tiny"))
    (tmp_path / "in.txt").write_text(
        "".join(
            f"The {thing} of the {place} waits.\n" for thing in "abcdefgh" for place in "stuvwxyz"
        )
    )
    (tmp_path / "data.noun").write_text(ENTRIES)

    def verb(name):
        files = [
            "--records",
            str(tmp_path / f"{name}.jsonl"),
            "--output",
            str(tmp_path / f"{name}.csv"),
        ]
        return [
            "build",
            "--input",
            str(tmp_path / "in.txt"),
            "--model",
            model,
            "--wordnet",
            str(tmp_path),
            *files,
        ]

    assert main(verb("unbroken")) == 0
    said = capsys.readouterr().out
    assert "demonstrations of 66" in said and len(Store(tmp_path / "unbroken.jsonl").rows()) == 64
    left = kill_at(verb("killed"), tmp_path / "killed.jsonl", [1, 17, 33])
    assert all(n in (16, 32, 48, 64) for n in left) and left[0] < 64, (
        "a batch is there whole or not at all"
    )
    assert main(verb("killed")) == 0
    assert capsys.readouterr().out == said.replace("unbroken", "killed")
    assert (tmp_path / "killed.csv").read_bytes() == (tmp_path / "unbroken.csv").read_bytes()
    assert len(Store(tmp_path / "killed.jsonl").rows()) == 64


def test_build_needs_something_to_build_from(tmp_path, capsys):
    assert main(["build", "--output", str(tmp_path / "a.csv")]) == 2
    assert "neither sentences nor definitions" in capsys.readouterr().err
    assert main(["build", "--wordnet", str(tmp_path), "--output", str(tmp_path / "a.csv")]) == 2
    assert "no WordNet database" in capsys.readouterr().err and not (tmp_path / "a.csv").exists()
