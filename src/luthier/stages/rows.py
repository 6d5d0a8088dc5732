"""The rows of a stage: read, accepted by its method, without copies, and held out by whole prompts."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as ManyOf
from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.corpus.documents.base import Unreadable
from luthier.corpus.documents.hub import found_files
from luthier.corpus.fold import fold_text
from luthier.corpus.lines import Problem
from luthier.corpus.partition import ASIDE, TEST, TRAIN, VALIDATION, RowColumns, partition
from luthier.corpus.rows import LIMITS, read_files
from luthier.corpus.wire import texts_of, to_json, whole_text
from luthier.errors import DataError
from luthier.files import content_hash
from luthier.methods.base import Example
from luthier.methods.stage import Noting, StageMethod
from luthier.prompts import Dialogue, PromptError
from luthier.recipe.corpus import Input, Splitting
from luthier.recipe.stages import Rows
from luthier.records import Dropped, Instruction, Ledger, Message, Prompt, Record
from luthier.stages.labels import strata

SHOWN_CHARS = 300
MOST_COLUMNS = 12
PARTS = {TRAIN: "train", VALIDATION: "validation", TEST: "test"}


@dataclass(frozen=True)
class StageRows:
    """Rows of the three parts, each in its seeded order, and the ledger of all others."""

    train: tuple[Any, ...]
    validation: tuple[Any, ...]
    test: tuple[Any, ...]
    ledger: Ledger

    @property
    def key(self) -> str:
        """Content hash of all rows in their order."""
        return content_hash([[row_key(row) for row in part] for part in (self.train, self.validation, self.test)])


def gather(data: Rows, method: StageMethod, seed: int) -> StageRows:
    """Read, check and split the rows of a stage. The result depends on rows and seed, not on the order of files.

    Raises:
        DataError: a file that cannot be read, too many rows dropped, or a part without rows.
    """
    ledger = Ledger()
    train = collect(data.train, method, "train", ledger)
    held = collect(data.test, method, "test", ledger) if data.test else []
    if held:
        train = without_leaks(train, held, ledger)
    test_share = 0.0 if data.test else data.test_share
    settings = Splitting(validation_share=data.validation_share, test_share=test_share)
    labels = strata(method, train)
    parts: dict[str, list[Any]] = {name: [] for name in PARTS.values()}
    for row, part in zip(train, partition(columns(train, labels), settings, seed).tolist(), strict=True):
        assert part != ASIDE, "nothing is frozen here"
        parts[PARTS[part]].append(row)
    parts["test"] += held
    most = limits(data, parts)
    chosen = {}
    for name, rows in parts.items():
        ledger.rows_in[name] = len(rows) + sum(ledger.reasons(name).values())
        chosen[name] = limited(seeded(rows, seed), most[name], method)
        ledger.kept[name] = ledger.taken[name] = len(chosen[name])
        if len(chosen[name]) < len(rows):
            ledger.not_taken[name] = len(rows) - len(chosen[name])
            ledger.notes.append(f"{name}: {len(chosen[name]):,} of {len(rows):,} rows taken, by seed.")
    refuse_losses(ledger, data)
    return StageRows(tuple(chosen["train"]), tuple(chosen["validation"]), tuple(chosen["test"]), ledger)


def collect(inputs: list[Input], method: StageMethod, split: str, ledger: Ledger) -> list[Any]:
    """The rows that the method accepts, one of each content; all others go to the ledger."""
    rows: dict[str, Any] = {}
    noted: Counter[str] = Counter()
    unread: Counter[str] = Counter()
    for item in (item for source in inputs for item in told_input(source, split, ledger, unread)):
        if isinstance(item, Unreadable):
            ledger.dropped.append(Dropped(split, item.source, item.problem.reason, item.problem.detail, item.text))
            continue
        accepted = method.accept(item)
        if isinstance(accepted, Problem):
            ledger.dropped.append(dropped(split, item, accepted))
            continue
        for row in accepted:
            if isinstance(method, Noting) and (what := method.noted(item, row)):
                noted[what] += 1
            twin = rows.setdefault(row_key(row), row)
            if twin is not row:
                ledger.dropped.append(dropped(split, row, Problem("duplicate", f"the same row as {twin.source}.")))
    ledger.notes += [f"{split}: {count:,} rows {what}." for what, count in noted.items()]
    if unread:
        told = ", ".join(f'"{name}" ({count:,} rows)' for name, count in unread.most_common(MOST_COLUMNS))
        ledger.notes.append(f"{split}: columns that are not read: {told}.")
    return list(rows.values())


def told_input(source: Input, split: str, ledger: Ledger, unread: Counter[str]) -> Iterator[Record | Unreadable]:
    """The records of an input; what it leaves out of a data set of the hub is noted. `unread` as in `read_files`."""
    found = found_files(source)
    if found.left_out:
        ledger.notes.append(f"{split}: {found.left_out}")
    return read_files(found.files, source, LIMITS, unread)


def without_leaks(train: list[Any], test: list[Any], ledger: Ledger) -> list[Any]:
    """The training rows whose prompt, text or group does not stand in the test rows too."""
    seen = {mark for row in test for mark in marks(row)}
    kept = []
    for row in train:
        if seen.isdisjoint(marks(row)):
            kept.append(row)
        else:
            ledger.dropped.append(dropped("train", row, Problem("in_test", "its prompt or text is in the test rows.")))
    return kept


def marks(row: Any) -> set[str]:
    """What may not stand on two sides of a split: the row's group, and the text it begins with."""
    found = {f"text {fold_text(beginning(row))}"}
    return found | ({f"group {row.source.group}"} if row.source.group else set())


