"""What trials are compared by, and when one of them is not worth going on. Validation rows only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from luthier.errors import LuthierError, RecipeError, did_you_mean
from luthier.recipe.space import AnyRecipe, changes_loss, last_tune, longest_epochs
from luthier.recipe.sweep import Sweep
from luthier.training.checkpoint import Progress
from luthier.training.judging import NEITHER, lower_is_better

RUNGS = 4  # an epoch (or a shorter training) has this many places where curves are compared


class Pruned(Exception):
    """A trial is not worth going on: raised out of its training."""


class NoFigureError(LuthierError):
    """The figure that trials are to be compared by is not one that is validated: every trial would fail."""


@dataclass(frozen=True)
class Metric:
    """A figure of the validation rows. `rows` is how many there are; `checked`: trainings refuse a wrong name."""

    name: str
    higher: bool
    rows: int
    checked: bool = False

    def of(self, validation: Sequence[dict[str, float]], best_step: int) -> float | None:
        """The figure at the step whose weights are kept; None where it could not be computed there.

        Raises:
            NoFigureError: the validations have no such figure.
        """
        entry = next(entry for entry in validation if entry["step"] == best_step)
        if self.name not in entry:
            if self.checked or any(self.name in other for other in validation):
                return None
            known = sorted(entry.keys() - {"step"})
            raise NoFigureError(
                f'sweep.metric: validation has no figure "{self.name}".{did_you_mean(self.name, known)} '
                f"It has: {', '.join(known)}."
            )
        return float(entry[self.name])


def metric_of(recipe: AnyRecipe, sweep: Sweep, deciding: str, rows: int) -> Metric:
    """The metric of a sweep. `deciding` is the figure that decides for the method.

    Raises:
        RecipeError: a figure that is neither better nor worse where it is higher.
    """
    name = sweep.metric
    if name == "auto":
        chosen = last_tune(recipe).metric
        name = deciding if chosen == "loss" and changes_loss(sweep.space) else chosen
    if name.rpartition("/")[2] in NEITHER:
        problem = f"sweep.metric: {name} is neither better nor worse where it is higher. Use another."
        raise RecipeError(f"sweep of {recipe.name}", [problem])
    return Metric(name, not lower_is_better(name), rows, checked=last_tune(recipe).metric == name)


class Hearing(Protocol):
    """A trial that can be told of a figure at a rung, and asked whether it should end."""

    last_rung: int

    def report(self, rung: int, value: float) -> bool:
        """Whether the trial is to be ended."""
        ...


@dataclass
class Watch:
    """Hears of a training's validations, passes them on at rungs, and ends it where the pruner says so.

    A rung is a share of an epoch, not a number of steps: trials differ in their batch sizes.
    """

    trial: Hearing
    metric: Metric
    epochs: float
    unit: float  # epochs between two rungs
    may_end: bool
    seen: int = 0
    value: float | None = None  # of the step that is best so far

    def __call__(self, progress: Progress) -> None:
        """Of every step."""
        if len(progress.validation) <= self.seen:
            return
        self.seen = len(progress.validation)
        step = progress.validation[-1]["step"]
        self.value = self.metric.of(progress.validation, progress.best_step)
        if self.value is None:
            return
        rung = math.floor(step / progress.num_steps * self.epochs / self.unit + 1e-9)
        if rung <= max(self.trial.last_rung, 0):
            return
        worse = self.trial.report(rung, self.value)
        if worse and self.may_end and progress.step < progress.num_steps:
            raise Pruned


def rung_epochs(recipe: AnyRecipe, sweep: Sweep) -> float:
    """Epochs between two rungs."""
    return min(1.0, longest_epochs(recipe, sweep.space)) / RUNGS


def curve_of(
    metric: Metric, validation: Sequence[dict[str, float]], num_steps: int, epochs: float
) -> list[list[float]]:
    """[epochs, figure] of each validation."""
    return [[entry["step"] / num_steps * epochs, entry[metric.name]] for entry in validation if metric.name in entry]
