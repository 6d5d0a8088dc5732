"""What a training will take at its peak: the formula, calibrated by two real steps on a few of the run's own rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from collections.abc import Sequence as ManyOf
from dataclasses import dataclass

import numpy as np

from luthier.errors import TrainingError
from luthier.files import bytes_text
from luthier.methods.base import Example, Objective, split_by_tokens, weights_of
from luthier.recipe import Training
from luthier.recipe.averaging import NoAverage
from luthier.training.learner import Learner
from luthier.training.memory_formula import Load, Shape, activation_bytes, shape_of
from luthier.training.memory_trial import Measured, Meter, Trial
from luthier.training.step import computed_tokens

LOOKED_AT = 400  # steps among which the heaviest are sought, evenly spaced over the run
HEAVIEST = 4  # of them whose forests are built
SHARES = (6, 2)  # of the heaviest pass: a sixth and a half of its rows are the two steps that calibrate
HEAP_GROWTH = 0.35  # holes that a CPU's heap comes to, as a share of the activations (docs/memory.md)
HEAP_STEPS = 12  # after so many steps two thirds of them are there
SCALES = 0.2, 8.0  # factors on the formula that can be real; others are noise on a tiny model


@dataclass(frozen=True)
class Rows:
    """The rows of a run: their indices at a step, and what is learnt from them there."""

    num_steps: int
    indices: Callable[[int], list[int]]
    examples: Callable[[int], list[Example]]
    tokens: ManyOf[int]  # of all sequences of each row

    def heaviest(self) -> list[list[Example]]:
        """The rows of the steps with the most tokens, and of one with the longest row."""
        steps = np.unique(np.linspace(0, self.num_steps - 1, min(self.num_steps, LOOKED_AT)).astype(int))
        sizes = [[self.tokens[i] for i in self.indices(int(step))] for step in steps]
        order = sorted(range(len(steps)), key=lambda i: -sum(sizes[i]))[:HEAVIEST]
        longest = max(range(len(steps)), key=lambda i: max(sizes[i]))
        return [self.examples(int(steps[i])) for i in dict.fromkeys([*order, longest])]


@dataclass(frozen=True)
class Pass:
    """A micro-batch with what it loads the model with."""

    rows: list[Example]
    load: Load


@dataclass(frozen=True)
class Expected:
    """Bytes at the peak: the program with the model, gradients, optimizer (and averages), activations of one pass.

    `heap`: what a CPU's heap grows by in a training of many steps, beyond what is in use.
    """

    held: int
    gradients: int
    optimizer: int
    activations: int
    tokens: int
    heap: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.held + self.gradients + self.optimizer + self.activations + self.heap

    def told(self) -> str:
        """In a sentence."""
        return (
            f"memory: about {bytes_text(self.total)} at the peak: {bytes_text(self.held)} program and model, "
            f"{bytes_text(self.gradients)} gradients, {bytes_text(self.optimizer)} optimizer, "
            f"{bytes_text(self.activations)} activations of {self.tokens:,} tokens"
            + (f", {bytes_text(self.heap)} holes in the heap." if self.heap else ".")
        )


@dataclass(frozen=True)
class Prediction:
    """The formula with what was measured: activations = offset + scale * formula; `growth` of them are the heap's."""

    shape: Shape
    training: Training
    held: int
    gradients: int
    optimizer: int
    update: int  # what the update itself takes for a moment
    scale: float
    offset: float
    growth: float = 0.0

    def expected(self, load: Load) -> Expected:
        """The peak of a training whose largest pass is `load`."""
        passing = self.offset + self.scale * activation_bytes(self.shape, load, self.training.memory)
        activations = max(self.update, round(passing))
        heap = round(self.growth * activations)
        return Expected(self.held, self.gradients, self.optimizer, activations, load.tokens, heap)


