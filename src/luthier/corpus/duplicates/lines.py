"""Lines that stand in many documents: menus, headers, footers, licence notes.

Two passes. `see_lines` counts each unit's lines; `known_lines` merges the counts of all units and says, for each
unit, in how many earlier documents its common lines stood; `drop_lines` keeps a common line in the first
`lines_every` - 1 documents and drops it from all others. The result depends on the order of the documents only.

Lines are the same where they agree with case and white space folded. Lines without a letter or digit (rules, braces,
empty lines) are the build of a text and never go. A line is known by 64 bits of hash: among 100 million distinct
lines the chance that any two of them agree is 0.0003.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from luthier.corpus.duplicates.cuts import Seen, Trimmed, in_documents, in_unit_order, see
from luthier.corpus.duplicates.words import I64, WordHashes


def line_hashes(text: str, hashes: WordHashes) -> list[tuple[int, int, int]]:
    """(start, end, hash) of each line that may go; the end is that of its text, before the line end."""
    found = []
    start = 0
    for line in text.split("\n"):
        if any(map(str.isalnum, line)):
            found.append((start, start + len(line), hashes[" ".join(line.split()).casefold()]))
        start += len(line) + 1
    return found


def see_lines(texts: Sequence[str]) -> Seen:
    """The lines of a unit's documents: 24 bytes for each distinct line."""
    hashes = WordHashes()
    rows = [[value for _, _, value in line_hashes(text, hashes)] for text in texts]
    return see([np.array(row, dtype=np.uint64) for row in rows])


def known_lines(units: Sequence[Seen], lines_every: int) -> Iterator[dict[int, int]]:
    """For each unit: its lines that stand in `lines_every` documents or more of all units, with the number before."""
    common_K = in_documents(units, lines_every)
    yield from in_unit_order(units, common_K, np.zeros(len(common_K), dtype=np.int64), count_on)


def count_on(state: I64, places: I64, unit: Seen, unit_places: I64, first_document: int) -> None:
    """Add a unit's documents."""
    state[places] += unit.count_K[unit_places]


def drop_lines(texts: Sequence[str], known: dict[int, int], lines_every: int) -> list[Trimmed]:
    """A unit's texts without their common lines; `known` is the unit's part of `known_lines`."""
    before = dict(known)
    hashes = WordHashes()
    return [drop_from(text, before, lines_every, hashes) for text in texts]


def drop_from(text: str, before: dict[int, int], lines_every: int, hashes: WordHashes) -> Trimmed:
    """One text; `before` then counts it, too."""
    lines = [line for line in line_hashes(text, hashes) if line[2] in before]
    spans = [(start, end) for start, end, value in lines if before[value] >= lines_every - 1]
    for value in {value for _, _, value in lines}:
        before[value] += 1
    if not spans:
        return Trimmed(text)
    kept, end = [], 0
    for start, stop in spans:
        kept.append(text[end:start])
        end = stop + 1  # with its line end
    return Trimmed(("".join(kept) + text[end:]).strip("\n"), tuple(spans))
