"""One unit of work: read, step by step, written aside, renamed when whole. Runs in its own process."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import numpy as np

from luthier.corpus.build.units import Unit, read_unit
from luthier.corpus.documents.base import Unreadable
from luthier.corpus.duplicates.signatures import Signatures, save_signatures, sign
from luthier.corpus.lines import Problem
from luthier.corpus.steps.base import Finding, Step
from luthier.corpus.steps.chain import make_steps, masked_excerpt
from luthier.corpus.wire import key_of, to_json, whole_text
from luthier.files import check_folder, content_hash, new_folder, write_json
from luthier.recipe.corpus import Corpus
from luthier.records import Labelled, Record, Source

BATCH_ROWS = 1000
SHOWN_CHARS = 300
FACTS = {"offsets": np.int64, "labels": np.uint64, "groups": np.uint64, "dates": np.int64}
NO_DATE = np.iinfo(np.int64).min

Excerpt = Callable[[str], str]


@dataclass
class Tally:
    """What a unit did to its rows, as counts."""

    rows_in: int = 0
    kept: int = 0
    unreadable: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    steps: dict[str, str] = field(default_factory=dict)
    findings: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    rows_found: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def find(self, step: str, findings: tuple[Finding, ...]) -> None:
        """Count what a step found: each finding, and each row once a kind."""
        self.findings[step].update(finding.kind for finding in findings)
        self.rows_found[step].update({finding.kind for finding in findings})


@dataclass(frozen=True)
class Facts:
    """What the merge needs of each kept row, one array an attribute; hashes are 64 bits, 0 where there is none."""

    offsets: np.ndarray  # bytes into rows.jsonl
    labels: np.ndarray
    groups: np.ndarray
    dates: np.ndarray  # seconds since 1970, NO_DATE where unknown


def unit_folder(folder: Path, unit: Unit) -> Path:
    """Where a unit's result lies."""
    return folder / "units" / unit.key[:24]


def is_done(folder: Path, unit: Unit) -> bool:
    """Whether a unit's result is there and undamaged."""
    path = unit_folder(folder, unit)
    return path.is_dir() and not check_folder(path)


def do_unit(unit: Unit, corpus: Corpus, folder: str) -> str:
    """Do one unit and return its key. The result is in its folder, or nothing is."""
    key = os.environ.get(corpus.steps.personal.key_variable)
    steps = make_steps(corpus.steps, key.encode() if key else None)
    with new_folder(unit_folder(Path(folder), unit)) as aside:
        Writer(aside, corpus, steps, masked_excerpt(corpus.steps, SHOWN_CHARS)).run(read_unit(unit, corpus))
    return unit.key


