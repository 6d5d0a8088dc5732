"""Labels, cleaning and splitting: every row is accounted for, and no text crosses from train to test."""

from __future__ import annotations

import dataclasses
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.corpus.labels import label_table, shorten
from luthier.corpus.prepare import Prepared, data_hash, fold_text, half_right_interval, prepare, row_key
from luthier.corpus.split import num_held_out, split_rows
from luthier.errors import DataError
from luthier.recipe import Data, Task
from luthier.records import Labelled, Source

TASK = Task(labels=["SPORTS", "MEDIA_AND_ENTERTAINMENT"], aliases={"football": "SPORTS"})
Row = tuple[str, str]
MEND = "Fix the row, or add the label or an alias."


def count_words(texts: list[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def rows_of(
    num_rows: int, labels: Sequence[str] = ("SPORTS", "MEDIA_AND_ENTERTAINMENT"), word: str = "story"
) -> list[Row]:
    return [(f"{word} number {index}", labels[index % len(labels)]) for index in range(num_rows)]


def write(path: Path, rows: Sequence[Row]) -> str:
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return str(path)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Prepared]:
    """`prepare` on rows written to train.jsonl and test.jsonl."""

    def prepare_rows(
        train: Sequence[Row],
        test: Sequence[Row] | None = None,
        task: Task = TASK,
        seed: int = 0,
        **settings: object,
    ) -> Prepared:
        paths = {"train": write(tmp_path / "train.jsonl", train)}
        if test is not None:
            paths["test"] = write(tmp_path / "test.jsonl", test)
        return prepare(task, Data(**paths, **settings), seed, count_words)  # type: ignore[arg-type]

    return prepare_rows


def refusal(run: Callable[..., Prepared], *arguments: object, **settings: object) -> str:
    with pytest.raises(DataError) as caught:
        run(*arguments, **settings)
    return str(caught.value)


def details(prepared: Prepared, split: str) -> list[tuple[int, str, str]]:
    return [(row.source.line, row.reason, row.detail) for row in prepared.ledger.dropped if row.split == split]


def texts(rows: Sequence[Labelled]) -> list[str]:
    return [row.text for row in rows]


# --- labels --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spelling", "label"),
    [
        ("MEDIA_AND_ENTERTAINMENT", "MEDIA_AND_ENTERTAINMENT"),
        ("MEDIA AND ENTERTAINMENT", "MEDIA_AND_ENTERTAINMENT"),
        ("Media & Entertainment", "MEDIA_AND_ENTERTAINMENT"),
        (" media&entertainment ", "MEDIA_AND_ENTERTAINMENT"),
        ("FootBall", "SPORTS"),
        ("SPORT", None),
        ("", None),
    ],
)
def test_spellings_of_a_label_resolve_to_one(spelling: str, label: str | None) -> None:
    assert label_table(TASK).resolve(spelling) == label


def test_a_label_wins_over_an_alias_spelled_like_it() -> None:
    task = Task(labels=["ARTS", "NEWS"], aliases={"arts": "NEWS"})
    assert label_table(task).resolve("Arts") == "ARTS"


@pytest.mark.parametrize(
    ("label", "reason", "detail"),
    [
        (
            "SPORT",
            "unknown_label",
            f'label "SPORT" is not in task.labels. Did you mean "SPORTS"? {MEND}',
        ),
        (
            "footbal",
            "unknown_label",
            f'label "footbal" is not in task.labels. Did you mean "SPORTS"? {MEND}',
        ),
        (
            "weather " * 20,
            "unknown_label",
            f'label "{("weather " * 20)[:59]}…" is not in task.labels. {MEND}',
        ),
        (" ", "empty_label", "the label is empty. Label the row, or remove it."),
    ],
)
def test_an_unknown_label_is_explained(label: str, reason: str, detail: str) -> None:
    problem = label_table(TASK).problem(label)
    assert problem is not None
    assert (problem.reason, problem.detail) == (reason, detail)
    assert label_table(TASK).problem("Sports") is None


def test_shorten_makes_one_line() -> None:
    assert shorten(" a\n b ", 3) == "a b"
    assert shorten("abcd", 3) == "ab…"


# --- reasons -------------------------------------------------------------------------------------------


