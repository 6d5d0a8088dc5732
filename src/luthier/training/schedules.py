"""Learning-rate schedules: a factor of the peak rate for every step, a pure function of the step and the validations.

Each shape is a function of its settings, of `done` (steps after the warm-up) and of `total` (how many there are).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from luthier.recipe import Training
from luthier.recipe.base import Kind
from luthier.recipe.schedules import Constant, Cosine, InverseSqrt, Linear, Plateau, Restarts, Wsd
from luthier.training.judging import Validations, num_reductions, since_known


@dataclass(frozen=True)
class Schedule:
    """Learning-rate factor over steps: linear warm-up over `num_warmup` steps, then the shape of `settings`."""

    settings: Kind
    num_steps: int
    num_warmup: int
    metric: str = "loss"

    def factor(self, step: int, validations: Validations = ()) -> float:
        """Factor for 0-based `step`, after the `validations` so far."""
        if step < self.num_warmup:
            return (step + 1) / (self.num_warmup + 1)
        if isinstance(self.settings, Plateau):
            return plateau(self.settings, since_known(validations, self.metric))
        if isinstance(self.settings, InverseSqrt):
            return math.sqrt((self.num_warmup + 1) / (step + 1))
        return SHAPES[type(self.settings)](self.settings, step - self.num_warmup, self.num_steps - self.num_warmup)


def schedule_of(training: Training, num_steps: int) -> Schedule:
    """The schedule of a training of `num_steps` steps."""
    set_steps = training.warmup_steps
    num_warmup = round(training.warmup_share * num_steps) if set_steps is None else set_steps
    return Schedule(training.schedule, num_steps, num_warmup, training.metric)


def constant(settings: Constant, done: int, total: int) -> float:
    """1."""
    return 1.0


def linear(settings: Linear, done: int, total: int) -> float:
    """1 - done / total, down to the final share."""
    return above(settings.final_share, 1.0 - done / max(1, total))


def cosine(settings: Cosine, done: int, total: int) -> float:
    """(1 + cos(pi done / total)) / 2, down to the final share."""
    return above(settings.final_share, half_cosine(done / max(1, total)))


def restarts(settings: Restarts, done: int, total: int) -> float:
    """The cosine, over each cycle anew. Cycle i has the share growth^i / (1 + growth + ... ) of the steps."""
    lengths = [settings.growth**i for i in range(settings.cycles)]
    place = done / max(1, total) * math.fsum(lengths)
    for length in lengths[:-1]:
        if place < length - 1e-9:  # a step at the border begins the next cycle, however the division rounds
            return above(settings.final_share, half_cosine(place / length))
        place = max(0.0, place - length)
    return above(settings.final_share, half_cosine(place / lengths[-1]))


def wsd(settings: Wsd, done: int, total: int) -> float:
    """1, and over the last `decay_share` of the steps down to the final share."""
    decayed = 1.0 - (1.0 - done / max(1, total)) / settings.decay_share
    if decayed <= 0:
        return 1.0
    return above(settings.final_share, 1.0 - (math.sqrt(decayed) if settings.shape == "sqrt" else decayed))


def plateau(settings: Plateau, values: Sequence[float]) -> float:
    """factor^n after n plateaus of the values so far, never below the final share."""
    lowered = settings.factor ** num_reductions(values, settings.patience, settings.min_change)
    return max(settings.final_share, lowered)


def half_cosine(share: float) -> float:
    """From 1 at 0 to 0 at 1."""
    return 0.5 * (1 + math.cos(math.pi * share))


def above(final_share: float, factor: float) -> float:
    """A factor from 1 to 0 as one from 1 to the final share."""
    return final_share + (1.0 - final_share) * factor


SHAPES: Mapping[type[Kind], Callable[[Any, int, int], float]] = MappingProxyType(
    {Constant: constant, Linear: linear, Cosine: cosine, Restarts: restarts, Wsd: wsd}
)
