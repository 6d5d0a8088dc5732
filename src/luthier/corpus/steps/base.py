"""What a step is: a pure function over one record. It keeps the record (changed or not) or says why it goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from luthier.corpus.lines import Problem
from luthier.records import Record


@dataclass(frozen=True)
class Finding:
    """Something a step saw or changed, counted in the ledger by kind. Never the value itself.

    `field` is the index of the text among `texts_of(record)`; `start` and `end` are characters in it, before the
    change, -1 where the finding is about the whole text.
    """

    kind: str
    field: int = 0
    start: int = -1
    end: int = -1


@dataclass(frozen=True)
class Passed:
    """What became of one record: the record that goes on, or None and the problem; and what was found on the way."""

    record: Record | None
    problem: Problem | None = None
    findings: tuple[Finding, ...] = ()


class Step(Protocol):
    """The contract. A step is built once from its settings and holds no state that changes."""

    @property
    def name(self) -> str:
        """What the recipe and the ledger call it."""
        ...

    def __call__(self, record: Record) -> Passed:
        """Apply it."""
        ...
