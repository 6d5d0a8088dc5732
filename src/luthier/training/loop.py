"""The one training loop. It knows no method: it gets examples, a learner and a pure loss.

A checkpoint is the state before step n; resuming repeats nothing and skips nothing, bit for bit on a CPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from luthier.methods.base import Example, Objective
from luthier.processes import any_of, wait
from luthier.recipe import Training
from luthier.signals import Stop
from luthier.training.averaging import WeightAverage
from luthier.training.checkpoint import History, Progress, StepDone, load_best
from luthier.training.course import Course, Order
from luthier.training.keeper import Keeper, Say
from luthier.training.learner import Learner
from luthier.training.logbook import Logbook
from luthier.training.memory import Room
from luthier.training.memory_prediction import Rows
from luthier.training.noise import disturbed
from luthier.training.optimizers import make_optimizer
from luthier.training.ranks import here, refuse_other_rows
from luthier.training.schedules import schedule_of
from luthier.training.step import divisors, one_step, varied
from luthier.training.unfreezing import thawing
from luthier.training.validator import Validator, Watch

Report = Callable[[Progress], None]


def train(
    learner: Learner,
    objective: Objective,
    examples: Sequence[Example],
    validation: Sequence[Example],
    training: Training,
    seed: int,
    folder: Path,
    report: Report,
    length_share: float = 1.0,
    course: Course | None = None,
    say: Say = lambda text: None,
    watch: Watch = lambda step, num_steps, share: None,
) -> History:
    """Train `learner` in place and leave it at its best validation; returns the history of the run.

    Without validation rows it is left at the last step. `length_share` makes the whole schedule that much shorter.
    `course` is for rows of several tasks, and for a penalty. `say` is told what learns, and where a damaged checkpoint
    is passed over. `watch` hears how far a validation is.

    Everything survives in `folder`: checkpoints/step-N, best/, the history inside each checkpoint, and metrics.jsonl
    with a line a step. Whatever else ends the training, the last good state is saved first; docs/survival.md has all
    of it.

    Raises:
        TrainingError: a loss or gradient that is not finite (before the update), or no memory for a step.
        RunError: a checkpoint cannot be written, or those in `folder` are of another training.
        Stopped: SIGINT or SIGTERM; it takes no longer than the step that it falls into.
    """
    course = course or Course()
    divisors(objective, validation)
    refuse_other_rows(training, (examples, validation))
    ranks = here()
    whole, learner = learner, ranks.laid_out(learner, training, course.penalty)
    order = course.order or partial(permutation, seed, num_rows=len(examples))
    num_rows = len(order(0))
    num_draws, num_steps = planned(training, num_rows, length_share)
    evaluate_every = training.evaluate_every or max(1, math.ceil(min(num_rows, num_draws) / training.batch_size / 4))
    schedule = schedule_of(training, num_steps)
    optimizer = make_optimizer(learner, training)
    torch.manual_seed(ranks.seed(seed))
    average = WeightAverage(training.average, num_steps)
    say(whole.told())
    keeper = Keeper(folder, training, learner, optimizer, History(num_steps=num_steps), average)
    keeper.resume(say)
    history = keeper.history
    room = Room(learner, objective, training, folder, say)
    steps = partial(rows_in_order, batch_size=training.batch_size, num_rows=num_rows, order=order, num_draws=num_draws)

    def rows_at(step: int) -> list[Example]:
        return varied(objective, [examples[i] for i in steps(step)], seed, step)

    def step_of(rows: Sequence[Example], factor: float, step: int, cut: Training) -> StepDone:
        return one_step(learner, objective, rows, optimizer, factor, cut, step, course.penalty)

    validator = Validator(
        learner, whole, objective, validation, training, folder, evaluate_every, room, keeper, average, ranks, watch
    )
    disturbing = disturbed(learner, training, seed, examples)
    thawed = thawing(learner, training, num_steps, num_rows / training.batch_size)
    with Stop() as stop, keeper.rescue(), room, disturbing as disturbance, thawed as thaw:
        if not validator.has_ended():
            room.prepare(Rows(num_steps, steps, rows_at, [row.num_tokens for row in examples]), history.step)
        keeper.note_good()
        validator.check()
        validator.judge()
        logbook = Logbook(folder, history, say)
        for step in range(history.step, num_steps):
            if validator.has_ended():
                break
            started = time.perf_counter()
            factor = schedule.factor(step, history.validation)
            chosen = rows_at(step)
            thaw.begin(step, history.validation)
            disturbance.begin(step, chosen)
            done = room.step(keeper, partial(step_of, chosen, factor, step))
            average.update(step, learner)
            history.record_step(step, done, training.learning_rate * factor)
            history.seconds += time.perf_counter() - started
            keeper.note_good()
            told = f"training is saved after step {history.step} of {num_steps}"
            if any_of(stop.wanted):  # a validation that is due now is done when the training goes on
                keeper.save()
                stop.leave(told)
            validated = validator.judge()
            logbook.add(history)
            report(history.progress())
            stopping = any_of(stop.wanted)  # asked once: what is said to be saved is saved
            if stopping or keeper.due(validated) or validator.has_ended():
                keeper.save()
            if stopping:
                stop.leave(told)
    wait()  # until the first process has written the best weights
    load_best(whole, folder)
    return history


def planned(training: Training, num_rows: int, length_share: float = 1.0) -> tuple[int, int]:
    """(rows learnt from in all, each as often as it comes; steps) of that share of `epochs`, or of `max_steps`."""
    whole = training.epochs * num_rows
    if training.max_steps is not None:
        whole = min(whole, training.max_steps * training.batch_size)
    num_draws = max(1, round(length_share * whole))
    return num_draws, math.ceil(num_draws / training.batch_size)


def rows_of_step(step: int, batch_size: int, num_rows: int, seed: int) -> list[int]:
    """Row indices of a step: each epoch is its own seeded permutation, and nothing but (seed, step) decides."""
    return rows_in_order(step, batch_size, num_rows, partial(permutation, seed, num_rows=num_rows))


def rows_in_order(step: int, batch_size: int, num_rows: int, order: Order, num_draws: int | None = None) -> list[int]:
    """Row indices of a step, where epochs of `num_rows` rows in their `order` follow one another without a gap.

    A step that lies across two epochs is as large as others: a short one at each epoch's end would move the weights as
    far on fewer rows. Only the last of `num_draws` rows in all may be short.
    """
    begin, end = step * batch_size, (step + 1) * batch_size
    if num_draws is not None:
        end = min(end, num_draws)
    epochs = range(begin // num_rows, (end - 1) // num_rows + 1)
    stream = np.concatenate([order(epoch) for epoch in epochs])
    first = begin - epochs[0] * num_rows
    return [int(row) for row in stream[first : first + end - begin]]


def permutation(seed: int, epoch: int, num_rows: int) -> np.ndarray:
    """Order of the rows in one epoch."""
    return np.random.default_rng([seed, epoch]).permutation(num_rows)
