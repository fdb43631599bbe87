"""Embeddings are computed once: right after interruptions, between processes, and on any
file system.
"""

import hashlib
import sqlite3

import numpy as np
import pytest

from prompteol_utils import results
from prompteol_utils.results import embedding_cache
from prompteol_utils.utils import files


class Fake:
    """Vectors that tell any two sentences apart, and a count of what was really run."""

    def __init__(self, width=8, **key):
        self.key, self.width, self.seen = {"model": "fake/model", "prompt": "p"} | key, width, []

    def encode(self, sentences, *, show_progress_bar=None):
        for index, sentence in enumerate(sentences):
            if not isinstance(sentence, str) or not sentence.strip():
                raise ValueError(f"sentence {index}")
        self.seen += sentences
        rows = [
            np.frombuffer(hashlib.sha512(repr((self.key, s)).encode()).digest(), np.uint32)[
                : self.width
            ]
            for s in sentences
        ]
        return np.array(rows, np.float32).reshape(len(sentences), self.width)


@pytest.fixture
def cache(tmp_path):
    return results.EmbeddingCache(tmp_path / "embeddings")


def test_only_new_sentences_are_run_and_the_order_is_kept(cache):
    fake, texts = Fake(), [f"sentence {n}" for n in range(3000)]
    assert np.array_equal(cache.encode(fake, texts), Fake().encode(texts))
    assert sorted(fake.seen) == sorted(texts)
    mixed = ["new", *reversed(texts), "new", texts[7], "Neu ü"]
    assert np.array_equal(cache.encode(fake, mixed), Fake().encode(mixed))
    assert fake.seen[3000:] == ["Neu ü", "new"]
    assert (
        np.array_equal(
            results.EmbeddingCache(cache.folder).encode(fake, iter(mixed)), Fake().encode(mixed)
        )
        and len(fake.seen) == 3002
    )
    assert (
        cache.encode(fake, mixed).dtype == np.float32
        and cache.encode(fake, "new").shape == (8,)
        and cache.encode(fake, []).shape == (0, 8)
    )


@pytest.mark.parametrize(
    "other",
    [{"prompt": "q"}, {"dtype": "bfloat16"}, {"weight_origin": "x"}, {"model": "fake-model"}],
)
def test_another_encoder_has_its_own_vectors(cache, other):
    one, two = Fake(), Fake(**other)
    assert not np.array_equal(cache.encode(one, ["a"]), cache.encode(two, ["a"]))
    assert one.seen == two.seen == ["a"] and len(list(cache.folder.glob("*.sqlite"))) == 2


def test_a_rise_of_its_version_forgets_all(cache, monkeypatch):
    fake = Fake()
    cache.encode(fake, ["a"])
    monkeypatch.setattr(embedding_cache, "VECTORS", embedding_cache.VECTORS + 1)
    cache.encode(fake, ["a"])
    assert fake.seen == ["a", "a"]


def test_wrap_gives_a_function_with_the_key(cache):
    fake = Fake()
    encode = cache.wrap(fake)
    assert (
        encode.key == fake.key
        and np.array_equal(encode(["a", "b"]), encode(["a", "b"]))
        and sorted(fake.seen) == ["a", "b"]
    )


@pytest.mark.parametrize("bad", ["", "  ", None, 3, b"a"])
def test_the_encoder_refuses_a_bad_sentence_by_its_own_index(cache, bad):
    fake = Fake()
    cache.encode(fake, ["a", "b"])
    with pytest.raises(ValueError, match=r"sentence 2$"):
        cache.encode(fake, ["a", "b", bad, "c"])


def test_vectors_that_are_not_numbers_are_returned_but_not_kept(cache):
    fake = Fake()
    fake.encode = lambda texts, show_progress_bar=None: (
        fake.seen.extend(texts) or np.full((len(texts), 8), np.nan, np.float32)
    )
    assert (
        np.isnan(cache.encode(fake, ["a"])).all()
        and np.isnan(cache.encode(fake, ["a"])).all()
        and fake.seen == ["a", "a"]
    )


