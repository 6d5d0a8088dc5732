"""Intervals, paired tests and sample sizes for right/wrong and real-valued scores on the same rows.

Axis letters beside the project's legend: C = permutation resamples, P = the p values of one family of tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

Correct = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

CHUNK_CELLS = 2_000_000  # numbers held at once while resampling: 16 MB of float64


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval, `low <= high`."""

    low: float
    high: float


def wilson(successes: int, n: int, confidence: float) -> Interval:
    """Score interval of one rate (Wilson 1927; Brown, Cai and DasGupta 2001, equation 4).

    With p = successes / n and z the normal quantile of (1 + confidence) / 2:

        (p + z^2 / 2n  -+  z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    Unlike p -+ z se it stays inside 0..1 and has width when all rows are right or all are wrong.
    """
    check_rows(n)
    if not 0 <= successes <= n:
        raise ValueError(f"successes is {successes}; it must be from 0 to the {n} rows.")
    z = two_sided_quantile(confidence)
    rate = successes / n
    center = rate + z * z / (2 * n)
    half = z * np.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # the bounds at no and at all successes are exactly 0 and 1; rounding would miss them
    low = 0.0 if successes == 0 else (center - half) / scale
    high = 1.0 if successes == n else (center + half) / scale
    return Interval(float(low), float(high))


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided exact p of McNemar's test: min(1, 2 P(X <= min(only_a, only_b))), X ~ Binomial(d, 1/2).

    `only_a` and `only_b` count the rows that exactly one of two systems has right, d is their sum; rows on
    which both are right or both wrong say nothing (McNemar 1947). 1.0 where d = 0.
    """
    check_discordant(only_a, only_b)
    tail = stats.binom.cdf(min(only_a, only_b), only_a + only_b, 0.5)
    return min(1.0, 2 * float(tail))


def paired_difference(only_a: int, only_b: int, n: int, confidence: float) -> Interval:
    """Score interval for accuracy(a) - accuracy(b) on the same n rows (Tango 1998, Statistics in Medicine 17).

    `only_a` and `only_b` count the rows that exactly one of the two has right. The interval holds every difference D
    that the score test keeps, z the normal quantile of (1 + confidence) / 2:

        |only_a - only_b - n D| <= z sqrt(n (2 q + D (1 - D)))

    with q the likeliest share of rows that only b has right, given D:

        q = (sqrt(B^2 + 8 n only_b D (1 - D)) - B) / 4n,    B = (2n - only_a + only_b) D - only_a - only_b

    It has width where no row is discordant (+-z^2 / (n + z^2)), leaves zero out where McNemar's uncorrected
    chi-square does, and covers at its level from a handful of rows on, where a bootstrap of the rows cannot.
    """
    check_discordant(only_a, only_b, n)
    bound = two_sided_quantile(confidence) ** 2
    observed = (only_a - only_b) / n

    def kept(difference: float) -> bool:
        """Whether the score test keeps this difference."""
        spread = difference * (1 - difference)
        linear = (2 * n - only_a + only_b) * difference - only_a - only_b
        share = (math.sqrt(max(0.0, linear**2 + 8 * n * only_b * spread)) - linear) / (4 * n)
        return (only_a - only_b - n * difference) ** 2 <= bound * n * max(0.0, 2 * share + spread)

    return Interval(last_kept(kept, observed, -1.0), last_kept(kept, observed, 1.0))


def last_kept(kept: Callable[[float], bool], inside: float, end: float) -> float:
    """The number furthest from `inside`, which is kept, towards `end` that still is: halving, to 1e-15."""
    if kept(end):
        return end
    outside = end
    for _ in range(51):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if kept(middle) else (inside, middle)
    return inside


def sign_flip_p(differences_B: Floats, resamples: int, seed: int) -> float:
    """Two-sided permutation p of paired real-valued scores: is the mean difference zero?

    Where the two systems are exchangeable each row's sign is a fair coin. The statistic is |sum of the
    differences|. All 2^n sign patterns are tried where that is no more than `resamples` (the p is exact
    then); else p = (1 + hits) / (1 + resamples), which is never zero (Phipson and Smyth 2010).
    """
    values_B = check_values(differences_B)
    values_B = values_B[values_B != 0]  # a zero does not change with its sign
    n = len(values_B)
    # sums of the same numbers in another order differ in the last digits: a tie counts as a hit
    threshold = abs(values_B.sum()) - 1e-12 * np.abs(values_B).sum()
    if 2**n <= resamples:
        bits_CB = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        return float(np.mean(np.abs(flipped_sums(bits_CB, values_B)) >= threshold))
    rng = np.random.default_rng(seed)
    hits = 0
    for size in chunks(resamples, n):
        bits_CB = rng.integers(2, size=(size, n))
        hits += int(np.sum(np.abs(flipped_sums(bits_CB, values_B)) >= threshold))
    return (1 + hits) / (1 + resamples)


def flipped_sums(bits_CB: npt.NDArray[np.int64], values_B: Floats) -> Floats:
    """Sums with the sign of each value kept where its bit is 1 and turned where it is 0. Shape (C,)."""
    return 2 * (bits_CB @ values_B) - values_B.sum()


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the input's order (Holm 1979); they hold the family-wise error.

    With p_(1) <= ... <= p_(P):  adjusted p_(i) = max over j <= i of min(1, (P - j + 1) p_(j)).
    """
    p_P = np.asarray(p_values, dtype=np.float64)
    if not np.all((p_P >= 0) & (p_P <= 1)):
        raise ValueError(f"p values must lie between 0 and 1, got {list(p_values)}.")
    order_P = np.argsort(p_P, kind="stable")
    scaled_P = p_P[order_P] * np.arange(len(p_P), 0, -1)
    adjusted_P = np.empty_like(p_P)
    adjusted_P[order_P] = np.minimum(1.0, np.maximum.accumulate(scaled_P))
    return adjusted_P.tolist()


