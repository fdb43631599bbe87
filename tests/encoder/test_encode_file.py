"""A file of vectors grows chunk by chunk: whatever ends a run, the next one resumes it."""

import os
import tracemalloc

import numpy as np
import pytest

from prompteol_utils.data import SentenceFileError
from prompteol_utils.encoder import BadSentenceError, Encoder, encode_file
from prompteol_utils.models import tiny_model
from prompteol_utils.utils import files


class Fake:
    """Vectors that name their sentence and its place in the chunk.

    Args:
        key: Of the model.
        dimension: Of the vectors.
        fail: The chunk in which the process dies.
        bad: A sentence that is refused.
    """

    def __init__(self, key: str = "a", dimension: int = 2, fail: int = -1, bad: str = ""):
        self.key = {"model": key}
        self.dimension = dimension
        self.fail = fail
        self.bad = bad
        self.seen: list[str] = []

    def stream(self, sentences, *, chunk, bar):
        number = start = 0
        while part := [text for _, text in zip(range(chunk), sentences, strict=False)]:
            if number == self.fail:
                raise KeyError("the process dies")
            if self.bad in part:
                raise BadSentenceError(start + part.index(self.bad), "no token in it")
            self.seen += part
            bar.update(len(part))
            vectors = np.zeros((len(part), self.dimension), np.float32)
            vectors[:, 0] = [len(text) for text in part]
            vectors[:, 1] = range(len(part))
            yield vectors
            number += 1
            start += len(part)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(encode_file, "CHUNK", 4)


@pytest.fixture(params=["o.npy", "o.parquet"])
def target(request, tmp_path):
    return tmp_path / request.param


def write(path, n=11, end="") -> str:
    path.write_text("".join(f"{'word ' * (i % 5 + 1)}{i}{end}\n" for i in range(n)))
    return str(path)


def break_off(source, target, chunk=2):
    """Run until the chunk."""
    with pytest.raises(KeyError):
        encode_file.encode_file(source, target, Fake(fail=chunk))
    assert not target.exists()


def run(source, target, **options) -> list[str]:
    """The sentences that were embedded."""
    encoder = Fake(**options)
    encode_file.encode_file(source, target, encoder)
    return encoder.seen


def unbroken(source, target) -> bytes:
    """The bytes of a run that nothing disturbs."""
    whole = target.with_name(f"whole-{target.name}")
    run(source, whole)
    return whole.read_bytes()


def lines(source) -> list[str]:
    with open(source) as file:
        return file.read().splitlines()


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_run_is_resumed_at_the_chunk_where_it_ended(tmp_path, target, capsys):
    source = write(tmp_path / "in.txt")
    break_off(source, target)
    assert run(source, target) == lines(source)[8:], "finished work was done again"
    assert "8 of 11 sentences are done" in capsys.readouterr().err
    assert names(tmp_path) == {"in.txt", target.name, f"{target.name}.json"}
    assert target.read_bytes() == unbroken(source, target)


def test_the_real_encoder_gives_its_vectors(tmp_path, target):
    import pyarrow.parquet

    source = write(tmp_path / "in.txt")
    encoder = Encoder(tiny_model("llama"))
    assert encode_file.encode_file(source, target, encoder) == 11
    if target.suffix == ".npy":
        found = np.load(target)
    else:
        table = pyarrow.parquet.read_table(target)
        assert table["sentence"].to_pylist() == lines(source)
        found = np.array(table["embedding"].to_pylist(), np.float32)
    expected = encoder.encode(lines(source))
    assert abs(expected[:1] - expected[1:]).max(1).min() > 0.01, "two sentences differ"
    assert abs(found - expected).max() < 1e-5


def test_a_cut_between_the_vectors_and_their_count_costs_that_chunk(tmp_path, target, monkeypatch):
    source = write(tmp_path / "in.txt")
    atomic_file = files.atomic_file
    saves = []

    def save(path, *rest):
        saves.append(path)
        if len(saves) == 2:
            raise KeyError("the process dies")
        return atomic_file(path, *rest)

    monkeypatch.setattr(files, "atomic_file", save)
    with pytest.raises(KeyError):
        run(source, target)
    monkeypatch.setattr(files, "atomic_file", atomic_file)
    assert run(source, target) == lines(source)[4:]
    assert target.read_bytes() == unbroken(source, target)


