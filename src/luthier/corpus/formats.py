"""The file formats: JSON lines, CSV and TSV, Parquet, `text|LABEL` lines. A format is one function here.

Every row of a file comes out as a RawRow, also one that cannot be used: it carries its problem. What is
wrong with the whole file (its format, its columns) is a DataError.
"""

from __future__ import annotations

import csv
import json
import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from luthier.corpus.documents.parquet import parquet_rows
from luthier.corpus.documents.unpack import MAX_FILE_BYTES, ending_of
from luthier.corpus.lines import MAX_LINE_BYTES, UTF8_MARK, Line, Problem, inspect_file, read_head, read_lines
from luthier.errors import DataError, did_you_mean
from luthier.records import Source

ENDINGS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "csv", ".txt": "lines",
    ".parquet": "parquet",
}  # fmt: skip
FIRST_ROWS = 20
TEXT, LABEL = "text", "label"
HEADER_LINES = 20  # of a CSV file, within which its header ends
ANY_DELIMITER = "|"  # the separator that is not set


@dataclass(frozen=True)
class Columns:
    """The columns to read: the texts of `text`, `join` between them, and the label. `settings` name them in errors."""

    text: tuple[str, ...] = (TEXT,)
    label: str = LABEL
    join: str = "\n\n"
    settings: tuple[str, str] = ("data.text", "data.label")

    def asked(self) -> list[tuple[str, str]]:
        """Each column with the setting that names it."""
        return [*((self.settings[0], column) for column in self.text), (self.settings[1], self.label)]


@dataclass(frozen=True)
class RawRow:
    """A row as it stands in the file.

    `text` or `label` is None where it could not be read; `problem` then says why. `recoded` are the lines
    of the row that were Windows-1252.
    """

    source: Source
    text: str | None
    label: str | None
    problem: Problem | None = None
    recoded: tuple[int, ...] = ()


@dataclass(frozen=True)
class Cells:
    """A row's named values (None where it does not parse) and the problem found so far."""

    line: int
    values: Mapping[str, object] | None
    problem: Problem | None = None
    recoded: tuple[int, ...] = ()


@dataclass(frozen=True)
class Record:
    """The lines of one CSV record and its fields; no fields where it does not parse."""

    lines: tuple[Line, ...]
    fields: tuple[str, ...]
    problem: Problem | None = None


def read_rows(
    path: Path,
    format: str = "auto",  # noqa: A002, the recipe's own word
    columns: Columns = Columns(),
    separator: str = "|",
    max_line_bytes: int = MAX_LINE_BYTES,
) -> Iterator[RawRow]:
    """The rows of a data file; blank lines (CSV: rows of empty fields) are no rows.

    `format` is `auto` (by the file's ending), `jsonl`, `csv`, `parquet` or `lines`; the last `separator` of a line
    parts text and label, and in CSV it parts the columns (`delimiter_of`). Files may be compressed (.gz or .zst after
    the ending).

    Raises:
        DataError: no such file, empty or not text, an unknown ending, or a column that no row has.
    """
    kind = ENDINGS.get(ending_of(path)) if format == "auto" else format
    if kind == "parquet":
        read_head(path)
        cells = (Cells(number, values) for number, values in parquet_rows(path, MAX_FILE_BYTES))
        return rows_from(path, cells, columns)
    inspect_file(path)
    lines = read_lines(path, max_line_bytes)
    if kind == "jsonl":
        is_array = read_head(path).removeprefix(UTF8_MARK).lstrip().startswith(b"[")
        return rows_from(path, array_cells(path, max_line_bytes) if is_array else json_cells(lines), columns)
    if kind == "csv":
        return rows_from(path, csv_cells(path, lines, columns, separator), columns)
    if kind == "lines":
        if any(setting.startswith("data.columns") for setting in columns.settings):
            raise DataError(f"{path}: text|LABEL lines have no columns to name. Leave data.columns out.")
        advice = (
            f'none of the first lines holds the separator "{separator}". Write text{separator}LABEL lines, '
            "or set data.separator (or data.format, where the file is JSONL or CSV)."
        )
        return rows_from(path, line_cells(lines, separator), Columns(), advice)
    raise DataError(
        f'{path}: unknown file ending "{ending_of(path)}". Known: .jsonl and .json (one JSON object a line, '
        "or an array), .csv, .tsv, .parquet, .txt (text|LABEL lines), also with .gz or .zst after it. "
        "Set data.format to jsonl, csv or lines to choose one."
    )


# --- the formats ---------------------------------------------------------------------------------------


def json_cells(lines: Iterator[Line]) -> Iterator[Cells]:
    """One JSON object a line."""
    for line in lines:
        if line.problem is None and not line.text.strip():
            continue
        values, problem = (None, line.problem) if line.problem else parse_object(line.text)
        yield Cells(line.number, values, problem, (line.number,) if line.recoded else ())