def rows_needed(gain: float, discordant_share: float, confidence: float = 0.95, power: float = 0.8) -> int:
    """Rows with which the exact McNemar test shows a true gain with probability `power`.

    With d the share of rows that exactly one system has right and g the gain in accuracy (0.02 = 2 points), the
    large-sample test needs n0 = (z_((1 + confidence) / 2) sqrt(d) + z_power sqrt(d - g^2))^2 / g^2 rows (Connor 1987,
    p. 209). The exact test is as strict as that test is of a difference one row smaller, so that n
    solves n g - 1 = g sqrt(n n0):

        n = n0 / 4 (1 + sqrt(1 + 4 / (n0 g)))^2

    rounded up. For one comparison out of several, `confidence` is 1 minus the level that Holm leaves it. A gain
    cannot exceed the discordant share: ValueError.
    """
    check_share(discordant_share)
    if not 0 < gain <= discordant_share:
        raise ValueError(f"gain is {gain}; it must be above 0 and at most the discordant share, {discordant_share}.")
    z = two_sided_quantile(confidence)
    spread = math.sqrt(discordant_share - gain * gain)
    uncorrected = (z * math.sqrt(discordant_share) + power_quantile(power) * spread) ** 2 / gain**2
    return math.ceil(uncorrected / 4 * (1 + math.sqrt(1 + 4 / (uncorrected * gain))) ** 2)


def two_sided_quantile(confidence: float) -> float:
    """Normal quantile of (1 + confidence) / 2: 1.96 for 0.95."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1, like 0.95.")
    return float(stats.norm.ppf((1 + confidence) / 2))


def power_quantile(power: float) -> float:
    """Normal quantile of the power: 0.84 for 0.8."""
    if not 0 < power < 1:
        raise ValueError(f"power is {power}; it must lie between 0 and 1, like 0.8.")
    return float(stats.norm.ppf(power))


def check_rows(n: int) -> None:
    """A ValueError where there is nothing to count."""
    if n < 1:
        raise ValueError(f"{n} rows: at least one scored row is needed.")


def check_discordant(only_a: int, only_b: int, n: int | None = None) -> None:
    """A ValueError where these cannot be numbers of rows (of the n rows, where given)."""
    if only_a < 0 or only_b < 0:
        raise ValueError(f"discordant counts are {only_a} and {only_b}; a count cannot be negative.")
    if n is not None:
        check_rows(n)
        if only_a + only_b > n:
            raise ValueError(f"discordant counts are {only_a} and {only_b}; there are {n} rows only.")


def check_share(discordant_share: float) -> None:
    """A ValueError where the share is not one of rows that differ."""
    if not 0 < discordant_share <= 1:
        raise ValueError(f"discordant_share is {discordant_share}; it must be above 0 and at most 1.")


def check_values(values_B: Floats) -> Floats:
    """The values as a flat float64 array of at least one finite number."""
    values_B = np.asarray(values_B, dtype=np.float64).ravel()
    check_rows(len(values_B))
    if not np.all(np.isfinite(values_B)):
        row = int(np.flatnonzero(~np.isfinite(values_B))[0])
        raise ValueError(f"row {row} has the score {values_B[row]}; every score must be a finite number.")
    return values_B


def chunks(resamples: int, width: int) -> Iterator[int]:
    """Sizes that add up to `resamples`, each with at most CHUNK_CELLS numbers of `width` a resample."""
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; at least one is needed.")
    size = max(1, CHUNK_CELLS // max(1, width))
    for start in range(0, resamples, size):
        yield min(size, resamples - start)
