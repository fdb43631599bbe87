"""A file of vectors grows chunk by chunk: whatever cuts a run off, the next one goes on, to the bytes of an unbroken run."""

import json
import os
import random
import tracemalloc

import numpy as np
import pytest
from kills import kill_at

from prompteol_utils.cli.main import main
from prompteol_utils.data import SentenceFileError
from prompteol_utils.encoder import BadSentenceError
from prompteol_utils.encoder.encode_file import encode_file
from prompteol_utils.models import save_tiny
from prompteol_utils.utils import files

HEADER = 128  # bytes of a .npy file before its first number


class Fake:
    """Vectors that name their sentence and its place in the chunk; `fail` is a chunk in which the process dies."""

    def __init__(self, key: str = "a", dimension: int = 2, fail: int = -1, bad: str = ""):
        self.key, self.dimension, self.fail, self.bad, self.seen = (
            {"model": key},
            dimension,
            fail,
            bad,
            [],
        )

    def stream(self, sentences, *, chunk, bar):
        number, start = 0, 0
        while part := [text for _, text in zip(range(chunk), sentences, strict=False)]:
            if number == self.fail:
                raise KeyError("the process dies")
            if self.bad in part:
                raise BadSentenceError(start + part.index(self.bad), "no token in it")
            self.seen += part
            bar.update(len(part))
            vectors = np.zeros((len(part), self.dimension), np.float32)
            vectors[:, 0], vectors[:, 1] = [len(text) for text in part], range(len(part))
            yield vectors
            number, start = number + 1, start + len(part)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(encode_file, "CHUNK", 4)


def write(path, n=11, start=0, end="") -> str:
    path.write_text("".join(f"{'word ' * (i % 5 + 1)}{i}{end}\n" for i in range(start, n)))
    return str(path)


def break_off(source, target, chunk=2) -> bytes:
    """Run until the chunk; returns what is beside the output then."""
    with pytest.raises(KeyError):
        encode_file(source, target, Fake(fail=chunk))
    assert not target.exists()
    return target.with_name(f"{target.name}.part").read_bytes()


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["o.npy", "o.parquet"])
def test_a_run_goes_on_at_the_chunk_where_it_was_cut_off(tmp_path, name, capsys):
    source, target = write(tmp_path / "in.txt"), tmp_path / name
    assert encode_file(source, tmp_path / f"whole-{name}", Fake()) == 11
    part = break_off(source, target)
    assert (
        len(part) == HEADER + 8 * 2 * 4
        and json.loads((tmp_path / f"{name}.part.json").read_text())["done"] == 8
    )
    with (tmp_path / f"{name}.part").open("ab") as file:
        file.write(b"written, and not counted when the kill came")
    encoder = Fake()
    assert encode_file(source, target, encoder) == 11
    assert encoder.seen == (tmp_path / "in.txt").read_text().splitlines()[8:], (
        "finished work was done again"
    )
    assert target.read_bytes() == (tmp_path / f"whole-{name}").read_bytes()
    assert "8 of 11 sentences are done" in capsys.readouterr().err
    assert names(tmp_path) == sorted(["in.txt", name, f"whole-{name}"])


