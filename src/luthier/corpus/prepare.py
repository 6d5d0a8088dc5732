"""Files to train, validation and test rows. Every row that does not get there stands in the ledger."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from luthier.corpus.fold import fold_text, row_key
from luthier.corpus.formats import Columns, RawRow, read_rows
from luthier.corpus.labels import SHOWN_CHARS, LabelTable, label_table, shorten
from luthier.corpus.lines import Problem, recoded_note
from luthier.corpus.split import Split, seeded_order, split_rows
from luthier.errors import DataError
from luthier.recipe import Data, Task
from luthier.recipe.columns import listed
from luthier.records import Dropped, Labelled, Ledger

TokenCounter = Callable[[list[str]], list[int]]
FEW_TEST_ROWS = 30
Z_95 = 1.959964
LEDGER_CHARS = 500
MOST_LABELS = 500  # that an error lists, ready for the recipe


@dataclass(frozen=True)
class Prepared:
    """The rows of a run. No folded text stands twice, in one part or across them."""

    train: tuple[Labelled, ...]
    validation: tuple[Labelled, ...]
    test: tuple[Labelled, ...]
    ledger: Ledger


@dataclass(frozen=True)
class Cleaned:
    """What one file gave."""

    path: Path
    num_rows: int
    kept: tuple[Labelled, ...]
    dropped: tuple[Dropped, ...]
    notes: tuple[str, ...]
    labels: tuple[str, ...]  # as the file spells them, each once


def prepare(task: Task, data: Data, seed: int, count_tokens: TokenCounter) -> Prepared:
    """Read, clean and split the rows of a recipe.

    `count_tokens` gives the number of tokens of each text. The result depends on the rows and the seed, not
    on the order of the rows. Rows set aside from `data.train` are counted in the ledger under the part they
    went to, its dropped rows under `train`.

    Raises:
        DataError: a file that cannot be used, too many rows dropped, a label without training rows.
    """
    if data.train is None:
        raise DataError("data.train: missing. Name a file of rows (or data.corpus, through `luthier run`).")
    train = clean_file("train", Path(data.train), task, data, count_tokens)
    if data.test is None:
        refuse_losses(train, data)
        split = split_rows(train.kept, seed, data.validation_share, data.test_share)
        return assemble(task, data, split, [train])
    refuse_same_file(data.train, data.test)
    test = clean_file("test", Path(data.test), task, data, count_tokens)
    train = without_leaks(train, test)
    for cleaned in (train, test):
        refuse_losses(cleaned, data)
    split = split_rows(train.kept, seed, data.validation_share)
    return assemble(task, data, replace(split, test=seeded_order(test.kept, seed)), [train, test])


def data_hash(prepared: Prepared) -> str:
    """A hash of the texts, labels and order of all parts; file names and the ledger do not count."""
    digest = hashlib.sha256()
    for part in ("train", "validation", "test"):
        for row in getattr(prepared, part):
            digest.update(json.dumps([part, row.text, row.label]).encode() + b"\n")
    return digest.hexdigest()


# --- one file ------------------------------------------------------------------------------------------


def clean_file(split: str, path: Path, task: Task, data: Data, count_tokens: TokenCounter) -> Cleaned:
    """The usable rows of one file, one of each text, and all others with their reasons."""
    table = label_table(task)
    rows = list(read_rows(path, data.format, columns_of(data), data.separator))
    refuse_foreign_labels(path, rows, table, data)
    dropped: list[Dropped] = []
    labelled: list[Labelled] = []
    # once a label, not once a row: looking for the nearest known label is slow
    label_problems = {label: table.problem(label) for row in rows if (label := row.label) is not None}
    for row in rows:
        if problem := row_problem(row, label_problems):
            dropped.append(drop(split, row, problem))
        else:
            labelled.append(to_labelled(row, table))
    short, over_long = without_over_long(split, labelled, data.max_tokens, count_tokens)
    kept, copies = without_copies(split, short)
    recoded = [line for row in rows for line in row.recoded]
    notes = (recoded_note(path.name, recoded),) if recoded else ()
    return Cleaned(path, len(rows), tuple(kept), (*dropped, *over_long, *copies), notes, labels_of(rows))


def columns_of(data: Data) -> Columns:
    """The columns that the settings name."""
    text, label = data.columns.get("text", data.text), data.columns.get("label", data.label)
    assert isinstance(label, str), "the recipe's rule"
    settings = [f"data.columns.{name}" if name in data.columns else f"data.{name}" for name in ("text", "label")]
    return Columns(tuple(listed(text)), label, data.join, (settings[0], settings[1]))


def labels_of(rows: Iterable[RawRow]) -> tuple[str, ...]:
    """The labels of some rows, each once, sorted."""
    return tuple(sorted({label for row in rows if row.label is not None and (label := row.label.strip())}))


def row_problem(row: RawRow, label_problems: Mapping[str, Problem | None]) -> Problem | None:
    """What is wrong with a row by itself."""
    if row.problem:
        return row.problem
    assert row.text is not None and row.label is not None, "a row without a problem has both"
    if not row.text.strip():
        return Problem("empty_text", "the text is empty. Write one, or remove the row.")
    return label_problems[row.label]


def to_labelled(row: RawRow, table: LabelTable) -> Labelled:
    """The record of a row that has no problem."""
    assert row.text is not None and row.label is not None
    text, label = row.text.strip(), table.resolve(row.label)
    assert label is not None
    return Labelled(text, label, row.source, row_key(text, label))


def drop(split: str, row: RawRow | Labelled, problem: Problem) -> Dropped:
    """The ledger's line on a dropped row."""
    return Dropped(split, row.source, problem.reason, problem.detail, shorten(row.text or "", LEDGER_CHARS))