def test_every_row_level_reason_is_counted_with_its_place(run: Callable[..., Prepared]) -> None:
    bad = [("  \n", "SPORTS"), ("a match", "SPORT"), ("a film", " "), ("word " * 20, "SPORTS")]
    prepared = run(bad + rows_of(20), max_tokens=8)
    assert details(prepared, "train") == [
        (1, "empty_text", "the text is empty. Write one, or remove the row."),
        (2, "unknown_label", f'label "SPORT" is not in task.labels. Did you mean "SPORTS"? {MEND}'),
        (3, "empty_label", "the label is empty. Label the row, or remove it."),
        (4, "over_long", "20 tokens; data.max_tokens allows 8."),
    ]
    assert str(prepared.ledger.dropped[1].source) == "train.jsonl line 2"
    assert prepared.ledger.dropped[1].text == "a match"
    assert len(run([("word " * 300, "SPORTS"), *rows_of(20)], max_tokens=8).ledger.dropped[0].text) == 500
    assert sum(prepared.ledger.rows_in.values()) == 24


def test_max_tokens_is_the_last_length_allowed(run: Callable[..., Prepared]) -> None:
    eight = ("one two three four five six seven eight", "SPORTS")
    nine = (eight[0] + " nine", "SPORTS")
    prepared = run([eight, nine, *rows_of(20)], max_tokens=8)
    assert details(prepared, "train") == [(2, "over_long", "9 tokens; data.max_tokens allows 8.")]


def test_problems_of_the_reader_reach_the_ledger(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "train.jsonl", rows_of(20)))
    path.write_text(path.read_text() + '{"text": "broken\n{"text": 4, "label": "SPORTS"}\n{"text": "no label"}\n')
    prepared = prepare(TASK, Data(train=str(path)), 0, count_words)
    assert prepared.ledger.reasons("train") == {"broken_json": 1, "wrong_type": 1, "missing_field": 1}


def test_copies_are_found_through_case_punctuation_and_space(run: Callable[..., Prepared]) -> None:
    copies = [(" A cup,  final!\n", "SPORTS"), ("a CUP final", "Football"), ("“A cup final”", "sports")]
    prepared = run(copies + rows_of(20))
    kept = [row for row in prepared.train + prepared.validation + prepared.test if "cup" in row.text.lower()]
    assert texts(kept) == ["A cup,  final!"]
    assert details(prepared, "train") == [
        (2, "duplicate", "the same text and label as line 1."),
        (3, "duplicate", "the same text and label as line 1."),
    ]


def test_copies_that_disagree_are_all_dropped_in_train_and_in_test(run: Callable[..., Prepared]) -> None:
    clash = [("cup final", "SPORTS"), ("Cup final.", "MEDIA & ENTERTAINMENT"), ("CUP FINAL", "SPORTS")]
    prepared = run(clash + rows_of(20), rows_of(20, word="test") + clash)
    found = '"MEDIA_AND_ENTERTAINMENT" (line {}) and "SPORTS" (line {})'
    text = "the same text has the labels {}. Keep the right one."
    in_train, in_test = text.format(found.format(2, 1)), text.format(found.format(22, 21))
    assert details(prepared, "train") == [(line, "conflicting_labels", in_train) for line in (1, 2, 3)]
    assert details(prepared, "test") == [(line, "conflicting_labels", in_test) for line in (21, 22, 23)]
    assert len(prepared.test) == 20


def test_training_rows_that_stand_in_the_test_are_removed(run: Callable[..., Prepared]) -> None:
    leaks = [("TEST number 0!", "SPORTS"), ("test: number 1", "SPORTS")]
    prepared = run(rows_of(20) + leaks, rows_of(40, word="test"))
    assert len(prepared.test) == 40
    other = '(there labelled "MEDIA_AND_ENTERTAINMENT")'
    assert details(prepared, "train") == [
        (21, "leaks_into_test", "the same text as test row test.jsonl line 1."),
        (22, "leaks_into_test", f"the same text as test row test.jsonl line 2 {other}."),
    ]
    note = "train.jsonl: 2 training rows stand in the test file too, removed from training; first: train.jsonl line 21."
    assert prepared.ledger.notes[0] == note


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("Don't  STOP", "don’t stop", True),
        ("Stra\u00dfe", "STRASSE", True),
        ("cafe\u0301", "caf\u00e9", True),
        ("soft\u00adly", "softly", True),
        ("snake_case", "snake case", True),
        ("👍", "👎", False),
        (":)", ":(", False),
        ("a < b", "a > b", False),
        ("\u0915\u093f", "\u0915\u0940", False),  # Devanagari ki, kī: they differ in a vowel sign only
    ],
)
def test_what_counts_as_the_same_text(left: str, right: str, same: bool) -> None:
    assert (fold_text(left) == fold_text(right)) is same
    assert (row_key(left, "A") == row_key(right, "A")) is same
    assert row_key(left, "A") != row_key(left, "B")


