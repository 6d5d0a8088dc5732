"""One optimizer step, and the validation of a learner: what is done with rows, whatever the method.

Normalisation is global: the weight of a whole optimizer step is counted before its first forward pass, so
8 rows in one micro-batch, or in eight, give one trajectory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

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
from luthier.training.checkpoint import StepDone
from luthier.training.course import Penalty
from luthier.training.learner import Learner


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


def varied(objective: Objective, rows: list[Example], seed: int, step: int) -> list[Example]:
    """The rows of a step as its method wants them this time; nothing but (seed, step) decides."""
    return objective.varied(rows, seed, step) if isinstance(objective, Varying) else rows
