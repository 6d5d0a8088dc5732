"""A file to decoded lines: bounded in memory, honest about its encoding."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from luthier.corpus.documents.unpack import MAX_FILE_BYTES, ending_of, open_bytes
from luthier.errors import DataError, did_you_mean

MAX_LINE_BYTES = 10_000_000
HEAD_BYTES = 65_536
UTF8_MARK = b"\xef\xbb\xbf"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
# Western text has accents one by one; four in a row are another alphabet (Cyrillic, Chinese, ...)
FOREIGN_RUN = re.compile(rb"[\xa1-\xff]{4}")


@dataclass(frozen=True)
class Problem:
    """Why a row cannot be used: a reason to count by, and a sentence that says what to do.

    `ends_file`: nothing behind it is read either.
    """

    reason: str
    detail: str
    ends_file: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class Line:
    """One line without its line end. `recoded`: it was Windows-1252, not UTF-8."""

    number: int
    text: str
    problem: Problem | None = None
    recoded: bool = False


def read_lines(
    path: Path, max_line_bytes: int = MAX_LINE_BYTES, max_file_bytes: int = MAX_FILE_BYTES
) -> Iterator[Line]:
    """Lines of a file, numbered from 1; a line over `max_line_bytes` is skipped unread and says so.

    .gz and .zst are unpacked as they are read; an UnpackError ends the lines where that fails.
    """
    with open_bytes(path, max_file_bytes) as handle:
        yield from numbered_lines(handle, max_line_bytes)


def numbered_lines(handle: BinaryIO, max_line_bytes: int, first: int = 1) -> Iterator[Line]:
    """The lines from where the handle stands, the first of them with number `first`."""
    for number, raw in enumerate(bounded_lines(handle, max_line_bytes), start=first):
        if raw is None:
            detail = f"the line is longer than {max_line_bytes:,} bytes. Is a line end missing?"
            yield Line(number, "", Problem("line_too_long", detail))
        else:
            yield decode_line(number, raw.removeprefix(UTF8_MARK) if number == 1 else raw)


def bounded_lines(handle: BinaryIO, max_line_bytes: int) -> Iterator[bytes | None]:
    """Lines without their ends; None for one that is too long, of which no more than the limit is held."""
    while raw := handle.readline(max_line_bytes + 1):
        if raw.endswith(b"\n") or len(raw) <= max_line_bytes:
            yield raw.removesuffix(b"\n").removesuffix(b"\r")
            continue
        while (rest := handle.readline(HEAD_BYTES)) and not rest.endswith(b"\n"):
            pass
        yield None


def decode_line(number: int, raw: bytes) -> Line:
    """UTF-8, else Windows-1252 where that is plausible, else a line with the problem `encoding`."""
    try:
        return Line(number, raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        if is_windows_1252(raw):
            return Line(number, raw.decode("cp1252"), recoded=True)
        detail = (
            f"byte 0x{raw[error.start]:02x} at position {error.start + 1} is neither UTF-8 nor plausible "
            "Windows-1252. Save the file as UTF-8."
        )
        return Line(number, raw.decode("utf-8", "replace"), Problem("encoding", detail))


def is_windows_1252(raw: bytes) -> bool:
    """Whether bytes that are not UTF-8 look like Western text in Windows-1252."""
    if FOREIGN_RUN.search(raw) or not raw.decode("utf-8", "ignore").isascii():
        return False  # the second: valid UTF-8 letters beside a bad byte mean damaged UTF-8
    try:
        text = raw.decode("cp1252")
    except UnicodeDecodeError:
        return False
    return all(char >= " " or char in "\t\r" for char in text)


def inspect_file(path: Path) -> None:
    """Raise DataError where the path is no readable, non-empty text file with known line ends."""
    head = read_head(path)
    if not head:
        raise DataError(f"{path}: the file is empty. Write one row a line.")
    if head.startswith(UTF16_MARKS):
        raise DataError(f"{path}: the file is UTF-16 (or UTF-32) text. Save it as UTF-8.")
    if b"\0" in head:
        line = head[: head.index(b"\0")].count(b"\n") + 1
        raise DataError(f"{path} line {line}: not a text file (it holds a zero byte). Export it as UTF-8 text.")
    if b"\r" in head and b"\n" not in head:
        raise DataError(f"{path}: lines end in CR (old Mac). Save the file with LF or CR LF line ends.")


def read_head(path: Path) -> bytes:
    """The first bytes of a file, unpacked; DataError where there is none to read."""
    try:
        if path.is_dir():
            raise DataError(f"{path}: is a folder. Name one file in it{example_in(path)}.")
        if path.exists() and not path.is_file():
            raise DataError(f"{path}: is not a regular file (a pipe or a device). Write the rows to a file first.")
        with open_bytes(path) as handle:
            return handle.read(HEAD_BYTES)
    except FileNotFoundError:
        folder = path.parent
        siblings = [sibling.name for sibling in folder.iterdir()] if folder.is_dir() else []
        where = did_you_mean(path.name, siblings) if folder.is_dir() else f" There is no folder {folder}."
        raise DataError(f"{path}: no such file.{where} Paths in a recipe start at its folder.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}. Check the path and its permissions.") from error


def example_in(folder: Path) -> str:
    """`, such as train.jsonl`, or nothing where the folder shows no data file."""
    endings = {".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet"}
    found = sorted(file.name for file in folder.iterdir() if ending_of(file) in endings)
    return f", such as {found[0]}" if found else ""


def recoded_note(file: str, lines: list[int]) -> str:
    """The ledger's note about lines that were not UTF-8."""
    count = f"{len(lines)} line was" if len(lines) == 1 else f"{len(lines)} lines were"
    return f"{file}: mixed encodings: {count} Windows-1252, first at line {min(lines)}."
