"""Texts to be asked about: from the command line, lines, tables and standard input."""

import gzip
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


def texts(*found, **settings):
    return [one.text for one in read_texts(*found, **settings)]


def test_each_line_is_a_text_and_no_other_sign_ends_one(tmp_path):
    lines = ["one\u2028still one", "two\x0cstill two", "three\x85"]
    file = given(tmp_path, "a.txt", "\r\n".join(lines).encode())
    assert texts(["first "], file) == ["first ", lines[0], lines[1], "three"]
    assert texts([], given(tmp_path, "a.txt.gz", gzip.compress(b"one\ntwo\n"))) == ["one", "two"]


def test_blank_lines_keep_their_place(tmp_path):
    file = given(tmp_path, "a.txt", b"one\n\n  \ntwo\n")
    found = read_texts([""], file)
    assert [(one.text, one.line, one.blank) for one in found] == [
        ("", 1, True), ("one", 1, False), ("", 2, True), ("", 3, True), ("two", 4, False),
    ]  # fmt: skip
    assert str(found[0]) == "--text, number 1" and str(found[3]) == f"{file} line 3"


def test_a_column_of_a_table(tmp_path):
    table = given(tmp_path, "a.csv", b'\xef\xbb\xbfid,text\n1,"a, b"\n2,"c\nd"\n,\n3,\n')
    assert texts([], table) == ["a, b", "c\nd", ""]
    assert [one.line for one in read_texts([], table)] == [2, 3, 6], "where the row begins"
    assert read_texts([], table)[1].columns == {"id": "2", "text": "c\nd"}
    assert texts([], table, column="id") == ["1", "2", "3"]
    rows = [json.dumps({"body": "x", "text": "y"}), json.dumps('z "q"')]
    assert texts([], given(tmp_path, "a.jsonl", "\n".join(rows).encode())) == ["y", 'z "q"']
    assert texts([], given(tmp_path, "b.tsv", b"body\ttext\n1\t2\n"), column="body") == ["1"]


@pytest.mark.parametrize(
    ("name", "place"),
    [("a.json", "row"), ("a.json.gz", "row"), ("a.ndjson", "line"), ("a.jsonl.zst", "line"), ("a.parquet", "row")],
)
def test_the_ending_says_what_a_file_holds(tmp_path, name, place):
    """An array, a packed array, lines, packed lines, Parquet: never the text of the file itself."""
    rows = [{"text": "goal", "id": 1}, {"text": None, "id": 2}, {"text": "vote", "id": 3}]
    content = (
        json.dumps(rows) if name.startswith("a.json") and "jsonl" not in name else "\n".join(map(json.dumps, rows))
    ).encode()
    if name.endswith(".gz"):
        content = gzip.compress(content)
    elif name.endswith(".zst"):
        content = pytest.importorskip("zstandard").compress(content)
    elif name.endswith(".parquet"):
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pytest.importorskip("pyarrow").Table.from_pylist(rows), tmp_path / name)
        content = (tmp_path / name).read_bytes()
    found = read_texts([], given(tmp_path, name, content))
    assert [one.text for one in found] == ["goal", "", "vote"]
    assert [one.columns["id"] for one in found] == [1, 2, 3] and found[1].blank
    assert str(found[2]) == f"{tmp_path / name} {place} 3"


def test_columns_can_be_written_as_json(tmp_path):
    (one,) = read_texts([], given(tmp_path, "a.jsonl", b'{"text": "x", "price": NaN, "size": 1.5}\n'))
    assert one.columns == {"text": "x", "price": None, "size": 1.5}


def test_an_array_of_plain_texts(tmp_path):
    assert texts([], given(tmp_path, "a.json", b'["one", "two"]')) == ["one", "two"]


def test_rows_that_cannot_be_used_stay_with_their_reason(tmp_path):
    file = given(tmp_path, "a.jsonl", b'{"text": "x"}\n{"text": 3}\n{"text"\n\n{"body": "y"}\n')
    found = read_texts([], file)
    assert [(one.line, one.blank) for one in found] == [(1, False), (2, False), (3, False), (5, False)]
    assert found[1].problem == '"text" is a number; it must be a text.'
    assert found[2].problem.startswith("not valid JSON") and found[3].problem.startswith('no "text".')


@pytest.mark.parametrize(
    ("name", "content", "column", "told"),
    [
        ("a.csv", b"id,body\n1,x\n", None, 'no column "text" (there is id, body). Name one with --column'),
        ("a.csv", b"id,txt\n1,x\n", None, 'Did you mean "txt"?'),
        ("a.txt", b"one\n", "body", "--column is for tables (.jsonl, .csv, ...)"),
        ("a.txt", b"one\ncaf\xe9\n", None, "a.txt line 2: is not UTF-8 text"),
        ("a.txt", b"\n", None, "nothing to label: every text is blank; give --text"),
        ("a.json", b'[{"text": "x"}, {"text": "y"}', None, "a.json row 3: not valid JSON: the array is not closed"),
        ("a.csv", b"text\na\0b\n", None, "a.csv line 2: not a text file"),
        ("a.txt.gz", gzip.compress(b"one\n" * 99, mtime=0)[:-9], None, "the compressed file is damaged or cut short"),
        (
            "a.jsonl.gz",
            gzip.compress(b'"one"\n' * 99, mtime=0)[:-9],
            None,
            "the compressed file is damaged or cut short",
        ),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path, name, content, column, told):
    with pytest.raises(DataError) as refusal:
        read_texts([], given(tmp_path, name, content), column=column)
    assert told in str(refusal.value)


def test_standard_input_and_arguments_that_are_not_utf8(monkeypatch, tmp_path):
    dash = tmp_path.__class__("-")
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"one\ntwo\n")))
    assert texts([], dash) == ["one", "two"]
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"caf\xe9\n")))
    with pytest.raises(DataError, match="standard input line 1: is not UTF-8 text"):
        read_texts([], dash)
    with pytest.raises(DataError, match="--text, number 1: is not UTF-8"):
        read_texts(["caf\udce9"], None)