def test_a_cut_between_the_vectors_and_their_count_costs_that_chunk(tmp_path, monkeypatch):
    source, target = write(tmp_path / "in.txt"), tmp_path / "o.npy"
    encode_file(source, tmp_path / "whole.npy", Fake())
    saved = []

    def save(part):
        saved.append(part.done)
        if len(saved) == 3:
            raise KeyError("the process dies")
        files_save(part)

    files_save = encode_file._Part._save
    monkeypatch.setattr(encode_file._Part, "_save", save)
    with pytest.raises(KeyError):
        encode_file(source, target, Fake())
    assert saved == [0, 4, 8] and (tmp_path / "o.npy.part").stat().st_size == HEADER + 8 * 2 * 4
    monkeypatch.undo()
    monkeypatch.setattr(encode_file, "CHUNK", 4)
    encoder = Fake()
    encode_file(source, target, encoder)
    assert len(encoder.seen) == 7 and target.read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_a_cut_while_the_table_is_written_costs_no_vector(tmp_path, monkeypatch):
    import pyarrow.parquet

    source, target = write(tmp_path / "in.txt"), tmp_path / "o.parquet"
    encode_file(source, tmp_path / "whole.parquet", Fake())
    monkeypatch.setattr(pyarrow.parquet, "ParquetWriter", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        encode_file(source, target, Fake())
    monkeypatch.undo()
    monkeypatch.setattr(encode_file, "CHUNK", 4)
    encoder = Fake()
    assert encode_file(source, target, encoder) == 11 and encoder.seen == []
    assert target.read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_work_of_another_encoder_is_not_mixed_in(tmp_path):
    source, target = write(tmp_path / "in.txt"), tmp_path / "o.npy"
    part = break_off(source, target)
    with pytest.raises(
        SentenceFileError,
        match=r"another run \(model was 'a', now 'b'\); .* delete o.npy.part and o.npy.part.json",
    ):
        encode_file(source, target, Fake("b"))
    with pytest.raises(SentenceFileError, match="dimension was 2, now 3"):
        encode_file(source, target, Fake(dimension=3))
    assert (tmp_path / "o.npy.part").read_bytes() == part


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: ["new", *lines],
        lambda lines: [*lines[:7], "new", *lines[8:]],
        lambda lines: lines[:6],
    ],
)
def test_a_change_in_what_is_done_is_refused(tmp_path, change):
    source, target = tmp_path / "in.txt", tmp_path / "o.npy"
    write(source)
    part = break_off(source, target)
    source.write_text("\n".join(change(source.read_text().splitlines())))
    with pytest.raises(
        SentenceFileError, match="one of the first 8 sentences was changed, added or taken out"
    ):
        encode_file(source, target, Fake())
    assert (tmp_path / "o.npy.part").read_bytes() == part and not target.exists()


def test_sentences_may_be_mended_and_added_after_what_is_done(tmp_path):
    source, target = tmp_path / "in.txt", tmp_path / "o.npy"
    write(source)
    break_off(source, target)
    source.write_text(
        "\n".join(
            [*source.read_text().splitlines()[:8], "mended", *(f"more {i}" for i in range(1000))]
        )
    )
    assert encode_file(source, target, encoder := Fake()) == 1009 and len(encoder.seen) == 1001
    encode_file(source, tmp_path / "whole.npy", Fake())
    assert (
        target.read_bytes() == (tmp_path / "whole.npy").read_bytes()
        and len(np.load(target)) == 1009
    )


