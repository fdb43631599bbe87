"""Sentence files: every format gives the same sentences; a fault is named with file and line."""

import pytest

from prompteol_utils.data import SentenceFileError, read_sentences

BAD_FILES = [
    ("a.txt", b"one\n\ntwo\n", "a.txt:2: an empty or blank sentence"),
    ("a.txt", b"one\n\xff\xfe\n", "a.txt:2: no valid UTF-8 at byte 0; save the file as UTF-8"),
    ("a.csv", b"id,sentence\n1,x\n2\n", "a.csv:3: 1 cells, but the header has 2 columns"),
    ("a.csv", b"sentence\nHello, world\nx\n", "a.csv:2: 2 cells, but the header has 1 columns"),
    ("a.tsv", b"sentence\tn\nHello\tyou\t1\n", "a.tsv:2: 3 cells, but the header has 2 columns"),
    (
        "a.csv",
        b"id,words\n1,x\n",
        "column with the sentences (--text-column); there are: id, words",
    ),
    ("a.csv", b"text,text\n1,x\n", "a.csv:1: a column name stands twice: text, text"),
    ("a.csv", b'id,sentence\n1,"x\ny"\n2,"z\n', "a.csv:4: unexpected end"),
    ("a.csv", b'id,sentence\n1,"x\ny"\n2, \n', "a.csv:4: an empty or blank sentence"),
    ("a.jsonl", b'"one"\n{"sentence": 3}\n', "a.jsonl:2: a string is needed, not 3"),
    ("a.jsonl", b'"one"\n{"sentence": \n', "a.jsonl:2: no valid JSON"),
    ("a.jsonl", b'"one"\n"\\ud800"\n', "a.jsonl:2: a lone surrogate"),
    ("a.parquet", b"not parquet", "a.parquet: no readable Parquet file"),
    ("a.docx", b"x", "the input ends with one of .txt, .csv, .tsv, .jsonl, .parquet"),
]


@pytest.mark.parametrize(("name", "content", "told"), BAD_FILES)
def test_a_bad_file_is_named_with_its_line(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SentenceFileError) as error:
        list(read_sentences(tmp_path / name))
    assert told in str(error.value)


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.txt: there is no such file"):
        list(read_sentences(tmp_path / "no.txt"))


def test_lines_are_those_of_an_editor(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone\u0085still one\r\ntwo\u2028too".encode())
    assert list(read_sentences(tmp_path / "a.txt")) == ["one\u0085still one", "two\u2028too"]


def test_quotes_in_tsv_are_text(tmp_path):
    path = tmp_path / "mine.tsv"
    path.write_text('n\tsentence\n1\t"I came\n2\tI saw\n3\tI conquered"\n')
    assert list(read_sentences(path)) == ['"I came', "I saw", 'I conquered"']
