"""A method's figures on held-out rows: each row's share, the figure with its interval, and what training changed.

Every figure is a ratio of sums over rows, or the mean of L such ratios (methods/base.py: `Scores`), so one way of
resampling serves them all. Shapes [B] and [G] below stand for [B, L] and [G, L] as well. Rows are drawn by group (one
document, one prompt), since chunks of one document are no independent witnesses. Shares of rows that are right have the
intervals of shares, which have their width where all rows are right.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as ManyOf
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from luthier.evaluation.statistics import Interval, mcnemar_exact, paired_difference, sign_flip_p, wilson
from luthier.methods.base import Example, Objective, mean_ratio
from luthier.processes import gathered, num_processes
from luthier.training.learner import Learner
from luthier.training.ranks import here
from luthier.training.step import annotated

CHUNK_NUMBERS = 4_000_000  # counts that are drawn at once: 32 MB
ROUNDING = 1e-12  # of a figure: resamples that differ by less do not differ
Floats = NDArray[np.float64]
Figures = dict[str, tuple[Floats, Floats]]


@dataclass(frozen=True)
class Figure:
    """A ratio of sums with its interval; NaN for bounds where the rows tell of none."""

    value: float
    low: float
    high: float


@torch.no_grad()
def score_rows(
    learner: Learner,
    objective: Objective,
    examples: ManyOf[Example],
    max_tokens: int,
    update: Callable[[int, int], None] | None = None,
) -> Figures:
    """Numerator and denominator of each figure for each example, in their order. NaN where a figure is not of its task.

    Numbers are those of the learner as it is; it is put into evaluation mode.
    """
    learner.eval()
    examples, _ = annotated(learner, objective, examples, max_tokens)
    place = {id(example): i for i, example in enumerate(examples)}
    found: Figures = {}
    done = 0
    for micro, _ in here().passes(learner, examples, max_tokens):
        batch = learner.batch(micro)
        rows = [place[id(example)] for example in micro]
        for name, pair in objective.scores(learner(batch), batch).items():
            shape = (len(examples), *pair[0].shape[1:])
            held = found.setdefault(name, (np.full(shape, np.nan), np.full(shape, np.nan)))
            for column, values in zip(held, pair, strict=True):
                column[rows] = values.double().cpu().numpy()
        done += len(micro) * num_processes()
        if update is not None:
            update(min(done, len(examples)), len(examples))
    return merged(gathered(found))


def merged(parts: ManyOf[Figures]) -> Figures:
    """The figures of all processes, each of which has computed some rows."""
    found = parts[0]
    for part in parts[1:]:
        for name, columns in part.items():
            held = found.setdefault(name, columns)
            for column, other in zip(held, columns, strict=True):
                np.copyto(column, other, where=~np.isnan(other))
    return found


def by_group(values: tuple[Floats, Floats], groups: ManyOf[str]) -> tuple[Floats, Floats]:
    """Sums by group [G] of a figure's rows, rows that have it only; groups in the order they first stand in."""
    index: dict[str, int] = {}
    number_B = np.array([index.setdefault(group, len(index)) for group in groups])
    there_B = ~np.isnan(values[0]).any(axis=tuple(range(1, values[0].ndim)))
    above, below = (summed(column[there_B], number_B[there_B], len(index)) for column in values)
    kept = np.bincount(number_B[there_B], minlength=len(index)) > 0
    return above[kept], below[kept]


def summed(values: Floats, number_B: NDArray[np.int64], num_groups: int) -> Floats:
    """The sums of each group's rows, [G]."""
    sums = np.zeros((num_groups, *values.shape[1:]))
    np.add.at(sums, number_B, values)
    return sums


def figure(sums_G: tuple[Floats, Floats], resamples: int, seed: int, confidence: float) -> Figure:
    """The ratio with a percentile bootstrap interval over groups (Efron and Tibshirani 1993, chapter 13).

    A share of groups that are right, each counting one, has a score interval (Wilson 1927).
    """
    value = ratio(*sums_G)
    if are_right_or_wrong(sums_G):
        return bounded(value, wilson(int(sums_G[0].sum()), len(sums_G[0]), confidence))
    return with_interval(value, resampled_ratios([sums_G], resamples, seed)[0], confidence, abs(value))


