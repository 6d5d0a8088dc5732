"""Gradual unfreezing: what is trained thaws from the head downwards (Howard and Ruder 2018, section 3.3).

What is open at a step follows from the step and the validations before it, so a resumed training goes on alike. A
parameter that is held needs no gradient: nothing is computed backward below the lowest open layer, and nothing is kept
for it. The optimizer passes over parameters without a gradient, so one that thaws begins with fresh moments and a step
count of its own, and those that have learnt keep theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from luthier.errors import TrainingError
from luthier.recipe import Training
from luthier.recipe.base import Kind
from luthier.recipe.unfreezing import NoThaw, Thaw, ThawByEpochs, ThawByPlateau, ThawByShare
from luthier.training.height import ABOVE, rungs
from luthier.training.judging import Validations, num_reductions, since_known
from luthier.training.learner import Learner


@dataclass(frozen=True)
class Moment:
    """Where a training stands. `values` are those of its validations so far, lower is better."""

    step: int
    num_steps: int
    epoch_steps: float
    values: Sequence[float] = ()


@dataclass(frozen=True)
class Ladder:
    """Names of trained parameters in the order they thaw: those of thaw 0 are open from the first step."""

    settings: Kind
    thaws: tuple[frozenset[str], ...]

    def held(self, moment: Moment) -> frozenset[str]:
        """What does not learn yet."""
        done = NUM_THAWS[type(self.settings)](self.settings, moment, len(self.thaws) - 1)
        return frozenset().union(*self.thaws[min(done, len(self.thaws) - 1) + 1 :])


def make_ladder(settings: Thaw, rung_of: Mapping[str, int]) -> Ladder:
    """The ladder of some parameters, by the rung that each stands on (see `rungs`).

    Raises:
        TrainingError: all of them stand on one rung, or learn from the start.
    """
    top = [rung for rung in sorted(set(rung_of.values())) if rung != ABOVE]
    has_head = ABOVE in rung_of.values()
    at_start = max(settings.at_start, 0 if has_head else 1)
    later = [top[i : i + settings.layers] for i in range(at_start, len(top), settings.layers)]
    if not later:
        raise TrainingError(
            f"tune.unfreeze: there is nothing to thaw: {len(top)} layers are trained, and {at_start} of them learn "
            "from the first step. Train more layers (tune.adapter), lower at_start, or leave unfreeze out."
        )
    steps = [[ABOVE, *top[:at_start]], *later]
    return Ladder(settings, tuple(frozenset(n for n, rung in rung_of.items() if rung in chosen) for chosen in steps))


def by_share(settings: ThawByShare, moment: Moment, num_thaws: int) -> int:
    """Thaw n of N at `until` n / N of the steps."""
    return int(moment.step * num_thaws / (settings.until * moment.num_steps) + 1e-9)


def by_epochs(settings: ThawByEpochs, moment: Moment, num_thaws: int) -> int:
    """Thaw n after n times `every` epochs."""
    return int(moment.step / (settings.every * moment.epoch_steps) + 1e-9)


def by_plateau(settings: ThawByPlateau, moment: Moment, num_thaws: int) -> int:
    """One for each plateau of the validations so far."""
    return num_reductions(moment.values, settings.patience, settings.min_change)


NUM_THAWS: Mapping[type[Kind], Callable[[Any, Moment, int], int]] = MappingProxyType(
    {ThawByShare: by_share, ThawByEpochs: by_epochs, ThawByPlateau: by_plateau}
)


@dataclass
class Thawing:
    """Holds and opens the parameters of a learner as its training goes. Without a ladder it does nothing."""

    learner: Learner
    metric: str
    num_steps: int
    epoch_steps: float
    ladder: Ladder | None

    def begin(self, step: int, validations: Validations) -> None:
        """Open what learns at 0-based `step`, after the `validations` so far."""
        if self.ladder is not None:
            values = since_known(validations, self.metric)
            self.learner.hold(self.ladder.held(Moment(step, self.num_steps, self.epoch_steps, values)))


@contextmanager
def thawing(learner: Learner, training: Training, num_steps: int, epoch_steps: float) -> Iterator[Thawing]:
    """The thawing of one training; afterwards everything that is trained is open again."""
    settings = training.unfreeze
    ladder = make_ladder(settings, rungs(learner)) if isinstance(settings, Thaw) else None
    assert ladder is not None or isinstance(settings, NoThaw)
    try:
        yield Thawing(learner, training.metric, num_steps, epoch_steps, ladder)
    finally:
        learner.hold(())
