"""Figures on held-out rows: ratios of sums, resampled by group; checked against scipy and by simulation."""

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.metrics import f1_score

from luthier.evaluation import held_out
from luthier.evaluation.held_out import by_group, change, change_p, figure, ratio, resampled_ratios, score_rows
from luthier.evaluation.statistics import paired_difference
from luthier.methods.base import make_batch
from luthier.methods.documents import DocumentClm
from luthier.models import load_model
from luthier.prompts import Dialogue, Layout
from luthier.recipe import Lora
from luthier.recipe.methods import Clm
from luthier.records import Document, Source
from luthier.training.learner import new_learner

NAN = float("nan")


def drawn(seed: int, groups: int = 60, gain: float = 0.0):
    """Bits and bytes of groups of very different size, before and after; the true ratio is 2, then 2 - gain."""
    rng = np.random.default_rng(seed)
    bytes_G = rng.integers(20, 400, groups).astype(float)
    before, after = (bytes_G * rng.normal(2 - shift, 0.5, groups) for shift in (0.0, gain))
    return (before, bytes_G), (after, bytes_G)


def test_sums_by_group_by_hand():
    """Rows of groups a b a c b; the second row of b has no such figure, and c has none at all."""
    above, below = by_group(
        (np.array([1.0, 2.0, 3.0, NAN, NAN]), np.array([10.0, 20.0, 30.0, NAN, NAN])), ["a", "b", "a", "c", "b"]
    )
    assert above.tolist() == [4.0, 2.0] and below.tolist() == [40.0, 20.0]
    assert ratio(above, below) == 0.1


def test_a_mean_of_ratios_by_hand():
    """Groups a b a; labels 0 and 1 have 4 / 40 and 2 / 4, label 2 has nothing below: it is left out."""
    above_BL = np.array([[1.0, 2.0, 0.0], [NAN, NAN, NAN], [3.0, 0.0, 0.0]])
    below_BL = np.array([[10.0, 3.0, 0.0], [NAN, NAN, NAN], [30.0, 1.0, 0.0]])
    above, below = by_group((above_BL, below_BL), ["a", "b", "a"])
    assert above.tolist() == [[4.0, 2.0, 0.0]] and below.tolist() == [[40.0, 4.0, 0.0]]
    assert ratio(above, below) == pytest.approx(0.3)


def test_the_interval_of_a_macro_f1_agrees_with_scipy_and_scikit_learn():
    """The same rows drawn by scipy, their F1 by scikit-learn: the same interval. p of no change is 1, of a gain small."""
    rng = np.random.default_rng(0)
    gold = rng.choice(3, 90, p=[0.6, 0.3, 0.1])
    good, poor = (np.where(rng.random(90) < share, gold, rng.choice(3, 90)) for share in (0.8, 0.1))

    def sums(given):
        there, wanted = given[:, None] == np.arange(3), gold[:, None] == np.arange(3)
        return 2.0 * (there & wanted), there.astype(float) + wanted

    found = figure(sums(good), 5_000, 1, 0.9)
    assert found.value == pytest.approx(f1_score(gold, good, average="macro"))
    wanted = scipy.stats.bootstrap(
        (gold, good), lambda g, p: f1_score(g, p, average="macro"), n_resamples=600, paired=True, vectorized=False,
        method="percentile", confidence_level=0.9, random_state=np.random.default_rng(2),
    ).confidence_interval  # fmt: skip
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=0.03)
    assert change_p(sums(good), sums(good), 500, 0) == 1.0 and change_p(sums(poor), sums(good), 500, 0) < 0.01
    assert change(sums(poor), sums(good), 500, 0, 0.95).low > 0


def test_a_figure_that_no_row_has_is_nan():
    empty = by_group((np.array([NAN, NAN]), np.array([NAN, NAN])), ["a", "b"])
    found = figure(empty, 50, 0, 0.95)
    assert np.isnan([found.value, found.low, found.high]).all()
    assert change_p(empty, empty, 50, 0) == 1.0


