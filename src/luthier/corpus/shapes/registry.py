"""All shapes by name, which one some rows have, and rows read through one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from luthier.corpus.columns import check_columns, columns_of, proposal, renamed, shown
from luthier.corpus.documents.base import Unreadable
from luthier.corpus.formats import missing_column
from luthier.corpus.lines import Problem
from luthier.corpus.shapes.alpaca import Alpaca
from luthier.corpus.shapes.argilla import Argilla
from luthier.corpus.shapes.base import Row, RowShape, Shape, has, type_name
from luthier.corpus.shapes.chat import Chat
from luthier.corpus.shapes.conll import Conll, numbered, with_tag_names
from luthier.corpus.shapes.hh_rlhf import HhRlhf
from luthier.corpus.shapes.label_studio import LabelStudio
from luthier.corpus.shapes.native import Native
from luthier.corpus.shapes.plain import Columns, PromptCompletion, Text
from luthier.corpus.shapes.provenance import as_provenance
from luthier.corpus.shapes.question_answer import QuestionAnswer
from luthier.corpus.shapes.ranking import Rankings
from luthier.corpus.shapes.run_export import RunExport
from luthier.corpus.shapes.sharegpt import ShareGpt
from luthier.corpus.shapes.span_rows import Spans
from luthier.corpus.shapes.thumbs import Thumbs, check_verdicts, is_judged
from luthier.corpus.shapes.trl import Trl, TrlConversational
from luthier.errors import DataError
from luthier.recipe.columns import NAMES_OF
from luthier.recipe.corpus import Input
from luthier.records import Record, Source

# In the order of detection: the most telling columns first, texts that anything may have last.
DETECTED: tuple[RowShape, ...] = (
    Native(), RunExport(), LabelStudio(), Argilla(), ShareGpt(), HhRlhf(), Rankings(), Thumbs(), Chat(), Alpaca(),
    PromptCompletion(), Trl(), Conll(), Spans(), Columns(label="label"), Columns(label="labels"), Columns(),
    QuestionAnswer(),
)  # fmt: skip
SHAPES: dict[str, Shape] = {
    **{shape.name: shape for shape in DETECTED},
    **{shape.name: shape for shape in (TrlConversational(), Text())},
}
# Of the rows that look like anything, this share must look like one shape; and this share must look like anything.
AGREEING_SHARE, KNOWN_SHARE = 0.75, 0.5


def detect(rows: Sequence[Row], file: str = "the file", named: Collection[str] = ()) -> Shape:
    """The shape of a file's first rows. A row counts for the first shape, in the order of `DETECTED`, that it fits.

    With `named` columns (those an input gives its own names), only shapes that read all of them count.

    Raises:
        DataError: most rows fit no shape, or they fit several.
    """
    shapes = [shape for shape in DETECTED if set(named) <= set(NAMES_OF.get(shape.name, ()))]
    found = [next((shape for shape in shapes if shape.fits(row)), None) for row in rows]
    known = [shape for shape in found if shape is not None]
    if not rows or len(known) < KNOWN_SHARE * len(rows):
        check_verdicts(file, [row for row in rows if is_judged(row)])
        if named:
            raise DataError(f"{file}: {unread(named)} {columns_found(rows)} {known_shapes()}")
        raise DataError(
            f"{file}: the rows are of no known format. {columns_found(rows)}{proposal(rows)} {known_shapes()}"
        )
    counts = Counter(id(shape) for shape in known)
    best, count = counts.most_common(1)[0]
    if count < AGREEING_SHARE * len(known):
        mixed = Counter(shape.name for shape in known)
        said = ", ".join(f'"{name}" ({count} rows)' for name, count in mixed.most_common())
        detail = f"{file}: the first rows are of several formats: {said}. {columns_found(rows)}"
        raise DataError(f"{detail} Part them into files, or set format to the one to read.")
    shape = next(shape for shape in known if id(shape) == best)
    check_scale(file, shape, rows)
    return shape


def check_scale(file: str, shape: Shape, rows: Sequence[Row]) -> None:
    """Raise DataError where the first rows say how good an answer is by a scale instead of up and down."""
    if shape.name == "thumbs":
        check_verdicts(file, rows)
    if shape.name == "trl":
        check_verdicts(file, [{"label": row["label"]} for row in rows if has(row, "completion", "label")])


def columns_found(rows: Sequence[Row]) -> str:
    """The columns of some rows, for error texts."""
    return f"Columns found: {shown(columns_of(rows)[:20]) or 'none'}."


def known_shapes() -> str:
    """What there is to choose from, for error texts."""
    listed = "; ".join(f"{shape.name} ({shape.columns})" for shape in dict.fromkeys(SHAPES.values()))
    return f"Known formats: {listed}. Name the columns in `columns`, or set format to columns and text to the text's."


def unread(named: Collection[str]) -> str:
    """What is missing beside the columns that an input names, for error texts."""
    shapes = [f"{name} ({', '.join(names)})" for name, names in NAMES_OF.items() if set(named) <= set(names)]
    told = f"They belong to {' or '.join(shapes)}; name" if shapes else "Name"
    return f"columns names {shown(list(named))}, and no format reads that alone. {told} what is missing too."


def shape_for(settings: Input, rows: Sequence[Row], file: str = "the file") -> Shape:
    """The shape an input asks for: detected, by name, or columns under the names it gives.

    Raises:
        DataError: nothing is detected, the format is none of rows, or a column that is named is in no row.
    """
    if rows:
        check_columns(file, rows, settings.columns)
        check_named(file, rows, settings)
    if rows and (settings.columns or settings.tag_names):
        made = [as_read(row, settings) for row in rows]
        if settings.tag_names and not any(is_numbered(row, settings) for row in rows):
            raise DataError(f"{file}: tag_names names tags by number, but no row has tags as numbers. Leave it out.")
        rows = [row for row in made if not isinstance(row, Problem)]
        if not rows and isinstance(made[0], Problem):
            raise DataError(f"{file}: none of the first rows can be read. The first says: {made[0].detail}")
    label = "label" if "label" in settings.columns else settings.label
    if settings.format == "columns" or (settings.format == "auto" and settings.label is not None):
        return Columns(settings.text, label)
    if settings.format == "auto":
        return Columns(settings.text, label) if settings.text != "text" else detect_named(settings, rows, file)
    if settings.format not in SHAPES:
        raise DataError(f'{file}: the format "{settings.format}" is not one of rows. {known_shapes()}')
    check_scale(file, SHAPES[settings.format], rows)
    return SHAPES[settings.format]


def detect_named(settings: Input, rows: Sequence[Row], file: str) -> Shape:
    """The shape of the rows; where other columns are in the way, that of the named ones alone."""
    named = {name: name for name in settings.columns}
    try:
        return detect(rows, file, named)
    except DataError:
        alone = [{name: row[name] for name in named} for row in rows]
        if not named:
            raise
        try:
            return detect(alone, file, named)
        except DataError:
            pass
        raise


def as_read(row: Row, settings: Input) -> Row | Problem:
    """A row under luthier's names, its tags under theirs."""
    named = renamed(row, settings.columns, settings.join) if settings.columns else row
    if isinstance(named, Problem) or not settings.tag_names:
        return named
    return with_tag_names(named, settings.tag_names)


