"""The rows as they were read, with all their columns: for a corpus that writes them so (`as_read`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from luthier.corpus.build.store import Store
from luthier.corpus.build.units import Unit, inputs_of, limits_of
from luthier.corpus.lines import Problem
from luthier.corpus.rows import is_table, table_rows
from luthier.corpus.shapes.registry import SHAPES
from luthier.recipe.corpus import Corpus

NATIVE = SHAPES["luthier"].name  # such a row is its record, whole
NOT_THERE = -1


class Originals:
    """The row of each record, copied out of the inputs in one pass and then read by number."""

    def __init__(self, store: Store, corpus: Corpus, path: Path):
        self.path = path
        self.offsets_N = np.full(len(store), NOT_THERE, np.int64)
        self.written: set[int] = set()
        with path.open("wb") as file:
            for index, unit in enumerate(store.units):
                if is_table(Path(unit.files[0]), unit.reading) and unit.reading.shape != NATIVE:
                    self.copy(store, corpus, index, unit, file)
        self.file = path.open("rb")

    def copy(self, store: Store, corpus: Corpus, index: int, unit: Unit, file: Any) -> None:
        """The rows of one unit that gave a record which was kept. Rows and records come in one order."""
        source = inputs_of(corpus)[unit.input]
        numbers = range(int(store.starts[index]), int(store.starts[index + 1]))
        rows = table_rows(Path(unit.files[0]), source, limits_of(corpus), unit.block)
        line, values, offset = 0, None, NOT_THERE
        for number, record in zip(numbers, store.rows(numbers), strict=True):
            while line < record.source.line:
                line, found = next(rows)
                values, offset = (None if isinstance(found, Problem) else found), NOT_THERE
            assert line == record.source.line and values is not None, "each record has its row"
            if offset == NOT_THERE:
                offset = file.tell()
                file.write(json.dumps(values, ensure_ascii=False).encode() + b"\n")
            self.offsets_N[number] = offset

    def rows(self, number: int) -> list[dict[str, Any]] | None:
        """The row of a record; none where another record of the same row has brought it; None where it has none."""
        offset = int(self.offsets_N[number])
        if offset == NOT_THERE:
            return None
        if offset in self.written:
            return []
        self.written.add(offset)
        self.file.seek(offset)
        row: dict[str, Any] = json.loads(self.file.readline())
        return [row]

    def close(self) -> None:
        """The copy goes."""
        self.file.close()
        self.path.unlink()
