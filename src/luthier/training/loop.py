"""The one training loop. It knows no method: it gets examples, a learner and a pure loss.

Normalisation is global: the weight of a whole optimizer step is counted before its first forward pass, so
8 rows in one micro-batch, or in eight, give one trajectory. A checkpoint is the state before step n; resuming
repeats nothing and skips nothing, bit for bit on a CPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from luthier.errors import TrainingError
from luthier.methods.base import (
    MAIN,
    Annotating,
    Batch,
    Example,
    Objective,
    Outputs,
    Varying,
    split_by_tokens,
    weights_of,
)
from luthier.recipe import Training
from luthier.signals import Stop
from luthier.training.checkpoint import (
    History,
    Progress,
    StepDone,
    clear_leftovers,
    latest_checkpoint,
    load_best,
    load_checkpoint,
    save_best,
    save_checkpoint,
)
from luthier.training.course import Course, Order, Penalty
from luthier.training.learner import Learner

Report = Callable[[Progress], None]


@dataclass(frozen=True)
class Schedule:
    """Learning-rate factor over steps: linear warm-up, then constant, linear or cosine decay to zero."""

    kind: str
    num_steps: int
    num_warmup: int

    def factor(self, step: int) -> float:
        """Factor for 0-based `step`."""
        if step < self.num_warmup:
            return (step + 1) / (self.num_warmup + 1)
        done = (step - self.num_warmup) / max(1, self.num_steps - self.num_warmup)
        if self.kind == "constant":
            return 1.0
        return 1.0 - done if self.kind == "linear" else 0.5 * (1 + math.cos(math.pi * done))


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


def one_step(
    learner: Learner,
    objective: Objective,
    rows: Sequence[Example],
    optimizer: torch.optim.Optimizer,
    factor: float,
    training: Training,
    step: int,
    penalty: Penalty | None = None,
) -> StepDone:
    """One optimizer step over rows, in micro-batches; a penalty counts once, however the rows are cut."""
    rows, computed = annotated(learner, objective, rows, training.micro_batch_tokens)
    learner.train()
    weights = weights_of(objective, rows)
    optimizer.zero_grad(set_to_none=True)
    loss, padded = 0.0, 0
    for micro in split_by_tokens(rows, training.micro_batch_tokens):
        batch = learner.batch(micro)
        padded += batch.forest.num_padded_tokens
        computed += computed_tokens(learner, batch)
        out = objective.loss(learner(batch), batch)
        share = out.total / weights[batch.task]
        share.backward()
        loss += float(share.detach())
    held = None
    if penalty is not None:
        term = penalty()
        term.backward()
        held = float(term.detach())
        loss += held
    parameters = list(learner.trained().values())
    norm = float(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise TrainingError(
            f"step {step + 1}: loss {loss:g}, gradient norm {norm:g}; the update was not made. "
            f"Lower tune.learning_rate (now {training.learning_rate:g}) or raise tune.warmup_share, and run again: "
            "the last checkpoint is intact."
        )
    if training.clip_norm and norm > training.clip_norm:
        nn.utils.clip_grads_with_norm_(parameters, training.clip_norm, torch.tensor(norm))
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    optimizer.step()
    lengths = sum(len(sequence.tokens) for example in rows for sequence in example.sequences)
    trained = sum(example.num_trained for example in rows)
    return StepDone(loss, norm, trained, computed, lengths, padded, held)


@torch.no_grad()
def annotated(
    learner: Learner, objective: Objective, rows: Sequence[Example], max_tokens: int
) -> tuple[list[Example], int]:
    """The rows with what the method notes on them beforehand, if it does, and the tokens computed for that.

    The learner is put into evaluation mode where it is asked: a note is no matter of dropout.
    """
    if not isinstance(objective, Annotating):
        return list(rows), 0
    computed = 0

    def ask(examples: Sequence[Example]) -> list[tuple[Outputs, Batch]]:
        nonlocal computed
        learner.eval()
        batches = [learner.batch(micro) for micro in split_by_tokens(examples, max_tokens)]
        computed += sum(computed_tokens(learner, batch) for batch in batches)
        return [(learner(batch), batch) for batch in batches]

    return objective.annotated(ask, rows), computed


def computed_tokens(learner: Learner, batch: Batch) -> int:
    """Tokens that go through the layers for a batch."""
    return batch.forest.num_grouped_tokens if learner.backend == "padded" else batch.forest.num_tokens


@torch.no_grad()
def evaluate(
    learner: Learner, objective: Objective, examples: Sequence[Example], max_tokens: int
) -> tuple[float, dict[str, float]]:
    """Loss and figures over examples: each figure is a ratio of sums over rows."""
    learner.eval()
    examples, _ = annotated(learner, objective, examples, max_tokens)
    weights = divisors(objective, examples)
    loss = 0.0
    sums: dict[str, list[float]] = {}
    for micro in split_by_tokens(examples, max_tokens):
        batch = learner.batch(micro)
        outputs = learner(batch)
        loss += float(objective.loss(outputs, batch).total) / weights[batch.task]
        for name, (numerator_B, denominator_B) in objective.scores(outputs, batch).items():
            held = sums.setdefault(name, [0.0, 0.0])
            held[0] += float(numerator_B.sum())
            held[1] += float(denominator_B.sum())
    if not math.isfinite(loss):
        raise TrainingError(
            f"validation loss {loss:g}: training has diverged. Lower tune.learning_rate or raise tune.warmup_share, "
            "and run again."
        )
    return loss, {name: above / below for name, (above, below) in sums.items() if below}


def divisors(objective: Objective, validation: Sequence[Example]) -> dict[str, float]:
    """What each task's validation loss is divided by.

    Raises:
        TrainingError: a task's rows count nothing, so no step would be better than another.
    """
    weights = weights_of(objective, validation)
    for task, weight in weights.items():
        if not weight:
            of = "" if task == MAIN else f" of {task}"
            num_rows = sum(example.task == task for example in validation)
            raise TrainingError(
                f"the {num_rows} validation rows{of} all have weight 0 (labels that no training row has, or turns of "
                "weight 0), so they cannot tell which step is best. Raise data.validation_share, mend those rows, or "
                "set data.validation_share: 0 to keep the last step."
            )
    return weights


def make_optimizer(learner: Learner, training: Training) -> torch.optim.Optimizer:
    """AdamW; the head has its own peak rate, vectors and biases have no decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in learner.trained().items():
        peak = training.head_learning_rate if name.startswith("heads.") else training.learning_rate
        decay = training.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((peak, decay), []).append(parameter)
    if not groups:
        raise TrainingError("nothing would be trained: the adapter matches no layer. Check tune.adapter.targets.")
    listed = [{"params": p, "peak": peak, "lr": peak, "weight_decay": decay} for (peak, decay), p in groups.items()]
    return torch.optim.AdamW(listed, fused=True)


def varied(objective: Objective, rows: list[Example], seed: int, step: int) -> list[Example]:
    """The rows of a step as its method wants them this time; nothing but (seed, step) decides."""
    return objective.varied(rows, seed, step) if isinstance(objective, Varying) else rows


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
