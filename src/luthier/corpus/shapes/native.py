"""This project's own rows: every kind of record, whole, with its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

from luthier.corpus.fold import row_key
from luthier.corpus.shapes.base import Row, RowShape
from luthier.corpus.shapes.checks import Refused
from luthier.corpus.wire import KINDS, from_json, to_json
from luthier.errors import DataError
from luthier.records import Labelled, Record, Source


class Native(RowShape):
    """A record keeps the source it was written with, so that what was read first stays known."""

    name = "luthier"
    kinds: tuple[type[Any], ...] = get_args(Record)
    columns = "kind, source"

    def fits(self, row: Row) -> bool:
        """A known kind with a source."""
        return isinstance(row.get("kind"), str) and row["kind"] in KINDS and isinstance(row.get("source"), Mapping)

    def places(self, row: Row) -> list[Row]:
        """None: the record's own source, and its own scores, are taken."""
        return []

    def placed(self, row: dict[str, object], columns: dict[str, object]) -> dict[str, object]:
        """All is in the row already."""
        return row

    def records(self, row: Row, source: Source) -> list[Record]:
        """The record."""
        try:
            record = from_json({"key": "", **row} if row.get("kind") == "labelled" else row)
        except DataError as error:
            raise Refused("bad_record", str(error)) from error
        known = record.source
        named = (known.licence, known.group, known.date, known.url, known.synthetic)
        good = isinstance(known.file, str) and isinstance(known.line, int)
        if not good or not all(value is None or isinstance(value, str) for value in named):
            raise Refused("bad_record", "its source holds something else than texts (and a number for the line).")
        if isinstance(record, Labelled) and isinstance(record.text, str) and isinstance(record.label, str):
            return [replace(record, key=row_key(record.text, record.label))]
        return [record]

    def row(self, record: Record) -> dict[str, object]:
        """All of it."""
        return to_json(record)
