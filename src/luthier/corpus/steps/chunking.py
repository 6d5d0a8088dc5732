"""Documents cut to pieces that fit a number of tokens: at headings, else paragraphs, sentences, lines, words.

A text is parted into units (sentences; words where a sentence is too long). Every border between units has a
strength. Pieces are filled from the front; each ends at the strongest border in the second half of its room. Tokens
are counted in batches: whole texts, all units, all pieces. Counts of units add up only nearly to those of pieces, so
pieces are counted as they stand, and the few that are too long are cut again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from luthier.errors import DataError
from luthier.files import content_hash
from luthier.recipe.corpus import Chunking
from luthier.records import Document

TokenCounter = Callable[[list[str]], list[int]]

# strengths of the border before a unit; a heading's grows with its rank
WORD, LINE, SENTENCE, PARAGRAPH, HEADING = 0.0, 1.0, 2.0, 3.0, 4.0
# room kept free for what a piece's white space at its end may cost
SPARE_TOKENS = 2
SPARE_FROM_TOKENS = 32
# characters a token: a longer text is cut without counting it whole, for it hardly ever fits
HARDLY_CHARS = 16

HEADING_LINE = re.compile(r" {0,3}(#{1,6})(?:[ \t]|$)")
FENCE_LINE = re.compile(r" {0,3}(?:```|~~~)")
BORDER = re.compile(
    r"(?<![.!?\u2026])(?P<stop>[.!?\u2026]++)[\"'\u2019\u201d)\]\u00bb]*\s+"  # Western sentence ends
    r"|[\u3002\uff01\uff1f\uff61\u0964\u0965]+[\"\u2019\u201d\u300d\u300f\uff09)]*\s*"  # CJK and Devanagari ones
    r"|\n(?=[ \t]*(?:[-*+\u2022|]|\d{1,3}[.)])[ \t])"  # items of a list, rows of a table
)
OPENERS = "\"'\u2018\u201c(\u00ab[\u00bf\u00a1*_"
WORD_BEFORE = re.compile(r"[\w.]+\Z")
ABBREVIATIONS = frozenset({
    "mr", "mrs", "ms", "dr", "prof", "st", "sr", "jr", "vs", "etc", "e.g", "i.e", "cf", "al", "fig", "figs",
    "eq", "nos", "vol", "pp", "p", "ed", "eds", "inc", "ltd", "co", "corp", "dept", "approx", "ca", "jan",
    "feb", "mar", "apr", "jun", "jul", "aug", "sep", "sept", "oct", "nov", "dec", "u.s", "u.k", "gen", "col",
    "lt", "sgt", "rev", "hon", "sen", "rep", "gov", "ave", "z.b", "d.h", "bzw", "usw", "nr", "bd",
})  # fmt: skip
WORDS = re.compile(r"\S+\s*")


class Unit(NamedTuple):
    """A run of characters with the white space after it. `strength` is that of the border before it."""

    start: int
    end: int
    strength: float
    heading: bool = False
    whole: bool = True
    tokens: int = 0


class Chunker:
    """Cuts documents by the settings, with the tokens `count_tokens` gives for each text."""

    def __init__(self, settings: Chunking, count_tokens: TokenCounter):
        """DataError where the overlap leaves no room for anything new."""
        if settings.max_tokens and settings.overlap_tokens * 2 > settings.max_tokens:
            raise DataError(
                f"chunking.overlap_tokens is {settings.overlap_tokens}, more than half of chunking.max_tokens "
                f"({settings.max_tokens}): pieces would mostly repeat each other. Set it to "
                f"{settings.max_tokens // 2} or less."
            )
        self.max_tokens = settings.max_tokens
        self.overlap_tokens = settings.overlap_tokens
        self.count_tokens = count_tokens

    def pieces(self, document: Document) -> list[Document]:
        """The document in pieces of at most `max_tokens`, in order; itself where it fits.

        Without overlap the pieces' texts put together are the document's text. Each has the document's provenance,
        and all have its group, or one made of its file and line, so that no split parts them.

        Raises:
            DataError: `max_tokens` is less than a single character takes.
        """
        return self.pieces_of_each([document])[0]

    def pieces_of_each(self, documents: Sequence[Document]) -> list[list[Document]]:
        """`pieces` of several documents: whether they fit is counted in one call."""
        if not self.max_tokens or not documents:
            return [[document] for document in documents]
        long = [len(document.text) > self.max_tokens * HARDLY_CHARS for document in documents]
        short = [document.text for document, is_long in zip(documents, long, strict=True) if not is_long]
        counts = iter(self.count_tokens(short) if short else [])
        return [
            self.cut(document) if is_long or next(counts) > self.max_tokens else [document]
            for document, is_long in zip(documents, long, strict=True)
        ]

    def cut(self, document: Document) -> list[Document]:
        """The pieces of a document that does not fit, or that nobody has counted yet."""
        texts = TextCut(document.text, self.max_tokens, self.overlap_tokens, self.count_tokens).pieces()
        if len(texts) == 1:
            return [document]
        source = document.source
        source = replace(source, group=source.group or content_hash(source.file, source.line)[:16])
        return [replace(document, text=text, source=source) for text in texts]


class TextCut:
    """The work on one text."""

    def __init__(self, text: str, max_tokens: int, overlap_tokens: int, count_tokens: TokenCounter):
        self.text = text
        self.overlap_tokens = overlap_tokens
        self.count_tokens = count_tokens
        self.most_tokens = max_tokens
        self.room_tokens = max_tokens - overlap_tokens
        spare = SPARE_TOKENS if self.room_tokens >= SPARE_FROM_TOKENS else 0
        self.fill_tokens = max(1, self.room_tokens - spare)
        self.added_tokens = 0

    def pieces(self) -> list[str]:
        """The texts of the pieces, overlaps in front."""
        units = self.counted(list(units_of(self.text)))
        self.fill_tokens = max(1, self.fill_tokens - self.added_tokens)
        while any(unit.tokens > self.fill_tokens and unit.end - unit.start > 1 for unit in units):
            units = self.counted([part for unit in units for part in self.parts_if_long(unit)])
        pieces = self.checked(self.packed(units, self.fill_tokens))
        return self.with_overlap(pieces) if self.overlap_tokens else [self.text_of(piece) for piece in pieces]

    def text_of(self, piece: Sequence[Unit]) -> str:
        """The characters of some units in a row."""
        return self.text[piece[0].start : piece[-1].end]

    def counted(self, units: list[Unit]) -> list[Unit]:
        """Units with their tokens; those that have them already keep them.

        The white space before a unit is counted with it, that behind it is not: tokenizers join a space to the
        word that follows. What a tokenizer adds to every text is taken off.
        """
        new = [index for index, unit in enumerate(units) if not unit.tokens]
        texts = [self.text[self.gap_start(units[index]) : units[index].end].rstrip() for index in new]
        self.added_tokens, *counts = self.count_tokens(["", *texts])
        for index, count in zip(new, counts, strict=True):
            units[index] = units[index]._replace(tokens=max(1, count - self.added_tokens))
        return units

    def gap_start(self, unit: Unit) -> int:
        """Where the white space before a unit starts; no further back than a few characters count."""
        start = unit.start
        while start > max(0, unit.start - 4) and self.text[start - 1].isspace():
            start -= 1
        return start

    def parts_if_long(self, unit: Unit) -> list[Unit]:
        """The unit, or its parts where it cannot fit."""
        if unit.tokens <= self.fill_tokens or unit.end - unit.start < 2:
            return [unit]
        return [part._replace(tokens=0) for part in self.parts(unit)]

    def parts(self, unit: Unit) -> list[Unit]:
        """A unit's words, or runs of characters of a word; their tokens are shared out by length.

        Raises:
            DataError: it is a single character.
        """
        num_chars = unit.end - unit.start
        if num_chars < 2:
            raise DataError(
                f"chunking.max_tokens: {self.most_tokens} are fewer than the one character "
                f"{self.text[unit.start]!r} takes. Set it to some hundred."
            )
        starts = [found.start() for found in WORDS.finditer(self.text, unit.start, unit.end)]
        starts[:1] = [unit.start]
        if len(starts) < 2:
            # a little less than the share that would fit, so that few rounds are needed
            step = max(1, min((num_chars + 1) // 2, num_chars * self.fill_tokens * 9 // (unit.tokens * 10 + 1)))
            starts = list(range(unit.start, unit.end, step))
        parts = []
        for start, end in zip(starts, [*starts[1:], unit.end], strict=True):
            gap = self.text[max(unit.start, start - 4) : start]
            strength = unit.strength if start == unit.start else LINE if "\n" in gap else WORD
            tokens = max(1, -(-unit.tokens * (end - start) // num_chars))
            parts.append(Unit(start, end, strength, unit.heading and end == unit.end, False, tokens))
        return parts

    def packed(self, units: Sequence[Unit], fill_tokens: int) -> list[list[Unit]]:
        """Units put together from the front to pieces of about `fill_tokens` or less, at least one unit each."""
        pieces = []
        rest = list(reversed(units))  # its end is the front: taking from there is cheap
        while rest:
            window = front(rest, fill_tokens)
            if len(window) < len(rest):
                following = rest[-len(window) - 1]
                splits = following.whole and following.end - following.start > 1
                if splits and all(unit.heading for unit in window):
                    # a heading stays with what follows, or with the first part of it
                    rest[-len(window) - 1 : -len(window)] = reversed(self.parts(following))
                    continue
                window = window[: best_cut(window, following, fill_tokens)]
            del rest[-len(window) :]
            pieces.append(window)
        return pieces

    def checked(self, pieces: list[list[Unit]]) -> list[list[Unit]]:
        """The pieces counted as they stand; those that are too long are cut again until none is."""
        done: dict[int, int] = {}  # tokens by the piece's start; a start alone names a piece that passed
        while True:
            new = [piece for piece in pieces if piece[0].start not in done]
            if not new:
                return pieces
            counts = self.count_tokens([self.text_of(piece) for piece in new])
            actual = {piece[0].start: count for piece, count in zip(new, counts, strict=True)}
            done |= {start: count for start, count in actual.items() if count <= self.room_tokens}
            pieces = [
                part
                for piece in pieces
                for part in ([piece] if piece[0].start in done else self.smaller(piece, actual[piece[0].start]))
            ]

    def smaller(self, piece: list[Unit], actual_tokens: int) -> list[list[Unit]]:
        """At least two pieces for one that came out with too many tokens."""
        if len(piece) == 1:
            piece = self.parts(piece[0]._replace(tokens=actual_tokens))
        fill_tokens = self.fill_tokens * self.room_tokens * 9 // (actual_tokens * 10)
        packed = self.packed(piece, max(1, fill_tokens))
        half = (len(piece) + 1) // 2
        return packed if len(packed) > 1 else [piece[:half], piece[half:]]

    def with_overlap(self, pieces: list[list[Unit]]) -> list[str]:
        """Each piece's text behind the last whole sentences of the piece before it."""
        starts = [piece[0].start for piece in pieces]
        tails = [[], *(self.tail(piece) for piece in pieces[:-1])]
        while any(tails):
            begun = [index for index, tail in enumerate(tails) if tail]
            counts = self.count_tokens([self.text[tails[index][0].start : pieces[index][-1].end] for index in begun])
            for index, count in zip(begun, counts, strict=True):
                if count <= self.most_tokens:
                    starts[index] = tails[index][0].start
                    tails[index] = []
                else:
                    tails[index] = tails[index][1:]
        return [self.text[start : piece[-1].end] for start, piece in zip(starts, pieces, strict=True)]

    def tail(self, piece: list[Unit]) -> list[Unit]:
        """The whole sentences at a piece's end that the overlap has room for."""
        tokens, first = 0, len(piece)
        while first > 0 and piece[first - 1].whole and tokens + piece[first - 1].tokens <= self.overlap_tokens:
            first -= 1
            tokens += piece[first].tokens
        return piece[first:]