def without_over_long(
    split: str, rows: list[Labelled], max_tokens: int, count_tokens: TokenCounter
) -> tuple[list[Labelled], list[Dropped]]:
    """Rows of at most `max_tokens`, and the others."""
    counts = count_tokens([row.text for row in rows]) if rows else []
    assert len(counts) == len(rows), "count_tokens gives one number a text"
    kept = [row for row, count in zip(rows, counts, strict=True) if count <= max_tokens]
    dropped = [
        drop(split, row, Problem("over_long", f"{count} tokens; data.max_tokens allows {max_tokens}."))
        for row, count in zip(rows, counts, strict=True)
        if count > max_tokens
    ]
    return kept, dropped


def without_copies(split: str, rows: list[Labelled]) -> tuple[list[Labelled], list[Dropped]]:
    """One row of each folded text; none where its copies disagree on the label."""
    groups: dict[str, list[Labelled]] = defaultdict(list)
    for row in rows:
        groups[fold_text(row.text)].append(row)
    kept: list[Labelled] = []
    dropped: list[Dropped] = []
    for group in groups.values():
        labels = {row.label: row.source.line for row in reversed(group)}
        if len(labels) > 1:
            dropped += [drop(split, row, conflict(labels)) for row in group]
            continue
        # by text first, so that which spelling stays does not depend on the order of the file
        first, *copies = sorted(group, key=lambda row: (row.text, row.source.line))
        kept.append(first)
        dropped += [drop(split, copy, duplicate_of(first)) for copy in copies]
    return kept, dropped


def conflict(lines_by_label: dict[str, int]) -> Problem:
    """The problem of copies that disagree."""
    found = " and ".join(f'"{label}" (line {lines_by_label[label]})' for label in sorted(lines_by_label))
    return Problem("conflicting_labels", f"the same text has the labels {found}. Keep the right one.")


def duplicate_of(first: Labelled) -> Problem:
    """The problem of a further copy."""
    return Problem("duplicate", f"the same text and label as line {first.source.line}.")


def without_leaks(train: Cleaned, test: Cleaned) -> Cleaned:
    """Training rows without those whose text stands in the test file."""
    in_test = {fold_text(row.text): row for row in test.kept}
    kept: list[Labelled] = []
    leaks: list[Dropped] = []
    for row in train.kept:
        twin = in_test.get(fold_text(row.text))
        if twin is None:
            kept.append(row)
            continue
        other = "" if twin.label == row.label else f' (there labelled "{twin.label}")'
        leaks.append(drop("train", row, Problem("leaks_into_test", f"the same text as test row {twin.source}{other}.")))
    if not leaks:
        return train
    count = "1 training row stands" if len(leaks) == 1 else f"{len(leaks)} training rows stand"
    note = f"{train.path.name}: {count} in the test file too, removed from training; first: {leaks[0].source}."
    return replace(train, kept=tuple(kept), dropped=(*train.dropped, *leaks), notes=(*train.notes, note))


# --- the parts and their ledger ------------------------------------------------------------------------


def assemble(task: Task, data: Data, split: Split, files: list[Cleaned]) -> Prepared:
    """The parts with their ledger; DataError where a part cannot do its work."""
    refuse_untrainable(task, data, split, files)
    notes = [note for cleaned in files for note in cleaned.notes] + split_notes(task, data, split)
    kept = {"train": len(split.train), "validation": len(split.validation), "test": len(split.test)}
    dropped = [row for cleaned in files for row in cleaned.dropped]
    counts = Counter(row.split for row in dropped)
    ledger = Ledger({part: kept[part] + counts[part] for part in kept}, kept, dropped, notes)
    ledger.check()
    assert sum(ledger.rows_in.values()) == sum(cleaned.num_rows for cleaned in files), "a row got lost"
    return Prepared(split.train, split.validation, split.test, ledger)


def split_notes(task: Task, data: Data, split: Split) -> list[str]:
    """What a reader of the result has to know about the parts."""
    held_out = f"{len(split.validation)} for validation"
    if data.test is None:
        held_out += f", {len(split.test)} for the test"
    notes = [f"Set aside from {Path(data.train or '').name}: {held_out}."]
    for part, rows in (("validation", split.validation), ("test", split.test)):
        present = {row.label for row in rows}
        if missing := [label for label in task.labels if label not in present]:
            notes.append(f"No {part} row has {label_list(missing)}: the {part} says nothing about it.")
    if len(split.test) < FEW_TEST_ROWS:
        low, high = half_right_interval(len(split.test))
        notes.append(
            f"Only {len(split.test)} test rows: with half of the answers right, the 95 % interval would run "
            f"from {low:.0%} to {high:.0%}. Add test rows."
        )
    return notes


