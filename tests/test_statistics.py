"""Hand-worked numbers, parity with statsmodels and scipy, and coverage by simulation."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize
from scipy import stats as scipy_stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from luthier.evaluation.statistics import (
    Interval,
    holm,
    mcnemar_exact,
    paired_difference,
    rows_needed,
    sign_flip_p,
    wilson,
)


def paired_rows(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    a = [True] * both + [True] * only_a + [False] * only_b + [False] * neither
    b = [True] * both + [False] * only_a + [True] * only_b + [False] * neither
    return np.array(a), np.array(b)


def differences(both: int, only_a: int, only_b: int, neither: int) -> np.ndarray:
    return np.array([0.0] * (both + neither) + [1.0] * only_a + [-1.0] * only_b)


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


# --- score interval of a paired difference


@pytest.mark.parametrize(
    ("only_a", "only_b", "n", "low", "high"),
    [
        # Fagerland, Lydersen and Laake, Statistical Analysis of Contingency Tables, chapter 8
        (6, 16, 161, -0.1240, -0.0054),  # complete response before and after consolidation (Cavo et al. 2012)
        (1, 7, 21, -0.5172, -0.0260),  # airway hyper-responsiveness (Bentur et al. 2009)
    ],
)
def test_paired_difference_gives_published_numbers(only_a: int, only_b: int, n: int, low: float, high: float) -> None:
    interval = paired_difference(only_a, only_b, n, 0.95)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=6e-5)


def test_paired_difference_by_hand() -> None:
    # nothing discordant: q = 0 for D > 0, so (n D)^2 = z^2 n D (1 - D), D = z^2 / (n + z^2) with z = 2
    confidence = 2 * scipy_stats.norm.cdf(2) - 1
    assert paired_difference(0, 0, 1, confidence) == Interval(pytest.approx(-4 / 5), pytest.approx(4 / 5))
    assert paired_difference(0, 0, 12, confidence) == Interval(pytest.approx(-1 / 4), pytest.approx(1 / 4))
    # 3 of 3 for a: B = 3 D - 3, q = (1 - D) / 2, so 9 (1 - D)^2 = 4 * 3 (1 - D) (1 + D), 3 (1 - D) = 4 (1 + D)
    assert paired_difference(3, 0, 3, confidence) == Interval(pytest.approx(-1 / 7), 1.0)


def score_inverted(only_a: int, only_b: int, n: int, z: float) -> tuple[float, float]:
    """The same interval without its closed form: the share of b alone is found by maximising the likelihood."""

    def statistic(difference: float) -> float:
        def loss(q: float) -> float:
            shares = np.array([q + difference, q, 1 - 2 * q - difference])
            counts = np.array([only_a, only_b, n - only_a - only_b])
            return -float((counts * np.log(np.maximum(shares, 1e-300)))[counts > 0].sum())

        lowest, highest = max(0.0, -difference), (1 - difference) / 2
        q = optimize.minimize_scalar(loss, bounds=(lowest, highest), method="bounded", options={"xatol": 1e-12}).x
        spread = 2 * q + difference - difference**2
        return (only_a - only_b - n * difference) / np.sqrt(n * spread)

    middle, most = (only_a - only_b) / n, 1 - 1e-7
    low = optimize.brentq(lambda d: statistic(d) - z, -most, middle - 1e-7) if only_b < n else -1.0
    high = optimize.brentq(lambda d: statistic(d) + z, middle + 1e-7, most) if only_a < n else 1.0
    return low, high


@pytest.mark.parametrize(
    ("only_a", "only_b", "n"),
    [(0, 0, 1), (0, 0, 24), (1, 0, 24), (0, 3, 24), (2, 1, 3), (4, 1, 9), (5, 0, 5), (12, 9, 21), (198, 30, 800)],
)
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_paired_difference_equals_the_inverted_score_test(only_a: int, only_b: int, n: int, confidence: float) -> None:
    interval = paired_difference(only_a, only_b, n, confidence)
    expected = score_inverted(only_a, only_b, n, scipy_stats.norm.ppf((1 + confidence) / 2))
    assert (interval.low, interval.high) == pytest.approx(expected, abs=2e-5)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.data())
def test_paired_difference_has_width_mirrors_and_stays_inside(counts: tuple[int, int], data: st.DataObject) -> None:
    only_a, n = counts
    only_b = data.draw(st.integers(0, n - only_a))
    interval, mirror = paired_difference(only_a, only_b, n, 0.95), paired_difference(only_b, only_a, n, 0.95)
    assert -1 <= interval.low <= (only_a - only_b) / n <= interval.high <= 1
    assert interval.high - interval.low > 1 / n
    assert (interval.low, interval.high) == pytest.approx((-mirror.high, -mirror.low), abs=1e-9)


@pytest.mark.parametrize(("only_a", "only_b"), [(3, 0), (4, 0), (5, 1), (9, 2), (14, 5), (15, 5), (40, 24), (41, 24)])
def test_paired_difference_leaves_zero_out_where_chi_square_does(only_a: int, only_b: int) -> None:
    interval = paired_difference(only_a, only_b, 200, 0.95)
    assert (interval.low > 0) == (mcnemar([[0, only_a], [only_b, 0]], exact=False, correction=False).pvalue < 0.05)


@pytest.mark.parametrize(
    ("n", "shares"),
    [
        (24, (0.01, 0.01)),
        (24, (0.02, 0.0)),
        (24, (0.08, 0.02)),
        (5, (0.1, 0.1)),
        (60, (0.09, 0.01)),
        (150, (0.15, 0.07)),
    ],
)
def test_paired_difference_covers_at_its_level(n: int, shares: tuple[float, float]) -> None:
    # 2,000 data sets: the standard error of a coverage of 0.95 is 0.005. Few discordant rows make it wider, not shorter
    counts = np.random.default_rng(0).multinomial(n, [*shares, 1 - sum(shares)], size=2000)
    found, times = np.unique(counts[:, :2], axis=0, return_counts=True)
    intervals = [paired_difference(int(a), int(b), n, 0.95) for a, b in found]
    inside = np.array([interval.low <= shares[0] - shares[1] <= interval.high for interval in intervals])
    assert inside @ times / 2000 >= 0.935


# --- sign flips


def test_sign_flip_by_hand() -> None:
    # sums of +-1 +-2 +-3: |sum| >= 6 for 2 of 8 patterns
    # sums of four +-1: |sum| >= 2 for all of 16 but the C(4, 2) balanced ones
    assert sign_flip_p(np.array([1.0, 2.0, 3.0]), 10_000, 0) == 2 / 8
    assert sign_flip_p(np.array([1.0, 1.0, 1.0, -1.0]), 10_000, 0) == 10 / 16
    assert sign_flip_p(np.array([0.1, 0.2, 0.3, 0.0]), 10_000, 0) == 2 / 8
    assert sign_flip_p(np.zeros(9), 10_000, 0) == 1.0


def test_sign_flips_in_chunks_cover_every_resample(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(0.2, size=40)
    whole = sign_flip_p(values, 999, 0)
    monkeypatch.setattr("luthier.evaluation.statistics.CHUNK_CELLS", 400)
    assert sign_flip_p(values, 999, 0) == whole


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
def test_rows_needed_is_the_table_of_the_notes_for_a_difference_one_row_smaller(gain: float, expected: list) -> None:
    for share, uncorrected in zip((0.1, 0.2, 0.3), expected, strict=True):
        n = rows_needed(gain, share)
        assert n * gain - 1 == pytest.approx(gain * (n * uncorrected) ** 0.5, abs=0.5 * gain + 0.01)
        assert uncorrected + 1 / gain < n < uncorrected + 3 / gain


def exact_power(n: int, gain: float, share: float, alpha: float) -> float:
    """Probability that the exact McNemar test rejects, summed over all numbers of discordant rows."""
    num_D = np.arange(n + 1)
    # most rows on the lesser side at which 2 P(X <= x) < alpha; -1 where none is few enough
    most_D = scipy_stats.binom.ppf(alpha / 2, num_D, 0.5) - 1
    for_a = (share + gain) / (2 * share)
    rejects_D = scipy_stats.binom.cdf(most_D, num_D, 1 - for_a) + scipy_stats.binom.cdf(most_D, num_D, for_a)
    return float(rejects_D @ scipy_stats.binom.pmf(num_D, n, share))


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 3, 0.05 / 6])
@pytest.mark.parametrize("share", [0.005, 0.02, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("part", [0.1, 0.3, 0.6, 1.0])
def test_rows_needed_gives_the_exact_test_the_power_it_promises(alpha: float, share: float, part: float) -> None:
    gain = part * share
    n = rows_needed(gain, share, 1 - alpha)
    assert exact_power(n, gain, share, alpha) >= 0.77
    # at most four in ten too many, and never fewer discordant rows than the exact test can pass with
    assert exact_power(int(0.7 * n) - 1, gain, share, alpha) < 0.8
    assert 2 * 0.5 ** (n * share) < alpha


# --- what is refused


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wilson(0, 0, 0.95), "0 rows: at least one scored row is needed."),
        (lambda: wilson(6, 5, 0.95), "successes is 6; it must be from 0 to the 5 rows."),
        (lambda: wilson(1, 5, 95), "confidence is 95; it must lie between 0 and 1, like 0.95."),
        (lambda: mcnemar_exact(-1, 2), "discordant counts are -1 and 2; a count cannot be negative."),
        (
            lambda: sign_flip_p(np.array([1.0, np.nan]), 200, 0),
            "row 1 has the score nan; every score must be a finite number.",
        ),
        (
            lambda: sign_flip_p(np.array([1.0, 2.0]), 0, 0),
            "resamples is 0; at least one is needed.",
        ),
        (lambda: sign_flip_p(np.array([]), 200, 0), "0 rows: at least one scored row is needed."),
        (lambda: paired_difference(3, 2, 4, 0.95), "discordant counts are 3 and 2; there are 4 rows only."),
        (lambda: paired_difference(0, 0, 0, 0.95), "0 rows: at least one scored row is needed."),
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
    ],
)
def test_errors_teach(call, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        call()
    assert str(caught.value) == message
