"""The learning-rate range test (Smith 2017, "Cyclical Learning Rates", section 3.3): one short training whose rate
rises from far too low to far too high, and what its losses say of the right one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from luthier.errors import Diverged
from luthier.methods.base import Example, Objective
from luthier.recipe import Training
from luthier.training.course import Course
from luthier.training.learner import Learner
from luthier.training.loop import permutation, rows_in_order
from luthier.training.noise import disturbed
from luthier.training.optimizers import make_optimizer
from luthier.training.step import one_step, varied

SMOOTHING = 0.9  # share of the mean loss that is kept at each step
DIVERGED = 3.0  # the mean loss is this many times its lowest value above it: no higher rate is tried
FEWEST = 10  # points from which a curve can be read

Report = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Point:
    """One step: its learning rate, its loss, and the mean loss so far (exponential, corrected for its start)."""

    rate: float
    loss: float
    smoothed: float


@dataclass(frozen=True)
class Advice:
    """What a curve says. Rates are None where it never falls.

    steepest: where the mean loss falls fastest by the logarithm of the rate; lowest: where it is lowest; tenth: a tenth
    of that. suggested: the lower of steepest and tenth.
    """

    sentence: str
    steepest: float | None = None
    lowest: float | None = None
    tenth: float | None = None
    suggested: float | None = None


def rising_rates(low: float, high: float, num_steps: int) -> list[float]:
    """Rates from low to high, each the same factor above the last."""
    return [low * (high / low) ** (step / (num_steps - 1)) for step in range(num_steps)]


def range_test(
    learner: Learner,
    objective: Objective,
    examples: Sequence[Example],
    training: Training,
    seed: int,
    rates: Sequence[float],
    report: Report,
    course: Course | None = None,
) -> list[Point]:
    """Train `learner` in place, one step at each of `rates`, until it diverges; returns the steps.

    A rate is that of `tune.learning_rate`; a head's keeps its ratio to it. Rows come as in the training itself.
    """
    course = course or Course()
    order = course.order or partial(permutation, seed, num_rows=len(examples))
    optimizer = make_optimizer(learner, training)
    torch.manual_seed(seed)
    points: list[Point] = []
    mean = 0.0
    with disturbed(learner, training, seed, examples) as disturbance:
        for step, rate in enumerate(rates):
            rows = rows_in_order(step, training.batch_size, len(order(0)), order)
            chosen = varied(objective, [examples[i] for i in rows], seed, step)
            disturbance.begin(step, chosen)
            try:
                factor = rate / training.learning_rate
                done = one_step(learner, objective, chosen, optimizer, factor, training, step, course.penalty)
            except Diverged:
                break
            mean = SMOOTHING * mean + (1 - SMOOTHING) * done.loss
            points.append(Point(rate, done.loss, mean / (1 - SMOOTHING ** (step + 1))))
            report(step + 1, len(rates), f"rate {rate:.2g}, loss {done.loss:.3f}")
            if has_diverged([point.smoothed for point in points]):
                break
    return points


def has_diverged(smoothed: Sequence[float]) -> bool:
    """Whether the mean loss has left its lowest value behind. Near zero a tenth of the first counts for that."""
    low = min(smoothed)
    return smoothed[-1] - low > DIVERGED * max(abs(low), 0.1 * abs(smoothed[0]))


def advice(points: Sequence[Point]) -> Advice:
    """Rates that a curve suggests."""
    if len(points) < FEWEST:
        return Advice(
            f"Only {len(points)} steps were made before it diverged, and {FEWEST} are needed to read the curve. Begin "
            "with a lower rate, or make more steps."
        )
    smoothed = np.array([point.smoothed for point in points])
    lowest = int(smoothed.argmin())
    if lowest < 2:
        return Advice("The loss never fell: no rate is suggested. Begin with a lower rate, or look at the rows.")
    steep, low = points[steepest(smoothed[: lowest + 1])].rate, points[lowest].rate
    chosen, name = min((steep, "where it falls most steeply"), (low / 10, "a tenth of the rate at its lowest"))
    end = " The loss was still falling at the last rate: end with a higher one." if lowest == len(points) - 1 else ""
    return Advice(
        f"tune.learning_rate: {two_digits(chosen):g}, {name}: the lower of the two. The loss falls most steeply at "
        f"{steep:.2g} and is lowest at {low:.2g}.{end}",
        steep,
        low,
        low / 10,
        two_digits(chosen),
    )


def steepest(smoothed: NDArray[np.float64]) -> int:
    """The place in a curve of evenly spaced points where a straight line through its neighbourhood falls fastest.

    The first eighth is left out: few losses are in the mean there, and it jumps.
    """
    reach = max(1, len(smoothed) // 12)
    offsets = np.arange(-reach, reach + 1)
    first = min(max(reach, len(smoothed) // 8), len(smoothed) - 1 - reach)
    slopes = [float(offsets @ smoothed[i - reach : i + reach + 1]) for i in range(first, len(smoothed) - reach)]
    return first + int(np.argmin(slopes))


def two_digits(value: float) -> float:
    """A rate as one would write it."""
    return float(f"{value:.1e}") if math.isfinite(value) else value
