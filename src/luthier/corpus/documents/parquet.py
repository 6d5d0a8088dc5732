"""Parquet: rows batch by batch, and shards with the same schema whatever their rows lack."""

from __future__ import annotations

import datetime
import decimal
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from luthier.corpus.documents.unpack import COMPRESSED, UnpackError, needs_extra, open_bytes, too_large
from luthier.errors import DataError

BATCH_ROWS = 1024
COPY_BYTES = 2**20
# marks on what we write: the file (nulls stand for missing keys) and its columns of JSON text
OURS = b"luthier"
JSON_COLUMN = b"json"
INT64 = 2**63


def parquet_rows(
    path: Path, max_file_bytes: int, start: int = 1, stop: int | None = None
) -> Iterator[tuple[int, dict[str, object]]]:
    """Rows with their numbers (from 1), those from `start` on and before `stop`.

    Dates become ISO 8601 text and decimals text, as JSON would have them. Only a batch of rows is held. Row groups
    before `start` are not read.

    Raises:
        UnpackError: no Parquet file, a damaged one, or a row group that unpacks to more than `max_file_bytes`.
        DataError: pyarrow is not installed.
    """
    try:
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError:
        raise needs_extra("reading Parquet") from None
    with ExitStack() as stack:
        try:
            file = pyarrow.parquet.ParquetFile(stack.enter_context(seekable(path, max_file_bytes)))
            ours = OURS in (file.schema_arrow.metadata or {})
            decoded = json_columns(file.schema_arrow)
            groups, number = groups_from(path, file.metadata, start, max_file_bytes)
            for batch in file.iter_batches(BATCH_ROWS, row_groups=groups, use_threads=False):
                if stop is not None and number >= stop:
                    return
                for values in batch.to_pylist() if number + batch.num_rows > start else [None] * batch.num_rows:
                    if values is not None and number >= start and (stop is None or number < stop):
                        yield number, plain_row(values, decoded, ours)
                    number += 1
        except UnpackError:
            raise
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            detail = f"not a readable Parquet file ({str(error).splitlines()[0][:200]}). Write it again."
            raise UnpackError(path, "broken_file", detail) from error


def seekable(path: Path, max_file_bytes: int) -> BinaryIO:
    """The file, or for a compressed one its unpacked copy in a temporary file (Parquet is read from its end)."""
    if path.suffix.lower() not in COMPRESSED:
        return path.open("rb")
    copy = tempfile.TemporaryFile()  # noqa: SIM115, the caller closes it
    try:
        with open_bytes(path, max_file_bytes) as stream:
            while chunk := stream.read(COPY_BYTES):
                copy.write(chunk)
    except BaseException:
        copy.close()
        raise
    copy.seek(0)
    return copy


def groups_from(path: Path, metadata: Any, start: int, max_file_bytes: int) -> tuple[list[int], int]:
    """The row groups that hold row `start` and all after it, and the number of their first row."""
    first = 1
    groups: list[int] = []
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        if groups or first + group.num_rows > start:
            if group.total_byte_size > max_file_bytes:
                raise too_large(path, max_file_bytes)
            groups.append(index)
        else:
            first += group.num_rows
    return groups, first


def json_columns(schema: Any) -> frozenset[str]:
    """The columns we wrote as JSON text."""
    return frozenset(field.name for field in schema if JSON_COLUMN in (field.metadata or {}))


def plain_row(values: Mapping[str, object], decoded: frozenset[str], ours: bool) -> dict[str, object]:
    """A row as JSON values; in what we wrote, a null is a key the row did not have."""
    return {
        name: json.loads(value) if name in decoded and isinstance(value, str) else plain_value(value)
        for name, value in values.items()
        if not (ours and value is None)
    }


def plain_value(value: Any) -> object:
    """A value as JSON has it; bytes stay bytes, for nobody knows what they are."""
    match value:
        case str() | int() | float() | None:
            return value
        case dict():
            return {str(name): plain_value(item) for name, item in value.items()}
        case list() | tuple():
            return [plain_value(item) for item in value]
        case datetime.date() | datetime.time():
            return value.isoformat()
        case decimal.Decimal() | datetime.timedelta():
            return str(value)
    return value


# --- writing -------------------------------------------------------------------------------------------


def write_parquet(path: Path, file: BinaryIO, rows: Sequence[Mapping[str, object]]) -> None:
    """Rows to an open file; `path` is what errors call it.

    A column is the union over all rows. Texts, numbers, truth values, lists of texts and lists of flat objects
    with the same keys (chat turns) keep their type; everything else is JSON text in a marked column, so that
    shards of one corpus have one schema whatever their rows lack, and `parquet_rows` gives the same values back.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise needs_extra("writing Parquet") from None
    names = list(dict.fromkeys(name for row in rows for name in row))
    fields, columns = [], []
    for name in names:
        values = [row.get(name) for row in rows]
        kind = column_type([value for value in values if value is not None], pyarrow)
        if kind is None:
            values = [None if value is None else json_text(path, name, value) for value in values]
        fields.append(pyarrow.field(name, kind or pyarrow.string(), metadata=None if kind else {JSON_COLUMN: b"1"}))
        try:
            columns.append(pyarrow.array(values, fields[-1].type))
        except UnicodeEncodeError as error:
            raise DataError(f'{path}: column "{name}" holds half a character: {error.reason}.') from error
    schema = pyarrow.schema(fields, metadata={OURS: b"1"})
    pyarrow.parquet.write_table(pyarrow.table(columns, schema=schema), file, compression="zstd")


def column_type(values: Sequence[object], pyarrow: Any) -> Any:
    """The Arrow type of a column's values, or None where they are written as JSON text."""
    if scalar := scalar_type(values, pyarrow):
        return scalar
    if not all(isinstance(value, list | tuple) for value in values):
        return None
    items: list[Any] = [item for value in values for item in value]  # type: ignore[attr-defined]
    if all(isinstance(item, str) for item in items):
        return pyarrow.list_(pyarrow.string())
    if not all(isinstance(item, dict) and item.keys() == items[0].keys() for item in items):
        return None
    parts = {name: scalar_type([item[name] for item in items], pyarrow) for name in items[0]}
    if not all(parts.values()) or any(item[name] is None for item in items for name in parts):
        return None
    return pyarrow.list_(pyarrow.struct(list(parts.items())))


def scalar_type(values: Sequence[object], pyarrow: Any) -> Any:
    """The type of plain values: text, whole number, number, truth value; None for anything else."""
    kinds = {type(value) for value in values}
    if kinds <= {str}:
        return pyarrow.string()
    if kinds == {bool}:
        return pyarrow.bool_()
    if kinds == {int}:
        return pyarrow.int64() if all(-INT64 <= value < INT64 for value in values) else None  # type: ignore[operator]
    if kinds == {float}:
        return pyarrow.float64()
    return None


def json_text(path: Path, name: str, value: object) -> str:
    """A value as JSON text; DataError where it has none."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f'{path}: column "{name}" cannot be written: {error}.') from error