def array_cells(path: Path, max_item_bytes: int) -> Iterator[Cells]:
    """The objects of a JSON array, numbered from 1."""
    from luthier.corpus.documents.tables import array_rows  # which reads CSV through this module

    for number, row in array_rows(path, (max_item_bytes, MAX_FILE_BYTES)):
        yield Cells(number, None, row) if isinstance(row, Problem) else Cells(number, row)


def parse_object(text: str) -> tuple[dict[str, object] | None, Problem | None]:
    """A JSON object, or the problem with it."""
    try:
        value: Any = json.loads(text)
    except json.JSONDecodeError as error:
        found = f"{error.msg} at column {error.colno}"
    except RecursionError:
        found = "nested too deeply"
    except ValueError as error:  # a number with thousands of digits
        found = str(error)
    else:
        if isinstance(value, dict):
            return value, None
        return None, Problem("wrong_type", f"the line is {json_type(value)}, not a JSON object.")
    return None, Problem("broken_json", f"not valid JSON: {found}. Write one JSON object a line.")


def line_cells(lines: Iterator[Line], separator: str) -> Iterator[Cells]:
    """`text|LABEL` lines, parted at the last separator."""
    for line in lines:
        recoded = (line.number,) if line.recoded else ()
        if line.problem:
            yield Cells(line.number, None, line.problem)
        elif line.text.strip():
            text, found, label = line.text.rpartition(separator)
            if found:
                yield Cells(line.number, {TEXT: text, LABEL: label}, None, recoded)
            else:
                problem = Problem("missing_field", f'no separator "{separator}". Write text{separator}LABEL.')
                yield Cells(line.number, {TEXT: line.text}, problem, recoded)


def csv_cells(path: Path, lines: Iterator[Line], columns: Columns | None, separator: str) -> Iterator[Cells]:
    """CSV or TSV with a header. Windows-1252 lines of the header are told with the first row.

    Without `columns` to look for, all are taken; of two with the same name, the second becomes `name (2)`.
    """
    first = header_lines(lines)
    records = csv_records(chain(first, lines), delimiter_of(path, first, separator))
    head = next(records, None)
    if head is None:
        return
    if head.problem:
        raise DataError(f"{path} line {head.lines[0].number}: the header cannot be read: {head.problem.detail}")
    header = [name.strip() for name in head.fields]
    if columns:
        check_header(path, header, columns)
    else:
        header = distinct(header)
    pending = recoded_lines(head)
    for record in records:
        problem = record.problem or extra_fields(record.fields, header)
        values = None if problem else dict(zip(header, record.fields, strict=False))
        yield Cells(record.lines[0].number, values, problem, pending + recoded_lines(record))
        pending = ()


def header_lines(lines: Iterator[Line]) -> list[Line]:
    """The lines up to the header's last one, which closes every quote."""
    first: list[Line] = []
    for line in islice(lines, HEADER_LINES):
        first.append(line)
        text = "".join(line.text for line in first)
        if text.strip() and text.count('"') % 2 == 0:
            break
    return first


def delimiter_of(path: Path, first: list[Line], separator: str) -> str:
    """What parts the columns: the separator that is set, else what parts the header into most columns.

    Where two do equally well it is a tab in a .tsv file, else a comma. Quoted names may hold any of them.

    Raises:
        DataError: a separator that is not one character.
    """
    if separator != ANY_DELIMITER:
        if len(separator) != 1 or separator in '"\r\n':
            raise DataError(
                f'{path}: the columns of a CSV file are parted by one character, and separator is "{separator}".'
            )
        return separator
    usual = "\t," if ending_of(path) == ".tsv" else ",\t"
    return max(f"{usual};|", key=lambda char: header_width(first, char))


def header_width(first: list[Line], delimiter: str) -> int:
    """The number of columns of a header, parted so; 0 where that cannot be done."""
    head = next(csv_records(iter(first), delimiter), None)
    return 0 if head is None or head.problem else len(head.fields)


def distinct(header: list[str]) -> list[str]:
    """The names, numbered from their second time on, so that no column hides another."""
    seen: dict[str, int] = {}
    names = []
    for name in header:
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return names


def csv_records(lines: Iterator[Line], delimiter: str) -> Iterator[Record]:
    """CSV records with the lines they stand on. After a broken record, reading goes on at its second line.

    So a quote that is never closed costs one row, not the rest of the file.
    """
    ahead: deque[Line] = deque()
    while True:
        used: list[Line] = []
        try:
            fields = next(csv.reader(feed(ahead, lines, used), delimiter=delimiter, strict=True))
        except StopIteration:
            return
        except csv.Error as error:
            ahead.extendleft(reversed(used[1:]))
            yield Record((used[0],), (), used[0].problem or broken_csv(error))
            continue
        problem = next((line.problem for line in used if line.problem), None)
        if problem or any(field.strip() for field in fields):
            yield Record(tuple(used), tuple(fields), problem)