class Writer:
    """Takes records one by one and writes what becomes of them."""

    def __init__(self, aside: Path, corpus: Corpus, steps: list[Step], excerpt: Excerpt):
        self.aside = aside
        self.corpus = corpus
        self.steps = steps
        self.excerpt = excerpt
        self.tally = Tally()
        self.texts: list[str] = []
        self.keys: list[str] = []
        self.signed: list[Signatures] = []
        self.facts: list[tuple[int, int, int, int]] = []

    def run(self, items: Iterator[Record | Unreadable]) -> None:
        """All of a unit's records."""
        with (self.aside / "rows.jsonl").open("wb") as rows, (self.aside / "dropped.jsonl").open("wb") as dropped:
            for item in items:
                self.tally.rows_in += 1
                if isinstance(item, Unreadable):
                    self.tally.unreadable += 1
                    self.drop(dropped, "read", item.source, item.problem, item.text)
                else:
                    self.take(rows, dropped, item)
            self.sign_batch()
        self.save()

    def take(self, rows: IO[bytes], dropped: IO[bytes], record: Record) -> None:
        """One record through the steps."""
        for step in self.steps:
            passed = step(record)
            self.tally.find(step.name, passed.findings)
            if passed.record is None:
                assert passed.problem is not None, f"step {step.name} gave neither record nor problem"
                self.drop(dropped, step.name, record.source, passed.problem, whole_text(record))
                return
            record = passed.record
        text = whole_text(record)
        offset = rows.tell()
        rows.write(json.dumps(to_json(record), ensure_ascii=False).encode() + b"\n")
        self.facts.append(facts_of(record, offset))
        self.tally.kept += 1
        self.texts.append(text)
        self.keys.append(key_of(record))
        if len(self.texts) == BATCH_ROWS:
            self.sign_batch()

    def drop(self, dropped: IO[bytes], step: str, source: Source, problem: Problem, text: str) -> None:
        """The ledger's line on a row that goes."""
        self.tally.dropped[problem.reason] += 1
        self.tally.steps[problem.reason] = step
        line = dropped_line(step, source, problem, self.excerpt(text))
        dropped.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")

    def sign_batch(self) -> None:
        """Signatures of the records since the last batch."""
        if self.texts:
            self.signed.append(sign(self.texts, self.corpus.duplicates, self.keys))
            self.texts, self.keys = [], []

    def save(self) -> None:
        """Arrays and counts."""
        columns = np.array(self.facts, dtype=object).reshape(-1, len(FACTS)).T
        for (name, kind), column in zip(FACTS.items(), columns, strict=True):
            np.save(self.aside / f"{name}.npy", column.astype(kind))
        save_signatures(joined(self.signed or [sign([], self.corpus.duplicates)]), self.aside)
        write_json(self.aside / "tally.json", tally_json(self.tally))


def joined(batches: list[Signatures]) -> Signatures:
    """Signatures of some batches as those of one unit."""
    ends = np.cumsum([0, *(len(batch.shingles) for batch in batches)])
    offsets = [batch.offsets_B1[1:] + end for batch, end in zip(batches, ends[:-1], strict=True)]
    return Signatures(
        np.concatenate([batch.keys_B2 for batch in batches]),
        np.concatenate([batch.lengths_B for batch in batches]),
        np.concatenate([batch.shingles for batch in batches]),
        np.concatenate([np.zeros(1, np.int64), *offsets]),
        np.concatenate([batch.minhash_PB for batch in batches], axis=1),
    )


def dropped_line(step: str, source: Source, problem: Problem, text: str) -> dict[str, Any]:
    """One line of dropped.jsonl."""
    return {
        "source": str(source), "step": step, "reason": problem.reason, "detail": problem.detail, "text": text,
    }  # fmt: skip


def facts_of(record: Record, offset: int) -> tuple[int, int, int, int]:
    """The row of Facts for a record."""
    label = short_hash(record.label) if isinstance(record, Labelled) else 0
    group = short_hash(record.source.group) if record.source.group else 0
    return offset, label, group, seconds_of(record.source.date)


def short_hash(text: str) -> int:
    """64 bits of a text's hash, never 0."""
    return int(content_hash(text)[:16], 16) or 1


def seconds_of(date: str | None) -> int:
    """Seconds since 1970 of an ISO 8601 date (UTC where it names no zone), NO_DATE where it is none."""
    if date is None:
        return int(NO_DATE)
    try:
        when = np.datetime64(datetime.fromisoformat(date).replace(tzinfo=None), "s")
    except ValueError:
        return int(NO_DATE)
    return int(when.astype(np.int64))


def tally_json(tally: Tally) -> dict[str, Any]:
    """Plain values of a tally."""
    return {
        "rows_in": tally.rows_in,
        "kept": tally.kept,
        "unreadable": tally.unreadable,
        "dropped": dict(tally.dropped),
        "steps": tally.steps,
        "findings": {step: dict(counts) for step, counts in tally.findings.items() if counts},
        "rows_found": {step: dict(counts) for step, counts in tally.rows_found.items() if counts},
    }


def read_facts(folder: Path) -> Facts:
    """A done unit's facts."""
    return Facts(**{name: np.load(folder / f"{name}.npy", mmap_mode=None) for name in FACTS})