def is_numbered(row: Row, settings: Input) -> bool:
    """Whether the tags of a row are numbers."""
    named = as_read(row, settings.model_copy(update={"tag_names": []}))
    return not isinstance(named, Problem) and numbered(named) is not None


def check_named(file: str, rows: Sequence[Row], settings: Input) -> None:
    """Raise DataError where a column that a setting names stands in none of the first rows."""
    found = columns_of(rows)
    plain = settings.format in ("auto", "columns")
    text = plain and (settings.format == "columns" or settings.label is not None or settings.text != "text")
    asked = [("text", settings.text if text and "text" not in settings.columns else None)]
    asked += [("label", settings.label if plain else None), ("licence_column", settings.licence_column)]
    asked += [("group", settings.group), ("date", settings.date)]
    for setting, column in asked:
        if column is not None and column not in found:
            raise DataError(missing_column(file, setting, column, found))


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
        return [name for name, value in self.row.items() if name not in self.read and holds(value)]


def holds(value: object) -> bool:
    """Whether there is anything in a column."""
    return value not in (None, "", [], {})


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
        of_row = Noticing(row)
        chosen = chosen_source(of_row, source, settings) if settings else source
        read: Row | Problem = as_read(row, settings) if settings else row
        items: Sequence[Record | Problem]
        if isinstance(chosen, Problem) or isinstance(read, Problem):
            items = [problem for problem in (chosen, read) if isinstance(problem, Problem)][:1]
        else:
            named = Noticing(read)
            items = shape.read(named, chosen)
            if unread is not None and not any(isinstance(item, Problem) for item in items):
                unread.update(name for name in named.unread if name not in of_row.read)
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
