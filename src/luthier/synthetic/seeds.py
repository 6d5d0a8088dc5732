"""The seeds: records and table rows that new records are made from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from luthier.corpus.documents.base import Unreadable
from luthier.corpus.documents.tables import read_table
from luthier.corpus.documents.unpack import MAX_FILE_BYTES
from luthier.corpus.lines import MAX_LINE_BYTES, Problem
from luthier.corpus.rows import Limits, read_input
from luthier.errors import DataError, did_you_mean
from luthier.recipe.synthetic import Columns, Synthetic
from luthier.records import Document, Record, Source

LIMITS = Limits(MAX_LINE_BYTES, MAX_FILE_BYTES)


@dataclass(frozen=True)
class Seeds:
    """Records, a table's rows as documents, and how many rows could not be read, by reason."""

    records: list[Record] = field(default_factory=list)
    table: list[Document] = field(default_factory=list)
    unreadable: dict[str, int] = field(default_factory=dict)


def read_seeds(settings: Synthetic) -> Seeds:
    """All seeds, held in memory: they are shown to the writer again and again.

    Raises:
        DataError: a file that cannot be read, or a column that no row has.
    """
    unreadable: Counter[str] = Counter()
    records: list[Record] = []
    for source in settings.inputs:
        for item in read_input(source, LIMITS):
            if isinstance(item, Unreadable):
                unreadable[item.problem.reason] += 1
            else:
                records.append(item)
    table: list[Document] = []
    if settings.columns is not None:
        path = Path(settings.columns.path)
        for line, row in read_table(path):
            found = row if isinstance(row, Problem) else table_seed(row, Source(path.name, line), settings.columns)
            if isinstance(found, Problem):
                unreadable[found.reason] += 1
            elif found is not None:
                table.append(found)
    return Seeds(records, table, dict(unreadable))


def table_seed(row: Mapping[str, object], source: Source, settings: Columns) -> Document | Problem | None:
    """A row as `column: value` lines, its label as the title; None where it has a text already.

    Raises:
        DataError: a column in the settings that the row does not have.
    """
    labels = [settings.label] if settings.label else []
    for name in (*settings.use, *settings.must_mention, *labels):
        if name not in row:
            known = ", ".join(row)
            raise DataError(f'{source}: no column "{name}".{did_you_mean(name, row)} The row has: {known}.')
    if said(row.get(settings.text)):
        return None
    names = settings.use or [name for name in row if name not in (settings.text, settings.label)]
    facts = "\n".join(f"{name}: {said(row[name])}" for name in names if said(row[name]))
    if not facts:
        return Problem("empty_text", "all columns that are shown are empty.")
    label = said(row[settings.label]) if settings.label else None
    if label == "":
        return Problem("empty_label", f'the column "{settings.label}" is empty.')
    licence = Source(source.file, source.line, licence=settings.licence)
    return Document(facts, licence, label)


def said(value: object) -> str:
    """A cell on one line; nothing for an empty one."""
    return "" if value is None else " ".join(str(value).split())
