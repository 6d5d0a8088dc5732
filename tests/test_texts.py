"""Texts to be asked about: from the command line, lines, tables and standard input."""

import io
import json
from types import SimpleNamespace

import pytest

from luthier.cli.texts import read_texts
from luthier.errors import DataError


def given(tmp_path, name, content):
    file = tmp_path / name
    file.write_bytes(content)
    return file


def test_each_line_is_a_text_and_no_other_sign_ends_one(tmp_path):
    lines = ["one\u2028still one", "two\x0cstill two", "three\x85"]
    file = given(tmp_path, "a.txt", "\r\n".join(lines).encode())
    assert read_texts(["first"], file) == ["first", lines[0], lines[1], "three"]


def test_blank_lines_are_passed_over_and_said(tmp_path, capsys):
    assert read_texts([], given(tmp_path, "a.txt", b"one\n\n  \ntwo\n")) == ["one", "two"]
    assert "2 of 4 texts are blank, passed over" in capsys.readouterr().err


def test_a_column_of_a_table(tmp_path):
    table = given(tmp_path, "a.csv", b'\xef\xbb\xbfid,text\n1,"a, b"\n2,"c\nd"\n')
    assert read_texts([], table) == ["a, b", "c\nd"]
    assert read_texts([], table, column="id") == ["1", "2"]
    rows = [json.dumps({"body": "x", "text": "y"}), json.dumps("z")]
    lines = given(tmp_path, "a.jsonl", "\n".join(rows).encode())
    assert read_texts([], lines) == ["y", "z"]
    assert read_texts([], given(tmp_path, "b.tsv", b"body\ttext\n1\t2\n"), column="body") == ["1"]


@pytest.mark.parametrize(
    ("name", "content", "column", "told"),
    [
        ("a.csv", b"id,body\n1,x\n", None, 'no column "text" (there is id, body). Name one with --column'),
        ("a.jsonl", b'{"text": "x"}\n{"text": 3}\n', None, 'a.jsonl:2: no text under "text" (it has text)'),
        ("a.jsonl", b'{"text": "x"}\n{"text"\n', None, "a.jsonl:2: is no JSON"),
        ("a.txt", b"one\n", "body", "--column is for .jsonl, .csv and .tsv files"),
        ("a.txt", b"one\ncaf\xe9\n", None, "a.txt:2: is not UTF-8 text"),
        ("a.txt", b"\n", None, "nothing to label"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path, name, content, column, told):
    with pytest.raises(DataError) as refusal:
        read_texts([], given(tmp_path, name, content), column=column)
    assert told in str(refusal.value)


def test_standard_input_and_arguments_that_are_not_utf8(monkeypatch, tmp_path):
    dash = tmp_path.__class__("-")
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"one\ntwo\n")))
    assert read_texts([], dash) == ["one", "two"]
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"caf\xe9\n")))
    with pytest.raises(DataError, match="-:1: is not UTF-8 text"):
        read_texts([], dash)
    with pytest.raises(DataError, match="--text, number 1: is not UTF-8"):
        read_texts(["caf\udce9"], None)
