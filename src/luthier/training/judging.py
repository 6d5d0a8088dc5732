"""What validations say of a training, as pure functions: which is best, when to lower the rate, when to end.

A validation is an entry of `History.validation`: its step, its loss, its figures. All is worked out anew from them
each time, so a resumed training comes to the same answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

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


def badness(validations: Validations, metric: str) -> list[tuple[int, float]]:
    """(step, figure, turned round where more is better) of each validation that has it, so that less is better."""
    sign = 1.0 if lower_is_better(metric) else -1.0
    return [(int(entry["step"]), sign * entry[metric]) for entry in validations if metric in entry]


def best_step(validations: Validations, metric: str) -> int:
    """The step of the best validation; of equals the first; 0 where there is none."""
    found = badness(validations, metric)
    return min(found, key=lambda pair: pair[1])[0] if found else 0


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
    values = (value for _, value in badness(validations, training.metric))
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