def half_right_interval(num_rows: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy of one half (Wilson 1927)."""
    z2_by_n = Z_95**2 / num_rows
    half_width = Z_95 * math.sqrt((1 + z2_by_n) / num_rows) / (2 * (1 + z2_by_n))
    return 0.5 - half_width, 0.5 + half_width


def label_list(labels: Iterable[str]) -> str:
    """`the label "A"`, `the labels "A", "B"`."""
    names = [f'"{label}"' for label in labels]
    return f"the label{'s' if len(names) > 1 else ''} {', '.join(names)}"


# --- refusals ------------------------------------------------------------------------------------------


def refuse_same_file(train: str, test: str) -> None:
    """Testing on the training rows proves nothing."""
    if Path(train).resolve() == Path(test).resolve():
        raise DataError(
            f"data.test is the same file as data.train ({train}). Name another file, or remove data.test: "
            "then data.test_share of the rows is held out."
        )


def refuse_foreign_labels(path: Path, rows: list[RawRow], table: LabelTable, data: Data) -> None:
    """A file without a single known label is read wrongly, or belongs to another task."""
    counts = Counter(row.label for row in rows if row.label is not None and row.label.strip())
    if not counts or any(table.resolve(label) is not None for label in counts):
        return
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    columns = columns_of(data)
    commonest = ", ".join(describe_foreign(label, count, table) for label, count in ranked[:3])
    raise DataError(
        f"{path}: none of its {counts.total()} labels is in task.labels. Commonest: {commonest}. "
        f'Is {columns.settings[1]} ("{columns.label}") the right column? Else mend task.labels or add task.aliases.'
        f"{to_paste(labels_of(rows))}"
    )


def to_paste(labels: Sequence[str]) -> str:
    """All labels of a file as a recipe would have them; empty where they are too many to be labels."""
    if not 2 <= len(labels) <= MOST_LABELS:
        return ""
    listed = yaml.safe_dump(list(labels), default_flow_style=True, allow_unicode=True, width=math.inf).strip()
    return f"\nAll labels of the file, for task.labels: {listed}"


def describe_foreign(label: str, count: int, table: LabelTable) -> str:
    """`"SPORT" (12 rows; did you mean "SPORTS"?)`."""
    near = table.nearest(label)
    hint = f'; did you mean "{near}"?' if near else ""
    return f'"{shorten(label, SHOWN_CHARS)}" ({count} row{"s" if count > 1 else ""}{hint})'


def refuse_losses(cleaned: Cleaned, data: Data) -> None:
    """A file most of which is dropped is not what its owner believes it to be."""
    share = len(cleaned.dropped) / cleaned.num_rows
    if share <= data.max_dropped_share:
        return
    lines = [
        f"{cleaned.path}: {len(cleaned.dropped)} of {cleaned.num_rows} rows ({share:.0%}) were dropped; "
        f"data.max_dropped_share allows {data.max_dropped_share:.0%}."
    ]
    lines += dropped_lines(cleaned.dropped)
    unknown = sum(row.reason == "unknown_label" for row in cleaned.dropped)
    listed = to_paste(cleaned.labels) if 2 * unknown > len(cleaned.dropped) else ""
    raise DataError("\n".join([*lines, f"Mend the rows, or raise data.max_dropped_share.{listed}"]))


def dropped_lines(dropped: Sequence[Dropped]) -> list[str]:
    """A line for each reason: how many rows, and the first of them."""
    lines = []
    for reason, count in Counter(row.reason for row in dropped).most_common():
        first = next(row for row in dropped if row.reason == reason)
        lines.append(f"  - {reason}: {count}; first: {first.source}: {first.detail}")
    return lines


def refuse_untrainable(task: Task, data: Data, split: Split, files: list[Cleaned]) -> None:
    """Every label needs a training row, and each part at least one row."""
    trained = {row.label for row in split.train}
    if missing := [label for label in task.labels if label not in trained]:
        lines = [
            f"{files[0].path}: no training row has {label_list(missing)}. Add such rows, or remove "
            f"{'them' if len(missing) > 1 else 'it'} from task.labels."
        ]
        if files[0].dropped:
            lines += ["Rows that were dropped:", *dropped_lines(files[0].dropped)]
        of_lines = data.format == "lines" or files[0].path.suffix == ".txt"
        if of_lines and any(data.separator in label for label in missing):
            lines.append(
                f'A line is read as text{data.separator}LABEL, and the separator "{data.separator}" stands in a label: '
                "set data.separator to another one, and write it into the file."
            )
        raise DataError("\n".join(lines))
    if not split.validation:
        raise DataError(f"{files[0].path}: one row a label leaves none for validation. Add rows.")
    if not split.test:
        raise DataError(
            f"{files[-1].path}: no row is left for the test. Add rows (where data.test is not set: three of "
            "some label at least)."
        )