def heap_growth(num_steps: int) -> float:
    """What glibc's heap has grown by after so many steps of many shapes, as a share of the activations."""
    return HEAP_GROWTH * (1 - math.exp(-num_steps / HEAP_STEPS))


def passes(learner: Learner, steps: ManyOf[ManyOf[Example]], most_tokens: int) -> Iterator[Pass]:
    """The micro-batches of some steps."""
    for rows in steps:
        for micro in split_by_tokens(rows, most_tokens):
            batch = learner.batch(micro)
            yield Pass(micro, Load(computed_tokens(learner, batch), len(np.unique(batch.forest.row_M))))


def heaviest_pass(learner: Learner, shape: Shape, steps: ManyOf[ManyOf[Example]], training: Training) -> Pass:
    """The micro-batch that takes the most memory."""
    found = passes(learner, steps, training.pass_tokens)
    return max(found, key=lambda one: activation_bytes(shape, one.load, training.memory))


def calibrated(
    learner: Learner, objective: Objective, training: Training, steps: ManyOf[ManyOf[Example]], meter: Meter
) -> Prediction | None:
    """The formula, calibrated; None where peaks cannot be measured here, or a trial step fails by itself."""
    shape = shape_of(learner)
    parts = trial_rows(objective, heaviest_pass(learner, shape, steps, training).rows, steps)
    if parts is None or not meter.start():
        return None
    loads = [next(passes(learner, [rows], training.pass_tokens)).load for rows in parts]
    trial = Trial(learner, objective, training, meter)
    try:
        found = [trial.step(rows) for rows in parts]
    except TrainingError:  # the first real step will say it, and what is safe
        return None
    sizes = [parameter.nbytes for parameter in trial.parameters]
    del trial
    held = meter.held_bytes()
    early = training.memory.optimizer_in_backward
    gradients = max(sizes) if early else sum(sizes)
    averaged = 0 if isinstance(training.average, NoAverage) else sum(sizes)
    taken = [measured.passes - held - gradients for measured in found]
    taken[1] -= found[0].state
    scale, offset = line([activation_bytes(shape, load, training.memory) for load in loads], taken, early)
    update = 0 if early else max(0, found[1].update - held - gradients - found[1].state)
    optimizer = optimizer_bytes(found[1], training, learner) + averaged
    return Prediction(shape, training, held, gradients, optimizer, update, scale, offset)


def optimizer_bytes(measured: Measured, training: Training, learner: Learner) -> int:
    """What the optimizer's state takes where the peak is: nothing on a GPU to which it is only brought."""
    return 0 if training.memory.offload_optimizer and learner.device.type == "cuda" else measured.state


def trial_rows(
    objective: Objective, heaviest: list[Example], steps: ManyOf[ManyOf[Example]]
) -> list[list[Example]] | None:
    """Rows for the two steps that calibrate: some of the heaviest pass; the run's shortest row where it has but one."""
    count = len(heaviest)
    few, more = (heaviest[: max(least, count // share)] for least, share in enumerate(SHARES, 1))
    if count == 1:
        few = [min((row for rows in steps for row in rows), key=lambda row: row.num_tokens)]
    parts = [few, more]
    return parts if all(min(weights_of(objective, rows).values()) > 0 for rows in parts) else None


def line(formula: ManyOf[int], taken: ManyOf[int], only_last: bool) -> tuple[float, float]:
    """(scale, offset) of taken = offset + scale * formula, through both points or through the last and zero.

    A line whose offset is not between nothing and half of what was taken is noise: two small steps are too alike.
    """
    low, high = SCALES
    through_zero = min(max(taken[1] / formula[1], low), high), 0.0
    if only_last or formula[1] < 1.2 * formula[0]:
        return through_zero
    scale = (taken[1] - taken[0]) / (formula[1] - formula[0])
    offset = taken[1] - scale * formula[1]
    return (scale, offset) if low <= scale <= high and 0 <= offset <= taken[1] / 2 else through_zero
