"""Passages that stood in an earlier document are cut out of the later ones.

Two passes over the units. `see_passages` hashes every run of `substring_words` words of each document;
`known_passages` merges all units and says, for each, which of its runs stood in which earlier document first;
`cut_passages` cuts every word that lies in a run an earlier document has. A repeat of at least `substring_words` words
is always found, whatever its place, and nothing shorter is cut. What is cut still stands in the corpus: in the first
document that has it. Repeats within one document stay.

Words are compared folded (case, punctuation and white space do not count). A run is known by 64 bits of hash: with a
billion distinct runs the chance of one wrong cut in the whole corpus is 0.03.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from luthier.corpus.duplicates.cuts import Seen, Trimmed, cut_out, in_documents, in_unit_order, positions, see
from luthier.corpus.duplicates.signatures import chunks
from luthier.corpus.duplicates.words import I64, U64, hash_words, runs, word_spans, words_of
from luthier.errors import DataError

FEWEST_WORDS = 8  # shorter runs are phrases of the language, not repeats


def passage_hashes(texts: Sequence[str], substring_words: int) -> Iterator[U64]:
    """For each text the hash of every run of `substring_words` words, in order.

    Raises:
        DataError: so short a run would cut phrases.
    """
    if substring_words < FEWEST_WORDS:
        raise DataError(
            f"duplicates.substring_words: {substring_words} is too short: common phrases would be cut. "
            f"Use {FEWEST_WORDS} or more (50 is usual), or 0 to cut nothing."
        )
    for chunk in chunks(texts):
        found = runs(hash_words(words_of(text) for text in chunk), substring_words)
        yield from np.split(found.values, found.offsets_B1[1:-1])


def see_passages(texts: Sequence[str], substring_words: int) -> Seen:
    """The runs of a unit's documents: 24 bytes for each distinct one, about one a word."""
    return see(list(passage_hashes(texts, substring_words)))


def known_passages(units: Sequence[Seen]) -> Iterator[dict[int, int]]:
    """For each unit: its runs that stand in two documents or more of all units, with the first of these documents.

    Documents are counted over all units, from 0.
    """
    repeated_K = in_documents(units, 2)
    unseen = np.full(len(repeated_K), -1, dtype=np.int64)
    states = in_unit_order(units, repeated_K, unseen, note_first)
    first_document = 0
    for unit, known in zip(units, states, strict=True):
        new = np.array([value for value, first in known.items() if first < 0], dtype=np.uint64)
        firsts = unit.first_K[positions(unit.hashes_K, new)[1]] + first_document
        yield known | dict(zip(new.tolist(), firsts.tolist(), strict=True))
        first_document += unit.num_documents


def note_first(state: I64, places: I64, unit: Seen, unit_places: I64, first_document: int) -> None:
    """Remember the first document of runs not seen before."""
    new = state[places] < 0
    state[places[new]] = unit.first_K[unit_places[new]] + first_document


def cut_passages(
    texts: Sequence[str], known: dict[int, int], first_document: int, substring_words: int
) -> list[Trimmed]:
    """A unit's texts without what earlier documents have; `known` is the unit's part of `known_passages`.

    `first_document` is the number of the unit's first document among all units' documents.
    """
    trimmed = []
    hashes = passage_hashes(texts, substring_words)
    for document, (text, values) in enumerate(zip(texts, hashes, strict=True), start=first_document):
        starts = [start for start, value in enumerate(values.tolist()) if known.get(value, document) < document]
        words = word_spans(text) if starts else []
        spans = [(words[a][0], sentence_end(text, words[b - 1][1])) for a, b in merged(starts, substring_words)]
        trimmed.append(cut_out(text, spans))
    return trimmed


def sentence_end(text: str, end: int) -> int:
    """`end`, moved past the punctuation that clings to the word before it."""
    while end < len(text) and not text[end].isspace() and not text[end].isalnum():
        end += 1
    return end


def merged(starts: Sequence[int], length: int) -> list[tuple[int, int]]:
    """Runs of `length` from each start, as spans that do not overlap or touch."""
    spans: list[tuple[int, int]] = []
    for start in starts:
        if spans and start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], start + length)
        else:
            spans.append((start, start + length))
    return spans