def test_a_cut_while_the_output_is_finished_costs_no_vector(tmp_path, target, monkeypatch):
    import pyarrow.parquet

    source = write(tmp_path / "in.txt")
    with monkeypatch.context() as patch:
        patch.setattr(pyarrow.parquet, "ParquetWriter", lambda *_: 1 / 0)
        patch.setattr(os, "replace", lambda *paths: 1 / 0 if target in paths else os.rename(*paths))
        with pytest.raises(ZeroDivisionError):
            run(source, target)
    assert run(source, target) == []
    assert target.read_bytes() == unbroken(source, target)


def test_a_finished_output_is_left_alone(tmp_path, target, capsys):
    source = write(tmp_path / "in.txt")
    run(source, target)
    before = target.stat()
    assert run(source, target) == []
    assert "done before" in capsys.readouterr().err
    assert target.stat() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": "b"}, r"o\.\w+ is of another run \(model was 'a', now 'b'\); choose another"),
        ({"dimension": 3}, "dimension was 2, now 3"),
        ({}, "holds the vectors of another text"),
    ],
)
def test_a_finished_output_of_something_else_is_not_overwritten(tmp_path, target, change, message):
    source = write(tmp_path / "in.txt")
    run(source, target)
    before = target.read_bytes()
    if not change:
        write(tmp_path / "in.txt", 12)
    with pytest.raises(SentenceFileError, match=message):
        run(source, target, **change)
    assert target.read_bytes() == before


def test_an_output_of_unknown_origin_is_not_overwritten(tmp_path, target):
    target.write_text("somebody's")
    with pytest.raises(SentenceFileError, match=r"nothing says whose vectors it holds; .* delete"):
        run(write(tmp_path / "in.txt"), target)
    assert target.read_text() == "somebody's"


def test_unfinished_work_of_another_encoder_is_not_mixed_in(tmp_path, target):
    source = write(tmp_path / "in.txt")
    break_off(source, target)
    message = r"another run \(model was 'a', now 'b'\); .* delete o.\w+.part and o.\w+.json"
    with pytest.raises(SentenceFileError, match=message):
        run(source, target, key="b")
    assert len(run(source, target)) == 3


def test_another_reading_of_the_same_text_is_not_mixed_in(tmp_path, target, monkeypatch):
    source = write(tmp_path / "a.txt")
    monkeypatch.setattr(Fake, "tokens", "0123", raising=False)
    break_off(source, target)
    monkeypatch.setattr(Fake, "tokens", "4567")
    with pytest.raises(SentenceFileError, match="tokens was '0123', now '4567'"):
        run(source, target)


def test_a_run_that_failed_before_its_first_vector_does_not_block_its_name(tmp_path, target):
    source = write(tmp_path / "in.txt")
    break_off(source, target, chunk=0)
    assert len(run(source, target, key="b")) == 11


@pytest.mark.parametrize(
    ("change", "again"),
    [
        (lambda texts: [*texts[:5], "new", *texts[6:]], 7),  # in the second chunk
        (lambda texts: [*texts[:9], "new", *texts[10:]], 3),  # in what was not done
        (lambda texts: [*texts, *(f"more {i}" for i in range(1000))], 1003),
        (lambda texts: texts[:6], 2),
    ],
)
def test_chunks_that_were_edited_are_embedded_again(tmp_path, target, change, again):
    source = write(tmp_path / "in.txt")
    break_off(source, target)
    (tmp_path / "in.txt").write_text("\n".join(change(lines(source))))
    assert len(run(source, target)) == again
    assert target.read_bytes() == unbroken(source, target)


def test_unfinished_work_on_another_text_is_refused(tmp_path, target):
    source = write(tmp_path / "in.txt")
    break_off(source, target)
    write(tmp_path / "other.txt", end=" other")
    with pytest.raises(SentenceFileError, match="unfinished work on another text; choose another"):
        run(str(tmp_path / "other.txt"), target)
    assert len(run(source, target)) == 3


