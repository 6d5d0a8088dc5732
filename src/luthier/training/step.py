"""One optimizer step, and the validation of a learner: what is done with rows, whatever the method.

Normalisation is global: the weight of a whole optimizer step is counted before its first forward pass, so
8 rows in one micro-batch, or in eight, give one trajectory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from luthier.errors import Diverged, TrainingError
from luthier.methods.base import (
    MAIN,
    Annotating,
    Batch,
    Example,
    Objective,
    Outputs,
    Varying,
    mean_ratio,
    split_by_tokens,
    weights_of,
)
from luthier.processes import gathered, num_processes
from luthier.recipe import Training
from luthier.training.checkpoint import StepDone
from luthier.training.course import Penalty
from luthier.training.learner import Learner
from luthier.training.memory_updates import EarlyUpdates, alone, brought
from luthier.training.ranks import here

Sums = dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]  # of a figure, above and below the line


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
    rows, computed = annotated(learner, objective, rows, training.pass_tokens)
    learner.train()
    weights = weights_of(objective, rows)
    optimizer.zero_grad(set_to_none=True)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    parameters = list(learner.trained().values())
    ranks = here()
    micros = ranks.passes(learner, rows, training.pass_tokens)
    early = early_updates(optimizer, parameters, training, len(micros), step) if is_early(training, penalty) else None
    loss, held, padded, passed = 0.0, 0.0, 0.0, 0.0
    with early or nullcontext():
        for micro, counts in micros:
            batch = learner.batch(micro)
            out = objective.loss(learner(batch), batch)
            share = out.total / (weights[batch.task] or 1.0)  # rows that count nothing have a loss of 0
            learns = share.requires_grad  # not where no head is read and every layer is held back (tune.unfreeze)
            if not counts:
                if learns:
                    (0.0 * share).backward()
                continue
            padded += batch.forest.num_padded_tokens
            passed += computed_tokens(learner, batch)
            loss += float(share.detach())
            if early is not None:
                refuse_infinite(loss, 0.0, training, step)
            if learns:
                share.backward()
    if penalty is not None and ranks.rank == 0:
        term = penalty()
        if term.requires_grad:  # not while everything that it holds is held back (tune.unfreeze)
            term.backward()
        held = float(term.detach())
        loss += held
    loss, held, padded, passed = ranks.sums(loss, held, padded, passed)
    ranks.add_gradients(parameters)
    norm = ranks.norm(parameters) if early is None else early.norm
    refuse_infinite(loss, norm, training, step)
    if early is None:
        if training.clip_norm and norm > training.clip_norm:
            ranks.clip(parameters, training.clip_norm, norm)
        update(optimizer, parameters, training)
    lengths = sum(example.num_tokens for example in rows)
    trained = sum(example.num_trained for example in rows)
    return StepDone(
        loss, norm, trained, computed + int(passed), lengths, int(padded), held if penalty is not None else None
    )


def refuse_infinite(loss: float, norm: float, training: Training, step: int) -> None:
    """Diverged, before the update, where the loss or the gradient is no number."""
    if math.isfinite(loss) and math.isfinite(norm):
        return
    raise Diverged(
        f"step {step + 1}: loss {loss:g}, gradient norm {norm:g}; the update was not made. "
        f"Lower tune.learning_rate (now {training.learning_rate:g}) or raise tune.warmup_share, and run again."
    )


def update(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], training: Training) -> None:
    """The optimizer's update, of each parameter alone where its state has to be brought."""
    if not training.memory.offload_optimizer:
        optimizer.step()
        return
    for parameter in parameters:
        if parameter.grad is not None:
            update_alone(optimizer, parameter, training)


def update_alone(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, training: Training) -> None:
    """The update of one parameter; `offload_optimizer` brings its state from the computer's memory and back."""
    home = torch.device("cpu") if training.memory.offload_optimizer else parameter.device
    with alone(optimizer, parameter), brought(optimizer.state[parameter], parameter.device, home):
        optimizer.step()