# --- refusals ------------------------------------------------------------------------------------------


def test_a_file_without_a_known_label(run: Callable[..., Prepared]) -> None:
    labels = ["SPORT"] * 4 + ["zoo"] * 2 + ["weather"] * 2 + ["art", " "]
    text = refusal(run, [(f"row {index}", label) for index, label in enumerate(labels)])
    assert text.endswith(
        "train.jsonl: none of its 9 labels is in task.labels. Commonest: "
        '"SPORT" (4 rows; did you mean "SPORTS"?), "weather" (2 rows), "zoo" (2 rows). '
        'Is data.label ("label") the right column? Else mend task.labels or add task.aliases.'
        "\nAll labels of the file, for task.labels: [SPORT, art, weather, zoo]"
    )


def test_too_many_rows_dropped(run: Callable[..., Prepared]) -> None:
    bad = [("", "SPORTS")] * 2 + [(f"match {index}", "SPORT") for index in range(9)]
    text = refusal(run, bad + rows_of(10))
    head, *reasons, advice, labels = text.splitlines()
    assert head.endswith("train.jsonl: 11 of 21 rows (52%) were dropped; data.max_dropped_share allows 50%.")
    assert reasons == [
        '  - unknown_label: 9; first: train.jsonl line 3: label "SPORT" is not in task.labels. '
        f'Did you mean "SPORTS"? {MEND}',
        "  - empty_text: 2; first: train.jsonl line 1: the text is empty. Write one, or remove the row.",
    ]
    assert advice == "Mend the rows, or raise data.max_dropped_share."
    assert labels.startswith("All labels of the file, for task.labels: [")
    assert len(run(bad + rows_of(10), max_dropped_share=0.6).ledger.dropped) == 11


def test_too_many_rows_dropped_from_the_test_and_by_leaking(run: Callable[..., Prepared]) -> None:
    rows = rows_of(20)
    assert "test.jsonl: 3 of 5 rows (60%)" in refusal(run, rows, [("", "SPORTS")] * 3 + rows_of(2, word="test"))
    assert "  - leaks_into_test: 20; first: train.jsonl line 1: " in refusal(run, rows, rows)


def test_exactly_the_allowed_share_may_be_dropped(run: Callable[..., Prepared]) -> None:
    assert len(run([("", "SPORTS")] * 10 + rows_of(10)).ledger.dropped) == 10


def test_one_file_for_train_and_test(tmp_path: Path) -> None:
    path = write(tmp_path / "all.jsonl", rows_of(20))
    other = str(tmp_path / "x" / ".." / "all.jsonl")
    (tmp_path / "x").mkdir()
    with pytest.raises(DataError) as caught:
        prepare(TASK, Data(train=path, test=other), 0, count_words)
    assert str(caught.value) == (
        f"data.test is the same file as data.train ({path}). Name another file, or remove data.test: then "
        "data.test_share of the rows is held out."
    )


def test_a_label_without_training_rows(run: Callable[..., Prepared]) -> None:
    rows = rows_of(20, ["SPORTS"])
    text = refusal(run, rows)
    assert text.endswith(
        'train.jsonl: no training row has the label "MEDIA_AND_ENTERTAINMENT". Add such rows, or remove '
        "it from task.labels."
    )
    text = refusal(run, [*rows, ("word " * 20, "MEDIA & ENTERTAINMENT")], max_tokens=8)
    assert "from task.labels.\nRows that were dropped:\n  - over_long: 1; first: " in text
    text = refusal(run, [*rows, *(("word", "MEDIA & ENTERTAINMNT") for _ in range(2))], max_dropped_share=0.9)
    assert 'did you mean "MEDIA_AND_ENTERTAINMENT"?' in text.casefold().replace(
        "media_and_entertainment", "MEDIA_AND_ENTERTAINMENT"
    )
    task = Task(labels=["SPORTS", "ARTS", "NEWS"])
    assert 'no training row has the labels "ARTS", "NEWS". Add such rows, or remove them' in refusal(
        run, rows, task=task
    )


