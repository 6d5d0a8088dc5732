"""Lines and passages that documents repeat, cut from the documents that stay. After the merge, in unit order."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from luthier.corpus.build.decide import DROPPED, Decisions
from luthier.corpus.build.store import Store
from luthier.corpus.duplicates.cuts import Seen, Trimmed, open_seen, save_seen
from luthier.corpus.duplicates.lines import drop_lines, known_lines, see_lines
from luthier.corpus.duplicates.substrings import cut_passages, known_passages, see_passages
from luthier.corpus.lines import Problem
from luthier.corpus.wire import to_json
from luthier.files import new_folder, open_aside
from luthier.recipe.corpus import Corpus
from luthier.records import Document


def trim(store: Store, corpus: Corpus, found: Decisions, work: Path) -> dict[str, int]:
    """Cut what the recipe asks to cut; returns characters cut, by kind. Documents only; empty ones go."""
    settings = corpus.duplicates
    cut: dict[str, int] = {}
    if settings.lines:
        cut["lines"] = one_pass(store, found, work, see_lines, line_cuts(settings.lines_every))
    if settings.substring_words:
        words = settings.substring_words
        cut["passages"] = one_pass(
            store, found, work, lambda texts: see_passages(texts, words), passage_cuts(settings.substring_words)
        )
    return cut


Cut = Callable[[list[Seen], Iterator[list[str]]], Iterator[list[Trimmed]]]


def line_cuts(lines_every: int) -> Cut:
    """How common lines go."""

    def cut(seen: list[Seen], units: Iterator[list[str]]) -> Iterator[list[Trimmed]]:
        for known, texts in zip(known_lines(seen, lines_every), units, strict=True):
            yield drop_lines(texts, known, lines_every)

    return cut


def passage_cuts(words: int) -> Cut:
    """How repeated passages go."""

    def cut(seen: list[Seen], units: Iterator[list[str]]) -> Iterator[list[Trimmed]]:
        first = 0
        for known, texts in zip(known_passages(seen), units, strict=True):
            yield cut_passages(texts, known, first, words)
            first += len(texts)

    return cut


def one_pass(store: Store, found: Decisions, work: Path, see: Callable[[list[str]], Seen], cut: Cut) -> int:
    """See all units, then cut each; the changed records stand in `work/trimmed.jsonl`. Returns characters cut."""
    numbers = [documents_of(store, found, unit) for unit in range(len(store.units))]
    with new_folder(work / "seen") as aside:
        for unit, rows in enumerate(numbers):
            (aside / str(unit)).mkdir()
            save_seen(see(texts_of_rows(store, rows)), aside / str(unit))
    seen = [open_seen(work / "seen" / str(unit)) for unit in range(len(numbers))]
    lost = 0
    changed: dict[int, int] = {}
    with open_aside(work / "trimmed.jsonl") as file:
        units = (texts_of_rows(store, rows) for rows in numbers)
        for rows, results in zip(numbers, cut(seen, units), strict=True):
            for number, record, trimmed in zip(rows.tolist(), store.rows(rows), results, strict=True):
                assert isinstance(record, Document)
                if number not in store.trimmed and not trimmed.cuts:
                    continue
                lost += len(record.text) - len(trimmed.text)
                if not trimmed.text.strip():
                    found.drop(number, Problem("only_repeats", "every line or passage of it stands elsewhere."))
                    continue
                changed[number] = file.tell()
                row = json.dumps(to_json(replace(record, text=trimmed.text)), ensure_ascii=False)
                file.write(row.encode() + b"\n")
    store.trim(work / "trimmed.jsonl", changed)
    return lost


def documents_of(store: Store, found: Decisions, unit: int) -> np.ndarray:
    """Row numbers of a unit's documents that stay."""
    first, end = int(store.starts[unit]), int(store.starts[unit + 1])
    stays = first + np.flatnonzero(found.part_N[first:end] != DROPPED)
    kinds = [isinstance(record, Document) for record in store.rows(stays)]
    return stays[np.array(kinds, bool)]


def texts_of_rows(store: Store, rows: np.ndarray) -> list[str]:
    """The texts of some documents."""
    return [record.text for record in store.rows(rows) if isinstance(record, Document)]
