"""Mixtures: shares at every prefix, whole passes, one order for one seed."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.corpus.mixture import Mixture, mixed_order, mixture, plan_mixture, seeded_permutation, turns
from luthier.errors import DataError
from luthier.recipe.corpus import Mixing


def plan(
    sizes: dict[str, int], weights: dict[str, float], temperature: float, epochs: float, replay: float = 0
) -> Mixture:
    if not replay:
        return plan_mixture(sizes, weights, Mixing(temperature=temperature, epochs=epochs))
    settings = Mixing(temperature=temperature, epochs=epochs, replay="general.jsonl", replay_share=replay)
    return plan_mixture(sizes, weights, settings, "general")


TASKS = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 60), min_size=1)


def test_shares_follow_weights_and_temperature():
    """(weight * rows) ** (1 / T): 100 and 900 rows give 0.1 and 0.9, at T = 2 10/40 and 30/40; weight 9 evens out."""
    sizes = {"news": 100, "chat": 900}
    plain = plan(sizes, {}, 1.0, 1.0)
    assert (plain.share("news"), plain.share("chat")) == pytest.approx((0.1, 0.9))
    assert plain.num_rows == 1000
    assert plain.passes("news") == pytest.approx(1.0)
    flat = plan(sizes, {}, 2.0, 1.5)
    assert (flat.share("news"), flat.share("chat")) == pytest.approx((0.25, 0.75))
    assert flat.num_rows == 1500
    assert flat.passes("news") == pytest.approx(3.75)
    assert plan(sizes, {"news": 9.0}, 1.0, 1.0).share("news") == pytest.approx(0.5)
    assert plan(sizes, {}, 0.01, 1.0).share("chat") == pytest.approx(1.0)


def test_replay_takes_its_share_of_the_whole_and_the_rest_keeps_its_epochs():
    mixed = plan({"own": 300, "more": 100, "general": 7}, {}, 1.0, 2.0, replay=0.2)
    assert mixed.num_rows == 1000
    counts = Counter(task for task, _ in mixed_order(mixed, 0))
    assert counts == {"own": 600, "more": 200, "general": 200}


@given(TASKS, st.integers(0, 3))
def test_one_epoch_at_temperature_one_is_every_row_once(sizes, seed):
    mixed = plan(sizes, {}, 1.0, 1.0)
    order = list(mixed_order(mixed, seed))
    assert Counter(order) == Counter((task, index) for task, size in sizes.items() for index in range(size))


@given(TASKS, st.floats(0.2, 5), st.floats(0.1, 3))
def test_every_prefix_is_within_one_row_of_each_share(sizes, temperature, epochs):
    mixed = plan(sizes, {task: 0.3 + ord(task) % 3 for task in sizes}, temperature, epochs)
    counts: Counter[str] = Counter()
    for done, (task, _) in enumerate(mixed_order(mixed, 0), start=1):
        counts[task] += 1
        assert all(abs(counts[name] - mixed.share(name) * done) < 1 + 1e-9 for name in mixed.counts)
    assert counts.total() == mixed.num_rows


@given(TASKS, st.floats(1.0, 4.0))
def test_no_row_comes_again_before_all_others_came(sizes, epochs):
    seen: dict[str, list[int]] = {}
    for task, index in mixed_order(plan(sizes, {}, 2.0, epochs), 5):
        seen.setdefault(task, []).append(index)
    for task, indices in seen.items():
        for start in range(0, len(indices), sizes[task]):
            one_pass = indices[start : start + sizes[task]]
            assert len(set(one_pass)) == len(one_pass)
            assert set(one_pass) <= set(range(sizes[task]))


@given(TASKS, st.integers(0, 200))
def test_a_later_start_goes_on_with_the_same_rows(sizes, start):
    mixed = plan(sizes, {}, 1.5, 2.0)
    assert list(mixed_order(mixed, 3, start)) == list(mixed_order(mixed, 3))[start:]


def test_the_order_follows_from_the_seed_alone():
    sizes = {"a": 40, "b": 60}
    order = list(mixed_order(plan(sizes, {}, 1.0, 2.0), 1))
    assert order == list(mixed_order(plan(dict(reversed(sizes.items())), {}, 1.0, 2.0), 1))
    assert order != list(mixed_order(plan(sizes, {}, 1.0, 2.0), 2))
    first, second = ([index for task, index in part if task == "a"] for part in (order[:100], order[100:]))
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second


def test_the_order_is_the_same_on_every_machine():
    assert seeded_permutation(8, "0 0 news").tolist() == [6, 0, 3, 7, 4, 5, 1, 2]
    assert "".join(task for task, _ in turns({"a": 4, "b": 2, "c": 2})) == "abacabac"


def test_large_counts_come_out_exactly():
    """Thirds and sevenths of large numbers: no row is lost to rounding."""
    mixed = plan({"a": 100_003, "b": 300_007, "c": 700_001}, {}, 1.0, 1.0)
    assert mixed.counts == {"a": 100_003, "b": 300_007, "c": 700_001}
    assert plan({"a": 1, "b": 1, "c": 1}, {}, 1.0, 100 / 3).num_rows == 100


def test_a_small_share_is_spread_over_the_whole_order():
    mixed = plan({"small": 10, "big": 990}, {}, 1.0, 1.0)
    places = [place for place, (task, _) in enumerate(mixed_order(mixed, 0)) if task == "small"]
    assert [place // 100 for place in places] == list(range(10))


def test_mixture_is_plan_and_order_in_one():
    settings = Mixing(temperature=2.0, epochs=2.0)
    order = list(mixed_order(plan_mixture({"a": 4, "b": 9}, {"a": 2.0}, settings), 7))
    assert list(mixture({"a": 4, "b": 9}, {"a": 2.0}, settings, 7, start=5)) == order[5:]


def test_a_mixture_is_read_as_a_stream():
    mixed = plan({"a": 10, "b": 5}, {}, 1.0, 1e12)
    assert len(list(islice(mixed_order(mixed, 0), 5))) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({"news": 3}, {"new": 2.0}, 1.0, 1.0), 'mixing: a weight for the task "new", which has no input. Did you mean "news"?'),
        (({"news": 0}, {}, 1.0, 1.0), "mixing: no task has rows. Look at the ledger for what was dropped."),
        (({"news": 3}, {}, 1.0, 1.0, 0.1), 'mixing.replay: the task "general" has no rows. Check the file, or take replay out.'),
    ],
)  # fmt: skip
def test_wrong_mixtures_are_refused(arguments, message):
    with pytest.raises(DataError) as caught:
        plan(*arguments)
    assert str(caught.value) == message


def test_a_task_without_rows_has_no_share():
    mixed = plan({"news": 3, "gone": 0}, {"gone": 5.0}, 1.0, 1.0)
    assert [task for task, _ in mixed_order(mixed, 0)] == ["news"] * 3
