"""Which rows are held out: stratified, by seed and content, whatever the order of the file."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from luthier.records import Labelled


@dataclass(frozen=True)
class Split:
    """Rows of the three parts, each in its seeded order."""

    train: tuple[Labelled, ...]
    validation: tuple[Labelled, ...]
    test: tuple[Labelled, ...] = ()


def split_rows(rows: Iterable[Labelled], seed: int, validation_share: float, test_share: float = 0.0) -> Split:
    """Hold out `test_share` of each label's rows, then `validation_share` of the rest.

    A label's first row goes to train, its second to validation, its third to test; only then do the shares
    count. With `test_share` 0 there is no test part.
    """
    by_label: dict[str, list[Labelled]] = defaultdict(list)
    for row in seeded_order(rows, seed):
        by_label[row.label].append(row)
    train: list[Labelled] = []
    validation: list[Labelled] = []
    test: list[Labelled] = []
    for ranked in by_label.values():
        num_test = num_held_out(len(ranked), test_share, num_left=2)
        num_validation = num_held_out(len(ranked) - num_test, validation_share, num_left=1)
        test += ranked[:num_test]
        validation += ranked[num_test : num_test + num_validation]
        train += ranked[num_test + num_validation :]
    return Split(seeded_order(train, seed), seeded_order(validation, seed), seeded_order(test, seed))


def seeded_order(rows: Iterable[Labelled], seed: int) -> tuple[Labelled, ...]:
    """Rows by a hash of seed and key: a shuffle that does not depend on the order they came in."""
    return tuple(sorted(rows, key=lambda row: hashlib.sha256(f"{seed} {row.key}".encode()).digest()))


def num_held_out(num_rows: int, share: float, num_left: int) -> int:
    """`share` of the rows, at least one, but never so many that fewer than `num_left` are left."""
    if share == 0:
        return 0
    return max(0, min(max(1, round(share * num_rows)), num_rows - num_left))
