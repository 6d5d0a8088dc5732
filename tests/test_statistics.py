"""Hand-worked numbers, parity with statsmodels and scipy, and coverage by simulation."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from luthier.evaluation.statistics import (
    Interval,
    bootstrap_interval,
    detectable_gain,
    holm,
    mcnemar_exact,
    paired_bootstrap_difference,
    rows_needed,
    sign_flip_p,
    wilson,
)


def paired_rows(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    a = [True] * both + [True] * only_a + [False] * only_b + [False] * neither
    b = [True] * both + [False] * only_a + [True] * only_b + [False] * neither
    return np.array(a), np.array(b)


# --- Wilson


def test_wilson_by_hand() -> None:
    # z = 2 (confidence 0.9545): p = 8/12, z^2/n = 1/3
    # center (2/3 + 1/6) / (4/3) = 5/8, half 2 sqrt(2/9/12 + 1/144) / (4/3) = 1.5 sqrt(11/432)
    interval = wilson(8, 12, 2 * scipy_stats.norm.cdf(2) - 1)
    half = 1.5 * (11 / 432) ** 0.5
    assert (interval.low, interval.high) == pytest.approx((5 / 8 - half, 5 / 8 + half), abs=1e-12)


@pytest.mark.parametrize(("successes", "n"), [(0, 5), (5, 5), (1, 1), (60, 100), (1999, 2000)])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_wilson_equals_statsmodels(successes: int, n: int, confidence: float) -> None:
    interval = wilson(successes, n, confidence)
    expected = proportion_confint(successes, n, alpha=1 - confidence, method="wilson")
    assert (interval.low, interval.high) == pytest.approx(expected, abs=1e-12)


def test_wilson_is_exact_at_the_ends() -> None:
    assert wilson(0, 7, 0.95).low == 0.0
    assert wilson(7, 7, 0.95).high == 1.0
    assert wilson(7, 7, 0.95).low < 0.7


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_rate_and_stays_inside_0_to_1(counts: tuple[int, int]) -> None:
    successes, n = counts
    interval = wilson(successes, n, 0.95)
    assert 0 <= interval.low <= successes / n <= interval.high <= 1


def test_wilson_covers_at_its_level() -> None:
    # exact coverage at n = 40, averaged over rates: no simulation needed
    bounds = [wilson(k, 40, 0.95) for k in range(41)]
    rates = np.linspace(0.05, 0.95, 181)
    inside = np.array([[bound.low <= rate <= bound.high for bound in bounds] for rate in rates])
    coverage = (inside * scipy_stats.binom.pmf(np.arange(41), 40, rates[:, None])).sum(axis=1)
    assert coverage.mean() == pytest.approx(0.95, abs=0.01)
    assert coverage.min() > 0.9


# --- McNemar


def test_mcnemar_by_hand() -> None:
    # 6 discordant rows, 1 against: 2 (C(6,0) + C(6,1)) / 2^6 = 14 / 64
    assert mcnemar_exact(1, 5) == mcnemar_exact(5, 1) == pytest.approx(14 / 64, abs=1e-15)
    assert mcnemar_exact(0, 5) == pytest.approx(2 / 32, abs=1e-15)
    assert mcnemar_exact(3, 3) == 1.0
    assert mcnemar_exact(0, 0) == 1.0


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 1), (2, 9), (30, 14), (140, 95), (7, 7), (7, 8)])
def test_mcnemar_equals_statsmodels(only_a: int, only_b: int) -> None:
    expected = mcnemar([[50, only_a], [only_b, 20]], exact=True).pvalue
    assert mcnemar_exact(only_a, only_b) == pytest.approx(expected, rel=1e-10)


# --- bootstrap


@pytest.mark.parametrize("counts", [(60, 25, 10, 5), (3, 1, 1, 0), (0, 4, 1, 0), (700, 6, 0, 94), (500, 80, 120, 100)])
def test_paired_bootstrap_agrees_with_scipy(counts: tuple[int, int, int, int]) -> None:
    a, b = paired_rows(*counts)
    ours = paired_bootstrap_difference(a, b, resamples=20_000, seed=0, confidence=0.95)
    theirs = scipy_stats.bootstrap(
        (a.astype(float), b.astype(float)),
        lambda x, y, axis: x.mean(axis=axis) - y.mean(axis=axis),
        paired=True,
        n_resamples=10_000,
        method="BCa",
        rng=np.random.default_rng(1),
        batch=1000,
    ).confidence_interval
    # a bound is a quantile of a grid of steps 1/n, known to about 3 % of the interval's width
    tolerance = 1 / len(a) + 0.03 * (ours.high - ours.low)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=tolerance)


def test_bootstrap_of_real_values_agrees_with_scipy() -> None:
    values = np.random.default_rng(3).gamma(2.0, size=60)
    ours = bootstrap_interval(values, resamples=20_000, seed=0, confidence=0.9)
    theirs = scipy_stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, confidence_level=0.9, rng=np.random.default_rng(1)
    ).confidence_interval
    # Monte-Carlo standard deviation of either bound: about 1 % of the width
    tolerance = 0.03 * (ours.high - ours.low)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=tolerance)


def test_bootstrap_without_skew_is_the_normal_interval() -> None:
    # +1 and -1 on 10 % of 4,000 rows each: mean 0, standard error sqrt(0.2 / 4000)
    a, b = paired_rows(3200, 400, 400, 0)
    interval = paired_bootstrap_difference(a, b, resamples=20_000, seed=0, confidence=0.95)
    half = 1.96 * (0.2 / 4000) ** 0.5
    assert (interval.low, interval.high) == pytest.approx((-half, half), abs=0.03 * half)


def test_bootstrap_bends_towards_the_skew() -> None:
    # one row in 50 differs: the long side of the interval is the side of the rare value
    interval = bootstrap_interval(np.array([1.0] * 2 + [0.0] * 98), 10_000, seed=0, confidence=0.95)
    assert interval.high - 0.02 > 0.02 - interval.low > 0


def test_bootstrap_is_exact_under_a_seed_and_swaps_sign_with_its_arms() -> None:
    a, b = paired_rows(60, 25, 10, 5)
    first = paired_bootstrap_difference(a, b, 2000, 7, 0.95)
    assert first == paired_bootstrap_difference(a, b, 2000, 7, 0.95)
    assert first != paired_bootstrap_difference(a, b, 2000, 8, 0.95)
    turned = paired_bootstrap_difference(b, a, 2000, 9, 0.95)
    assert (-turned.high, -turned.low) == pytest.approx((first.low, first.high), abs=0.02)


def test_bootstrap_does_not_depend_on_the_order_of_rows() -> None:
    values = np.random.default_rng(0).normal(size=200)
    assert bootstrap_interval(values, 500, 0, 0.95) == bootstrap_interval(values[::-1], 500, 0, 0.95)


def test_bootstrap_chunks_cover_every_resample(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=40)
    whole = bootstrap_interval(values, 999, 0, 0.95)
    monkeypatch.setattr("luthier.evaluation.statistics.CHUNK_CELLS", 400)
    assert bootstrap_interval(values, 999, 0, 0.95) == whole


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0, 0.3])
@pytest.mark.parametrize("n", [1, 5, 1000])
def test_bootstrap_of_equal_values_has_no_width(value: float, n: int) -> None:
    assert bootstrap_interval(np.full(n, value), 200, 0, 0.95) == Interval(value, value)


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=30))
def test_bootstrap_stays_inside_the_values(values: list[float]) -> None:
    interval = bootstrap_interval(np.array(values), 200, 0, 0.95)
    assert min(values) <= interval.low <= interval.high <= max(values)


def test_bootstrap_covers_at_its_level() -> None:
    # 500 data sets of 150 rows, true difference 0.15 - 0.07: the standard error of a coverage of 0.95 is 0.01
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(500):
        both, only_a, only_b, neither = rng.multinomial(150, [0.6, 0.15, 0.07, 0.18])
        a, b = paired_rows(both, only_a, only_b, neither)
        interval = paired_bootstrap_difference(a, b, 1000, seed, 0.95)
        covered += interval.low <= 0.08 <= interval.high
    assert 0.92 <= covered / 500 <= 0.975


# --- sign flips


def test_sign_flip_by_hand() -> None:
    # sums of +-1 +-2 +-3: |sum| >= 6 for 2 of 8 patterns
    # sums of four +-1: |sum| >= 2 for all of 16 but the C(4, 2) balanced ones
    assert sign_flip_p(np.array([1.0, 2.0, 3.0]), 10_000, 0) == 2 / 8
    assert sign_flip_p(np.array([1.0, 1.0, 1.0, -1.0]), 10_000, 0) == 10 / 16
    assert sign_flip_p(np.array([0.1, 0.2, 0.3, 0.0]), 10_000, 0) == 2 / 8
    assert sign_flip_p(np.zeros(9), 10_000, 0) == 1.0


def test_sign_flip_of_right_and_wrong_is_mcnemar() -> None:
    a, b = paired_rows(5, 9, 2, 4)
    differences = a.astype(float) - b
    assert sign_flip_p(differences, 5000, 0) == pytest.approx(mcnemar_exact(9, 2), abs=1e-12)
    assert sign_flip_p(differences, 2000, 0) == pytest.approx(mcnemar_exact(9, 2), abs=0.02)


def test_sign_flip_agrees_with_scipy_on_many_rows() -> None:
    differences = np.random.default_rng(2).normal(0.15, 1, size=120)
    theirs = scipy_stats.permutation_test(
        (differences, np.zeros(120)),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=5000,
        batch=1000,
        rng=np.random.default_rng(0),
    ).pvalue
    assert 0.01 < theirs < 0.3
    assert sign_flip_p(differences, 20_000, 0) == pytest.approx(theirs, abs=0.02)


def test_sign_flip_is_never_zero_and_holds_its_level() -> None:
    assert sign_flip_p(np.ones(200), 999, 0) == 1 / 1000
    rng = np.random.default_rng(0)
    p_values = np.array([sign_flip_p(rng.normal(size=20), 199, seed) for seed in range(500)])
    assert np.mean(p_values <= 0.05) == pytest.approx(0.05, abs=0.025)
    assert np.mean(p_values <= 0.5) == pytest.approx(0.5, abs=0.06)


# --- Holm


def test_holm_by_hand() -> None:
    # sorted 0.01 0.02 0.03 0.5: times 4, 3, 2, 1 = 0.04 0.06 0.06 0.5, kept rising
    assert holm([0.03, 0.5, 0.01, 0.02]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm([0.01, 0.012, 0.011]) == pytest.approx([0.03, 0.03, 0.03])
    assert holm([0.7, 0.6]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


@pytest.mark.parametrize("seed", range(12))
def test_holm_equals_statsmodels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p_values = (rng.random(1 + seed % 7) ** 3).round(2).tolist()
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1], abs=1e-12)


# --- sample size


@pytest.mark.parametrize(
    ("gain", "expected"),
    [
        (0.02, [1960, 3922, 5884]),
        (0.03, [870, 1742, 2614]),
        (0.05, [312, 626, 940]),
        (0.10, [76, 155, 233]),
    ],
)
def test_rows_needed_gives_the_table_of_the_notes(gain: float, expected: list[int]) -> None:
    assert [rows_needed(gain, share) for share in (0.1, 0.2, 0.3)] == expected


def test_rows_needed_gives_the_power_it_promises() -> None:
    # large-sample McNemar on simulated data sets with the planned number of rows
    gain, share = 0.05, 0.2
    n = rows_needed(gain, share)
    only_a, only_b = (share + gain) / 2, (share - gain) / 2
    counts = np.random.default_rng(0).multinomial(n, [only_a, only_b, 1 - share], size=20_000)
    z = (counts[:, 0] - counts[:, 1]) / np.sqrt(counts[:, 0] + counts[:, 1])
    assert np.mean(np.abs(z) > 1.96) == pytest.approx(0.8, abs=0.015)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.9])
@pytest.mark.parametrize("n", [200, 1000, 20_000])
@pytest.mark.parametrize("power", [0.3, 0.5, 0.8, 0.95])
def test_detectable_gain_inverts_rows_needed(n: int, share: float, power: float) -> None:
    gain = detectable_gain(n, share, power=power)
    assert gain is not None
    assert rows_needed(gain, share, power=power) == n


@pytest.mark.parametrize(("n", "share"), [(20, 0.1), (1, 0.5), (5, 0.9)])
def test_no_gain_is_detectable_on_very_few_rows(n: int, share: float) -> None:
    assert detectable_gain(n, share) is None


# --- what is refused


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wilson(0, 0, 0.95), "0 rows: at least one scored row is needed."),
        (lambda: wilson(6, 5, 0.95), "successes is 6; it must be from 0 to the 5 rows."),
        (lambda: wilson(1, 5, 95), "confidence is 95; it must lie between 0 and 1, like 0.95."),
        (lambda: mcnemar_exact(-1, 2), "discordant counts are -1 and 2; a count cannot be negative."),
        (
            lambda: bootstrap_interval(np.array([]), 200, 0, 0.95),
            "0 rows: at least one scored row is needed.",
        ),
        (
            lambda: bootstrap_interval(np.array([1.0, np.nan]), 200, 0, 0.95),
            "row 1 has the score nan; every score must be a finite number.",
        ),
        (
            lambda: bootstrap_interval(np.array([1.0, 2.0]), 0, 0, 0.95),
            "resamples is 0; at least one is needed.",
        ),
        (lambda: sign_flip_p(np.array([]), 200, 0), "0 rows: at least one scored row is needed."),
        (
            lambda: paired_bootstrap_difference(np.ones(3, bool), np.ones(4, bool), 200, 0, 0.95),
            "3 rows against 4; a paired difference needs the same rows.",
        ),
        (lambda: holm([0.1, float("nan")]), "p values must lie between 0 and 1, got [0.1, nan]."),
        (
            lambda: rows_needed(0.0, 0.1),
            "gain is 0.0; it must be above 0 and at most the discordant share, 0.1.",
        ),
        (
            lambda: rows_needed(0.2, 0.1),
            "gain is 0.2; it must be above 0 and at most the discordant share, 0.1.",
        ),
        (lambda: rows_needed(0.1, 1.2), "discordant_share is 1.2; it must be above 0 and at most 1."),
        (lambda: rows_needed(0.1, 0.2, power=1.0), "power is 1.0; it must lie between 0 and 1, like 0.8."),
        (lambda: detectable_gain(0, 0.2), "0 rows: at least one scored row is needed."),
    ],
)
def test_errors_teach(call, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        call()
    assert str(caught.value) == message
