"""Rows of named values from JSON, CSV and Parquet files, and back. What cannot be read is told and passed over."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO, Literal

from luthier.corpus.documents.parquet import parquet_rows, write_parquet
from luthier.corpus.documents.unpack import MAX_FILE_BYTES, UnpackError, ending_of, open_bytes, read_bytes
from luthier.corpus.formats import csv_cells, json_type, parse_object
from luthier.corpus.lines import (
    HEAD_BYTES,
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

Row = tuple[int, Mapping[str, object] | Problem]
TABLE_ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")
BETWEEN_ITEMS = re.compile(r"[\s,]*")


def read_table(
    path: Path,
    max_line_bytes: int = MAX_LINE_BYTES,
    max_file_bytes: int = MAX_FILE_BYTES,
    start: int = 1,
    stop: int | None = None,
    bare: str | None = None,
    separator: str = "|",
) -> Iterator[Row]:
    """Rows of a file by its ending (`TABLE_ENDINGS`, also followed by .gz or .zst), each with its number.

    The number is the line of a JSONL row, the first line of a CSV row, and the 1-based position in a JSON array or
    a Parquet file; with `start` and `stop`, only rows numbered from `start` on and before `stop` come. A row that
    cannot be used comes as its Problem, and reading goes on behind it. What ends a file early (broken
    compression, too many bytes, broken JSON within an array) is the Problem of the row where it happened. A file
    of a single JSON object, over several lines, is one row. An empty file has no rows. With `bare`, a JSON text in the
    place of an object is a row with that one column. `separator` parts the columns of a CSV file (`delimiter_of`).

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
        return iter([(1, Problem(error.reason, error.detail, ends_file=True))])
    limits, spelling = (max_line_bytes, max_file_bytes), (bare, separator)
    return guarded(path, rows_of(path, head, limits, start, stop, spelling), start, stop)


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
            yield number, Problem(reason, detail, ends_file=True)


def rows_of(
    path: Path, head: bytes, limits: tuple[int, int], start: int, stop: int | None, spelling: tuple[str | None, str]
) -> Iterator[Row]:
    """Rows by the file's ending and its first bytes.

    `limits`: most bytes of a line, and of the file unpacked. `spelling`: the column of a text without one, and what
    parts the columns of CSV.
    """
    max_line_bytes, max_file_bytes = limits
    bare, separator = spelling
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
        yield from array_rows(path, limits, bare)
    elif ending == ".json" and spreads_over_lines(text):
        yield from whole_object(path, max_file_bytes)
    else:
        before_stop = takewhile(lambda line: stop is None or line.number < stop, lines)
        yield from json_rows((line for line in before_stop if line.number >= start), bare)


# --- JSON ----------------------------------------------------------------------------------------------


def json_rows(lines: Iterator[Line], bare: str | None = None) -> Iterator[Row]:
    """One JSON object a line, or with `bare` a JSON text as that column; blank lines are no rows."""
    for line in lines:
        if line.problem:
            yield line.number, line.problem
        elif line.text.strip():
            values, problem = parse_object(line.text)
            if bare and problem and problem.reason == "wrong_type" and isinstance(text := json.loads(line.text), str):
                values, problem = {bare: text}, None
            yield line.number, problem or whole_characters(line.text, values or {})


def whole_characters(text: str, values: Mapping[str, object]) -> Mapping[str, object] | Problem:
    """The values, or the problem that an escape in their JSON text is half a character no file can hold."""
    if HALF_CHARACTER.search(text):
        try:
            json.dumps(values, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return Problem("encoding", "the row holds half a character (a lone \\ud... escape).")
    return values


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


def array_rows(path: Path, limits: tuple[int, int], bare: str | None = None) -> Iterator[Row]:
    """The items of a JSON array, decoded as the file is read; `limits[0]` is the most one item may hold."""
    with open_bytes(path, limits[1]) as stream:
        items = ArrayItems(stream, limits[0], bare)
        number = 0
        while (item := items.next()) is not None:
            number += 1
            yield number, item


class ArrayItems:
    """Takes one item after the other off a stream. Holds one item's text and at most as much again.

    Where an item does not parse yet, as much again is read before the next try, so that the work stays linear.
    """

    def __init__(self, stream: BinaryIO, max_item_bytes: int, bare: str | None = None):
        self.stream = stream
        self.max_item_bytes = max_item_bytes
        self.bare = bare
        self.decoder = json.JSONDecoder()
        self.decode = codecs.getincrementaldecoder("utf-8-sig")()
        self.text = ""
        self.position = 0
        self.ended = False
        self.over = False

    def next(self) -> Mapping[str, object] | Problem | None:
        """The next object, or its problem; None after the last. After a problem with the array itself: None."""
        try:
            if not self.text and not self.over:
                self.read_more(HEAD_BYTES)
                self.position = self.text.index("[") + 1
            return None if self.over else self.take()
        except UnicodeDecodeError as error:
            self.over = True
            detail = f"not UTF-8 ({error.reason}); the rest is not read. Save the file as UTF-8."
            return Problem("encoding", detail, ends_file=True)

    def take(self) -> Mapping[str, object] | Problem | None:
        """The item at the position, reading on until it is whole."""
        while True:
            self.position = BETWEEN_ITEMS.match(self.text, self.position).end()  # type: ignore[union-attr]
            if self.text.startswith("]", self.position):
                self.over = True
                return None
            try:
                item, end = self.decoder.raw_decode(self.text, self.position)
            except (ValueError, RecursionError) as error:
                if not self.ended and len(self.text) - self.position <= self.max_item_bytes:
                    self.read_more(max(HEAD_BYTES, len(self.text) - self.position))
                    continue
                return self.give_up(error)
            if end == len(self.text) and not self.ended:  # a number may go on
                self.read_more(HEAD_BYTES)
                continue
            source, self.position = self.text[self.position : end], end
            return self.checked(item, source)

    def checked(self, item: object, source: str) -> Mapping[str, object] | Problem:
        """An object whose size and characters are in order."""
        if len(source) > self.max_item_bytes:
            return Problem("line_too_long", f"the item is longer than {self.max_item_bytes:,} bytes.")
        if self.bare and isinstance(item, str):
            item = {self.bare: item}
        if not isinstance(item, dict):
            return Problem("wrong_type", f"the item is {json_type(item)}, not a JSON object.")
        return whole_characters(source, item)

    def give_up(self, error: Exception) -> Problem:
        """No item can be told from the next any more."""
        self.over = True
        if not self.ended:
            detail = f"the item is longer than {self.max_item_bytes:,} bytes; the rest of the array is not read."
            return Problem("line_too_long", detail, ends_file=True)
        found = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        if not self.text[self.position :].strip():
            found = "the array is not closed: is the file cut short?"
        advice = "The rest of the array is not read. Write one JSON object a line (JSON lines)."
        return Problem("broken_json", f"not valid JSON: {found}. {advice}", ends_file=True)

    def read_more(self, num_bytes: int) -> None:
        """Further text behind what is not used up yet."""
        chunk = self.stream.read(num_bytes)
        self.ended = not chunk
        self.text = self.text[self.position :] + self.decode.decode(chunk, self.ended)
        self.position = 0


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
        held = [as_cells(row) for row in rows]
        write_parquet(path, file, held)
        return len(held)


def as_cells(row: Mapping[str, object]) -> Mapping[str, object]:
    """The row with its tools as JSON text: as columns, what one tool defines would stand, empty, in all others."""
    return {**row, "tools": json.dumps(row["tools"], ensure_ascii=False)} if isinstance(row.get("tools"), list) else row


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