def is_early(training: Training, penalty: Penalty | None) -> bool:
    """Whether parameters are updated within the backward pass. TrainingError where a penalty comes after it."""
    if training.memory.optimizer_in_backward and penalty is not None:
        raise TrainingError(
            "tune.memory.optimizer_in_backward: the penalty on the weights (keep.penalty) has a gradient of its own, "
            "which would come after the update. Set it to false, or keep.penalty: none."
        )
    return training.memory.optimizer_in_backward


def early_updates(
    optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], training: Training, num_micros: int, step: int
) -> EarlyUpdates:
    """Updates within the backward pass. TrainingError where the step has several of those."""
    if num_micros > 1:
        raise TrainingError(
            f"step {step + 1} is cut into {num_micros} micro-batches of at most {training.pass_tokens} tokens (of one "
            "task each), and tune.memory.optimizer_in_backward updates within the first. Raise "
            "tune.micro_batch_tokens or lower tune.batch_size; the last checkpoint is intact."
        )
    return EarlyUpdates([p for p in parameters if p.requires_grad], partial(update_alone, optimizer, training=training))


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
        return list(zip(here().answers(learner, batches), batches, strict=True))

    return objective.annotated(ask, rows), computed


def computed_tokens(learner: Learner, batch: Batch) -> int:
    """Tokens that go through the layers for a batch."""
    return batch.forest.num_grouped_tokens if learner.backend == "padded" else batch.forest.num_tokens


@torch.no_grad()
def evaluate(
    learner: Learner,
    objective: Objective,
    examples: Sequence[Example],
    max_tokens: int,
    watch: Callable[[float], None] = lambda share: None,
) -> tuple[float, dict[str, float]]:
    """Loss and figures over examples: each figure is a ratio of sums over rows. `watch` hears which share is done.

    A figure that has nothing to divide by (a precision where nothing was found) is NaN.
    """
    learner.eval()
    examples, _ = annotated(learner, objective, examples, max_tokens)
    weights = divisors(objective, examples)
    loss = 0.0
    sums: Sums = {}
    num_done = 0
    for micro, counts in here().passes(learner, examples, max_tokens):
        batch = learner.batch(micro)
        outputs = learner(batch)
        num_done += len(micro) * num_processes()
        watch(min(1.0, num_done / len(examples)))
        if not counts:
            continue
        loss += float(objective.loss(outputs, batch).total) / weights[batch.task]
        for name, (numerator_B, denominator_B) in objective.scores(outputs, batch).items():
            add_to(sums, name, tuple(part.sum(0).double().cpu().numpy() for part in (numerator_B, denominator_B)))
    loss, sums = added_up(gathered((loss, sums)))
    if not math.isfinite(loss):
        raise TrainingError(
            f"validation loss {loss:g}: training has diverged. Lower tune.learning_rate or raise tune.warmup_share, "
            "and run again."
        )
    return loss, {name: mean_ratio(above, below) for name, (above, below) in sums.items()}


def add_to(sums: Sums, name: str, more: Sequence[NDArray[np.float64]]) -> None:
    """Count further rows of a figure."""
    above, below = sums.get(name, (np.zeros(()), np.zeros(())))
    sums[name] = (above + more[0], below + more[1])


def added_up(parts: list[tuple[float, Sums]]) -> tuple[float, Sums]:
    """Losses and sums of figures of all ranks; those of one as they are."""
    loss, sums = parts[0]
    for other_loss, other_sums in parts[1:]:
        loss += other_loss
        for name, pair in other_sums.items():
            add_to(sums, name, pair)
    return loss, sums


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


def varied(objective: Objective, rows: list[Example], seed: int, step: int) -> list[Example]:
    """The rows of a step as its method wants them this time; nothing but (seed, step) decides."""
    return objective.varied(rows, seed, step) if isinstance(objective, Varying) else rows
