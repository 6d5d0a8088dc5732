"""What a shape is: how somebody's rows look. One small file for each shape, or for each family of them.

A shape reads a row into records and writes a record as a row. What cannot be read or written comes back as a
Problem: a reason to count by, and a sentence. Inside a shape, `Refused` carries the problem up to `read` or `write`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from luthier.corpus.formats import json_type
from luthier.corpus.lines import Problem
from luthier.corpus.shapes.checks import Refused, check_record
from luthier.corpus.shapes.pair_scores import pair_score_columns, read_pair_scores
from luthier.corpus.shapes.provenance import filled, provenance_columns
from luthier.corpus.wire import kind_of
from luthier.records import Preference, Record, Source

Row = Mapping[str, object]

PROMPT_NAMES = ("prompt", "question", "instruction", "query")
ANSWER_NAMES = ("answer", "response", "completion", "output")


class Shape(Protocol):
    """The contract."""

    @property
    def name(self) -> str:
        """What a recipe calls it."""
        ...

    @property
    def kinds(self) -> tuple[type[Any], ...]:
        """Record kinds it can write."""
        ...

    @property
    def columns(self) -> str:
        """How the rows look, in a few words, for error texts."""
        ...

    def fits(self, row: Row) -> bool:
        """Whether a row looks like this shape. Cheap: it looks at the columns and hardly into them."""
        ...

    def read(self, row: Row, source: Source) -> list[Record | Problem]:
        """The records of a row, nearly always one."""
        ...

    def write(self, record: Record) -> dict[str, object] | Problem:
        """The row of a record, or why this shape has no place for it."""
        ...


class RowShape(ABC):
    """What all shapes share: provenance in and out, the checks of every record, refusals as problems."""

    name: str
    kinds: tuple[type[Any], ...]
    columns: str

    @abstractmethod
    def fits(self, row: Row) -> bool:
        """Whether a row looks like this shape."""

    @abstractmethod
    def records(self, row: Row, source: Source) -> Sequence[Record | Problem]:
        """The records of a row; raises Refused where there is none."""

    @abstractmethod
    def row(self, record: Any) -> dict[str, object]:
        """The row of a record of one of `kinds`; raises Refused where it has no place."""

    def places(self, row: Row) -> list[Row]:
        """Where provenance, and the scores of a pair, may stand, most trusted first."""
        return [row, *(value for name in ("metadata", "meta") if isinstance(value := row.get(name), Mapping))]

    def placed(self, row: dict[str, object], columns: dict[str, object]) -> dict[str, object]:
        """The row with its provenance, and the scores of a pair."""
        return {**row, **columns}

    def read(self, row: Row, source: Source) -> list[Record | Problem]:
        """The records of a row. Several of one row share a group, so that a split cannot part them."""
        places = self.places(row)
        try:
            found = [with_scores(item, places) for item in self.records(row, filled(source, places))]
        except Refused as refused:
            return [refused.problem]
        items = [item if isinstance(item, Problem) else checked(item) for item in found]
        return siblings(items, source)

    def write(self, record: Record) -> dict[str, object] | Problem:
        """The row of a record, with its provenance."""
        if not isinstance(record, self.kinds):
            takes = ", ".join(kind.__name__.lower() for kind in self.kinds)
            detail = f'"{self.name}" rows have no place for the kind "{kind_of(record)}"; they take: {takes}.'
            return Problem("wrong_kind", detail)
        try:
            scores = pair_score_columns(record.scores) if isinstance(record, Preference) else {}
            return self.placed(self.row(record), {**provenance_columns(record.source), **scores})
        except Refused as refused:
            return refused.problem


def with_scores(item: Record | Problem, places: Sequence[Row]) -> Record | Problem:
    """A pair with the scores that its row has; anything else as it is."""
    if not isinstance(item, Preference) or item.scores is not None:
        return item
    return replace(item, scores=read_pair_scores(places))


def checked(record: Record) -> Record | Problem:
    """The record, or what is wrong with it."""
    try:
        check_record(record)
    except Refused as refused:
        return refused.problem
    return record


def siblings(items: Sequence[Record | Problem], source: Source) -> list[Record | Problem]:
    """Records of one row, with one group where they are several and have none."""
    if len(items) < 2:
        return list(items)
    group = f"{source.file}:{source.line}"
    return [
        item
        if isinstance(item, Problem) or item.source.group
        else replace(item, source=replace(item.source, group=group))
        for item in items
    ]


# --- fields of a row -----------------------------------------------------------------------------------


def type_name(value: object) -> str:
    """A value's type, with its article."""
    plain = isinstance(value, list | dict | str | bool | int | float | type(None))
    return json_type(value) if plain else f"a {type(value).__name__}"


def has(row: Row, *names: str) -> bool:
    """Whether the row has a value under each name; null is none."""
    return all(row.get(name) is not None for name in names)


def name_in(row: Row, names: Sequence[str]) -> str:
    """The first of some names that the row has a value for."""
    found = next((name for name in names if row.get(name) is not None), None)
    if found is None:
        spellings = " or ".join(f'"{name}"' for name in names)
        raise Refused("missing_field", f"no {spellings}. Give the row one, or remove it.")
    return found


def text_in(row: Row, name: str) -> str:
    """A text of a row. It may be empty: the checks of the record say where it must not be."""
    value = row.get(name)
    if value is None:
        raise Refused("missing_field", f'no "{name}". Give the row one, or remove it.')
    if not isinstance(value, str):
        raise Refused("wrong_type", f'"{name}" is {type_name(value)}; it must be a text.')
    return value


def list_in(row: Row, name: str) -> list[Any]:
    """A list of a row."""
    value = row.get(name)
    if value is None:
        raise Refused("missing_field", f'no "{name}". Give the row one, or remove it.')
    if not isinstance(value, list | tuple):
        raise Refused("wrong_type", f'"{name}" is {type_name(value)}; it must be a list.')
    return list(value)


def object_in(row: Row, name: str) -> Row:
    """An object of a row."""
    value = row.get(name)
    if value is None:
        raise Refused("missing_field", f'no "{name}". Give the row one, or remove it.')
    if not isinstance(value, Mapping):
        raise Refused("wrong_type", f'"{name}" is {type_name(value)}; it must be an object.')
    return value


def refuse_extras(row: Row) -> None:
    """Pictures and the like change what a row means and have no place in a record: refuse the row."""
    for name in ("images", "image", "videos", "audios"):
        if row.get(name) not in (None, "", []):
            raise Refused("not_text", f'the row has "{name}"; only text can be read. Remove it, or the row.')