def beginning(row: Any) -> str:
    """The prompt of a row that has one (all turns before the answer), else its text."""
    prompt = getattr(row, "prompt", None)
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, tuple):
        return said(prompt)
    if isinstance(row, Instruction):
        return f"{row.instruction}\n{row.context}"
    if isinstance(row, Prompt):
        return said(row.messages)
    if hasattr(row, "messages"):
        return said(row.messages[:-1])
    return whole_text(row)


def said(messages: Iterable[Message]) -> str:
    """Turns as one text."""
    return "\n".join(text for message in messages for text in message.said)


def columns(rows: list[Any], labels: list[str]) -> RowColumns:
    """What decides where a row goes: one prompt or text, and one group, on one side; of each label its share."""
    texts = [hash_64(f"text {fold_text(beginning(row))}") for row in rows]
    return RowColumns(
        keys_N2=np.array([(text, text) for text in texts], np.uint64).reshape(-1, 2),
        labels_N=np.array([hash_64(label) for label in labels], np.uint64),
        groups_N=np.array([hash_64(row.source.group) if row.source.group else 0 for row in rows], np.uint64),
        dates_N=np.full(len(rows), np.iinfo(np.int64).min),
    )


def hash_64(text: str) -> int:
    """64 bits of a text's hash."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def row_key(row: Any) -> str:
    """Content hash of a row, whatever file it came from."""
    value = to_json(row)
    del value["source"]
    return content_hash(value)


def seeded(rows: list[Any], seed: int) -> list[Any]:
    """Rows by a hash of seed and content."""
    return sorted(rows, key=lambda row: hashlib.sha256(f"{seed} {row_key(row)}".encode()).digest())


def limits(data: Rows, parts: Mapping[str, list[Any]]) -> dict[str, int]:
    """Most rows of each part, 0 for all. Validation rows are taken in the same proportion as training rows."""
    train, validation = len(parts["train"]), len(parts["validation"])
    cut = 0 < data.max_rows < train
    return {
        "train": data.max_rows,
        "validation": math.ceil(validation * data.max_rows / train) if cut else 0,
        "test": data.max_test_rows,
    }


def limited(rows: list[Any], most: int, method: StageMethod) -> list[Any]:
    """`most` of the rows in their order: the first of each label, in its share; without labels simply the first."""
    if not most or len(rows) <= most:
        return rows
    labels = strata(method, rows)
    sizes, seen = Counter(labels), Counter[str]()
    places: list[tuple[float, int]] = []  # how far down its label's rows each row stands, from 0 to 1
    for number, label in enumerate(labels):
        places.append(((seen[label] + 0.5) / sizes[label], number))
        seen[label] += 1
    return [rows[number] for number in sorted(number for _, number in sorted(places)[:most])]


def dropped(split: str, row: Record, problem: Problem) -> Dropped:
    """A ledger line."""
    return Dropped(split, row.source, problem.reason, problem.detail, "\n".join(texts_of(row))[:SHOWN_CHARS])


def refuse_losses(ledger: Ledger, data: Rows) -> None:
    """A part without rows, or most rows dropped, is an error that shows why."""
    reasons = list(reason_lines(ledger))
    told = f" Dropped: {'; '.join(reasons[:6])}." if reasons else ""
    wanted = {"train": True, "validation": data.validation_share > 0, "test": True}
    for split in (split for split in wanted if wanted[split] and not ledger.kept[split]):
        where = "data.test" if split == "test" and data.test else "data.train"
        raise DataError(f"{where}: no row is left for {split}.{told} Give more rows, or other shares.")
    if lost_share(ledger) > data.max_dropped_share:
        raise DataError(
            f"data: {losses(ledger)} were dropped, more than max_dropped_share "
            f"({data.max_dropped_share:g}).{told} Mend the rows, or raise data.max_dropped_share."
        )


def lost_share(ledger: Ledger) -> float:
    """The share of the rows that cannot be used: lost when all were read, then of those taken when they were viewed.

    Where all rows are taken it is dropped over read. Where some are, the two shares are of different rows: with
    r of R read rows lost, and v of V taken ones, it is 1 - (1 - r / R) (1 - v / V).
    """
    rows_in, taken, kept = (sum(part.values()) for part in (ledger.rows_in, ledger.taken, ledger.kept))
    read = rows_in - len(ledger.dropped) + taken - kept  # good rows once all were read
    return 1 - read / rows_in * kept / taken if taken else 1.0


def losses(ledger: Ledger) -> str:
    """`30 of 50 rows`; where not all rows were taken, those lost of the rows read and those lost of the rows taken."""
    rows_in, taken, kept = (sum(part.values()) for part in (ledger.rows_in, ledger.taken, ledger.kept))
    dropped = len(ledger.dropped)
    if not any(ledger.not_taken.values()):
        return f"{dropped:,} of {rows_in:,} rows"
    viewed = f" and {taken - kept:,} of the {taken:,} taken" if kept < taken else ""
    return f"{dropped - (taken - kept):,} of {rows_in:,} rows{viewed}"


def viewed_rows(method: StageMethod, prompt: Dialogue, rows: ManyOf[Any], split: str, ledger: Ledger) -> list[Example]:
    """The examples of some rows; rows that the model's template or tokenizer makes no prompt of go to the ledger.

    Raises:
        PromptError: no row is left; the error is the first row's.
    """
    try:
        return method.view(prompt, rows)
    except PromptError as error:
        first = error  # of one row; the others may do
    kept: list[Any] = []
    for row in rows:
        try:
            method.view(prompt, [row])
            kept.append(row)
        except PromptError as error:
            ledger.dropped.append(dropped(split, row, Problem("no_prompt", str(error))))
            ledger.kept[split] -= 1
    if not kept:
        raise first
    return method.view(prompt, kept)  # together: a view may set rows against each other


def reason_lines(ledger: Ledger) -> Iterator[str]:
    """Reasons with their counts and a first example, most frequent first."""
    first: dict[str, Dropped] = {}
    counts: dict[str, int] = {}
    for row in ledger.dropped:
        first.setdefault(row.reason, row)
        counts[row.reason] = counts.get(row.reason, 0) + 1
    for reason in sorted(counts, key=lambda name: -counts[name]):
        yield f"{counts[reason]:,} {reason} (first: {first[reason].source}: {first[reason].detail})"
