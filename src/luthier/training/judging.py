"""What validations say of a training, as pure functions: which is best, when to lower the rate, when to end.

A validation is an entry of `History.validation`: its step, its loss, its figures. All is worked out anew from them
each time, so a resumed training comes to the same answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import dropwhile

from luthier.errors import TrainingError, did_you_mean
from luthier.recipe import Training

Validations = Sequence[Mapping[str, float]]

LOWER_IS_BETTER = frozenset(
    [
        "loss", "bits_per_byte", "bits_per_token", "kl", "distance", "unexplained", "absolute_error", "squared_error",
    ]
)  # fmt: skip
NEITHER = frozenset(["reward", "squared_reward"])  # how large rewards are is no matter of better and worse


def lower_is_better(metric: str) -> bool:
    """Whether less of a figure is better; a task's name may stand before it (`TASK/FIGURE`)."""
    return metric.rpartition("/")[2] in LOWER_IS_BETTER


def badness(validations: Validations, metric: str) -> list[float]:
    """The figure at each validation, turned round where more is better, so that less is better.

    Infinite where it could not be computed (a precision where nothing was found): no other is worse.
    """
    sign = 1.0 if lower_is_better(metric) else -1.0
    return [sign * entry[metric] if metric in entry else float("inf") for entry in validations]


def since_known(validations: Validations, metric: str) -> list[float]:
    """The badness from the first validation on at which the figure could be computed: patience begins there."""
    return list(dropwhile(lambda value: value == float("inf"), badness(validations, metric)))


def best_step(validations: Validations, metric: str) -> int:
    """The step of the best validation; 0 where there is none.

    Of equals it is the first; of those at which the figure could not be computed, where none is better, the one
    with the lowest loss.
    """
    if not validations:
        return 0
    values = badness(validations, metric)
    best = min(
        range(len(values)), key=lambda i: (values[i], validations[i]["loss"] if values[i] == float("inf") else 0.0)
    )
    return int(validations[best]["step"])


def waits(values: Iterable[float], min_change: float) -> list[int]:
    """After each value how many there have been since the last that was lower than all before by over `min_change`."""
    best, wait, found = float("inf"), 0, []
    for value in values:
        better = value < best - min_change
        best, wait = (value, 0) if better else (best, wait + 1)
        found.append(wait)
    return found


def num_reductions(values: Iterable[float], patience: int, min_change: float) -> int:
    """How often a rate has been lowered that bears `patience` values without a lower one, and then counts anew.

    The rule of torch's ReduceLROnPlateau, with an absolute threshold.
    """
    best, wait, found = float("inf"), 0, 0
    for value in values:
        better = value < best - min_change
        best, wait = (value, 0) if better else (best, wait + 1)
        if wait > patience:
            found, wait = found + 1, 0
    return found


def has_ended(validations: Validations, training: Training) -> bool:
    """Whether the training is to stop early by now."""
    if training.stop is None:
        return False
    values = since_known(validations, training.metric)
    return max(waits(values, training.stop.min_change), default=0) >= training.stop.patience


def check_metric(figures: Iterable[str], metric: str) -> None:
    """TrainingError unless `metric` is among the names of what is validated, and has a better and a worse."""
    known = sorted({"loss", *figures})
    if metric.rpartition("/")[2] in NEITHER:
        raise TrainingError(f"tune.metric: {metric} is neither better nor worse where it is higher. Use another.")
    if metric not in known:
        raise TrainingError(
            f'tune.metric: "{metric}" is not validated here; this training has {", ".join(known)}.'
            + did_you_mean(metric, known)
        )
