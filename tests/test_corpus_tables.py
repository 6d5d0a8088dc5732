"""Tables: rows of JSON, CSV and Parquet files, whole and broken, and written back."""

from __future__ import annotations

import csv
import datetime
import gzip
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.corpus.documents.tables import read_table, write_table
from luthier.corpus.formats import read_rows
from luthier.corpus.lines import Problem
from luthier.errors import DataError


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def packed(name: str, content: bytes) -> bytes:
    return gzip.compress(content) if name.endswith(".gz") else zstandard.compress(content)


# --- tables --------------------------------------------------------------------------------------------

ROWS = [{"text": "one", "n": 1}, {"text": "two \u00e9\nx", "n": 2}, {"text": "three", "n": 3}]


def lines_of(rows: list[dict[str, object]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def table(path: Path, **options: int) -> list[tuple[int, object]]:
    return list(read_table(path, **options))  # type: ignore[arg-type]


def reasons(path: Path, **options: int) -> list[tuple[int, str]]:
    return [(number, row.reason if isinstance(row, Problem) else "") for number, row in read_table(path, **options)]  # type: ignore[arg-type]


@pytest.mark.parametrize("ending", [".jsonl", ".ndjson", ".json", ".jsonl.gz", ".jsonl.zst"])
def test_rows_of_json_lines(tmp_path: Path, ending: str) -> None:
    raw = b"\xef\xbb\xbf" + lines_of(ROWS[:1]) + b"\n" + lines_of(ROWS[1:])
    path = write(tmp_path, f"a{ending}", packed(ending, raw) if ending.endswith(("gz", "zst")) else raw)
    assert table(path) == [(1, ROWS[0]), (3, ROWS[1]), (4, ROWS[2])]
    assert table(path, start=2, stop=4) == [(3, ROWS[1])]
    assert table(path, start=9) == []


@pytest.mark.parametrize("indent", [None, 2])
def test_rows_of_a_json_array(tmp_path: Path, indent: int | None) -> None:
    path = write(tmp_path, "a.json", json.dumps(ROWS, indent=indent))
    assert table(path) == list(enumerate(ROWS, start=1))
    assert table(path, start=2, stop=3) == [(2, ROWS[1])]
    assert table(write(tmp_path, "b.json.gz", gzip.compress(b" [ ]"))) == []
    assert table(write(tmp_path, "c.jsonl", json.dumps(ROWS))) == list(enumerate(ROWS, start=1))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.dictionaries(st.text(max_size=5), st.text(max_size=70_000) | st.integers() | st.none()), max_size=5
    )
)
def test_an_array_larger_than_the_buffer(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "array.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    assert [row for _, row in read_table(path)] == rows


def test_a_single_object_over_several_lines_is_one_row(tmp_path: Path) -> None:
    assert table(write(tmp_path, "a.json", json.dumps(ROWS[0], indent=2))) == [(1, ROWS[0])]
    assert reasons(write(tmp_path, "b.json", '{\n"a": 1,\n')) == [(1, "broken_json")]
    # lines, of which the first is broken
    assert reasons(write(tmp_path, "c.json", '{"a" 1}\n{"a": 1}\n')) == [(1, "broken_json"), (2, "")]


def test_broken_lines_cost_themselves_only(tmp_path: Path) -> None:
    good = lines_of(ROWS[:1])
    raw = good + b'{"a" 1}\n' + b"[1]\n" + b'{"a": "caf\x81"}\n' + b"x" * 5000 + b"\n" + b'{"a": "\\ud83d"}\n' + good
    assert reasons(write(tmp_path, "a.jsonl", raw), max_line_bytes=1000) == [
        (1, ""), (2, "broken_json"), (3, "wrong_type"), (4, "encoding"), (5, "line_too_long"), (6, "encoding"), (7, ""),
    ]  # fmt: skip
    assert table(write(tmp_path, "b.jsonl", '{"a": "\\ud83d\\ude00"}')) == [(1, {"a": "\U0001f600"})]


def test_an_array_is_read_up_to_what_is_broken(tmp_path: Path) -> None:
    rest = "The rest of the array is not read. Write one JSON object a line (JSON lines)."
    path = write(tmp_path, "a.json", '[{"a": 1}, 5, {"b" 2}, {"c": 3}]')
    assert table(path) == [
        (1, {"a": 1}),
        (2, Problem("wrong_type", "the item is a number, not a JSON object.")),
        (3, Problem("broken_json", f"not valid JSON: Expecting ':' delimiter. {rest}")),
    ]
    cut = write(tmp_path, "b.json", '[{"a": 1}, {"b": ')
    assert reasons(cut) == [(1, ""), (2, "broken_json")]
    closed = write(tmp_path, "c.json", '[{"a": 1}')
    assert table(closed)[1] == (
        2,
        Problem("broken_json", f"not valid JSON: the array is not closed: is the file cut short?. {rest}"),
    )
    assert reasons(write(tmp_path, "d.json", b'[{"a": "caf\x81"}]')) == [(1, "encoding")]
    long = write(tmp_path, "e.json", json.dumps([{"a": 1}, {"a": "x" * 500_000}, {"a": 2}]))
    assert reasons(long, max_line_bytes=1000) == [(1, ""), (2, "line_too_long")]
    assert reasons(write(tmp_path, "f.json", "[" * 200_000)) == [(1, "broken_json")]


def test_rows_of_csv(tmp_path: Path) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerows([["text", "n", "n", ""], *[[row["text"], row["n"], "x", ""] for row in ROWS]])
    raw = buffer.getvalue().encode()
    rows = [{"text": row["text"], "n": str(row["n"]), "n (2)": "x", "": ""} for row in ROWS]
    expected = [(2, rows[0]), (3, rows[1]), (5, rows[2])]
    assert table(write(tmp_path, "a.csv", raw)) == expected
    assert table(write(tmp_path, "a.csv.gz", gzip.compress(raw))) == expected
    assert table(write(tmp_path, "a.tsv.zst", zstandard.compress(b"a\tb\n1\t2\n"))) == [(2, {"a": "1", "b": "2"})]
    assert table(write(tmp_path, "b.csv", raw), start=3, stop=5) == expected[1:2]


def test_broken_csv_rows(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", 'a,b\n1,2\n1,2,3\n"open,4\n5,6\n')
    assert reasons(path) == [(2, ""), (3, "broken_csv"), (4, "broken_csv"), (5, "")]
    path = write(tmp_path, "b.csv", '"a,b\n1,2\n')
    assert reasons(path) == [(1, "unreadable_file")]


def test_files_that_end_early_say_so_in_the_row_they_end_in(tmp_path: Path) -> None:
    raw = gzip.compress(os.urandom(4000).hex().encode() + b"\n")
    assert reasons(write(tmp_path, "a.jsonl.gz", raw[:3000]))[-1] == (1, "broken_file")
    whole = b'{"a": 1}\n' * 300_000
    bomb = write(tmp_path, "b.jsonl.gz", gzip.compress(whole))
    found = reasons(bomb, max_file_bytes=1_000_000)
    assert found[-1] == (len(found), "too_large")
    assert len(found) > 80_000
    assert reasons(bomb, max_file_bytes=1_000_000, stop=len(found)) == found[:-1]
    assert reasons(bomb, max_file_bytes=1_000_000, start=len(found)) == found[-1:]
    assert reasons(write(tmp_path, "c.jsonl.gz", b"not packed")) == [(1, "broken_file")]
    utf16 = write(tmp_path, "d.csv", "a,b\n".encode("utf-16"))
    assert reasons(utf16) == [(1, "unreadable_file")]
    assert table(write(tmp_path, "e.jsonl", b"")) == []


def test_tables_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_table(write(tmp_path, "a.xlsx", "x"))
    assert str(caught.value) == (
        f'{tmp_path}/a.xlsx: unknown file ending ".xlsx". Tables: .jsonl, .ndjson, .json, .csv, .tsv, .parquet, also '
        "with .gz or .zst after it."
    )
    with pytest.raises(DataError, match="no such file"):
        read_table(tmp_path / "gone.jsonl")


# --- Parquet -------------------------------------------------------------------------------------------


def foreign(path: Path, columns: Mapping[str, list[object]], **options: int) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(dict(columns)), path, **options)
    return path


def test_rows_of_parquet(tmp_path: Path) -> None:
    columns: dict[str, list[object]] = {
        "text": ["a", None, "c"],
        "day": [datetime.date(2024, 2, 3)] * 3,
        "turns": [[{"role": "user"}], [], None],
    }
    path = foreign(tmp_path / "a.parquet", columns, row_group_size=1)
    rows = [
        (1, {"text": "a", "day": "2024-02-03", "turns": [{"role": "user"}]}),
        (2, {"text": None, "day": "2024-02-03", "turns": []}),
        (3, {"text": "c", "day": "2024-02-03", "turns": None}),
    ]
    assert table(path) == rows
    assert table(path, start=2, stop=3) == rows[1:2]
    assert table(path, start=4) == []
    assert table(write(tmp_path, "b.parquet.gz", gzip.compress(path.read_bytes()))) == rows


def test_parquet_files_that_cannot_be_read(tmp_path: Path) -> None:
    for raw in (b"PAR1", b"", b"no parquet at all" * 9):
        [(number, problem)] = table(write(tmp_path, "a.parquet", raw))
        assert isinstance(problem, Problem)
        assert (number, problem.reason) == (1, "broken_file")
        assert problem.detail.startswith("not a readable Parquet file (")
    bomb = foreign(tmp_path / "b.parquet", {"a": [str(number) * 100 for number in range(10_000)]})
    assert reasons(bomb, max_file_bytes=1_000_000) == [(1, "too_large")]
    long = foreign(tmp_path / "c.parquet", {"a": ["x", "y" * 200, "z"]})
    assert reasons(long, max_line_bytes=100) == [(1, ""), (2, "line_too_long"), (3, "")]


plain = (
    st.text(max_size=5)
    | st.integers(-(2**70), 2**70)
    | st.booleans()
    | st.floats(allow_nan=False, allow_infinity=False)
)
nested = st.recursive(plain, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2), max_leaves=4)  # fmt: skip
names = st.sampled_from(["text", "n", "messages", "source"])


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.dictionaries(names, nested, max_size=4), max_size=5), kind=st.sampled_from(["jsonl", "parquet"])
)
def test_rows_written_are_rows_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]], kind: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"rows.{kind}"
    assert write_table(path, rows, kind) == len(rows)  # type: ignore[arg-type]
    if kind == "parquet" and not any(rows):
        return  # a table without columns has no rows
    assert table(path) == list(enumerate(rows, start=1))


