"""The split of rows of any kind: whole units, shares, strata, time, frozen rows, whatever the order of the rows."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.corpus.partition import (
    ASIDE,
    TEST,
    TRAIN,
    VALIDATION,
    Frozen,
    RowColumns,
    partition,
    read_frozen,
    write_frozen,
)
from luthier.errors import DataError
from luthier.recipe.corpus import Splitting


class Row(NamedTuple):
    key: str
    label: str = ""
    group: str = ""
    date: int | None = 0


NO_DATE = np.iinfo(np.int64).min


def hashed(text: str) -> tuple[int, int]:
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8]), int.from_bytes(digest[8:16])


def short(text: str) -> int:
    return hashed(text)[0] if text else 0


def columns(rows: list[Row]) -> RowColumns:
    return RowColumns(
        np.array([hashed(row.key) for row in rows], np.uint64).reshape(-1, 2),
        np.array([short(row.label) for row in rows], np.uint64),
        np.array([short(row.group) for row in rows], np.uint64),
        np.array([NO_DATE if row.date is None else row.date for row in rows], np.int64),
    )


def split(
    rows: list[Row], test: float = 0.2, validation: float = 0.1, seed: int = 0, frozen: Frozen | None = None, **settings
) -> list[int]:
    return partition(
        columns(rows), Splitting(test_share=test, validation_share=validation, **settings), seed, frozen
    ).tolist()


def frozen_rows(keys: list[str]) -> Frozen:
    return Frozen(frozenset(hashed(key) for key in keys))


ROWS = st.lists(
    st.builds(
        Row,
        st.sampled_from([f"key {number}" for number in range(40)]),
        st.sampled_from(["", "A", "B", "C"]),
        st.sampled_from(["", *(f"author {number}" for number in range(12))]),
        st.integers(0, 5),
    ),
    max_size=80,
)
SETTINGS = st.builds(
    Splitting,
    test_share=st.sampled_from([0.0, 0.1, 0.3]),
    validation_share=st.sampled_from([0.0, 0.2]),
    stratify=st.booleans(),
    by=st.sampled_from(["seed", "time"]),
)


def largest_unit(rows: list[Row]) -> int:
    """By hand: rows are joined to the units they share a key or a group with, one row at a time."""
    units: list[tuple[set[str], int]] = []
    for row in rows:
        names, size = {f"k{row.key}", f"g{row.group}"} - {"g"}, 1
        for unit in [unit for unit in units if unit[0] & names]:
            units.remove(unit)
            names, size = names | unit[0], size + unit[1]
        units.append((names, size))
    return max((size for _, size in units), default=0)


@given(ROWS, SETTINGS, st.integers(0, 3))
def test_no_group_and_no_key_stands_on_two_sides(rows, settings, seed):
    parts = partition(columns(rows), settings, seed).tolist()
    for name in ("key", "group"):
        sides: dict[str, set[int]] = {}
        for row, part in zip(rows, parts, strict=True):
            sides.setdefault(getattr(row, name), set()).add(part)
        sides.pop("", None)
        assert all(len(found) == 1 for found in sides.values())


@given(ROWS, SETTINGS, st.integers(0, 3), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(rows, settings, seed, random):
    shuffled = random.sample(range(len(rows)), len(rows))
    parts = partition(columns(rows), settings, seed).tolist()
    assert partition(columns([rows[place] for place in shuffled]), settings, seed).tolist() == [
        parts[place] for place in shuffled
    ]


@given(ROWS, SETTINGS, st.integers(0, 3))
def test_shares_are_met_within_one_unit_unless_train_would_lose_a_label(rows, settings, seed):
    parts = Counter(partition(columns(rows), settings.model_copy(update={"stratify": False}), seed).tolist())
    most = largest_unit(rows)
    assert abs(parts[TEST] - settings.test_share * len(rows)) <= most
    assert abs(parts[VALIDATION] - settings.validation_share * len(rows)) <= most
    assert parts[TRAIN] > 0 or not rows


def test_shares_of_single_rows_are_exact_and_so_are_those_of_each_label():
    rows = [Row(f"row {number}", "ABCC"[number % 4]) for number in range(1000)]
    parts = split(rows)
    assert Counter(parts) == {TEST: 200, VALIDATION: 100, TRAIN: 700}
    by_label = Counter((row.label, part) for row, part in zip(rows, parts, strict=True))
    assert (by_label["A", TEST], by_label["B", TEST], by_label["C", TEST]) == (50, 50, 100)
    assert (by_label["A", VALIDATION], by_label["B", VALIDATION], by_label["C", VALIDATION]) == (25, 25, 50)
    assert Counter(split(rows, stratify=False)) == Counter(parts)


def test_groups_and_labels_together():
    """200 authors of 5 rows of one label each: every label gives its share, to within an author."""
    rows = [Row(f"row {number}", "AB"[number // 5 % 2], f"author {number // 5}") for number in range(1000)]
    parts = split(rows)
    by_label = Counter((row.label, part) for row, part in zip(rows, parts, strict=True))
    assert Counter(parts) == {TEST: 200, VALIDATION: 100, TRAIN: 700}
    assert by_label["A", TEST] == by_label["B", TEST] == 100


def test_a_unit_of_several_labels_counts_as_its_most_frequent_one():
    """100 authors, each with one row of noise beside four of one label: both labels give 10 of their 50 authors."""
    rows = [
        Row(f"row {number}", "noise" if number % 5 == 0 else "AB"[number // 5 % 2], f"author {number // 5}")
        for number in range(500)
    ]
    for seed in range(5):
        parts = split(rows, validation=0.0, seed=seed)
        tested = Counter(row.label for row, part in zip(rows, parts, strict=True) if part == TEST)
        assert tested == {"A": 40, "B": 40, "noise": 20}


def test_a_rare_label_is_never_held_out_whole_and_others_make_up_for_it():
    rows = [Row(f"row {number}", "common") for number in range(90)] + [
        Row(f"rare {number}", f"label {number}") for number in range(10)
    ]
    parts = split(rows, test=0.2, validation=0.2)
    assert set(parts[90:]) == {TRAIN}
    assert Counter(parts) == {TEST: 20, VALIDATION: 20, TRAIN: 60}


def test_seeds_give_different_splits_and_shares_grow_by_adding():
    rows = [Row(f"row {number}") for number in range(200)]
    assert split(rows, seed=1) != split(rows, seed=2)
    small, large = (split(rows, test=share, validation=0.0) for share in (0.1, 0.3))
    assert all(wide == TEST for narrow, wide in zip(small, large, strict=True) if narrow == TEST)


def test_more_rows_of_a_group_do_not_move_it():
    rows = [Row(f"row {number}", group=f"author {number % 50}") for number in range(200)]
    before = split(rows, validation=0.0, stratify=False)
    more = [*rows, *(Row(f"new {number}", group=f"author {number}") for number in range(50))]
    assert split(more, validation=0.0, stratify=False)[:200] == before


def test_keys_link_groups():
    """a-b by a shared key, b-c by group: one unit of four rows."""
    rows = [
        Row("1", group="x"),
        Row("2", group="x"),
        Row("2", group="y"),
        Row("3", group="y"),
        *(Row(f"r{n}") for n in range(16)),
    ]
    for seed in range(20):
        assert len(set(split(rows, seed=seed)[:4])) == 1


def test_by_time_the_newest_are_test_and_the_next_validation():
    rows = [Row(f"row {day}", date=day) for day in range(10)]
    assert split(rows, by="time") == [TRAIN] * 7 + [VALIDATION] + [TEST] * 2
    grouped = [*rows, Row("late", group="g", date=11), Row("early", group="g", date=0)]
    parts = split(grouped, test=0.17, validation=0.0, by="time")
    assert parts[-2:] == [TEST, TEST]
    assert Counter(parts) == {TEST: 2, TRAIN: 10}


def test_rows_of_one_date_are_told_apart_by_content():
    rows = [Row(f"row {number}", date=7) for number in range(50)]
    assert Counter(split(rows, by="time")) == {TEST: 10, VALIDATION: 5, TRAIN: 35}


def test_a_split_by_time_needs_dates():
    with pytest.raises(DataError) as caught:
        split([Row("a", date=1), Row("b", date=None), Row("c", date=None)], by="time")
    assert str(caught.value) == (
        "split.by: time needs the date of every row, and 2 of 3 rows have none, or one that is not ISO 8601. "
        "Set inputs.date to the column that holds it, or split by seed."
    )


def test_shares_must_leave_something_to_train_on():
    with pytest.raises(DataError, match=r"validation_share 0.5 and test_share 0.5 leave nothing to train on"):
        split([Row("a")], test=0.5, validation=0.5)


@given(ROWS, SETTINGS, st.sets(st.sampled_from([f"key {number}" for number in range(50)])))
def test_frozen_rows_are_the_test_part_and_no_others(rows, settings, keys):
    parts = partition(columns(rows), settings, 0, frozen_rows(sorted(keys))).tolist()
    assert [part == TEST for part in parts] == [row.key in keys for row in rows]
    groups = {row.group for row in rows if row.key in keys} - {""}
    for row, part in zip(rows, parts, strict=True):
        if row.group in groups and row.key not in keys:
            assert part == ASIDE
    if not keys:
        assert ASIDE not in parts


def test_a_later_run_cannot_move_frozen_rows(tmp_path: Path):
    rows = [Row(f"row {number}", "AB"[number % 2], f"author {number % 40}") for number in range(200)]
    first = split(rows)
    chosen = columns(rows).keys_N2[np.array(first) == TEST]
    write_frozen(tmp_path / "test_rows.txt", chosen)
    frozen = read_frozen(tmp_path / "test_rows.txt")
    more = [*rows, *(Row(f"new {number}", "A", f"author {number}") for number in range(100))]
    later = split(more, test=0.5, seed=9, frozen=frozen)
    assert [part == TEST for part in later] == [part == TEST for part in first] + [False] * 100
    tested = {row.group for row, part in zip(rows, first, strict=True) if part == TEST}
    assert [row.group in tested for row in more[200:]] == [part == ASIDE for part in later[200:]]
    assert sum(part == VALIDATION for part in later) == pytest.approx(30, abs=8)


def test_the_file_of_frozen_rows(tmp_path: Path):
    path = tmp_path / "deep" / "test_rows.txt"
    write_frozen(path, np.array([[2**64 - 1, 1], [0, 10], [0, 10]], np.uint64))
    assert path.read_text() == f"{'0' * 31}a\n{'f' * 16}{'0' * 15}1\n"
    assert read_frozen(path) == Frozen(frozenset({(2**64 - 1, 1), (0, 10)}))
    path.write_text("0" * 32 + "\nabc\n")
    with pytest.raises(DataError) as caught:
        read_frozen(path)
    assert str(caught.value) == (
        f"{path} line 2: 'abc' is no key of a test row (32 hexadecimal digits). "
        "Restore the file, or delete it to draw new test rows."
    )
    with pytest.raises(DataError, match="the frozen test rows cannot be read"):
        read_frozen(tmp_path)


def test_no_rows():
    assert split([]) == []