def test_no_row_for_validation_or_test(run: Callable[..., Prepared]) -> None:
    assert refusal(run, rows_of(2), rows_of(4, word="test")).endswith(
        "train.jsonl: one row a label leaves none for validation. Add rows."
    )
    advice = "no row is left for the test. Add rows (where data.test is not set: three of some label at least)."
    assert refusal(run, rows_of(4)).endswith("train.jsonl: " + advice)
    only_bad = [("", "SPORTS")] * 3
    assert refusal(run, rows_of(8), only_bad, max_dropped_share=1.0).endswith("test.jsonl: " + advice)


# --- notes ---------------------------------------------------------------------------------------------


def test_the_notes_say_what_was_set_aside(run: Callable[..., Prepared]) -> None:
    assert run(rows_of(200)).ledger.notes == ["Set aside from train.jsonl: 20 for validation, 40 for the test."]
    with_test = run(rows_of(100), rows_of(30, word="test"))
    assert with_test.ledger.notes == ["Set aside from train.jsonl: 12 for validation."]


def test_few_test_rows_are_told_with_the_interval_they_give(run: Callable[..., Prepared]) -> None:
    prepared = run(rows_of(100), rows_of(20, word="test"))
    assert prepared.ledger.notes[-1] == (
        "Only 20 test rows: with half of the answers right, the 95 % interval would run from 30% to 70%. Add test rows."
    )


def test_the_interval_is_wilsons() -> None:
    # Wilson 1927 for 10 of 20: centre 1/2, half width 1.96 / (1 + 3.8416/20) * sqrt(0.25/20 + 3.8416/1600)
    low, high = half_right_interval(20)
    assert low == pytest.approx(0.299298, abs=1e-5)
    assert high == pytest.approx(0.700702, abs=1e-5)


def test_labels_missing_in_a_part_are_told(run: Callable[..., Prepared]) -> None:
    train = [*rows_of(40, ["SPORTS"]), ("a film", "MEDIA_AND_ENTERTAINMENT")]
    prepared = run(train, rows_of(30, ["SPORTS"], word="test"))
    assert prepared.ledger.notes[1:] == [
        'No validation row has the label "MEDIA_AND_ENTERTAINMENT": the validation says nothing about it.',
        'No test row has the label "MEDIA_AND_ENTERTAINMENT": the test says nothing about it.',
    ]


def test_recoded_lines_are_told(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    lines = [f"caf\u00e9 {index}|{'SPORTS' if index % 2 else 'media & entertainment'}\n" for index in range(20)]
    path.write_bytes(
        "".join(lines[:11]).encode() + "".join(lines[11:14]).encode("cp1252") + "".join(lines[14:]).encode()
    )
    prepared = prepare(TASK, Data(train=str(path)), 0, count_words)
    assert prepared.ledger.notes[0] == "train.txt: mixed encodings: 3 lines were Windows-1252, first at line 12."
    assert not prepared.ledger.dropped


# --- splitting -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_rows", "share", "num_left", "expected"),
    [
        (100, 0.12, 1, 12),
        (2, 0.12, 1, 1),
        (1, 0.12, 1, 0),
        (2, 0.9, 1, 1),
        (3, 0.2, 2, 1),
        (2, 0.2, 2, 0),
        (9, 0.0, 1, 0),
        (9, 0.05, 1, 1),
    ],
)
def test_how_many_rows_are_held_out(num_rows: int, share: float, num_left: int, expected: int) -> None:
    assert num_held_out(num_rows, share, num_left) == expected


def labelled(num_rows: int, label: str) -> list[Labelled]:
    return [Labelled(f"{label} {n}", label, Source("f", n), row_key(f"{label} {n}", label)) for n in range(num_rows)]


def test_the_split_is_stratified_and_small_labels_keep_a_training_and_a_validation_row() -> None:
    rows = labelled(100, "A") + labelled(50, "B") + labelled(3, "C") + labelled(2, "D") + labelled(1, "E")
    split = split_rows(rows, 0, validation_share=0.25, test_share=0.2)
    assert Counter(row.label for row in split.test) == {"A": 20, "B": 10, "C": 1}
    assert Counter(row.label for row in split.validation) == {"A": 20, "B": 10, "C": 1, "D": 1}
    assert Counter(row.label for row in split.train) == {"A": 60, "B": 30, "C": 1, "D": 1, "E": 1}