def front(rest: Sequence[Unit], fill_tokens: int) -> list[Unit]:
    """As many units as fit, from the end of `rest` backwards; at least one."""
    window = [rest[-1]]
    tokens = rest[-1].tokens
    while len(window) < len(rest) and (tokens := tokens + rest[-len(window) - 1].tokens) <= fill_tokens:
        window.append(rest[-len(window) - 1])
    return window


def best_cut(window: Sequence[Unit], following: Unit, fill_tokens: int) -> int:
    """How many units of a window to take: up to the strongest, then latest, border once half of the room is used.

    Never right after a heading, if there is another way.
    """
    tokens, best, best_strength = 0, 0, -1.0
    for taken, (unit, after) in enumerate(zip(window, [*window[1:], following], strict=True), start=1):
        tokens += unit.tokens
        if unit.heading:
            continue
        strength = after.strength if tokens * 2 >= fill_tokens else -1.0
        if strength >= best_strength:
            best, best_strength = taken, strength
    return best or len(window)


# --- a text to its units -------------------------------------------------------------------------------


def units_of(text: str) -> Iterator[Unit]:
    """Headings and sentences, in order; together they are the text."""
    for start, end, strength, kind in blocks_of(text):
        if kind != "prose":
            yield Unit(start, end, strength, kind == "heading")
            continue
        solid_end = start + len(text[start:end].rstrip())
        borders = [border for border in sentence_borders(text, start, end) if border < solid_end]
        for first, last in zip([start, *borders], [*borders, end], strict=True):
            yield Unit(first, last, strength if first == start else SENTENCE)