def test_shards_have_one_schema_whatever_their_rows_lack(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi"}]
    full = [{"text": "a", "messages": turns, "source": {"file": "a", "licence": "MIT"}, "title": "T", "words": ["x"]}]
    bare = [{"text": "b", "messages": turns * 2, "source": {"file": "b"}, "title": None, "words": []}]
    schemas = []
    for number, rows in enumerate((full, bare)):
        write_table(tmp_path / f"{number}.parquet", rows, "parquet")
        schemas.append(pyarrow.parquet.read_schema(tmp_path / f"{number}.parquet"))
    assert schemas[0].equals(schemas[1], check_metadata=True)
    assert str(schemas[0].field("messages").type).startswith("list<element: struct<role: string, content: string")
    assert schemas[0].field("source").type == pyarrow.string()
    assert table(tmp_path / "1.parquet") == [(1, {key: value for key, value in bare[0].items() if value is not None})]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    write_table(path, [{"a": 1}], kind)  # type: ignore[arg-type]
    before = path.read_bytes()
    for bad in (b"bytes", "\ud83d"):
        with pytest.raises(DataError, match=str(path)):
            write_table(path, [{"a": "x"}, {"a": bad}], kind)  # type: ignore[arg-type]
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_not_a_number_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 2: the row cannot be written as JSON"):
        write_table(tmp_path / "a.jsonl", [{"a": 1}, {"a": float("nan")}], "jsonl")


# --- labelled rows -------------------------------------------------------------------------------------


def test_labelled_rows_may_be_compressed_or_parquet(tmp_path: Path) -> None:
    jsonl = b'{"text": "one", "label": "A"}\n{"text": "two", "label": 5}\n'
    content = {"a.jsonl.gz": gzip.compress(jsonl), "a.csv.zst": zstandard.compress(b"text,label\none,A\ntwo,5\n")}
    paths = [write(tmp_path, name, raw) for name, raw in content.items()]
    paths.append(foreign(tmp_path / "a.parquet", {"text": ["one", "two"], "label": ["A", "5"]}))
    paths.append(foreign(tmp_path / "b.parquet", {"text": ["one", "two"], "label": [1, 5]}))
    for path in paths:
        rows = list(read_rows(path))
        assert [row.text for row in rows] == ["one", "two"]
        assert rows[1].label == "5"
        assert rows[0].source.file == path.name


def test_labelled_parquet_refusals(tmp_path: Path) -> None:
    with pytest.raises(DataError, match='no column "label". Columns found: "text", "labl". Did you mean "labl"'):
        list(read_rows(foreign(tmp_path / "a.parquet", {"text": ["one"], "labl": ["A"]})))
    with pytest.raises(DataError, match="not a readable Parquet file"):
        list(read_rows(write(tmp_path, "b.parquet", b"PAR1")))
    with pytest.raises(DataError, match="damaged or cut short"):
        list(read_rows(write(tmp_path, "c.jsonl.gz", b"PAR1")))