def change(
    before: tuple[Floats, Floats], after: tuple[Floats, Floats], resamples: int, seed: int, confidence: float
) -> Figure:
    """after - before on the same groups, resampled together; of shares the score interval (Tango 1998)."""
    first, second = ratio(*before), ratio(*after)
    if are_right_or_wrong(before) and are_right_or_wrong(after):
        return bounded(second - first, paired_difference(*only_one_right(before, after), len(after[0]), confidence))
    first_C, second_C = resampled_ratios([before, after], resamples, seed)
    return with_interval(second - first, second_C - first_C, confidence, max(abs(first), abs(second)))


def change_p(before: tuple[Floats, Floats], after: tuple[Floats, Floats], resamples: int, seed: int) -> float:
    """Two-sided p that nothing changed: signs of the groups' linearised differences are flipped.

    With r the pooled ratio, group g contributes (above_after - above_before) - r (below_after - below_before); where
    denominators do not change (bytes, rows) that is the plain difference. Of L ratios each is so, over its pooled sum
    below the line, and they are added up. Of shares it is McNemar's exact test.
    """
    if are_right_or_wrong(before) and are_right_or_wrong(after):
        return mcnemar_exact(*only_one_right(before, after))
    below = np.maximum(before[1].sum(0) + after[1].sum(0), 1e-300)
    pooled = (before[0].sum(0) + after[0].sum(0)) / below
    differences_G = (after[0] - before[0]) - pooled * (after[1] - before[1])
    if differences_G.ndim > 1:
        differences_G = (differences_G / below).sum(axis=1)
    return sign_flip_p(differences_G, resamples, seed) if np.any(differences_G) else 1.0


def are_right_or_wrong(sums_G: tuple[Floats, Floats]) -> bool:
    """Whether each group counts one and is right or wrong, so that the figure is a share of groups."""
    above_G, below_G = sums_G
    return bool(below_G.ndim == 1 and len(below_G) and np.all(below_G == 1) and np.all((above_G == 0) | (above_G == 1)))


def only_one_right(before: tuple[Floats, Floats], after: tuple[Floats, Floats]) -> tuple[int, int]:
    """How many groups are right only after, and only before."""
    moved_G = after[0] - before[0]
    return int((moved_G > 0).sum()), int((moved_G < 0).sum())


def bounded(value: float, interval: Interval) -> Figure:
    """A value with its interval."""
    return Figure(value, interval.low, interval.high)


def ratio(above_G: Floats, below_G: Floats) -> float:
    """The figure itself; NaN where there is nothing to divide by."""
    return mean_ratio(above_G.sum(0), below_G.sum(0))


def resampled_ratios(pairs: ManyOf[tuple[Floats, Floats]], resamples: int, seed: int) -> list[Floats]:
    """Ratios [C] of each pair over the same draws of groups with replacement."""
    rng = np.random.default_rng(seed)
    size = len(pairs[0][0])
    if not size:
        return [np.full(resamples, np.nan) for _ in pairs]
    columns = np.concatenate([column.reshape(size, -1) for pair in pairs for column in pair], axis=1)  # G x 2 pairs L
    most = max(1, CHUNK_NUMBERS // max(size, columns.shape[1]))
    chunks = []
    for start in range(0, resamples, most):
        draws = rng.multinomial(size, np.full(size, 1 / size), size=min(most, resamples - start))
        chunks.append(drawn_ratios((draws @ columns).reshape(len(draws), len(pairs), 2, -1)))
    return list(np.concatenate(chunks).T)


def drawn_ratios(sums: Floats) -> Floats:
    """Of the sums [c, pair, above or below the line, L] of some draws each pair's figure, [c, pair]."""
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = sums[:, :, 0] / sums[:, :, 1]
    if ratios.shape[-1] == 1:
        return ratios[..., 0]
    there = ~np.isnan(ratios)
    with np.errstate(invalid="ignore"):
        return np.where(there, ratios, 0.0).sum(-1) / there.sum(-1)


def with_interval(value: float, values_C: Floats, confidence: float, scale: float) -> Figure:
    """A value with the percentile interval of its resamples.

    None where they are all the same (all words right, no entity found, one row): such rows do not tell how far the
    figure would be off on others, and an interval without width would say that it is exact. `scale`: of the figures
    that the value was worked out from, for rounding.
    """
    usable_C = values_C[np.isfinite(values_C)]
    if not len(usable_C) or np.ptp(usable_C) <= ROUNDING * scale:
        return Figure(value, float("nan"), float("nan"))
    low, high = np.quantile(usable_C, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Figure(value, float(low), float(high))