def blocks_of(text: str) -> Iterator[tuple[int, int, float, str]]:
    """(start, end, strength of the border before, kind) of headings, paragraphs and fenced code, with blank lines
    behind them. Kinds: `heading`, `prose`, `code`."""
    start, strength, kind = 0, PARAGRAPH, ""
    blank, position = False, 0
    for line in text.splitlines(keepends=True):
        is_blank, fence = not line.strip(), FENCE_LINE.match(line)
        heading = None if kind == "code" else HEADING_LINE.match(line)
        open_code = kind == "code"
        begins = (
            not is_blank and not open_code and (blank or bool(heading) or bool(fence) or kind in ("heading", "closed"))
        )
        if begins and kind:
            yield start, position, strength, "code" if kind == "closed" else kind
            start = position
        if begins or (not kind and not is_blank):
            strength = HEADING + (6 - len(heading[1])) / 10 if heading else PARAGRAPH
            kind = "heading" if heading else "code" if fence else "prose"
        elif open_code and fence:
            kind = "closed"
        blank = is_blank and not open_code
        position += len(line)
    if text:
        yield start, len(text), strength, "code" if kind == "closed" else kind or "prose"


def sentence_borders(text: str, start: int, end: int) -> Iterator[int]:
    """Where a further sentence, list item or table row starts within a paragraph."""
    for found in BORDER.finditer(text, start, end):
        if found.end() < end and (found["stop"] is None or ends_sentence(text, found)):
            yield found.end()


def ends_sentence(text: str, found: re.Match[str]) -> bool:
    """Whether Western punctuation ends a sentence: a capital, digit or caseless letter follows, and what stands
    before is no abbreviation, initial or number of a list."""
    following = text[found.end() : found.end() + 4].lstrip(OPENERS)[:1]
    if following.islower():
        return False
    if found["stop"] != ".":
        return True
    line_start = text.rfind("\n", 0, found.start()) + 1
    before = WORD_BEFORE.search(text, max(line_start, found.start() - 20), found.start())
    if before is None:
        return True
    word = before[0]
    if word.isdigit() and before.start() == line_start:
        return False
    is_initial = len(word) == 1 and word.isupper()
    return not is_initial and word.lower() not in ABBREVIATIONS