def feed(ahead: deque[Line], lines: Iterator[Line], used: list[Line]) -> Iterator[str]:
    """Line texts for the csv module, those to be read again first; what was taken is added to `used`."""
    while line := ahead.popleft() if ahead else next(lines, None):
        used.append(line)
        yield line.text + "\n"


def recoded_lines(record: Record) -> tuple[int, ...]:
    """Numbers of the record's lines that were Windows-1252."""
    return tuple(line.number for line in record.lines if line.recoded)


def broken_csv(error: csv.Error) -> Problem:
    """The csv module's words, and ours where those mislead."""
    found = str(error)
    if "field limit" in found or "end of data" in found:
        found = "a quote is opened and never closed"
    return Problem("broken_csv", f'not valid CSV: {found}. A quote inside a quoted text is written twice ("").')


def extra_fields(fields: tuple[str, ...], header: list[str]) -> Problem | None:
    """A row with more fields than the header has shifted columns."""
    if not any(field.strip() for field in fields[len(header) :]):
        return None
    counts = f"{len(fields)} fields, but the header has {len(header)}"
    return Problem("broken_csv", f"{counts}. Put quotes around a text that holds the delimiter.")


def check_header(path: Path, header: list[str], columns: Columns) -> None:
    """Raise DataError where an asked column is missing or stands twice."""
    for setting, column in columns.asked():
        if header.count(column) > 1:
            raise DataError(f'{path}: the header has the column "{column}" {header.count(column)} times ({setting}).')
        if column not in header:
            raise DataError(missing_column(path, setting, column, header))


# --- from named values to rows -------------------------------------------------------------------------


def rows_from(path: Path, cells: Iterator[Cells], columns: Columns, advice: str = "") -> Iterator[RawRow]:
    """Rows with text and label; DataError where the first rows all lack a column, or there is no row.

    `advice` says what to do about such a lack where no column has to be named.
    """
    first = list(islice(cells, FIRST_ROWS))
    if not first:
        raise DataError(f"{path}: has no rows. Write one row a line (CSV: below the header).")
    parsed = [cell.values for cell in first if cell.values is not None]
    for setting, column in columns.asked():
        if parsed and not any(column in values for values in parsed):
            found = list(dict.fromkeys(name for values in parsed for name in values))
            raise DataError(f"{path}: {advice}" if advice else missing_column(path, setting, column, found))
    for cell in chain(first, cells):
        yield to_row(path, cell, columns)


def missing_column(path: Path | str, setting: str, column: str, found: list[str]) -> str:
    """What was asked, what is there, what to set."""
    names = ", ".join(f'"{name}"' for name in found) or "none"
    hint = did_you_mean(column, found)
    return f'{path}: no column "{column}". Columns found: {names}.{hint} Set {setting} to the right one.'


def to_row(path: Path, cells: Cells, columns: Columns) -> RawRow:
    """The row of some cells, with the first problem found."""
    source = Source(path.name, cells.line)
    if cells.values is None:
        return RawRow(source, None, None, cells.problem, cells.recoded)
    text, text_problem = read_texts(cells.values, columns)
    label, label_problem = read_label(cells.values, columns.label)
    return RawRow(source, text, label, cells.problem or text_problem or label_problem, cells.recoded)


def read_texts(values: Mapping[str, object], columns: Columns) -> tuple[str | None, Problem | None]:
    """The text of one column, or those of several in one; of several, a null is an empty text."""
    if len(columns.text) == 1:
        return read_text(values, columns.text[0])
    read = [read_text(values, column) for column in columns.text if values.get(column) is not None]
    problem = next((problem for _, problem in read if problem), None)
    return columns.join.join(text for text, _ in read if text and text.strip()), problem


def read_text(values: Mapping[str, object], column: str) -> tuple[str | None, Problem | None]:
    """A text value, or the problem with it."""
    value = values.get(column)
    if value is None:
        return None, Problem("missing_field", f'no "{column}". Give the row one, or remove it.')
    if not isinstance(value, str):
        return None, Problem("wrong_type", f'"{column}" is {json_type(value)}; it must be a text.')
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return None, Problem("encoding", f'"{column}" holds half a character (a lone \\ud... escape).')
    return value, None


def read_label(values: Mapping[str, object], column: str) -> tuple[str | None, Problem | None]:
    """A label value; a number becomes its text, and so does true or false."""
    value = values.get(column)
    if isinstance(value, bool):
        return ("true" if value else "false"), None
    if isinstance(value, list):
        return None, Problem("several_labels", f'"{column}" is a list of {len(value)}; here a text has one label.')
    if isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value):
        return str(value), None
    return read_text(values, column)


def json_type(value: object) -> str:
    """A value's JSON type, with its article."""
    names = {list: "a list", dict: "an object", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