@pytest.mark.parametrize(
    "above", [np.zeros(12), np.full(12, 0.1), np.linspace(0.1, 1.2, 12)], ids=["0", "equal", "even"]
)
def test_a_figure_that_no_draw_of_rows_changes_has_no_interval(above):
    """No entity found in twelve rows, or 0.2 of each: that is no proof that it is 0, or 0.2, on others."""
    sums = above, 5 * above if above.any() else np.full(12, 5.0)
    found = figure(sums, 100, 0, 0.95)
    assert found.value == pytest.approx(0.2 if above.any() else 0.0) and np.isnan([found.low, found.high]).all()
    moved = change(sums, sums, 100, 0, 0.95)
    assert moved.value == 0 and np.isnan([moved.low, moved.high]).all()
    better = change(sums, (3 * sums[0] + 1e-3 * sums[1], sums[1]), 100, 0, 0.95)
    assert better.value > 0 and np.isnan([better.low, better.high]).all()


def test_shares_of_right_rows_have_the_intervals_of_shares():
    """24 of 24: Wilson's lower bound is n / (n + z^2) = 0.862. No row moved: Tango's bounds are z^2 / (n + z^2)."""
    right, wrong = (np.ones(24), np.ones(24)), (np.zeros(24), np.ones(24))
    z = scipy.stats.norm.ppf(0.975) ** 2
    found = figure(right, 50, 0, 0.95)
    assert (found.value, found.low, found.high) == pytest.approx((1.0, 24 / (24 + z), 1.0))
    same = change(right, right, 50, 0, 0.95)
    assert (same.value, same.low, same.high) == pytest.approx((0.0, -z / (24 + z), z / (24 + z)))
    lost = change(right, wrong, 50, 0, 0.95)
    assert lost.value == lost.low == -1.0 and -1 < lost.high < -0.7
    some = (np.array([1.0, 0, 0, 1, 1]), np.ones(5)), (np.array([1.0, 1, 1, 0, 1]), np.ones(5))
    interval = paired_difference(2, 1, 5, 0.9)
    moved = change(*some, 50, 0, 0.9)
    assert (moved.low, moved.high) == (interval.low, interval.high)
    assert change_p(*some, 50, 0) == 1.0 and change_p(wrong, right, 50, 0) == 2 / 2**24


def test_where_a_group_has_several_rows_shares_are_resampled():
    """Wilson's interval is of independent rows; groups of three, one right and one half right, are two witnesses."""
    found = figure((np.array([3.0, 1.0]), np.array([3.0, 3.0])), 4000, 0, 0.95)
    assert (found.low, found.high) == (pytest.approx(1 / 3), 1.0)


def test_the_interval_agrees_with_scipy():
    """scipy resamples groups with replacement too; its interval for a ratio of sums, from many draws."""
    pair, _ = drawn(3)
    found = figure(pair, 20_000, 1, 0.9)
    wanted = scipy.stats.bootstrap(
        pair, lambda above, below, axis: above.sum(axis) / below.sum(axis), n_resamples=20_000, paired=True,
        vectorized=True, method="percentile", confidence_level=0.9, random_state=np.random.default_rng(2),
    ).confidence_interval  # fmt: skip
    width = wanted.high - wanted.low
    assert found.value == pair[0].sum() / pair[1].sum()
    assert abs(found.low - wanted.low) < 0.02 * width and abs(found.high - wanted.high) < 0.02 * width


def test_the_change_agrees_with_scipy_and_is_narrower_than_each_figure():
    """Groups are resampled together, so what both have in common does not widen the change."""
    (before, size), _ = drawn(4)
    after = before - 0.1 * size * np.random.default_rng(0).uniform(0.5, 1.5, len(size))
    found = change((before, size), (after, size), 20_000, 1, 0.95)
    wanted = scipy.stats.bootstrap(
        (before, after, size), lambda b, a, n, axis: (a.sum(axis) - b.sum(axis)) / n.sum(axis), n_resamples=20_000,
        paired=True, vectorized=True, method="percentile", random_state=np.random.default_rng(2),
    ).confidence_interval  # fmt: skip
    width = wanted.high - wanted.low
    assert found.value == pytest.approx((after.sum() - before.sum()) / size.sum())
    assert abs(found.low - wanted.low) < 0.03 * width and abs(found.high - wanted.high) < 0.03 * width
    alone = figure((after, size), 2_000, 1, 0.95)
    assert width < 0.5 * (alone.high - alone.low)


