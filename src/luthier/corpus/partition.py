"""Which rows of any kind are held out: whole groups, each label's share, by seed or by time, with test rows frozen.

Rows that belong together (one group, or one key: exact duplicates) form a unit, and a unit goes to one part. Units
are ordered by a hash of seed and content, so that the order of the rows does not matter. Axis letters here: N rows,
U units.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from luthier.corpus.duplicates.words import mix
from luthier.errors import DataError
from luthier.files import write_text
from luthier.recipe.corpus import Splitting

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

TRAIN, VALIDATION, TEST, ASIDE = range(4)
KEY_DIGITS = 32
KEY_LINE = re.compile(rf"[0-9a-f]{{{KEY_DIGITS}}}")


@dataclass(frozen=True)
class RowColumns:
    """What decides where a row goes, as 64-bit hashes; 0 stands for no label and for no group.

    `keys_N2` is the content hash. `dates_N` counts seconds; `no_date` stands for none.
    """

    keys_N2: U64
    labels_N: U64
    groups_N: U64
    dates_N: I64
    no_date: int = int(np.iinfo(np.int64).min)

    def __len__(self) -> int:
        return len(self.keys_N2)


@dataclass(frozen=True)
class Frozen:
    """The keys of the test rows of earlier runs."""

    keys: frozenset[tuple[int, int]]

    def holds(self, keys_N2: U64) -> npt.NDArray[np.bool_]:
        """Which rows are among them."""
        return np.fromiter((tuple(key) in self.keys for key in keys_N2.tolist()), bool, len(keys_N2))


@dataclass(frozen=True)
class Units:
    """Units in the order in which they are held out. `unit_N`: each row's unit; `size_U`: rows of a unit."""

    unit_N: I64
    size_U: I64
    stratum_U: I64


def partition(rows: RowColumns, settings: Splitting, seed: int, frozen: Frozen | None = None) -> npt.NDArray[np.int8]:
    """The part of each row: TRAIN, VALIDATION, TEST or ASIDE.

    Shares are of all rows, met within the size of one unit. With `stratify` each label gives its share (a unit of
    several labels counts as its most frequent one), and keeps at least one unit in train. By time the newest units
    are test and the next newest validation, labels aside; a unit is as new as its newest row.

    `frozen` rows are test and no others are, whatever the share. Other rows of their units can go nowhere: in test
    they would change it, in train they would leak. They are set ASIDE.

    Raises:
        DataError: the shares leave nothing to train on, or dates are missing.
    """
    if settings.validation_share + settings.test_share >= 1:
        raise DataError(
            f"split: validation_share {settings.validation_share:g} and test_share {settings.test_share:g} leave "
            "nothing to train on. Make them smaller."
        )
    if not len(rows):
        return np.zeros(0, np.int8)
    units = find_units(rows, settings, seed)
    part_U = np.zeros(len(units.size_U), np.int8)
    if frozen is None:
        hold_out(part_U, units, TEST, settings.test_share)
        hold_out(part_U, units, VALIDATION, settings.validation_share)
        return part_U[units.unit_N]
    frozen_N = frozen.holds(rows.keys_N2)
    part_U[units.unit_N[frozen_N]] = ASIDE
    hold_out(part_U, units, VALIDATION, settings.validation_share)
    return np.where(frozen_N, np.int8(TEST), part_U[units.unit_N])


# --- units ---------------------------------------------------------------------------------------------


def find_units(rows: RowColumns, settings: Splitting, seed: int) -> Units:
    """The units in their order, each with its stratum."""
    unit_N = joined(numbered(rows.keys_N2), rows.groups_N)
    order_U = np.lexsort(anchors(rows, unit_N, seed))
    num_units = len(order_U)
    stratum_U = np.zeros(num_units, np.int64)
    if settings.by == "time":
        order_U = order_U[np.argsort(-newest(rows, unit_N)[order_U], kind="stable")]
    elif settings.stratify:
        stratum_U = majority(numbered(rows.labels_N), unit_N)
    rank_U = np.empty(num_units, np.int64)
    rank_U[order_U] = np.arange(num_units)
    return Units(rank_U[unit_N], np.bincount(unit_N)[order_U], stratum_U[order_U])


def numbered(values: U64) -> I64:
    """The same number, from 0, for equal values (or equal rows of values)."""
    columns = values.reshape(len(values), -1)
    order = np.lexsort(columns.T)
    sorted_values = columns[order]
    changes = (sorted_values[1:] != sorted_values[:-1]).any(axis=1)
    numbers = np.zeros(len(values), np.int64)
    numbers[order[1:]] = np.cumsum(changes)
    return numbers


