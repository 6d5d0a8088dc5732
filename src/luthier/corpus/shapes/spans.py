"""Spans of a text to words with BIO tags, and back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from luthier.corpus.shapes.checks import Refused

# a run of letters and digits, or one other sign: simple, and the same for every language with spaces
WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Span:
    """A labelled stretch of a text: characters `start` to `end` (not included)."""

    start: int
    end: int
    label: str


def tag_spans(text: str, spans: Sequence[Span], words: Sequence[str] | None = None) -> tuple[list[str], list[str]]:
    """Words and BIO tags of a text.

    `words`, where given, are the text's words parted by one space; otherwise words are runs of letters and digits, and
    single other signs, cut where a span begins or ends. Raises Refused where spans overlap or leave the text.
    """
    spans = sorted(spans, key=lambda span: (span.start, span.end))
    for span in spans:
        if not 0 <= span.start < span.end <= len(text):
            raise Refused(
                "bad_span", f'the span "{span.label}" from {span.start} to {span.end} is not inside the text.'
            )
    for before, span in pairwise(spans):
        if span.start < before.end:
            detail = (
                f'the spans "{before.label}" and "{span.label}" overlap at character {span.start}; a word has one tag.'
            )
            raise Refused("spans_overlap", detail)
    places = given_places(words) if words and " ".join(words) == text else found_places(text, spans)
    return [text[start:end] for start, end in places], tags_of(places, spans)


def given_places(words: Sequence[str]) -> list[tuple[int, int]]:
    """Start and end of words that are parted by one space."""
    places, at = [], 0
    for word in words:
        places.append((at, at + len(word)))
        at += len(word) + 1
    return places


def found_places(text: str, spans: Sequence[Span]) -> list[tuple[int, int]]:
    """Start and end of each word, none of which reaches over a span's border."""
    borders = sorted({0, len(text), *(place for span in spans for place in (span.start, span.end))})
    pieces = pairwise(borders)
    return [match.span() for start, end in pieces for match in WORD.finditer(text, start, end)]


def tags_of(places: Sequence[tuple[int, int]], spans: Sequence[Span]) -> list[str]:
    """A BIO tag for each word; a word belongs to a span that covers any part of it."""
    tags, rest, current = [], list(reversed(spans)), None
    for start, end in places:
        while rest and rest[-1].end <= start:
            rest.pop()
        span = rest[-1] if rest and rest[-1].start < end else None
        tags.append("O" if span is None else f"{'I' if span is current else 'B'}-{span.label}")
        current = span
    return tags


def spans_of(words: Sequence[str], tags: Sequence[str]) -> tuple[str, list[Span]]:
    """The words as a text, one space between them, and the spans of their BIO tags.

    Raises Refused where a tag is not BIO: plain tags (parts of speech) are no spans.
    """
    found: list[Span] = []
    open_label = None
    for (start, end), tag in zip(given_places(words), tags, strict=True):
        head, _, label = tag.partition("-")
        if tag != "O" and (head not in ("B", "I") or not label):
            raise Refused("bad_tag", f'the tag "{tag}" is not BIO, so it marks no span. Write the record as "conll".')
        if head == "I" and label == open_label:
            found[-1] = Span(found[-1].start, end, label)
        elif tag != "O":
            found.append(Span(start, end, label))
        open_label = label if tag != "O" else None
    return " ".join(words), found