def test_the_interval_covers_at_its_level():
    """400 draws of 60 groups: about 95 % of the intervals hold the true ratio (binomial error 0.011)."""
    held = 0
    for seed in range(400):
        found = figure(drawn(seed)[0], 300, seed, 0.95)
        held += found.low <= 2.0 <= found.high
    assert 0.91 <= held / 400 <= 0.975


def test_chunks_of_a_document_are_no_independent_witnesses():
    """Ten equal chunks a document: by group the interval is that of the documents, by chunk far too narrow."""
    pair, _ = drawn(5, groups=30)
    chunks = (np.repeat(pair[0] / 10, 10), np.repeat(pair[1] / 10, 10))
    groups = [str(number) for number in range(30) for _ in range(10)]
    by_document, by_chunk = figure(by_group(chunks, groups), 2000, 0, 0.95), figure(chunks, 2000, 0, 0.95)
    assert by_document.high - by_document.low == pytest.approx(
        (lambda f: f.high - f.low)(figure(pair, 2000, 0, 0.95)), rel=1e-9
    )
    assert by_chunk.high - by_chunk.low < 0.5 * (by_document.high - by_document.low)


def test_resamples_do_not_depend_on_the_size_of_chunks(monkeypatch):
    pairs = list(drawn(6))
    whole = resampled_ratios(pairs, 50, 3)
    monkeypatch.setattr(held_out, "CHUNK_NUMBERS", 7 * 60)
    for found, wanted in zip(resampled_ratios(pairs, 50, 3), whole, strict=True):
        assert len(found) == 50
        np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_p_is_uniform_where_nothing_changed_and_small_where_it_did():
    nothing = [change_p(*drawn(seed, groups=40), 199, seed) for seed in range(300)]
    assert scipy.stats.kstest(nothing, "uniform").pvalue > 0.01
    assert 0.02 <= np.mean(np.array(nothing) <= 0.05) <= 0.085
    assert change_p(*drawn(1, gain=0.5), 999, 0) < 0.01
    same = drawn(2)[0]
    assert change_p(same, same, 99, 0) == 1.0


def test_the_seed_decides_which_signs_are_flipped():
    rows = drawn(5, gain=0.05)
    assert len({change_p(*rows, 99, seed) for seed in range(5)}) > 1
    assert change_p(*rows, 99, 3) == change_p(*rows, 99, 3)


def test_p_of_a_ratio_whose_denominator_changes():
    """F1's way: the denominators move as well. By hand: r = 10 / 20, differences 1 - 0.5 * 2 = 0 and 1 - 0.5 * 0 = 1.

    Of the one difference that is left either sign is as far from zero: p = 1.
    """
    before, after = (np.array([2.0, 2.0]), np.array([4.0, 5.0])), (np.array([3.0, 3.0]), np.array([6.0, 5.0]))
    assert change_p(before, after, 99, 0) == 1.0
    many = [np.tile(column, 10) for column in (*before, *after)]
    assert change_p((many[0], many[1]), (many[2], many[3]), 4000, 0) == pytest.approx(2 / 2**10)


def test_scores_stand_in_the_order_of_the_rows(tiny_path):
    """However they are cut into micro-batches, whose order is by tokens."""
    loaded = load_model(str(tiny_path))
    learner = new_learner(loaded, Lora(rank=2), 0, "auto")
    method = DocumentClm(settings=Clm(window_tokens=16))
    texts = ("vote in the senate", "Text goal", "a museum of Arts and song", "Text team won")
    rows = method.view(Dialogue(Layout(loaded.tokenizer)), [Document(text, Source("x", 1)) for text in texts])
    told: list[tuple[int, int]] = []
    found = score_rows(learner, method, rows, 16, lambda done, total: told.append((done, total)))
    assert not learner.training and told[-1] == (len(rows), len(rows)) and len(told) > 1
    bits, sizes = found["bits_per_byte"]
    with torch.no_grad():
        for place, row in enumerate(rows):
            batch = make_batch([row])
            assert bits[place] == pytest.approx(float(-learner(batch).logprobs_M.sum()) / np.log(2), rel=1e-5)
    assert sizes.tolist() == [row.num_bytes for row in rows]
