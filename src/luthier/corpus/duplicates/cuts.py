"""What lines and passages have in common: hashes counted over all units, and pieces cut out of a text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from luthier.corpus.duplicates.arrays import open_arrays, save_arrays
from luthier.corpus.duplicates.words import I64, U64

NUM_PARTS = 16  # hashes are merged in this many ranges, one at a time: a sixteenth of the memory


@dataclass(frozen=True)
class Seen:
    """The distinct hashes of one unit, sorted, and in how many or which of its documents each stands.

    `count_K` documents hold it; `first_K` is the first of them (0 is the unit's first document).
    """

    num_documents: int
    hashes_K: U64
    count_K: I64
    first_K: I64


@dataclass(frozen=True)
class Trimmed:
    """A text after cutting, and what was cut: (start, end) in characters of the text before."""

    text: str
    cuts: tuple[tuple[int, int], ...] = ()


def save_seen(seen: Seen, folder: Path) -> None:
    """Write a unit's arrays into an existing folder, as .npy files."""
    save_arrays(seen, folder)


def open_seen(folder: Path) -> Seen:
    """A saved unit, by memory map.

    Raises:
        DataError: a file is missing or damaged.
    """
    arrays = open_arrays(Seen, folder)
    return Seen(int(arrays["num_documents"]), arrays["hashes_K"], arrays["count_K"], arrays["first_K"])


def see(hashes_by_document: Sequence[U64]) -> Seen:
    """Count the documents of a unit that hold each hash; a document counts once."""
    rows = [np.unique(hashes) for hashes in hashes_by_document]
    flat = np.concatenate([np.zeros(0, np.uint64), *rows])
    document = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    hashes_K, first, count_K = np.unique(flat, return_index=True, return_counts=True)
    return Seen(len(rows), hashes_K, count_K.astype(np.int64), document[first].astype(np.int64))


def in_documents(units: Sequence[Seen], at_least: int) -> U64:
    """The hashes, sorted, that stand in `at_least` documents or more of all units."""
    found = [np.zeros(0, dtype=np.uint64)]
    for part in range(NUM_PARTS):
        pieces = [slice_of(unit, part) for unit in units]
        hashes = np.concatenate([np.zeros(0, np.uint64), *(unit.hashes_K[piece] for unit, piece in pieces)])
        counts = np.concatenate([np.zeros(0, np.int64), *(unit.count_K[piece] for unit, piece in pieces)])
        distinct, number = np.unique(hashes, return_inverse=True)
        totals = np.bincount(number, weights=counts, minlength=len(distinct))
        found.append(distinct[totals >= at_least])
    return np.concatenate(found)


def slice_of(unit: Seen, part: int) -> tuple[Seen, slice]:
    """The unit, and where one of NUM_PARTS equal ranges of hashes lies in it."""
    width = (1 << 64) // NUM_PARTS
    first = int(np.searchsorted(unit.hashes_K, np.uint64(part * width)))
    if part == NUM_PARTS - 1:
        return unit, slice(first, None)
    return unit, slice(first, int(np.searchsorted(unit.hashes_K, np.uint64((part + 1) * width))))


def positions(sorted_K: U64, asked: U64) -> tuple[I64, I64]:
    """Which of the asked values stand in a sorted array (indices into both): asked, sorted."""
    place = np.searchsorted(sorted_K, asked)
    place[place == len(sorted_K)] = 0
    hits = np.flatnonzero(sorted_K[place] == asked) if len(sorted_K) else np.zeros(0, np.int64)
    return hits, place[hits]


def in_unit_order(
    units: Sequence[Seen], wanted_K: U64, start: I64, after: Callable[[I64, I64, Seen, I64, int], None]
) -> Iterator[dict[int, int]]:
    """For each unit the state of its wanted hashes before it; `after` moves the state past the unit.

    `after(state, wanted places, unit, unit places, first document)` changes the state in place.
    """
    state, first_document = start.copy(), 0
    for unit in units:
        places, unit_places = positions(wanted_K, unit.hashes_K)[::-1]
        hashes = wanted_K[places].tolist()
        yield dict(zip(hashes, state[places].tolist(), strict=True))
        after(state, places, unit, unit_places, first_document)
        first_document += unit.num_documents


def cut_out(text: str, spans: Sequence[tuple[int, int]]) -> Trimmed:
    """The text without some spans, given in order; where a span had a line end at its border, one stays."""
    if not spans:
        return Trimmed(text)
    kept, end = "", 0
    for start, stop in spans:
        kept = joined(kept, text[end:start])
        end = stop
    return Trimmed(joined(kept, text[end:]).strip(), tuple(spans))


def joined(left: str, right: str) -> str:
    """Two pieces, the white space where they meet reduced to a line end or a space."""
    if not left:
        return right
    gap = left[len(left.rstrip()) :] + right[: len(right) - len(right.lstrip())]
    between = "\n" * min(gap.count("\n"), 2) or " "
    return left.rstrip() + between + right.lstrip() if right.strip() else left
