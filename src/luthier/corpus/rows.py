"""Any input as a stream of records: documents, tables of any shape, CoNLL; whole files, or blocks of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from luthier.corpus.documents.base import Unreadable
from luthier.corpus.documents.hub import source_files
from luthier.corpus.documents.read import read_documents
from luthier.corpus.documents.tables import TABLE_ENDINGS, Row, json_rows, read_table
from luthier.corpus.documents.unpack import ending_of
from luthier.corpus.formats import LABEL, TEXT, line_cells
from luthier.corpus.lines import Line, Problem, numbered_lines, read_head, read_lines
from luthier.corpus.shapes.base import Shape
from luthier.corpus.shapes.conll import read_conll
from luthier.corpus.shapes.plain import Columns
from luthier.corpus.shapes.registry import SHAPES, read_shape, shape_for, with_licence
from luthier.errors import DataError
from luthier.recipe.corpus import Input
from luthier.records import Record

DOCUMENT, CONLL, LINES = "document", "conll", "lines"
LABEL_CHARS = 60
FIRST_ROWS = 50


@dataclass(frozen=True)
class Limits:
    """Most bytes of one line, and of one file once it is unpacked."""

    line_bytes: int
    file_bytes: int


LIMITS = Limits(64 * 1024 * 1024, 1024**3)


@dataclass(frozen=True)
class Reading:
    """How a file is read: `document`, `conll`, `lines`, or the name of a shape; `text` and `label` for columns."""

    shape: str
    text: str = "text"
    label: str | None = None

    def as_shape(self) -> Shape:
        """The shape of the rows."""
        return Columns(self.text, self.label) if self.shape == "columns" else SHAPES[self.shape]


@dataclass(frozen=True)
class Block:
    """Bytes of a plain JSON-lines file; the first line has number `first_line`."""

    start: int
    end: int
    first_line: int


def find_reading(path: Path, source: Input, limits: Limits) -> Reading:
    """How to read a file: as the input says, else by its ending and first rows.

    Raises:
        DataError: no row can be read, or the rows have no known shape.
    """
    ending = ending_of(path)
    plain = source.format in ("auto", "columns") and ending == ".txt"
    if source.format == LINES or (plain and has_labels(path, source, limits)):
        return without_columns(path, source, Reading(LINES))
    if source.format == DOCUMENT or (source.format == "auto" and ending not in (*TABLE_ENDINGS, ".conll")):
        return without_columns(path, source, Reading(DOCUMENT))
    if (source.format == CONLL and ending not in TABLE_ENDINGS) or ending == ".conll":
        return without_columns(path, source, Reading(CONLL))
    first = [row for _, row in islice(table_rows(path, source, limits), FIRST_ROWS)]
    usable = [row for row in first if not isinstance(row, Problem)]
    if not first:
        blank = not read_head(path).strip()
        found = "the file is empty. Write one row a line." if blank else "has no rows (CSV: below the header)."
        raise DataError(f"{path}: {found}")
    if not usable:
        why = f" The first says: {first[0].detail}" if first and isinstance(first[0], Problem) else ""
        raise DataError(f"{path}: none of the first rows can be read.{why}")
    shape = shape_for(source, usable, str(path))
    if isinstance(shape, Columns):
        return Reading("columns", shape.text, shape.label)
    return Reading(shape.name)


def without_columns(path: Path, source: Input, reading: Reading) -> Reading:
    """The reading of a file that has no columns; DataError where the input names some."""
    if source.columns:
        tables = ", ".join(TABLE_ENDINGS)
        raise DataError(f"{path}: is read as {reading.shape}, which has no columns to name. `columns` is for {tables}.")
    return reading


def table_rows(path: Path, source: Input, limits: Limits, block: Block | None = None) -> Iterator[Row]:
    """The numbered rows of a table, or of a block of one, with all their columns."""
    if block is not None:
        return json_rows(block_lines(path, block, limits.line_bytes))
    return read_table(path, limits.line_bytes, limits.file_bytes, separator=source.separator)


def read_file(
    path: Path,
    source: Input,
    reading: Reading,
    limits: Limits,
    block: Block | None = None,
    unread: Counter[str] | None = None,
) -> Iterator[Record | Unreadable]:
    """The records of one file, with the input's provenance, and what could not be read. `unread` counts columns."""
    name = shown_name(path, source)
    if reading.shape == DOCUMENT:
        for document in read_documents(path, limits.file_bytes, name):
            yield document if isinstance(document, Unreadable) else with_licence(document, source.licence)
        return
    if reading.shape == CONLL and ending_of(path) not in TABLE_ENDINGS:
        for sentence in read_conll(read_lines(path, limits.line_bytes), name):
            yield sentence if isinstance(sentence, Unreadable) else with_licence(sentence, source.licence)
        return
    if reading.shape == LINES:
        cells = line_cells(read_lines(path, limits.line_bytes), source.separator)
        numbered = ((cell.line, cell.problem or cell.values or {}) for cell in cells)
        yield from read_shape(numbered, Columns(TEXT, LABEL), name, source)
        return
    yield from read_shape(table_rows(path, source, limits, block), reading.as_shape(), name, source, unread)


def is_table(path: Path, reading: Reading) -> bool:
    """Whether what is read of a file are rows of named columns."""
    return reading.shape not in (DOCUMENT, LINES) and (reading.shape != CONLL or ending_of(path) in TABLE_ENDINGS)


def has_labels(path: Path, source: Input, limits: Limits) -> bool:
    """Whether the first lines of a text file are all `text|LABEL`, with short labels, some of them twice."""
    first = list(islice(line_cells(read_lines(path, limits.line_bytes), source.separator), FIRST_ROWS))
    if len(first) < 2 or any(cell.problem or not cell.values for cell in first):
        return False
    labels = [str(cell.values[LABEL]).strip() for cell in first if cell.values]
    return all(0 < len(label) <= LABEL_CHARS for label in labels) and len(set(labels)) < len(labels)


def read_input(source: Input, limits: Limits, unread: Counter[str] | None = None) -> Iterator[Record | Unreadable]:
    """The records of all files of an input, one after the other; `unread` as in `read_files`."""
    yield from read_files(source_files(source), source, limits, unread)


def read_files(
    paths: Iterable[Path], source: Input, limits: Limits, unread: Counter[str] | None = None
) -> Iterator[Record | Unreadable]:
    """The records of some files of an input; `unread` counts rows by column nobody asked for."""
    for path in paths:
        yield from read_file(path, source, find_reading(path, source, limits), limits, unread=unread)


def readable(source: Input, limits: Limits) -> Iterator[Record]:
    """Those that can be read."""
    return (item for item in read_input(source, limits) if not isinstance(item, Unreadable))


def block_lines(path: Path, block: Block, max_line_bytes: int) -> Iterator[Line]:
    """The lines of a block."""
    with path.open("rb") as handle:
        handle.seek(block.start)
        for line in numbered_lines(handle, max_line_bytes, block.first_line):
            yield line
            if handle.tell() >= block.end:
                return


def shown_name(path: Path, source: Input) -> str:
    """A file's name in sources: below the input's folder, or the name alone."""
    base = Path(source.path)
    return str(path.relative_to(base)) if base.is_dir() and path.is_relative_to(base) else path.name
