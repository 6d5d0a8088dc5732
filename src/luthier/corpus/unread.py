"""Columns that nobody reads: what would be lost of some rows without a word."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

from luthier.corpus.documents.base import Unreadable
from luthier.corpus.documents.hub import source_files
from luthier.corpus.lines import Problem
from luthier.corpus.rows import FIRST_ROWS, Limits, Reading, find_reading, is_table, shown_name, table_rows
from luthier.corpus.shapes.registry import holds, read_shape
from luthier.recipe.corpus import Input

MOST_NAMES = 12


def unread_columns(path: Path, source: Input, reading: Reading, limits: Limits) -> list[str]:
    """Columns of a table's first rows that make no part of a record; none of what is no table."""
    if not is_table(path, reading):
        return []
    unread, holding = Counter[str](), Counter[str]()
    for number, row in islice(table_rows(path, source, limits), FIRST_ROWS):
        found = Counter[str]()
        items = list(read_shape([(number, row)], reading.as_shape(), shown_name(path, source), source, found))
        if not isinstance(row, Problem) and not any(isinstance(item, Unreadable) for item in items):
            unread.update(found)
            holding.update(name for name, value in row.items() if holds(value))
    return [name for name, count in holding.items() if unread[name] == count]


def unread_note(path: Path, columns: list[str], kept: bool = False) -> str:
    """What is to be said of them; empty where there are none. `kept`: rows are written with all their columns."""
    if not columns:
        return ""
    more = f" and {len(columns) - MOST_NAMES} more" if len(columns) > MOST_NAMES else ""
    names = ", ".join(columns[:MOST_NAMES]) + more
    one = len(columns) == 1
    what = f"the column{'' if one else 's'} {names}"
    if kept:
        known = "is kept, but not read" if one else "are kept, but not read"
        return f"{path.name}: {what} {known}. --label COLUMN gives each label its share."
    return (
        f"{path.name}: nothing reads {what}: {'it is' if one else 'they are'} in no record. To read a label, name its "
        "column (label: COLUMN in the input, --label COLUMN in a command); so for group, date and licence_column."
    )


def unread_notes(inputs: list[Input], limits: Limits) -> list[str]:
    """A note for the first file of each input that has such columns."""
    notes = []
    for source in inputs:
        path = source_files(source)[0]
        notes.append(unread_note(path, unread_columns(path, source, find_reading(path, source, limits), limits)))
    return [note for note in notes if note]
