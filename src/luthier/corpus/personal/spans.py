"""Places in a text, and the words around them. Every detector works on the plain form of a text."""

from __future__ import annotations

import bisect
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

PLACEHOLDER = re.compile(r"<[A-Z][A-Z0-9_]+>")
# a window may cut a placeholder in two: <PHONE> must not count as the word "phone"
CUT_PLACEHOLDER = re.compile(r"<?[A-Z0-9_]{2,}>|<[A-Z0-9_]{2,}")
BEFORE_CHARS = 45
AFTER_CHARS = 16

# How sure a detector is: CERTAIN by an issuer's prefix or by check digits and a word that names the number, CHECKED by
# check digits alone, LIKELY by its shape, GUESSED by the words around it.
CERTAIN, CHECKED, LIKELY, GUESSED = 1.0, 0.9, 0.8, 0.6


@dataclass(frozen=True)
class Span:
    """A stretch of text, `start` to `end` in characters, that holds a value of one type. `score`: 0 to 1, how sure."""

    type: str
    start: int
    end: int
    score: float = CERTAIN


Detector = Callable[[str], Iterator[Span]]


def words_of(text: str) -> tuple[str, ...]:
    """The words of a line, as a table of constants."""
    return tuple(text.split())


def plain(text: str) -> str:
    """The text with every digit, space, hyphen and full-width sign in its ASCII form; no character more or less."""
    if text.isascii():
        return text
    return text.translate({ord(char): ascii_form(char) for char in set(text) if not char.isascii()})


def ascii_form(char: str) -> str:
    """One character for one: digits of any script, spaces, hyphens, full-width letters and signs."""
    category = unicodedata.category(char)
    if category == "Nd":
        return str(unicodedata.decimal(char))
    if category == "Zs":
        return " "
    if category == "Pd" or char == "\N{MINUS SIGN}":
        return "-"
    if 0xFF01 <= ord(char) <= 0xFF5E:
        return chr(ord(char) - 0xFEE0)
    return char


def digits_of(text: str) -> str:
    """Only the digits."""
    return "".join(char for char in text if "0" <= char <= "9")


def before(text: str, start: int, chars: int = BEFORE_CHARS) -> str:
    """What stands before a place, without placeholders."""
    return CUT_PLACEHOLDER.sub(" ", text[max(0, start - chars) : start])


def after(text: str, end: int, chars: int = AFTER_CHARS) -> str:
    """What stands after a place, without placeholders."""
    return CUT_PLACEHOLDER.sub(" ", text[end : end + chars])


def near(text: str, start: int, end: int, words: re.Pattern[str]) -> bool:
    """Whether one of the words stands shortly before the place, or right after it."""
    return bool(words.search(before(text, start)) or words.search(after(text, end)))


def word_pattern(words: str) -> re.Pattern[str]:
    """Any of the alternatives as a whole word, whatever its case."""
    return re.compile(rf"(?<![^\W_])(?:{words})(?![^\W_])", re.IGNORECASE)


def without_overlaps(spans: Iterable[Span], taken: Iterable[tuple[int, int]] = ()) -> list[Span]:
    """In order of the text, none over another or over a taken place: the longest stays, of two as long the surer."""
    places = sorted(taken)
    kept: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.start - span.end, -span.score, span.start, span.type)):
        index = bisect.bisect_left(places, (span.end, span.end))  # the first place that begins at its end or later
        if not index or places[index - 1][1] <= span.start:
            places.insert(index, (span.start, span.end))
            kept.append(span)
    return sorted(kept, key=lambda span: span.start)