def joined(key_N: I64, groups_N: U64) -> I64:
    """The unit of each row: rows that are linked by key or group, over any number of links."""
    grouped_N = groups_N != 0
    if not grouped_N.any():
        return key_N
    num_keys = int(key_N.max()) + 1
    group = num_keys + numbered(groups_N[grouped_N])
    num_nodes = int(group.max()) + 1
    links = coo_array((np.ones(len(group), np.int8), (key_N[grouped_N], group)), shape=(num_nodes, num_nodes))
    _, component = connected_components(links, directed=False)
    return numbered(component[key_N].astype(np.uint64))


def anchors(rows: RowColumns, unit_N: I64, seed: int) -> tuple[U64, U64]:
    """Two hashes of seed and content for each unit, the second the more important one.

    A unit with a group goes by the group, so that more rows of it do not move it.
    """
    salt = np.uint64(int.from_bytes(hashlib.sha256(f"split {seed}".encode()).digest()[:8]))
    name_N = np.where(rows.groups_N != 0, rows.groups_N, rows.keys_N2[:, 0])
    return least(mix(rows.keys_N2[:, 1] ^ salt), unit_N), least(mix(name_N ^ salt), unit_N)


def least(values_N: U64, unit_N: I64) -> U64:
    """The smallest value of each unit."""
    values_U = np.full(int(unit_N.max()) + 1, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(values_U, unit_N, values_N)
    return values_U


def newest(rows: RowColumns, unit_N: I64) -> I64:
    """The newest date of each unit."""
    missing = int((rows.dates_N == rows.no_date).sum())
    if missing:
        raise DataError(
            f"split.by: time needs the date of every row, and {missing:,} of {len(rows):,} rows have none, or one "
            "that is not ISO 8601. Set inputs.date to the column that holds it, or split by seed."
        )
    dates_U = np.full(int(unit_N.max()) + 1, np.iinfo(np.int64).min + 1, np.int64)
    np.maximum.at(dates_U, unit_N, rows.dates_N)
    return dates_U


def majority(label_N: I64, unit_N: I64) -> I64:
    """The most frequent label of each unit; of equally frequent ones the first."""
    num_labels = int(label_N.max()) + 1
    pairs, counts = np.unique(unit_N * num_labels + label_N, return_counts=True)
    unit, label = np.divmod(pairs, num_labels)
    order = np.lexsort((label, -counts, unit))
    first = order[np.diff(unit[order], prepend=-1) > 0]
    return label[first]


# --- shares --------------------------------------------------------------------------------------------


def hold_out(part_U: npt.NDArray[np.int8], units: Units, part: int, share: float) -> None:
    """Give `part` to the first units of each stratum that are still in train, until its share is met (in place).

    What one stratum takes too much or too little the next ones make up for, the largest stratum last. The last unit
    of a stratum stays in train.
    """
    if share == 0:
        return
    rows_of_stratum = np.bincount(units.stratum_U, units.size_U)
    by_stratum = np.argsort(units.stratum_U, kind="stable")
    starts = np.searchsorted(units.stratum_U[by_stratum], np.arange(len(rows_of_stratum) + 1))
    carried = 0.0
    for stratum in np.argsort(rows_of_stratum, kind="stable").tolist():
        members = by_stratum[starts[stratum] : starts[stratum + 1]]
        free = members[part_U[members] == TRAIN][:-1]
        wanted = carried + share * rows_of_stratum[stratum]
        taken = np.concatenate([[0], np.cumsum(units.size_U[free])])
        num_units = int(np.abs(taken - wanted).argmin())
        part_U[free[:num_units]] = part
        carried = wanted - float(taken[num_units])


# --- frozen test rows ----------------------------------------------------------------------------------


def write_frozen(path: Path, keys_N2: U64) -> None:
    """Write the keys of the test rows, sorted, one a line."""
    write_text(path, "".join(f"{line}\n" for line in sorted(key_lines(keys_N2))))


def key_lines(keys_N2: U64) -> Iterable[str]:
    """Keys as hexadecimal digits."""
    return {f"{first:016x}{second:016x}" for first, second in keys_N2.tolist()}


def read_frozen(path: Path) -> Frozen:
    """The keys `write_frozen` wrote.

    Raises:
        DataError: the file cannot be read, or a line is no key.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the frozen test rows cannot be read: {error}.") from None
    keys: set[tuple[int, int]] = set()
    for number, line in enumerate(lines, start=1):
        if not KEY_LINE.fullmatch(line.strip()):
            raise DataError(
                f"{path} line {number}: {line.strip()[:40]!r} is no key of a test row ({KEY_DIGITS} hexadecimal "
                "digits). Restore the file, or delete it to draw new test rows."
            )
        keys.add((int(line.strip()[:16], 16), int(line.strip()[16:], 16)))
    return Frozen(frozenset(keys))
