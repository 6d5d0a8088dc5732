"""Reading data files: formats, columns, encodings, and what is said when they do not fit."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.corpus.formats import Columns, RawRow, read_rows
from luthier.corpus.lines import Line, bounded_lines, decode_line, read_lines, recoded_note
from luthier.errors import DataError


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def pairs(path: Path, **options: object) -> list[tuple[int, str | None, str | None]]:
    rows = list(read_rows(path, **options))  # type: ignore[arg-type]
    assert [row.problem for row in rows] == [None] * len(rows)
    return [(row.source.line, row.text, row.label) for row in rows]


def problem_of(row: RawRow) -> tuple[int, str, str]:
    assert row.problem is not None
    return row.source.line, row.problem.reason, row.problem.detail


def problems(path: Path, **options: object) -> list[tuple[int, str, str]]:
    return [problem_of(row) for row in read_rows(path, **options) if row.problem]  # type: ignore[arg-type]


def refusal(path: Path, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        list(read_rows(path, **options))  # type: ignore[arg-type]
    return str(caught.value)


GOOD_JSON = '{"text": "a cup final", "label": "SPORTS"}\n'


# --- formats -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".JSONL"])
def test_jsonl_gives_text_label_and_line_and_skips_blank_lines(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path, f"a{ending}", GOOD_JSON + '\n  \n{"label": 5, "text": "five", "more": [1]}')
    assert pairs(path) == [(1, "a cup final", "SPORTS"), (4, "five", "5")]
    assert [row.source.file for row in read_rows(path)] == [f"a{ending}"] * 2


def test_a_json_array_gives_its_objects(tmp_path: Path) -> None:
    text = '[\n {"text": "one", "label": "A"},\n {"text": "two",\n "label": 2}, 5\n]'
    for name in ("a.json", "a.jsonl"):
        path = write(tmp_path, name, text)
        assert [(row.text, row.label) for row in read_rows(path)] == [("one", "A"), ("two", "2"), (None, None)]
        assert problems(path) == [(3, "wrong_type", "the item is a number, not a JSON object.")]


def test_lines_part_at_the_last_separator_and_only_line_feeds_end_a_line(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "one | two|A\r\n  \r\nnext\u2028line\x0b\x85|B")
    assert pairs(path) == [(1, "one | two", "A"), (3, "next\u2028line\x0b\x85", "B")]
    other = write(tmp_path, "b.txt", "x | y => A\n")
    assert pairs(other, separator="=>") == [(1, "x | y ", " A")]


def test_lines_do_not_ask_for_the_columns_of_other_formats(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "one|A\n")
    assert pairs(path, columns=Columns(("headline",), "category")) == [(1, "one", "A")]


def test_csv_reads_quotes_and_numbers_rows_by_their_first_line(tmp_path: Path) -> None:
    content = 'label, text ,date\r\nA,"first, ""quoted""\r\n\r\nthird line",1\r\nB,plain,2\r\n\r\n, ,\r\nC,last,3, '
    path = write(tmp_path, "a.csv", content)
    assert pairs(path) == [(2, 'first, "quoted"\n\nthird line', "A"), (5, "plain", "B"), (8, "last", "C")]


def test_the_separator_of_a_csv_file_is_one_character(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "text,label\na,A\n")
    text = f'{path}: the columns of a CSV file are parted by one character, and separator is "::".'
    assert refusal(path, separator="::") == text


def test_tsv_parts_by_tabs_and_a_format_can_be_forced(tmp_path: Path) -> None:
    assert pairs(write(tmp_path, "a.TSV", "text\tlabel\none, two\tA\n")) == [(2, "one, two", "A")]
    assert pairs(write(tmp_path, "a.dat", "text,label\none,A\n"), format="csv") == [(2, "one", "A")]
    assert pairs(write(tmp_path, "b.dat", GOOD_JSON), format="jsonl") == [(1, "a cup final", "SPORTS")]
    assert pairs(write(tmp_path, "c.csv", "one|A\n"), format="lines") == [(1, "one", "A")]


@pytest.mark.parametrize(
    ("name", "content", "separator"),
    [
        ("a.csv", 'text;label\n"a; b";A\nc, d;B\n', "|"),
        ("a.csv", '"text";"la,bel";label\n"a; b";x;A\nc, d;x;B\n', "|"),
        ("a.csv", "text\tlabel\na; b\tA\nc, d\tB\n", "|"),
        ("a.csv", "text|label\na; b|A\nc, d|B\n", "|"),
        ("a.csv", '\n\ntext,label\na; b,A\n"c, d",B\n', "|"),
        ("a.tsv", 'text;label\n"a; b";A\nc, d;B\n', "|"),
        ("a.csv", "text~label\na; b~A\nc, d~B\n", "~"),
        ("a.csv", '"the\n,x";text;label\n1;"a; b";A\n2;c, d;B\n', "|"),
    ],
)
def test_the_header_says_what_parts_the_columns(tmp_path: Path, name: str, content: str, separator: str) -> None:
    found = [(text, label) for _, text, label in pairs(write(tmp_path, name, content), separator=separator)]
    assert found == [("a; b", "A"), ("c, d", "B")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", GOOD_JSON),
        ("a.csv", "text,label\na cup final,SPORTS\n"),
        ("a.txt", "a cup final|SPORTS\n"),
    ],
)
def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path, name: str, content: str) -> None:
    path = write(tmp_path, name, b"\xef\xbb\xbf" + content.encode())
    assert [row[1:] for row in pairs(path)] == [("a cup final", "SPORTS")]


def test_columns_are_those_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "id,headline,category\n1,one,A\n")
    assert pairs(path, columns=Columns(("headline",), "category")) == [(2, "one", "A")]


cells = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from('\n,"|\t'), min_size=1).filter(
    str.strip
)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(cells, cells), min_size=1, max_size=6))
def test_what_json_and_csv_writers_write_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("back")
    jsonl = "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)
    assert [row[1:] for row in pairs(write(folder, "a.jsonl", jsonl))] == rows
    quoted = "".join(",".join('"' + cell.replace('"', '""') + '"' for cell in row) + "\n" for row in rows)
    assert [row[1:] for row in pairs(write(folder, "a.csv", "text,label\n" + quoted))] == rows


# --- rows that cannot be used --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        (
            '{"text": "a", "label" "A"}',
            "broken_json",
            "not valid JSON: Expecting ':' delimiter at column 23.",
        ),
        ("[" * 100_000, "broken_json", "not valid JSON: nested too deeply. Write one JSON object a line."),
        ('{"text": "a", "label": ' + "9" * 5000 + "}", "broken_json", "not valid JSON: Exceeds the limit"),
        ('["a", "A"]', "wrong_type", "the line is a list, not a JSON object."),
        ('{"text": "a"}', "missing_field", 'no "label". Give the row one, or remove it.'),
        ('{"text": null, "label": "A"}', "missing_field", 'no "text". Give the row one, or remove it.'),
        ('{"text": 7, "label": "A"}', "wrong_type", '"text" is a number; it must be a text.'),
        ('{"text": "a", "label": ["A"]}', "several_labels", '"label" is a list of 1; here a text has one label.'),
        ('{"text": "a", "label": NaN}', "wrong_type", '"label" is a number; it must be a text.'),
        ('{"text": {"a": 1}, "label": "A"}', "wrong_type", '"text" is an object; it must be a text.'),
        ('{"text": "\\ud83d", "label": "A"}', "encoding", '"text" holds half a character (a lone \\ud'),
    ],
)
def test_a_bad_json_line_costs_itself_only(tmp_path: Path, line: str, reason: str, detail: str) -> None:
    path = write(tmp_path, "a.jsonl", GOOD_JSON + line + "\n" + GOOD_JSON)
    rows = list(read_rows(path))
    assert [row.problem is None for row in rows] == [True, False, True]
    number, found, text = problem_of(rows[1])
    assert (number, found) == (2, reason)
    assert text.startswith(detail)


def test_true_and_false_are_labels(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"text": "a", "label": true}\n{"text": "b", "label": false}\n')
    assert pairs(path) == [(1, "a", "true"), (2, "b", "false")]


def test_a_number_is_a_label_in_its_own_spelling(tmp_path: Path) -> None:
    content = "".join(f'{{"text": "a", "label": {label}}}\n' for label in ("1", "-2", "4.5"))
    assert [row[2] for row in pairs(write(tmp_path, "a.jsonl", content))] == ["1", "-2", "4.5"]


def test_a_line_without_the_separator(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "one|A\ntwo\nthree|B\n")
    assert problems(path) == [(2, "missing_field", 'no separator "|". Write text|LABEL.')]
    assert [row.text for row in read_rows(path)] == ["one", "two", "three"]


def test_a_quote_that_is_never_closed_costs_one_row(tmp_path: Path) -> None:
    rows = "".join(f"text {number},A\n" for number in range(20))
    path = write(tmp_path, "a.csv", 'text,label\n"open,A\n' + rows)
    advice = 'A quote inside a quoted text is written twice ("").'
    detail = f"not valid CSV: a quote is opened and never closed. {advice}"
    assert problems(path) == [(2, "broken_csv", detail)]
    assert sum(row.problem is None for row in read_rows(path)) == 20
    # the same where the quote would swallow more than the csv module takes, and where another one follows
    long_rows = f"{'x' * 1000},A\n" * 200
    assert problems(write(tmp_path, "b.csv", 'text,label\n"open,A\n' + long_rows)) == [(2, "broken_csv", detail)]
    [(line, reason, text)] = problems(write(tmp_path, "c.csv", 'text,label\n"open,A\n"closed",B\nc,C\n'))
    assert (line, reason) == (2, "broken_csv")
    assert "',' expected after '\"'" in text


def test_a_csv_row_with_shifted_columns(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "text,label\none, two,A\nthree\nfour,B,,\n")
    detail = "3 fields, but the header has 2. Put quotes around a text that holds the delimiter."
    assert problems(path) == [
        (2, "broken_csv", detail),
        (3, "missing_field", 'no "label". Give the row one, or remove it.'),
    ]


@pytest.mark.parametrize(
    ("name", "head", "good"),
    [("a.jsonl", "", GOOD_JSON), ("a.csv", "text,label\n", "one,A\n"), ("a.txt", "", "one|A\n")],
)
def test_a_line_too_long_is_skipped(tmp_path: Path, name: str, head: str, good: str) -> None:
    path = write(tmp_path, name, head + good + "x" * 200_000 + "\n" + good)
    number = head.count("\n") + 2
    detail = "the line is longer than 100 bytes. Is a line end missing?"
    assert problems(path, max_line_bytes=100) == [(number, "line_too_long", detail)]
    assert [row.source.line for row in read_rows(path, max_line_bytes=100) if not row.problem] == [
        number - 1,
        number + 1,
    ]


def test_the_limit_counts_the_line_without_its_end(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "x" * 10 + "\n" + "y" * 11 + "\n" + "z" * 10)
    assert [line.text for line in read_lines(path, 10)] == ["x" * 10, "", "z" * 10]


class EndlessLine:
    """A file of one line of 2 GB; it keeps in mind how much it was asked for at a time."""

    left_bytes = 2_000_000_000
    largest_bytes = 0

    def readline(self, size_bytes: int) -> bytes:
        self.largest_bytes = max(self.largest_bytes, size_bytes)
        given = min(size_bytes, self.left_bytes)
        self.left_bytes -= given
        return BLOCK[:given]


BLOCK = b"x" * 1_000_001


def test_a_line_of_two_gigabytes_is_not_held_in_memory() -> None:
    handle = EndlessLine()
    assert list(bounded_lines(handle, 1_000_000)) == [None]  # type: ignore[arg-type]
    assert (handle.left_bytes, handle.largest_bytes) == (0, 1_000_001)


# --- encodings -----------------------------------------------------------------------------------------


def test_windows_1252_lines_among_utf8_lines_are_read_and_reported(tmp_path: Path) -> None:
    content = "caf\u00e9|A\n".encode() + "na\u00efve \u201cquote\u201d|B\n".encode("cp1252") + b"plain|C\n"
    rows = list(read_rows(write(tmp_path, "a.txt", content)))
    assert [row.text for row in rows] == ["caf\u00e9", "na\u00efve \u201cquote\u201d", "plain"]
    assert [row.recoded for row in rows] == [(), (2,), ()]


def test_recoded_lines_of_csv_records_are_numbered_one_by_one(tmp_path: Path) -> None:
    content = 'text,label,\u00e9\n"one\n\u00e9\n\u00e8",A,\nplain,B,\n'.encode("cp1252")
    rows = list(read_rows(write(tmp_path, "a.csv", content)))
    assert [(row.text, row.recoded) for row in rows] == [("one\n\u00e9\n\u00e8", (1, 3, 4)), ("plain", ())]


@pytest.mark.parametrize(
    "raw",
    [
        b"caf\x81|A",  # no such character in Windows-1252
        "\u00e9t\u00e9 ".encode() + b"\xff|A",  # UTF-8 letters beside a bad byte: damaged UTF-8
        "\u043f\u0440\u0438\u0432\u0435\u0442|A".encode("cp1251"),  # Cyrillic
        b"caf\xe9\x01|A",  # a control character
    ],
)
def test_other_bytes_are_dropped_not_guessed(tmp_path: Path, raw: bytes) -> None:
    path = write(tmp_path, "a.txt", b"one|A\n" + raw + b"\ntwo|B\n")
    [(line, reason, detail)] = problems(path)
    assert (line, reason) == (2, "encoding")
    assert detail.endswith("is neither UTF-8 nor plausible Windows-1252. Save the file as UTF-8.")
    assert [row.text for row in read_rows(path) if not row.problem] == ["one", "two"]


def test_bad_bytes_on_a_line_of_broken_csv_are_the_problem_told(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", b'text,label\n"open \x81,A\none,B\n')
    assert [(line, reason) for line, reason, _ in problems(path)] == [(2, "encoding")]


def test_the_encoding_problem_names_the_byte() -> None:
    problem = decode_line(1, b"caf\x81").problem
    assert problem is not None
    assert problem.detail.startswith("byte 0x81 at position 4 is neither")


def test_the_note_on_recoded_lines() -> None:
    note = "a.csv: mixed encodings: 3 lines were Windows-1252, first at line 12."
    assert recoded_note("a.csv", [12, 40, 99]) == note
    assert recoded_note("a.csv", [7]) == "a.csv: mixed encodings: 1 line was Windows-1252, first at line 7."


@settings(max_examples=100, deadline=None)
@given(text=st.text())
def test_utf8_is_never_recoded(text: str) -> None:
    assert decode_line(3, text.encode()) == Line(3, text)


@settings(max_examples=40, deadline=None)
@given(content=st.binary(min_size=1, max_size=200), name=st.sampled_from(["a.jsonl", "a.csv", "a.tsv", "a.txt"]))
def test_any_bytes_give_rows_or_an_error_that_names_the_file(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str
) -> None:
    path = write(tmp_path_factory.mktemp("any"), name, content)
    try:
        rows = list(read_rows(path))
    except DataError as error:
        assert str(path) in str(error)
    else:
        assert rows
        assert all(row.problem or (row.text is not None and row.label is not None) for row in rows)


# --- whole files that do not fit -----------------------------------------------------------------------


def test_a_missing_file(tmp_path: Path) -> None:
    write(tmp_path, "train.jsonl", GOOD_JSON)
    path = tmp_path / "trian.jsonl"
    assert refusal(path) == (
        f'{path}: no such file. Did you mean "train.jsonl"? Paths in a recipe start at its folder.'
    )
    lost = tmp_path / "nowhere" / "train.jsonl"
    assert refusal(lost) == (
        f"{lost}: no such file. There is no folder {lost.parent}. Paths in a recipe start at its folder."
    )


def test_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "rows.jsonl"
    folder.mkdir()
    assert refusal(folder) == f"{folder}: is a folder. Name one file in it."
    write(folder, "part.csv", "x")
    assert refusal(folder) == f"{folder}: is a folder. Name one file in it, such as part.csv."


def test_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "pipe.txt"
    os.mkfifo(path)
    assert refusal(path) == (f"{path}: is not a regular file (a pipe or a device). Write the rows to a file first.")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "loop.jsonl"
    path.symlink_to(path)
    text = refusal(path)
    assert text.startswith(f"{path}: cannot be read: ")
    assert text.endswith("Check the path and its permissions.")


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.txt", b"", "the file is empty. Write one row a line."),
        ("a.jsonl", b"\n \n", "has no rows. Write one row a line (CSV: below the header)."),
        ("a.csv", b"\n\n", "has no rows. Write one row a line (CSV: below the header)."),
        ("a.csv", b"text,label\n", "has no rows. Write one row a line (CSV: below the header)."),
        ("a.csv", "text,label\n".encode("utf-16"), "the file is UTF-16 (or UTF-32) text. Save it as UTF-8."),
        ("a.txt", b"a|A\rb|B\r", "lines end in CR (old Mac). Save the file with LF or CR LF line ends."),
        ("a.json", b" []", "has no rows. Write one row a line (CSV: below the header)."),
        ("a.csv", b"text,text,label\na,b,A\n", 'the header has the column "text" 2 times (data.text).'),
        (
            "a.xlsx",
            b"text",
            'unknown file ending ".xlsx". Known: .jsonl and .json (one JSON object a line, or an array), '
            ".csv, .tsv, .parquet, .txt (text|LABEL lines), also with .gz or .zst after it. "
            "Set data.format to jsonl, csv or lines to choose one.",
        ),
        (
            "a.txt",
            b"no\nseparator\nhere\n",
            'none of the first lines holds the separator "|". Write text|LABEL lines, or set data.separator '
            "(or data.format, where the file is JSONL or CSV).",
        ),
    ],
)
def test_whole_file_refusals(tmp_path: Path, name: str, content: bytes, text: str) -> None:
    path = write(tmp_path, name, content)
    assert refusal(path) == f"{path}: {text}"


def test_a_binary_file_and_a_broken_header_name_the_line(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", b"one|A\nPK\0\3")
    assert refusal(path) == (f"{path} line 2: not a text file (it holds a zero byte). Export it as UTF-8 text.")
    path = write(tmp_path, "a.csv", '\n"text,label\none,A\n')
    assert refusal(path).startswith(f"{path} line 2: the header cannot be read: not valid CSV: a quote is opened")


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        (
            "a.jsonl",
            '{"txt": "a", "label": "A"}\n{"label": "A", "id": 2}\n',
            'no column "text". Columns found: "txt", "label", "id". Did you mean "txt"? '
            "Set data.text to the right one.",
        ),
        (
            "a.csv",
            "text,category\na,A\n",
            'no column "label". Columns found: "text", "category". Set data.label to the right one.',
        ),
        (
            "a.csv",
            "Text;Label\na;A\n",
            'no column "text". Columns found: "Text", "Label". Did you mean "Text"? Set data.text to the right one.',
        ),
        ("a.jsonl", "{}\n", 'no column "text". Columns found: none. Set data.text to the right one.'),
    ],
)
def test_a_column_that_no_row_has(tmp_path: Path, name: str, content: str, text: str) -> None:
    path = write(tmp_path, name, content)
    assert refusal(path) == f"{path}: {text}"


def test_a_column_missing_in_some_rows_only_costs_those(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"label": "A"}\n' + GOOD_JSON)
    assert [(line, reason) for line, reason, _ in problems(path)] == [(1, "missing_field")]


def test_the_column_check_looks_at_the_first_rows_that_parse(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", "oops\n" * 19 + '{"txt": "a"}\n')
    assert 'no column "text"' in refusal(path)
    path = write(tmp_path, "b.jsonl", "oops\n" * 20 + GOOD_JSON)
    assert len(problems(path)) == 20