def test_a_bad_sentence_is_named_with_its_line_and_what_is_done_stays(tmp_path, target):
    source = tmp_path / "in.csv"
    texts = [f'"a sentence\nover two lines {i}"' for i in range(11)]
    source.write_text("\n".join(["sentence", *texts[:9], "bad", *texts[9:]]))
    for _ in range(2):  # the second time its place is counted from where the run resumes
        with pytest.raises(SentenceFileError, match=r"in.csv:20: no token in it \(8 sentences are"):
            run(source, target, bad="bad")
    source.write_text("\n".join(["sentence", *texts]))
    assert len(run(source, target, bad="bad")) == 3


def test_a_vector_with_nan_is_an_error_that_names_its_line(tmp_path, target):
    source = write(tmp_path / "in.txt")
    loaded = tiny_model("llama")
    loaded.model.model.norm.weight.data[0] = np.nan
    with pytest.raises(SentenceFileError, match=r"in.txt:1: its vector holds NaN"):
        encode_file.encode_file(source, target, Encoder(loaded))
    assert not target.exists()


def test_a_file_that_changes_meanwhile_is_seen(tmp_path, target):
    class Meanwhile(Fake):
        def stream(self, sentences, *, chunk, bar):
            write(tmp_path / "in.txt", 12)
            yield from super().stream(sentences, chunk=chunk, bar=bar)

    with pytest.raises(SentenceFileError, match=r"in.txt changed while it was read"):
        encode_file.encode_file(write(tmp_path / "in.txt"), target, Meanwhile())
    assert not target.exists()


def test_a_full_disk_is_said_and_costs_no_finished_chunk(tmp_path, target, monkeypatch):
    source = write(tmp_path / "in.txt")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(
            files.CacheError, match=r"written \(No space left on device\): it needs"
        ):
            run(source, target)
    with monkeypatch.context() as patch:
        patch.setattr(np.memmap, "flush", full)
        with pytest.raises(files.CacheError, match="0 sentences are kept"):
            run(source, target)
    break_off(source, target)
    assert len(run(source, target)) == 3


def test_one_process_at_a_time(tmp_path, target):
    class Second(Fake):
        def stream(self, *args, **options):
            with pytest.raises(SentenceFileError, match="another process is writing it"):
                run(source, target)
            return super().stream(*args, **options)

    source = write(tmp_path / "in.txt")
    assert encode_file.encode_file(source, target, Second()) == 11


def test_the_bar_counts_what_is_done_of_all(tmp_path, monkeypatch):
    bars = []

    class Bar(encode_file.tqdm):
        def __init__(self, *rest, **options):
            super().__init__(*rest, **options)
            bars.append((options["total"], options["initial"], options.get("disable", False)))

    monkeypatch.setattr(encode_file, "tqdm", Bar)
    source = write(tmp_path / "in.txt", 600)
    break_off(source, tmp_path / "o.npy", 50)
    run(source, tmp_path / "o.npy")
    run(write(tmp_path / "few.txt"), tmp_path / "few.npy")
    assert bars == [(600, 0, False), (600, 200, False), (11, 0, True)]


def test_an_empty_file(tmp_path, target):
    (tmp_path / "in.txt").write_text("")
    assert encode_file.encode_file(tmp_path / "in.txt", target, Fake()) == 0
    assert target.suffix != ".npy" or np.load(target).shape == (0, 2)


def test_memory_is_that_of_a_chunk(tmp_path, monkeypatch, target):
    import pyarrow.parquet  # noqa: F401 - what an import takes is not the run's

    monkeypatch.setattr(encode_file, "CHUNK", 500)
    source = tmp_path / "in.txt"
    peaks = []
    for n in (2_000, 20_000):
        write(source, n, end=" and so on" * 20)
        encoder = Fake(dimension=256)
        encoder.seen = type("Forget", (list,), {"__iadd__": lambda self, _: self})()
        tracemalloc.start()
        encode_file.encode_file(source, tmp_path / f"{n}-{target.name}", encoder)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[0] > 500 * 256 * 4, "not even a chunk was seen: nothing was measured"
    assert peaks[1] < min(1.2 * peaks[0], 20_000 * 256 * 4 / 4), f"{peaks} bytes"
