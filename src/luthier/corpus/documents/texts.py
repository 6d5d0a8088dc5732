"""Plain text and Markdown: bytes to text, front matter to what is known of the document."""

from __future__ import annotations

import codecs
import datetime
import re
from dataclasses import dataclass

import yaml

from luthier.corpus.lines import UTF8_MARK, UTF16_MARKS, Problem, decode_line

UTF32_MARKS = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
FRONT_MATTER = re.compile(r"---[ \t]*\n(.{0,65536}?\n)(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
FIRST_HEADING = re.compile(r"^#[ \t]+(\S.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Parsed:
    """What a document says, and what it says of itself. `date` is ISO 8601."""

    text: str
    title: str | None = None
    date: str | None = None
    licence: str | None = None
    url: str | None = None


def decode_text(raw: bytes) -> str | Problem:
    """The text with `\\n` line ends: by its byte order mark, else UTF-8, else Windows-1252 line by line.

    Lines are judged one by one because files are put together from others: one old line does not spoil the rest.
    """
    if raw.startswith(UTF32_MARKS):
        return decode_marked(raw, "utf-32")
    if raw.startswith(UTF16_MARKS):
        return decode_marked(raw, "utf-16")
    if b"\0" in raw:
        line = raw[: raw.index(b"\0")].count(b"\n") + 1
        return Problem("not_text", f"line {line} holds a zero byte: no text file. Save it as UTF-8 text.")
    raw = raw.removeprefix(UTF8_MARK)
    try:
        return with_line_feeds(raw.decode("utf-8"))
    except UnicodeDecodeError:
        return decode_mixed(raw)


def decode_marked(raw: bytes, encoding: str) -> str | Problem:
    """Text whose byte order mark names its encoding."""
    try:
        return with_line_feeds(raw.decode(encoding))
    except UnicodeDecodeError as error:
        detail = f"starts as {encoding.upper()}, but byte {error.start + 1} is none. Save the file as UTF-8."
        return Problem("encoding", detail)


def decode_mixed(raw: bytes) -> str | Problem:
    """Lines of UTF-8 and of Windows-1252."""
    texts = []
    for number, line in enumerate(raw.splitlines(keepends=True), start=1):
        body = line.rstrip(b"\r\n")
        decoded = decode_line(number, body)
        if decoded.problem:
            return Problem("encoding", f"line {number}: {decoded.problem.detail}")
        texts.append(decoded.text + line[len(body) :].decode())
    return with_line_feeds("".join(texts))


def with_line_feeds(text: str) -> str:
    """CR LF and CR become LF."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def parse_text(raw: bytes) -> Parsed | Problem:
    """A .txt file: one document."""
    text = decode_text(raw)
    return text if isinstance(text, Problem) else Parsed(text)


def parse_markdown(raw: bytes) -> Parsed | Problem:
    """A Markdown file. Front matter (YAML between `---` lines) gives title, date, licence and url, and is no text."""
    text = decode_text(raw)
    if isinstance(text, Problem):
        return text
    values: dict[str, str] = {}
    found = FRONT_MATTER.match(text)
    if found and (front := front_matter(found[1])) is not None:
        values, text = front, text[found.end() :].lstrip("\n")
    heading = FIRST_HEADING.search(text)
    return Parsed(
        text,
        title=values.get("title") or (heading[1].rstrip(" \t#") if heading else None) or None,
        date=values.get("date"),
        licence=values.get("licence") or values.get("license"),
        url=values.get("url"),
    )


def front_matter(text: str) -> dict[str, str] | None:
    """The plain values of front matter by lower-case name; None where it is not YAML after all."""
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError):
        return None
    if not isinstance(values, dict):
        return None
    return {str(name).lower(): plain for name, value in values.items() if (plain := plain_value(value))}


def plain_value(value: object) -> str:
    """A text, number or date as text; nothing for what has parts."""
    if isinstance(value, datetime.date):  # a datetime is one too
        return value.isoformat()
    return str(value).strip() if isinstance(value, str | int | float) else ""
