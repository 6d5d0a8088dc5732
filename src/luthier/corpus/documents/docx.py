"""DOCX: paragraphs, headings as Markdown, tables as rows."""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

from luthier.corpus.documents.texts import Parsed
from luthier.corpus.documents.unpack import MAX_FILE_BYTES, needs_extra
from luthier.corpus.lines import Problem

HEADING = re.compile(r"heading ([1-9])", re.IGNORECASE)
CHUNK_BYTES = 2**18
OLD_OFFICE = b"\xd0\xcf\x11\xe0"


def parse_docx(raw: bytes, max_bytes: int = MAX_FILE_BYTES) -> Parsed | Problem:
    """The text of a Word file. What it unpacks to is counted before anything is parsed."""
    try:
        import docx
    except ImportError:
        raise needs_extra("reading DOCX") from None
    if problem := zip_problem(raw, max_bytes):
        return problem
    try:
        document = docx.Document(io.BytesIO(raw))
        text = "\n\n".join(blocks(document))
        properties = document.core_properties
        title, created = (properties.title or "").strip(), properties.created
    except Exception as error:  # noqa: BLE001, a broken file makes python-docx and lxml raise anything
        detail = f"not a readable DOCX ({type(error).__name__}: {error})"[:200]
        return Problem("broken_file", f"{detail}. Open it and save it again.")
    if not text.strip():
        return Problem("no_text", "the DOCX has no text. Are its pages pictures? Run OCR on it first.")
    return Parsed(text + "\n", title or None, created.date().isoformat() if created else None)


def zip_problem(raw: bytes, max_bytes: int) -> Problem | None:
    """What keeps a zip archive from being unpacked whole: damage, a password, or more than `max_bytes`.

    Declared sizes are summed first, then every member is unpacked in chunks, for declared sizes can lie.
    """
    if raw.startswith(OLD_OFFICE):
        return Problem("encrypted", "an old .doc file or one with a password. Save it as .docx without one.")
    large = Problem("too_large", f"holds more than {max_bytes:,} bytes unpacked. If it should, raise max_file_bytes.")
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > max_bytes:
                return large
            left_bytes = max_bytes
            for member in members:
                with archive.open(member) as stream:
                    while chunk := stream.read(CHUNK_BYTES):
                        left_bytes -= len(chunk)
                        if left_bytes < 0:
                            return large
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        return Problem("broken_file", f"not a readable DOCX ({error}). Open it and save it again.")
    return None


def blocks(document: Any) -> Iterator[str]:
    """Paragraphs and tables in their order; the items of a list and the rows of a table stay together."""
    items: list[str] = []
    for block in document.iter_inner_content():
        is_table = hasattr(block, "rows")
        text = "\n".join(table_rows(block)) if is_table else paragraph_text(block)
        if not is_table and text.startswith("- "):
            items.append(text)
            continue
        if items:
            yield "\n".join(items)
            items = []
        if text:
            yield text
    if items:
        yield "\n".join(items)


def paragraph_text(paragraph: Any) -> str:
    """A paragraph's text; a heading gets its `#`, a list item its dash."""
    text: str = paragraph.text.strip()
    style = (paragraph.style.name or "") if paragraph.style is not None else ""
    if not text:
        return ""
    if found := HEADING.fullmatch(style):
        return f"{'#' * min(int(found[1]), 6)} {' '.join(text.split())}"
    if style == "Title":
        return f"# {' '.join(text.split())}"
    return f"- {text}" if style.startswith("List") else text


def table_rows(table: Any) -> Iterator[str]:
    """Rows with cells parted by ` | `; a cell merged over several columns counts once."""
    for row in table.rows:
        cells: list[str] = []
        last = None
        for cell in row.cells:
            if cell._tc is not last:
                cells.append(" ".join(cell.text.split()))
            last = cell._tc
        if any(cells):
            yield " | ".join(cells)
