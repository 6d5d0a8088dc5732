"""A method's figures on held-out rows: each row's share, the figure with its interval, and what training changed.

Every figure is a ratio of sums over rows, or the mean of L such ratios (methods/base.py: `Scores`), so one way of
resampling serves them all. Shapes [B] and [G] below stand for [B, L] and [G, L] as well. Rows are drawn by group (one
document, one prompt), since chunks of one document are no independent witnesses.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as ManyOf
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from luthier.evaluation.statistics import sign_flip_p
from luthier.methods.base import Example, Objective, mean_ratio
from luthier.processes import gathered, num_processes
from luthier.training.learner import Learner
from luthier.training.ranks import here
from luthier.training.step import annotated

CHUNK_NUMBERS = 4_000_000  # counts that are drawn at once: 32 MB
Floats = NDArray[np.float64]
Figures = dict[str, tuple[Floats, Floats]]


@dataclass(frozen=True)
class Figure:
    """A ratio of sums with its interval."""

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
    """The ratio with a percentile bootstrap interval over groups (Efron and Tibshirani 1993, chapter 13)."""
    return with_interval(ratio(*sums_G), resampled_ratios([sums_G], resamples, seed)[0], confidence)


def change(
    before: tuple[Floats, Floats], after: tuple[Floats, Floats], resamples: int, seed: int, confidence: float
) -> Figure:
    """after - before on the same groups, resampled together."""
    first_C, second_C = resampled_ratios([before, after], resamples, seed)
    return with_interval(ratio(*after) - ratio(*before), second_C - first_C, confidence)


def change_p(before: tuple[Floats, Floats], after: tuple[Floats, Floats], resamples: int, seed: int) -> float:
    """Two-sided p that nothing changed: signs of the groups' linearised differences are flipped.

    With r the pooled ratio, group g contributes (above_after - above_before) - r (below_after - below_before); where
    denominators do not change (bytes, rows) that is the plain difference. Of L ratios each is so, over its pooled sum
    below the line, and they are added up.
    """
    below = np.maximum(before[1].sum(0) + after[1].sum(0), 1e-300)
    pooled = (before[0].sum(0) + after[0].sum(0)) / below
    differences_G = (after[0] - before[0]) - pooled * (after[1] - before[1])
    if differences_G.ndim > 1:
        differences_G = (differences_G / below).sum(axis=1)
    return sign_flip_p(differences_G, resamples, seed) if np.any(differences_G) else 1.0


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


def with_interval(value: float, values_C: Floats, confidence: float) -> Figure:
    """A value with the percentile interval of its resamples."""
    usable_C = values_C[np.isfinite(values_C)]
    if not len(usable_C):
        return Figure(value, float("nan"), float("nan"))
    low, high = np.quantile(usable_C, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Figure(value, float(low), float(high))
