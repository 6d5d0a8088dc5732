"""One file to documents, by its ending."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from luthier.corpus.documents.base import Unreadable
from luthier.corpus.documents.docx import parse_docx
from luthier.corpus.documents.html import parse_html
from luthier.corpus.documents.pdf import parse_pdf
from luthier.corpus.documents.texts import Parsed, parse_markdown, parse_text
from luthier.corpus.documents.unpack import MAX_FILE_BYTES, UnpackError, ending_of, read_bytes
from luthier.corpus.lines import Problem
from luthier.errors import DataError
from luthier.records import Document, Source

TEXT_PARSERS: dict[str, Callable[[bytes], Parsed | Problem]] = {
    ".txt": parse_text,
    ".text": parse_text,
    ".md": parse_markdown,
    ".markdown": parse_markdown,
    ".html": parse_html,
    ".htm": parse_html,
}
# these unpack while they parse, so they need the limit too
PACKED_PARSERS: dict[str, Callable[[bytes, int], Parsed | Problem]] = {".pdf": parse_pdf, ".docx": parse_docx}
EMPTY = Problem("empty_text", "the file has no text. Write some, or remove the file.")
DOCUMENT_ENDINGS = (*TEXT_PARSERS, *PACKED_PARSERS)


def read_documents(
    path: Path, max_file_bytes: int = MAX_FILE_BYTES, file: str | None = None
) -> Iterator[Document | Unreadable]:
    """The documents of a file (today: one a file), or what kept it from being read.

    `file` is the name its source gets, by default the file's own. Known endings: `DOCUMENT_ENDINGS`, also
    followed by .gz or .zst.

    Raises:
        DataError: a library for this ending is not installed.
    """
    source = Source(file or path.name, 1)
    parsed = parse_file(path, max_file_bytes)
    if isinstance(parsed, Parsed) and not parsed.text.strip():
        parsed = EMPTY
    if isinstance(parsed, Problem):
        yield Unreadable(source, parsed)
        return
    source = Source(source.file, 1, licence=parsed.licence, date=parsed.date, url=parsed.url)
    yield Document(parsed.text, source, parsed.title)


def parse_file(path: Path, max_file_bytes: int) -> Parsed | Problem:
    """What the file says, by its ending."""
    ending = ending_of(path)
    if ending not in DOCUMENT_ENDINGS:
        known = ", ".join(DOCUMENT_ENDINGS)
        hint = " Save it as .docx." if ending in (".doc", ".odt", ".rtf") else ""
        return Problem("unknown_ending", f'unknown file ending "{ending}". Documents: {known} (and .gz, .zst).{hint}')
    try:
        raw = read_bytes(path, max_file_bytes)
    except UnpackError as error:
        return Problem(error.reason, error.detail)
    except DataError as error:
        return Problem("unreadable_file", str(error).removeprefix(f"{path}: "))
    if not raw.strip():
        return EMPTY
    if ending in TEXT_PARSERS:
        return TEXT_PARSERS[ending](raw)
    return PACKED_PARSERS[ending](raw, max_file_bytes)