def test_a_stream_is_used_where_there_is_one(cache):
    class Streaming(Fake):
        def stream(self, texts, *, chunk, show_progress_bar=None):
            for start in range(0, len(texts), chunk):
                yield Fake.encode(self, texts[start : start + chunk])

        encode = None

    texts = [f"sentence {n}" for n in range(2500)]
    assert np.array_equal(cache.encode(Streaming(), texts), Fake().encode(texts))


@pytest.mark.parametrize("content", [b"no database" * 1000, b"SQLite format 3\0" + bytes(4000)])
def test_a_damaged_file_is_named(cache, content):
    cache.encode(Fake(), ["a"])
    (file,) = cache.folder.glob("*.sqlite")
    file.write_bytes(content)
    with pytest.raises(files.CacheError, match=rf"{file.name}.*delete the file"):
        cache.encode(Fake(), ["a"])


def test_a_file_system_without_shared_memory_gets_another_journal(cache, monkeypatch):
    class NetworkFile(sqlite3.Connection):
        def execute(self, command, *arguments):
            if command.endswith("WAL"):
                raise sqlite3.OperationalError("locking protocol")
            return super().execute(command, *arguments)

    connect = sqlite3.connect
    fake = Fake()
    with monkeypatch.context() as patch:
        patch.setattr(
            sqlite3,
            "connect",
            lambda *given, **named: connect(*given, factory=NetworkFile, **named),
        )
        first = cache.encode(fake, ["a", "b"])
        assert np.array_equal(cache.encode(fake, ["a", "b"]), first)
    assert len(fake.seen) == 2
    (file,) = cache.folder.glob("*.sqlite")
    with connect(file) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    database.close()


def test_a_cache_that_cannot_be_written_says_so(tmp_path, cache, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(files.CacheError, match="PROMPTEOL_CACHE"):
        results.EmbeddingCache(tmp_path / "file" / "embeddings").encode(Fake(), ["a"])
    real = sqlite3.connect

    def small(*arguments, **options):
        database = real(*arguments, **options)
        database.execute("PRAGMA max_page_count = 16")
        return database

    monkeypatch.setattr(sqlite3, "connect", small)
    with pytest.raises(files.CacheError, match=r"full.*free some space"):
        cache.encode(Fake(), [f"sentence {n}" for n in range(3000)])


def test_an_interrupted_run_loses_one_chunk(cache):
    class Interrupted(Fake):
        def encode(self, sentences, **options):
            if len(self.seen) >= 2 * embedding_cache.CHUNK:
                raise KeyboardInterrupt
            return super().encode(sentences, **options)

    texts = [f"sentence {n}" for n in range(3000)]
    with pytest.raises(KeyboardInterrupt):
        cache.encode(Interrupted(), texts)
    fake = Fake()
    assert np.array_equal(cache.encode(fake, texts), Fake().encode(texts))
    assert len(fake.seen) == 3000 - 2 * embedding_cache.CHUNK


def test_two_connections_fill_one_cache(cache):
    class Meanwhile(Fake):
        """While it encodes, another process stores some of the same sentences."""

        def encode(self, sentences, **options):
            results.EmbeddingCache(cache.folder).encode(Fake(), sentences[:7])
            return super().encode(sentences, **options)

    texts = [f"sentence {n}" for n in range(30)]
    assert np.array_equal(cache.encode(Meanwhile(), texts), Fake().encode(texts))
    assert np.array_equal(cache.encode(Fake(), texts), Fake().encode(texts))


def test_another_reading_of_the_same_text_is_not_mixed_in(cache):
    """A tokenizer's files may be the same, and what a library's new version makes of them not."""
    fake = Fake()
    first = cache.encode(fake, ["a"])
    fake.tokens = "0123"  # a file of before says nothing of them: it is taken
    assert np.array_equal(cache.encode(fake, ["a"]), first)
    fake.tokens = "4567"
    with pytest.raises(files.CacheError, match="other tokens of the same text \\(0123, now 4567"):
        cache.encode(fake, ["a", "b"])
    assert fake.seen == ["a"]
