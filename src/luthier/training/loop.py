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
from luthier.recipe import Training
from luthier.signals import Stop
from luthier.training.checkpoint import (
    History,
    Progress,
    clear_leftovers,
    latest_checkpoint,
    load_best,
    load_checkpoint,
    save_best,
    save_checkpoint,
)
from luthier.training.course import Course, Order
from luthier.training.learner import Learner
from luthier.training.optimizers import make_optimizer
from luthier.training.schedules import Schedule
from luthier.training.step import divisors, evaluate, one_step, varied

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
) -> History:
    """Train `learner` in place and leave it at its best validation; returns the history of the run.

    Without validation rows it is left at the last step. `length_share` makes the whole schedule that much shorter.
    `course` is for rows of several tasks, and for a penalty.

    Everything survives in `folder`: checkpoints/step-N, best/, and the history inside each checkpoint.
    Raises TrainingError before an update with a loss or gradient that is not finite, and Stopped (after
    saving) on SIGINT or SIGTERM.
    """
    course = course or Course()
    divisors(objective, validation)
    order = course.order or partial(permutation, seed, num_rows=len(examples))
    num_rows = len(order(0))
    num_steps = max(1, math.ceil(length_share * training.epochs * num_rows / training.batch_size))
    evaluate_every = training.evaluate_every or max(1, math.ceil(num_rows / training.batch_size / 4))
    schedule = Schedule(training.schedule, num_steps, round(training.warmup_share * num_steps))
    optimizer = make_optimizer(learner, training)
    torch.manual_seed(seed)
    history = History(num_steps=num_steps)
    clear_leftovers(folder)
    found = latest_checkpoint(folder)
    if found is not None:
        history = load_checkpoint(found, learner, optimizer, num_steps)
    with Stop() as stop:
        for step in range(history.step, num_steps):
            started = time.perf_counter()
            rows = rows_in_order(step, training.batch_size, num_rows, order)
            factor = schedule.factor(step)
            chosen = varied(objective, [examples[i] for i in rows], seed, step)
            done = one_step(learner, objective, chosen, optimizer, factor, training, step, course.penalty)
            history.record_step(step, done, training.learning_rate * factor)
            history.seconds += time.perf_counter() - started
            last = step + 1 == num_steps
            validated = bool(validation) and (last or (step + 1) % evaluate_every == 0)
            if validated:
                started = time.perf_counter()
                history.record_validation(
                    step + 1, *evaluate(learner, objective, validation, training.micro_batch_tokens)
                )
                if history.best_step == step + 1:
                    save_best(learner, folder)
                history.validation_seconds += time.perf_counter() - started
            if last and not validation:
                history.best_step = num_steps
                save_best(learner, folder)
            report(history.progress())
            stopping = stop.wanted and not last  # asked once: what is said to be saved is saved
            due = validated if training.checkpoint_every == 0 else (step + 1) % training.checkpoint_every == 0
            if last or stopping or due:
                save_checkpoint(folder, learner, optimizer, history)
            if stopping:
                stop.leave(f"training is saved after step {step + 1} of {num_steps}")
    load_best(learner, folder)
    return history


def rows_of_step(step: int, batch_size: int, num_rows: int, seed: int) -> list[int]:
    """Row indices of a step: each epoch is its own seeded permutation, and nothing but (seed, step) decides."""
    return rows_in_order(step, batch_size, num_rows, partial(permutation, seed, num_rows=num_rows))


def rows_in_order(step: int, batch_size: int, num_rows: int, order: Order) -> list[int]:
    """Row indices of a step, where epochs of `num_rows` rows in their `order` follow one another without a gap."""
    begin, end = step * batch_size, (step + 1) * batch_size
    epochs = range(begin // num_rows, (end - 1) // num_rows + 1)
    stream = np.concatenate([order(epoch) for epoch in epochs])
    first = begin - epochs[0] * num_rows
    return [int(row) for row in stream[first : first + batch_size]]


def permutation(seed: int, epoch: int, num_rows: int) -> np.ndarray:
    """Order of the rows in one epoch."""
    return np.random.default_rng([seed, epoch]).permutation(num_rows)
