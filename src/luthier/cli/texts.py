"""Texts from the command line, a file or standard input."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import typer

from luthier.errors import DataError

COLUMN = "text"  # of a file of rows
DELIMITERS = {".csv": ",", ".tsv": "\t"}


def read_texts(texts: list[str], file: Path | None, to_do: str = "label", column: str | None = None) -> list[str]:
    """The texts to label or answer; DataError where there are none.

    Of a .jsonl, .csv or .tsv file it is those of a column, of every other file its lines. Only a line feed (or carriage
    return) ends a line; blank ones are passed over, and said.
    """
    for number, text in enumerate(texts, start=1):
        if not is_unicode(text):
            raise DataError(f"--text, number {number}: is not UTF-8. Write it in the terminal's encoding (UTF-8).")
    found = list(texts)
    if file is not None:
        content = decoded(file)
        rows = rows_of(file, content, column)
        kept = [row.strip() for row in rows if row.strip()]
        if len(kept) < len(rows):
            typer.echo(f"note: {file}: {len(rows) - len(kept)} of {len(rows)} texts are blank, passed over.", err=True)
        found += kept
    if not found:
        raise DataError(f"nothing to {to_do}: give --text, or --file with one text a line.")
    return found


def is_unicode(text: str) -> bool:
    """Whether a text holds no byte that could not be read."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def decoded(file: Path) -> str:
    """The content of a file, or of standard input for `-`, without its byte order mark."""
    try:
        raw = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{file}: no such file. Give a text file with one text a line, or use --text.") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}).") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DataError(f"{file}:{line}: is not UTF-8 text ({error.reason}). Save the file as UTF-8.") from error


def rows_of(file: Path, content: str, column: str | None) -> list[str]:
    """The texts of a file, in order."""
    kind = file.suffix.lower()
    if kind in DELIMITERS:
        return cells(file, content, DELIMITERS[kind], column or COLUMN)
    lines = content.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    lines = lines[:-1] if not lines[-1] else lines
    if kind == ".jsonl":
        return [text_of(file, number, line, column or COLUMN) for number, line in enumerate(lines, start=1)]
    if column is not None:
        raise DataError(f"{file}: --column is for .jsonl, .csv and .tsv files; of this one each line is a text.")
    return lines


def cells(file: Path, content: str, delimiter: str, column: str) -> list[str]:
    """A column of a table with a head."""
    try:
        reader = csv.DictReader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
        head = reader.fieldnames or []
        if column not in head:
            raise DataError(f'{file}: no column "{column}" (there is {", ".join(head)}). Name one with --column.')
        return [row[column] or "" for row in reader]
    except csv.Error as error:
        raise DataError(f"{file}:{reader.line_num}: is no table ({error}). Mend the row.") from error


def text_of(file: Path, number: int, line: str, column: str) -> str:
    """The text of a line of JSON: a string, or the column of an object."""
    if not line.strip():
        return ""
    try:
        value = json.loads(line)
    except ValueError as error:
        raise DataError(f"{file}:{number}: is no JSON ({error}). Mend the line.") from error
    text = value.get(column) if isinstance(value, dict) else value
    if not isinstance(text, str) or not is_unicode(text):
        there = f" (it has {', '.join(value)})" if isinstance(value, dict) else ""
        raise DataError(f'{file}:{number}: no text under "{column}"{there}. Name the column with --column.')
    return text