def test_a_short_last_chunk_is_no_border(tmp_path, monkeypatch, capsys):
    source, target = tmp_path / "in.txt", tmp_path / "o.npy"
    write(source)
    monkeypatch.setattr(encode_file._Part, "finish", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        encode_file(source, target, Fake())
    monkeypatch.undo()
    monkeypatch.setattr(encode_file, "CHUNK", 4)
    write(source, 13)
    encode_file(source, target, Fake())
    encode_file(source, tmp_path / "whole.npy", Fake())
    assert target.read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert "starting anew" in capsys.readouterr().err


def test_a_bad_sentence_is_named_with_its_line_and_what_is_done_stays(tmp_path):
    source, target = tmp_path / "in.csv", tmp_path / "o.npy"
    rows = [f'"a sentence\nover two lines {i}"' for i in range(11)]
    source.write_text("\n".join(["sentence", *rows[:9], "bad", *rows[9:]]))
    with pytest.raises(
        SentenceFileError,
        match=r"in.csv:20: no token in it \(8 sentences are kept, the same command goes on",
    ):
        encode_file(source, target, Fake(bad="bad"))
    with pytest.raises(
        SentenceFileError, match=r"in.csv:20: no token in it"
    ):  # its place is counted from where the run goes on
        encode_file(source, target, Fake(bad="bad"))
    source.write_text("\n".join(["sentence", *rows]))
    assert encode_file(source, target, encoder := Fake(bad="bad")) == 11 and len(encoder.seen) == 3


def test_a_file_that_changes_meanwhile_is_seen(tmp_path):
    class Meanwhile(Fake):
        def stream(self, sentences, *, chunk, bar):
            write(tmp_path / "in.txt", 12)
            yield from super().stream(sentences, chunk=chunk, bar=bar)

    for target in ("o.npy", "o.parquet"):
        with pytest.raises(SentenceFileError, match=r"in.txt changed while it was read"):
            encode_file(write(tmp_path / "in.txt"), tmp_path / target, Meanwhile())
        assert not (tmp_path / target).exists()


def test_a_full_disk_is_said_and_costs_no_finished_chunk(tmp_path, monkeypatch):
    source, target = write(tmp_path / "in.txt"), tmp_path / "o.npy"
    fsync, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) > 4:
            raise OSError(28, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        files.CacheError,
        match=r"o.npy could not be written \(No space left on device\): free some .*; 4 sentences are kept",
    ):
        encode_file(source, target, Fake())
    monkeypatch.setattr(os, "fsync", fsync)
    assert encode_file(source, target, encoder := Fake()) == 11 and len(encoder.seen) == 7
    usage = encode_file.shutil.disk_usage(tmp_path)._replace(free=80)
    monkeypatch.setattr(encode_file.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(files.CacheError, match=r"p.npy needs 0 MB and its disk has 0 MB free"):
        encode_file(source, tmp_path / "p.npy", Fake())


def test_one_process_at_a_time(tmp_path):
    source, target = write(tmp_path / "in.txt"), tmp_path / "o.npy"
    with (
        encode_file._alone(target),
        pytest.raises(SentenceFileError, match="another process is writing it"),
    ):
        encode_file(source, target, Fake())
    assert encode_file(source, target, Fake()) == 11 and names(tmp_path) == ["in.txt", "o.npy"]


def test_the_bar_counts_what_is_done_of_all(tmp_path, monkeypatch):
    bars = []

    class Bar(encode_file.tqdm):
        def __init__(self, *rest, **options):
            super().__init__(*rest, **options)
            bars.append(options | {"bar": self})

    monkeypatch.setattr(encode_file, "tqdm", Bar)
    source, target = write(tmp_path / "in.txt", 600), tmp_path / "o.npy"
    break_off(source, target, 50)
    monkeypatch.setattr(
        Bar, "update", lambda bar, n: setattr(bar, "n", bar.n + n)
    )  # moved even where it is not shown
    encode_file(source, target, Fake())
    assert [(bar["total"], bar["initial"], bar.get("disable")) for bar in bars] == [
        (600, 0, None),
        (600, 200, None),
    ]
    assert bars[1]["bar"].n == 600
    encode_file(write(tmp_path / "few.txt"), target, Fake())
    assert bars[-1]["disable"], "a bar for eleven sentences"


@pytest.mark.parametrize("name", ["o.npy", "o.parquet"])
def test_memory_is_that_of_a_chunk(tmp_path, monkeypatch, name):
    import pyarrow.parquet  # noqa: F401 - what an import takes is not the run's

    monkeypatch.setattr(encode_file, "CHUNK", 500)
    source, peaks = tmp_path / "in.txt", []
    for n in (2_000, 20_000):
        write(source, n, end=" ".join("and so on" for _ in range(20)))
        encoder = Fake(dimension=256)
        encoder.seen = type("Forget", (list,), {"__iadd__": lambda self, _: self})()
        tracemalloc.start()
        encode_file(source, tmp_path / name, encoder)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[0] > 500 * 256 * 4, "not even a chunk was seen: nothing was measured"
    assert peaks[1] < min(1.2 * peaks[0], 20_000 * 256 * 4 / 4), (
        f"{peaks} bytes for 2,000 and 20,000 sentences"
    )


@pytest.mark.parametrize("suffix", ["npy", "parquet"])
def test_three_kills_leave_the_same_bytes(tmp_path, monkeypatch, suffix, capsys):
    monkeypatch.setattr(encode_file, "CHUNK", 2_048)  # that of the processes that are killed
    model = str(save_tiny("llama", tmp_path / "tiny"))
    source, row = write(tmp_path / "in.txt", 9_000), 32 * 4

    def verb(name):
        return [
            "encode",
            "--model",
            model,
            "--input",
            source,
            "--output",
            str(tmp_path / f"{name}.{suffix}"),
        ]

    assert main(verb("unbroken")) == 0
    unbroken = (tmp_path / f"unbroken.{suffix}").read_bytes()
    third = 2_300  # the kills fall into the first 6,900 sentences: later ones could come too late
    moments = [
        HEADER + row * random.Random(k).randrange(k * third, (k + 1) * third) + 1 for k in range(3)
    ]
    left = kill_at(verb("killed"), tmp_path / f"killed.{suffix}.part", moments, "bytes")
    assert all(
        moment <= size < HEADER + 9_000 * row for moment, size in zip(moments, left, strict=True)
    )
    capsys.readouterr()
    assert main(verb("killed")) == 0
    assert "sentences are done; going on" in capsys.readouterr().err
    assert (tmp_path / f"killed.{suffix}").read_bytes() == unbroken
    assert names(tmp_path) == sorted(["tiny", "in.txt", f"killed.{suffix}", f"unbroken.{suffix}"])
