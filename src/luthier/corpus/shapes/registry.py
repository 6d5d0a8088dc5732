"""All shapes by name, which one some rows have, and rows read through one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from luthier.corpus.documents.base import Unreadable
from luthier.corpus.lines import Problem
from luthier.corpus.shapes.alpaca import Alpaca
from luthier.corpus.shapes.argilla import Argilla
from luthier.corpus.shapes.base import Row, RowShape, Shape, type_name
from luthier.corpus.shapes.chat import Chat
from luthier.corpus.shapes.conll import Conll
from luthier.corpus.shapes.hh_rlhf import HhRlhf
from luthier.corpus.shapes.label_studio import LabelStudio
from luthier.corpus.shapes.native import Native
from luthier.corpus.shapes.plain import Columns, PromptCompletion, Text
from luthier.corpus.shapes.provenance import as_provenance
from luthier.corpus.shapes.ranking import Rankings
from luthier.corpus.shapes.run_export import RunExport
from luthier.corpus.shapes.sharegpt import ShareGpt
from luthier.corpus.shapes.thumbs import Thumbs
from luthier.corpus.shapes.trl import Trl, TrlConversational
from luthier.errors import DataError
from luthier.recipe.corpus import Input
from luthier.records import Record, Source

# In the order of detection: the most telling columns first, texts that anything may have last.
DETECTED: tuple[RowShape, ...] = (
    Native(), RunExport(), LabelStudio(), Argilla(), ShareGpt(), HhRlhf(), Rankings(), Thumbs(), Chat(), Alpaca(),
    PromptCompletion(), Trl(), Conll(), Columns(label="label"), Columns(),
)  # fmt: skip
SHAPES: dict[str, Shape] = {
    **{shape.name: shape for shape in DETECTED},
    **{shape.name: shape for shape in (TrlConversational(), Text())},
}
# Of the rows that look like anything, this share must look like one shape; and this share must look like anything.
AGREEING_SHARE, KNOWN_SHARE = 0.75, 0.5


def detect(rows: Sequence[Row], file: str = "the file") -> Shape:
    """The shape of a file's first rows. A row counts for the first shape, in the order of `DETECTED`, that it fits.

    Raises:
        DataError: most rows fit no shape, or they fit several.
    """
    found = [next((shape for shape in DETECTED if shape.fits(row)), None) for row in rows]
    known = [shape for shape in found if shape is not None]
    if not rows or len(known) < KNOWN_SHARE * len(rows):
        raise DataError(f"{file}: the rows are of no known format. {columns_found(rows)} {known_shapes()}")
    counts = Counter(id(shape) for shape in known)
    best, count = counts.most_common(1)[0]
    if count < AGREEING_SHARE * len(known):
        mixed = Counter(shape.name for shape in known)
        said = ", ".join(f'"{name}" ({count} rows)' for name, count in mixed.most_common())
        detail = f"{file}: the first rows are of several formats: {said}. {columns_found(rows)}"
        raise DataError(f"{detail} Part them into files, or set format to the one to read.")
    return next(shape for shape in known if id(shape) == best)


def columns_found(rows: Sequence[Row]) -> str:
    """The columns of some rows, for error texts."""
    names = list(dict.fromkeys(str(name) for row in rows for name in row))
    listed = ", ".join(f'"{name}"' for name in names[:20])
    return f"Columns found: {listed or 'none'}."


def known_shapes() -> str:
    """What there is to choose from, for error texts."""
    listed = "; ".join(f"{shape.name} ({shape.columns})" for shape in dict.fromkeys(SHAPES.values()))
    return f"Known formats: {listed}. Rename the columns, or set format to columns and text to the text's column."


def shape_for(settings: Input, rows: Sequence[Row], file: str = "the file") -> Shape:
    """The shape an input asks for: detected, by name, or columns under the names it gives.

    Raises:
        DataError: nothing is detected, or the format is none of rows.
    """
    if settings.format == "columns" or (settings.format == "auto" and settings.label is not None):
        return Columns(settings.text, settings.label)
    if settings.format == "auto":
        return Columns(settings.text) if settings.text != "text" else detect(rows, file)
    if settings.format not in SHAPES:
        raise DataError(f'{file}: the format "{settings.format}" is not one of rows. {known_shapes()}')
    return SHAPES[settings.format]


class Noticing(Mapping[str, object]):
    """A row that remembers which of its columns were asked for."""

    def __init__(self, row: Row):
        self.row, self.read = row, set[str]()

    def __getitem__(self, name: str) -> object:
        self.read.add(name)
        return self.row[name]

    def __iter__(self) -> Iterator[str]:
        self.read.update(self.row)
        return iter(self.row)

    def __len__(self) -> int:
        return len(self.row)

    @property
    def unread(self) -> list[str]:
        """Columns that hold something and were not asked for."""
        return [name for name, value in self.row.items() if name not in self.read and value not in (None, "", [], {})]


def read_shape(
    rows: Iterable[tuple[int, Row | Problem]],
    shape: Shape,
    file: str,
    settings: Input | None = None,
    unread: Counter[str] | None = None,
) -> Iterator[Record | Unreadable]:
    """Numbered rows through a shape. The input's columns for licence, group and date count before a row's own.

    `unread` counts, by column, the rows that were read without it.
    """
    for number, row in rows:
        source = Source(file, number)
        if isinstance(row, Problem):
            yield Unreadable(source, row)
            continue
        if unread is not None:
            row = Noticing(row)
        chosen = chosen_source(row, source, settings) if settings else source
        items = [chosen] if isinstance(chosen, Problem) else shape.read(row, chosen)
        if isinstance(row, Noticing) and unread is not None and not any(isinstance(item, Problem) for item in items):
            unread.update(row.unread)
        for item in items:
            if isinstance(item, Problem):
                yield Unreadable(source, item, row_text(row))
            else:
                yield with_licence(item, settings.licence if settings else None)


def chosen_source(row: Row, source: Source, settings: Input) -> Source | Problem:
    """The source with what the columns say that the input names; a value that cannot be used is a problem."""
    chosen: dict[str, Any] = {}
    for field, column in (("licence", settings.licence_column), ("group", settings.group), ("date", settings.date)):
        if column is None:
            continue
        value = row.get(column)
        if value is None:
            return Problem("missing_field", f'no "{column}", which the input names for the {field}.')
        known = as_provenance(field, value)
        if known is None:
            what = "a date in ISO 8601 (2024-05-31)" if field == "date" else "a text"
            shown = f'"{value}"' if isinstance(value, str) else type_name(value)
            return Problem(f"bad_{field}", f'"{column}" is {shown}; the {field} must be {what}.')
        chosen[field] = known
    return replace(source, **chosen)


def with_licence(record: Record, licence: str | None) -> Record:
    """The record with the input's licence where it has none of its own."""
    if licence is None or record.source.licence is not None:
        return record
    return replace(record, source=replace(record.source, licence=licence))


def row_text(row: Mapping[str, object]) -> str:
    """A row as one line, halves of characters written as escapes so that it can be stored."""
    text = json.dumps(dict(row), ensure_ascii=False, default=str)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