def test_the_split_follows_the_seed_and_not_the_order_of_the_file(run: Callable[..., Prepared]) -> None:
    copies = [
        ("Story number 3.", "sports"),
        ("story, number 3", "MEDIA & entertainment"),
        ("STORY NUMBER 5", "football"),
    ]
    rows = [*rows_of(60), ("Story number 8.", "MEDIA_AND_ENTERTAINMENT"), *copies]
    first = run(rows)
    rows.reverse()
    shuffled, other = run(rows), run(rows, seed=1)
    for part in ("train", "validation", "test"):
        assert texts(getattr(first, part)) == texts(getattr(shuffled, part))
        assert set(texts(getattr(first, part))) != set(texts(getattr(other, part)))
    assert data_hash(first) == data_hash(shuffled) != data_hash(other)


def test_rows_are_mixed_although_the_file_is_sorted_by_label(run: Callable[..., Prepared]) -> None:
    prepared = run(sorted(rows_of(200), key=lambda row: row[1]))
    for rows in (prepared.train, prepared.test):
        changes = sum(left.label != right.label for left, right in pairwise(rows))
        assert changes > len(rows) / 4


def test_a_new_row_moves_few_others(run: Callable[..., Prepared]) -> None:
    before, after = run(rows_of(200)), run([*rows_of(200), ("one more", "SPORTS")])
    assert len(set(texts(before.test)) ^ set(texts(after.test))) <= 2


def test_the_test_rows_are_one_frozen_tuple(run: Callable[..., Prepared]) -> None:
    prepared = run(rows_of(60))
    assert isinstance(prepared.test, tuple)
    with pytest.raises(dataclasses.FrozenInstanceError):
        prepared.test = ()  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        prepared.test[0].label = "SPORTS"  # type: ignore[misc]


def test_the_data_hash_follows_text_label_and_order_only(run: Callable[..., Prepared], tmp_path: Path) -> None:
    rows = rows_of(60)
    prepared = run(rows)
    first = data_hash(prepared)
    moved = prepare(TASK, Data(train=write(tmp_path / "renamed.jsonl", rows)), 0, count_words)
    assert data_hash(moved) == first
    train = prepared.train
    relabelled = dataclasses.replace(train[0], label="X")
    for changed in ((relabelled, *train[1:]), train[::-1], train[1:]):
        assert data_hash(dataclasses.replace(prepared, train=changed)) != first


# --- all together --------------------------------------------------------------------------------------

some_text = st.sampled_from(["", " ", "a cup", "A cup!", "a film", "a  FILM", "the news", "x " * 20, "👍"]) | st.text(
    max_size=6
)
some_label = st.sampled_from(
    ["SPORTS", "sports", "Media & Entertainment", "MEDIA AND ENTERTAINMENT", "SPORT", "", "football"]
)
some_rows = st.lists(st.tuples(some_text.filter(lambda text: text.isprintable()), some_label), max_size=30)


@settings(max_examples=150, deadline=None)
@given(
    train=some_rows,
    test=st.none() | some_rows,
    seed=st.integers(0, 5),
    shuffle=st.randoms(use_true_random=False),
)
def test_the_ledger_adds_up_and_no_text_stands_in_two_parts(
    tmp_path_factory: pytest.TempPathFactory,
    train: list[Row],
    test: list[Row] | None,
    seed: int,
    shuffle: random.Random,
) -> None:
    folder = tmp_path_factory.mktemp("all")
    train = train + rows_of(8)
    paths = {"train": write(folder / "train.jsonl", train)}
    if test is not None:
        test = test + rows_of(6, word="held out")
        paths["test"] = write(folder / "test.jsonl", test)
    data = Data(**paths, max_tokens=12, max_dropped_share=1.0)  # type: ignore[arg-type]
    prepared = prepare(TASK, data, seed, count_words)

    ledger = prepared.ledger
    ledger.check()
    assert sum(ledger.rows_in.values()) == len(train) + len(test or [])
    parts = {"train": prepared.train, "validation": prepared.validation, "test": prepared.test}
    assert ledger.kept == {name: len(rows) for name, rows in parts.items()}
    folded = [fold_text(row.text) for rows in parts.values() for row in rows]
    assert len(set(folded)) == len(folded)
    assert {row.label for row in prepared.train} == set(TASK.labels) == {row.label for row in prepared.validation}
    assert all(len(row.text.split()) <= 12 and row.text for rows in parts.values() for row in rows)
    places = [(row.source.file, row.source.line) for rows in parts.values() for row in rows]
    places += [(row.source.file, row.source.line) for row in ledger.dropped]
    assert len(set(places)) == len(places)

    shuffle.shuffle(train)
    write(folder / "train.jsonl", train)
    assert data_hash(prepare(TASK, data, seed, count_words)) == data_hash(prepared)
