"""All done units as one list of records, read where they lie; only their arrays are in memory, mapped."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np

from luthier.corpus.build.units import Unit
from luthier.corpus.build.work import Facts, read_facts, unit_folder
from luthier.corpus.duplicates.signatures import Signatures, open_signatures
from luthier.corpus.wire import from_json
from luthier.records import Record


class Store:
    """Row numbers run over all units, in their order."""

    def __init__(self, folder: Path, units: Sequence[Unit]):
        self.units = units
        self.folders = [unit_folder(folder, unit) for unit in units]
        self.tallies: list[dict[str, Any]] = [
            json.loads((path / "tally.json").read_text(encoding="utf-8")) for path in self.folders
        ]
        self.starts = np.cumsum([0, *(tally["kept"] for tally in self.tallies)])
        self.trimmed: dict[int, int] = {}  # row number -> byte in the file of trimmed records
        self.trimmed_path: Path | None = None

    def trim(self, path: Path, changed: dict[int, int]) -> None:
        """From now on some records are read from another file, where they stand shortened."""
        self.trimmed_path, self.trimmed = path, changed

    def __len__(self) -> int:
        return int(self.starts[-1])

    @cached_property
    def facts(self) -> list[Facts]:
        """Each unit's facts."""
        return [read_facts(path) for path in self.folders]

    def signatures(self) -> list[Signatures]:
        """Each unit's signatures."""
        return [open_signatures(path) for path in self.folders]

    @property
    def index_bytes(self) -> int:
        """Size of the duplicate index on disk."""
        names = [field.name for field in fields(Signatures)]
        return sum((path / f"{name}.npy").stat().st_size for path in self.folders for name in names)

    def column(self, name: str) -> np.ndarray:
        """One fact of all rows."""
        columns = [getattr(facts, name) for facts in self.facts]
        return np.concatenate(columns) if columns else np.zeros(0, np.int64)

    def inputs(self) -> np.ndarray:
        """The input each row came from."""
        counts = np.diff(self.starts)
        return np.repeat(np.array([unit.input for unit in self.units], np.int64), counts)

    def rows(self, numbers: Sequence[int] | np.ndarray) -> Iterator[Record]:
        """The records of some row numbers, in that order."""
        units = np.searchsorted(self.starts, numbers, side="right") - 1
        with ExitStack() as stack:
            handles: dict[int, Any] = {}
            for unit, number in zip(units.tolist(), list(numbers), strict=True):
                if unit not in handles:
                    if len(handles) >= 64:  # files open at once
                        handles.pop(next(iter(handles))).close()
                    handles[unit] = stack.enter_context((self.folders[unit] / "rows.jsonl").open("rb"))
                yield from_json(json.loads(self.line(handles[unit], unit, int(number))))

    def line(self, handle: IO[bytes], unit: int, number: int) -> bytes:
        """The JSON line of a row."""
        if number in self.trimmed and self.trimmed_path is not None:
            with self.trimmed_path.open("rb") as trimmed:
                trimmed.seek(self.trimmed[number])
                return trimmed.readline()
        handle.seek(int(self.facts[unit].offsets[number - self.starts[unit]]))
        return handle.readline()

    def row(self, number: int) -> Record:
        """One record."""
        return next(self.rows([number]))

    def dropped_lines(self) -> Iterator[bytes]:
        """What the units dropped, line by line."""
        for path in self.folders:
            with (path / "dropped.jsonl").open("rb") as handle:
                yield from handle
