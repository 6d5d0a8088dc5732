"""What the labels of a stage's rows are like, part by part, and which of them no held-out row has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from collections.abc import Sequence as ManyOf
from typing import Any

import numpy as np

from luthier.evaluation.held_out import Floats
from luthier.methods.heads import RegressHead
from luthier.methods.stage import Labelling, StageMethod

SHOWN = 5
NONE = ""  # the stratum of rows without a label
HELD_OUT = {"validation": "the best step is chosen without", "test": "the figures say nothing of"}


def strata(method: StageMethod, rows: ManyOf[Any]) -> list[str]:
    """The label by which each row is counted where each label is to have its share: of several the rarest.

    One and the same for all rows of a method that has no such labels.
    """
    if not (isinstance(method, Labelling) and method.stratified):
        return [NONE] * len(rows)
    labels = [method.labels_in(row) for row in rows]
    counts = Counter(label for own in labels for label in own)
    return [min(own, key=lambda label: (counts[label], label), default=NONE) for own in labels]


def label_counts(method: StageMethod, parts: Mapping[str, ManyOf[Any]]) -> dict[str, dict[str, int]]:
    """{label: {part: how often}}, the commonest first, with those that the settings name; empty without labels."""
    if not isinstance(method, Labelling):
        return {}
    counts = {part: Counter(label for row in rows for label in method.labels_in(row)) for part, rows in parts.items()}
    total = sum(counts.values(), Counter[str]())
    named = getattr(method, "labels", ())
    labels = [*(label for label, _ in total.most_common()), *(label for label in named if label not in total)]
    return {label: {part: counts[part][label] for part in parts} for label in labels}


def number_figures(method: StageMethod, parts: Mapping[str, ManyOf[Any]]) -> dict[str, dict[str, float]]:
    """Of rows with a number: {part: its mean, lowest, median and highest}; empty for others."""
    if not isinstance(method, RegressHead):
        return {}
    numbers = {part: np.array([float(row.label) for row in rows]) for part, rows in parts.items() if rows}
    return {
        part: {
            "mean": float(some.mean()), "lowest": float(some.min()), "median": float(np.median(some)),
            "highest": float(some.max()),
        }
        for part, some in numbers.items()
    }  # fmt: skip


def without_rows(counts: Mapping[str, Mapping[str, int]], part: str) -> list[str]:
    """Labels that no row of a part has."""
    return [label for label, own in counts.items() if not own.get(part, 1)]


def missing_notes(counts: Mapping[str, Mapping[str, int]], parts: ManyOf[str]) -> list[str]:
    """A note for each held-out part that lacks some label."""
    notes = []
    for part in (part for part in HELD_OUT if part in parts):
        missing = without_rows(counts, part)
        if missing:
            them = "it" if len(missing) == 1 else "them"
            advice = f"Give more rows of {them}, or a larger share."
            notes.append(f"{part}: no row has {named_labels(missing)}: {HELD_OUT[part]} {them}. {advice}")
    return notes


def untested(counts: Mapping[str, Mapping[str, int]]) -> str:
    """A sentence behind the verdict where some label has no test row."""
    missing = without_rows(counts, "test")
    return f" No test row has {named_labels(missing)}." if missing else ""


def label_rows(
    counts: Mapping[str, Mapping[str, int]], f1: tuple[Floats, Floats] | None, method: StageMethod
) -> list[dict[str, Any]]:
    """Of each label, the commonest first: its rows in each part, and precision, recall and F1 on the test rows.

    `f1`: 2 TP and 2 TP + FP + FN of each test row and label, in the order of the method's labels. Figures that have
    nothing to divide by are None; without `f1`, or for a label that the method has not learnt, all are.
    """
    found: list[dict[str, Any]] = [{"label": label, "rows": dict(own)} for label, own in counts.items()]
    if f1 is None:
        return found
    above_L, below_L = (column.sum(0) for column in f1)
    index = {label: number for number, label in enumerate(getattr(method, "labels", ()))}
    for row in found:
        place = index.get(row["label"])
        twice_right, both = (0.0, 0.0) if place is None else (above_L[place], below_L[place])
        gold = row["rows"].get("test", 0) if place is not None else 0
        row["precision"] = share(twice_right / 2, both - gold)
        row["recall"] = share(twice_right / 2, gold)
        row["f1"] = share(twice_right, both)
    return found


def share(part: float, whole: float) -> float | None:
    """Their ratio, None of nothing."""
    return float(part / whole) if whole else None


def named_labels(labels: ManyOf[str]) -> str:
    """`the label "a"`, `3 labels ("a", "b", "c")`."""
    if len(labels) == 1:
        return f'the label "{labels[0]}"'
    shown = ", ".join(f'"{label}"' for label in labels[:SHOWN])
    more = f" and {len(labels) - SHOWN} more" if len(labels) > SHOWN else ""
    return f"{len(labels)} labels ({shown}{more})"
