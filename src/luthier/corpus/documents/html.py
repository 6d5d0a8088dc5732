"""HTML: the main text of a page, without menus and footers. Nothing is fetched."""

from __future__ import annotations

import codecs
import re
from typing import Any

from luthier.corpus.documents.quiet import quiet_logger
from luthier.corpus.documents.texts import Parsed, decode_text
from luthier.corpus.documents.unpack import needs_extra
from luthier.corpus.lines import Problem

DECLARED = re.compile(
    rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w.:-]{1,40})|encoding=[\"']([\w.:-]{1,40})[\"']", re.I
)
HEAD_BYTES = 4096
DATE_NAMES = ("article:published_time", "date", "dc.date", "dcterms.date", "datepublished")


def parse_html(raw: bytes) -> Parsed | Problem:
    """The main text as Markdown (headings, lists, tables), the title, and what the page says of date and licence."""
    try:
        import lxml.html  # type: ignore[import-untyped]
        import trafilatura
    except ImportError:
        raise needs_extra("reading HTML") from None
    page = decode_html(raw)
    if isinstance(page, Problem):
        return page
    with quiet_logger("trafilatura"):
        try:
            # lxml refuses a text that declares its own encoding, so the tree is built from bytes
            parser = lxml.html.HTMLParser(encoding="utf-8", no_network=True)
            tree = lxml.html.document_fromstring(page.encode("utf-8", "replace"), parser=parser)
            facts = known(tree)
            text = trafilatura.extract(
                tree, output_format="markdown", include_comments=False, include_tables=True, favor_recall=True
            ) or trafilatura.html2txt(page)
        except Exception as error:  # noqa: BLE001, a broken page makes the parsers raise anything
            detail = f"not readable HTML ({type(error).__name__}: {error})"[:200]
            return Problem("broken_file", f"{detail}. Open the page and save it again.")
    if not text or not text.strip():
        return Problem(
            "no_text", "no main text found in the page. Is it built by scripts? Save it as shown, or as text."
        )
    return Parsed(text.strip() + "\n", **facts)


def decode_html(raw: bytes) -> str | Problem:
    """The page by its byte order mark, else by the encoding it declares, else as any text."""
    declared = DECLARED.search(raw[:HEAD_BYTES])
    if declared and b"\0" not in raw:
        name = (declared[1] or declared[2]).decode("ascii").lower()
        try:
            # browsers read latin-1 as Windows-1252, which has the quotation marks people write
            encoding = codecs.lookup(name).name
            return raw.decode("cp1252" if encoding == "iso8859-1" else encoding).lstrip("\ufeff")
        except (LookupError, UnicodeDecodeError):
            pass
    return decode_text(raw)


def known(tree: Any) -> dict[str, str | None]:
    """Title, date, licence and url from the page's head."""
    title = " ".join((tree.findtext(".//title") or "").split())
    metas: dict[str, str] = {}
    for meta in tree.iter("meta"):
        name = meta.get("property") or meta.get("name") or meta.get("itemprop") or ""
        metas.setdefault(name.lower(), (meta.get("content") or "").strip())
    links = {
        rel: link.get("href") for link in tree.iter("link", "a") for rel in (link.get("rel") or "").lower().split()
    }
    dates = [found for name in DATE_NAMES if (found := iso_date(metas.get(name, "")))]
    return {
        "title": title or None,
        "date": dates[0] if dates else None,
        "licence": links.get("license") or metas.get("license") or None,
        "url": links.get("canonical") or metas.get("og:url") or None,
    }


def iso_date(text: str) -> str | None:
    """The day at the start of an ISO 8601 date, or None."""
    found = re.match(r"\d{4}-\d{2}-\d{2}", text)
    return found[0] if found else None
