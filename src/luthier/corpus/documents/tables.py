"""Rows of named values from JSON, CSV and Parquet files, and back. What cannot be read is told and passed over."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO, Literal

from luthier.corpus.documents.parquet import parquet_rows, write_parquet
from luthier.corpus.documents.unpack import MAX_FILE_BYTES, UnpackError, ending_of, read_bytes
from luthier.corpus.formats import csv_cells
from luthier.corpus.json_values import Row, array_rows, parse_object, whole_characters
from luthier.corpus.lines import (
    MAX_LINE_BYTES,
    UTF8_MARK,
    Line,
    Problem,
    inspect_file,
    read_head,
    read_lines,
)
from luthier.errors import DataError
from luthier.files import open_aside

TABLE_ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")


def read_table(
    path: Path,
    max_line_bytes: int = MAX_LINE_BYTES,
    max_file_bytes: int = MAX_FILE_BYTES,
    start: int = 1,
    stop: int | None = None,
    separator: str = "|",
) -> Iterator[Row]:
    """Rows of a file by its ending (`TABLE_ENDINGS`, also followed by .gz or .zst), each with its number.

    The number is the line of a JSONL row, the first line of a CSV row, and the 1-based position in a JSON array or
    a Parquet file; with `start` and `stop`, only rows numbered from `start` on and before `stop` come. A row that
    cannot be used comes as its Problem, and reading goes on behind it. What ends a file early (broken
    compression, too many bytes, broken JSON within an array) is the Problem of the row where it happened. A file
    of a single JSON object, over several lines, is one row. An empty file has no rows. `separator` parts the columns
    of a CSV file (`delimiter_of`).

    Raises:
        DataError: no such file, not a regular one, an unknown ending, or a library that is not installed.
    """
    ending = ending_of(path)
    if ending not in TABLE_ENDINGS:
        raise DataError(
            f'{path}: unknown file ending "{ending}". Tables: {", ".join(TABLE_ENDINGS)}, '
            "also with .gz or .zst after it."
        )
    try:
        head = read_head(path)
    except UnpackError as error:
        return iter([(1, Problem(error.reason, error.detail))])
    return guarded(path, rows_of(path, head, (max_line_bytes, max_file_bytes), start, stop, separator), start, stop)


def guarded(path: Path, rows: Iterator[Row], start: int, stop: int | None) -> Iterator[Row]:
    """The rows asked for; an error on the way becomes the problem of the row after the last one read.

    Where a file is read in ranges, each range behind the error tells it again: better twice than never.
    """
    last = 0
    try:
        for number, row in rows:
            if stop is not None and number >= stop:
                return
            last = number
            if number >= start:
                yield number, row
    except DataError as error:
        number = max(last + 1, start)
        if "luthier[data]" in str(error):
            raise
        if stop is None or number < stop:
            reason, detail = "unreadable_file", str(error).removeprefix(str(path)).lstrip(": ")
            if isinstance(error, UnpackError):
                reason, detail = error.reason, error.detail
            yield number, Problem(reason, detail)


def rows_of(
    path: Path, head: bytes, limits: tuple[int, int], start: int, stop: int | None, separator: str
) -> Iterator[Row]:
    """Rows by the file's ending and its first bytes. `limits`: most bytes of a line, and of the file unpacked."""
    max_line_bytes, max_file_bytes = limits
    ending = ending_of(path)
    if ending == ".parquet":
        for number, values in parquet_rows(path, max_file_bytes, start, stop):
            yield number, sized(values, max_line_bytes)
        return
    if not head:
        return
    inspect_file(path)
    lines = read_lines(path, max_line_bytes, max_file_bytes)
    text = head.removeprefix(UTF8_MARK).lstrip()
    if ending in (".csv", ".tsv"):
        for cell in csv_cells(path, lines, None, separator):
            yield cell.line, cell.problem or cell.values or {}
    elif text.startswith(b"["):
        yield from array_rows(path, limits)
    elif ending == ".json" and spreads_over_lines(text):
        yield from whole_object(path, max_file_bytes)
    else:
        before_stop = takewhile(lambda line: stop is None or line.number < stop, lines)
        yield from json_rows(line for line in before_stop if line.number >= start)


# --- JSON ----------------------------------------------------------------------------------------------


def json_rows(lines: Iterator[Line]) -> Iterator[Row]:
    """One JSON object a line; blank lines are no rows."""
    for line in lines:
        if line.problem:
            yield line.number, line.problem
        elif line.text.strip():
            values, problem = parse_object(line.text)
            yield line.number, problem or whole_characters(line.text, values or {})


def spreads_over_lines(text: bytes) -> bool:
    """Whether a file starts with an object that its first line does not close."""
    first, end, rest = text.partition(b"\n")
    if not (text.startswith(b"{") and end and rest.strip()):
        return False
    values, _ = parse_object(first.decode("utf-8", "replace"))
    return values is None and not rest.lstrip().startswith(b"{")


def whole_object(path: Path, max_file_bytes: int) -> Iterator[Row]:
    """The one object of a file."""
    try:
        text = read_bytes(path, max_file_bytes).removeprefix(UTF8_MARK).decode("utf-8")
    except UnicodeDecodeError as error:
        yield 1, Problem("encoding", f"byte {error.start + 1} is not UTF-8. Save the file as UTF-8.")
        return
    values, problem = parse_object(text)
    yield 1, problem or whole_characters(text, values or {})


# --- sizes, writing ------------------------------------------------------------------------------------


def sized(row: Mapping[str, object], max_line_bytes: int) -> Mapping[str, object] | Problem:
    """A Parquet row whose texts together are no longer than a line may be."""
    if sum(len(value) for value in row.values() if isinstance(value, str | bytes)) > max_line_bytes:
        return Problem("line_too_long", f"the row is longer than {max_line_bytes:,} bytes.")
    return row


def write_table(path: Path, rows: Iterable[Mapping[str, object]], format: Literal["jsonl", "parquet"]) -> int:  # noqa: A002
    """Write rows aside, sync, rename; gives their number. JSONL is streamed, Parquet holds its rows in memory.

    Raises:
        DataError: a value that has no JSON (bytes, NaN), or half a character.
        RunError: a full disk, a read-only folder.
    """
    with open_aside(path) as file:
        if format == "jsonl":
            return write_jsonl(path, file, rows)
        held = list(rows)
        write_parquet(path, file, held)
        return len(held)


def write_jsonl(path: Path, file: BinaryIO, rows: Iterable[Mapping[str, object]]) -> int:
    """One JSON object a line, in UTF-8."""
    count = 0
    for count, row in enumerate(rows, start=1):
        try:
            line = json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise DataError(f"{path} line {count}: the row cannot be written as JSON: {error}.") from error
        file.write(line + b"\n")
    return count
