"""PDF: the text of its pages. Scans have none; no OCR here."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from typing import Any

from luthier.corpus.documents.quiet import quiet_logger
from luthier.corpus.documents.texts import Parsed, with_line_feeds
from luthier.corpus.documents.unpack import MAX_FILE_BYTES, needs_extra
from luthier.corpus.lines import Problem

LINE_END_HYPHEN = re.compile(r"(?<!\w)(\w+)-[ \t]*\n[ \t]*([^\W\d_]\w*)")
SOFT_HYPHEN = re.compile("\u00ad[ \t]*\n?[ \t]*")
SENTENCE_ENDS = tuple(".!?:;\"')]\u201d\u2019\u3002")
WORD = re.compile(r"\w+(?:-\w+)*")


def parse_pdf(raw: bytes, max_chars: int = MAX_FILE_BYTES) -> Parsed | Problem:
    """The pages' texts, joined, with words mended that a line end had parted."""
    try:
        import pypdf
        from pypdf.errors import DependencyError
    except ImportError:
        raise needs_extra("reading PDF") from None
    with quiet_logger("pypdf"):
        try:
            reader = pypdf.PdfReader(io.BytesIO(raw))
            if reader.is_encrypted and not reader.decrypt(""):
                return Problem("encrypted", "the PDF asks for a password. Save a copy without one.")
            pages: list[str] = []
            num_chars = 0
            for page in reader.pages:
                pages.append(page.extract_text())
                num_chars += len(pages[-1])
                if num_chars > max_chars:
                    return Problem("too_large", f"the text has more than {max_chars:,} characters.")
        except DependencyError as error:
            return Problem("encrypted", f"the PDF is encrypted ({error}). Save a copy without a password.")
        except Exception as error:  # noqa: BLE001, a broken PDF makes pypdf raise anything
            name = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            return Problem("broken_file", f"not a readable PDF ({name[:200]}). Open it and save it again.")
        text = mend_hyphens(join_pages(pages))
        if not any(char.isalnum() for char in text):
            count = f"{len(pages)} page{'s' if len(pages) != 1 else ''}"
            return Problem("no_text", f"the PDF has {count} without any text. Scanned? Run OCR on it first.")
        return Parsed(text, *known(reader))


def known(reader: Any) -> tuple[str | None, str | None]:
    """Title and date from the document's information; None for what is missing or broken."""
    try:
        information = reader.metadata
        title = (information.title or "").strip() if information else ""
        date = information.creation_date if information else None
    except Exception:  # noqa: BLE001, a broken date must not cost the text
        return None, None
    return title or None, date.date().isoformat() if date else None


def join_pages(pages: Iterable[str]) -> str:
    """One text: a page that ends within a sentence goes on in the next line, else a blank line parts them."""
    text = ""
    for page in pages:
        page = "\n".join(line.rstrip() for line in with_line_feeds(page).split("\n")).strip("\n")
        if text and page:
            text += "\n\n" if text.endswith(SENTENCE_ENDS) else "\n"
        text += page
    return text


def mend_hyphens(text: str) -> str:
    """Words parted at a line end come together again.

    The hyphen goes, unless the document writes the word with a hyphen elsewhere and never without, or the second
    half starts with a capital (a name of two parts).
    """
    text = SOFT_HYPHEN.sub("", text)
    words: set[str] | None = None

    def mended(match: re.Match[str]) -> str:
        nonlocal words
        if words is None:
            words = {word.casefold() for word in WORD.findall(text)}
        before, after = match[1], match[2]
        joined, hyphened = (before + after).casefold(), f"{before}-{after}".casefold()
        keeps = after[0].isupper() or before[-1].isdigit() or (hyphened in words and joined not in words)
        return f"{before}-{after}" if keeps else before + after

    return LINE_END_HYPHEN.sub(mended, text)
