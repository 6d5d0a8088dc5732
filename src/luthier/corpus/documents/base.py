"""What readers of documents and records hand out beside records: a row or file that gave none, and why."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.corpus.lines import Problem
from luthier.records import Source


@dataclass(frozen=True)
class Unreadable:
    """A row or file that gave no record, and why. `text` is what could be read of it, shortened by the ledger."""

    source: Source
    problem: Problem
    text: str = ""
