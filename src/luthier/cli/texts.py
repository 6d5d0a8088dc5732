"""Texts from the command line, a file or standard input, each with its place and the other columns of its row."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from luthier.corpus.lines import Problem

COLUMN = "text"  # of a file of rows
COUNTED = (".json", ".json.gz", ".json.zst", ".parquet")  # files whose rows are counted, not their lines
COMMAND_LINE, STANDARD_INPUT = "--text", "standard input"


@dataclass(frozen=True)
class Asked:
    """A text to be asked about, and where it stands: the 1-based line of a file, or row of an array or Parquet file.

    `columns` are all of its row's, `column` the text's among them. `problem` says why there is no answer; a blank text
    is none that somebody has to mend.
    """

    text: str
    file: str
    line: int
    columns: Mapping[str, object] = field(default_factory=dict)
    column: str = ""
    problem: str = ""
    blank: bool = False

    def __str__(self) -> str:
        """As an error names it."""
        if self.file == COMMAND_LINE:
            return f"{self.file}, number {self.line}"
        return f"{self.file} {'row' if self.file.lower().endswith(COUNTED) else 'line'} {self.line}"


def read_texts(texts: Sequence[str], file: Path | None, to_do: str = "label", column: str | None = None) -> list[Asked]:
    """The texts to label or answer, those without an answer with their problem; DataError where there are none.

    Of a table (.jsonl, .ndjson, .json, .csv, .tsv, .parquet) it is those of a column, of every other file its lines;
    both also packed (.gz, .zst). Only a line feed (or carriage return) ends a line. Blank texts keep their place.
    """
    found = [replace(asked(text, COMMAND_LINE, number), text=text) for number, text in enumerate(texts, start=1)]
    for one in found:
        if not is_unicode(one.text):
            raise DataError(f"{one}: is not UTF-8. Write it in the terminal's encoding (UTF-8).")
    if file is not None:
        found += table_texts(file, column) if is_table(file) else line_texts(file, column)
    if all(one.blank for one in found):
        blank = "every text is blank; " if found else ""
        raise DataError(f"nothing to {to_do}: {blank}give --text, or --file with one text a line.")
    return found


def asked(text: str, file: str, line: int, columns: Mapping[str, object] | None = None, column: str = "") -> Asked:
    """A text that could be read, without the white space around it."""
    text = text.strip()
    return Asked(text, file, line, columns or {}, column, "" if text else "the text is blank.", not text)


def is_unicode(text: str) -> bool:
    """Whether a text holds no byte that could not be read."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def is_table(file: Path) -> bool:
    """Whether a file has rows with columns, by its ending."""
    from luthier.corpus.documents.tables import TABLE_ENDINGS
    from luthier.corpus.documents.unpack import ending_of

    return ending_of(file) in TABLE_ENDINGS


# --- lines -------------------------------------------------------------------------------------------------------


def line_texts(file: Path, column: str | None) -> list[Asked]:
    """Each line of a file, or of standard input for `-`."""
    if column is not None:
        raise DataError(f"{file}: --column is for tables (.jsonl, .csv, ...); of this one each line is a text.")
    name = STANDARD_INPUT if str(file) == "-" else str(file)
    lines = decoded(file, name).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    lines = lines[:-1] if not lines[-1] else lines
    return [asked(line, name, number) for number, line in enumerate(lines, start=1)]


def decoded(file: Path, name: str) -> str:
    """The content of a file, unpacked, without its byte order mark."""
    from luthier.corpus.documents.unpack import read_bytes

    if str(file) == "-":
        raw = sys.stdin.buffer.read()
    else:
        require_file(file)
        raw = read_bytes(file)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DataError(f"{name} line {line}: is not UTF-8 text ({error.reason}). Save the file as UTF-8.") from error


def require_file(file: Path) -> None:
    """DataError where there is nothing of that name."""
    if not file.exists():
        raise DataError(f"{file}: no such file. Give a text file with one text a line, or use --text.")


# --- tables ------------------------------------------------------------------------------------------------------


def table_texts(file: Path, column: str | None) -> list[Asked]:
    """A column of each row, read as rows to train on are; DataError where no row has it, or the file ends early."""
    from luthier.corpus.documents.tables import read_table

    require_file(file)
    name = column or COLUMN
    found, columns = [], dict[str, None]()
    for line, row in read_table(file, bare=name):
        one = table_text(file, line, row, name)
        columns |= dict.fromkeys(one.columns)
        found.append(one)
    if columns and name not in columns:
        there, hint = ", ".join(columns), did_you_mean(name, list(columns))
        raise DataError(f'{file}: no column "{name}" (there is {there}).{hint} Name one with --column.')
    return found


def table_text(file: Path, line: int, row: Mapping[str, object] | Problem, column: str) -> Asked:
    """The text of one row, or its problem. Numbers that JSON cannot hold (NaN) become nothing among its columns."""
    from luthier.corpus.formats import read_text
    from luthier.corpus.lines import Problem

    if isinstance(row, Problem):
        one = Asked("", str(file), line, problem=row.detail)
        if row.ends_file:
            raise DataError(f"{file} {row.detail}" if row.detail.startswith("line ") else f"{one}: {row.detail}")
        return one
    row = {name: None if isinstance(value, float) and not isfinite(value) else value for name, value in row.items()}
    text, problem = ("", None) if row.get(column, "") is None else read_text(row, column)
    if problem is not None:
        return Asked("", str(file), line, row, column, problem.detail)
    return asked(text or "", str(file), line, row, column)
