"""What the curves of a training say: still learning, settled, overfitted, or hardly learnt. A pure function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from luthier.training.checkpoint import History

Code = Literal["unknown", "diverges", "overfits", "underfits", "still_learning", "memorises", "settled"]
Curve = Sequence[Mapping[str, float]]

RISE = 0.05  # last validation loss over the best one, less 1: below it a rise is taken for chance
FALL = 0.03  # fall of the validation loss over the last quarter of the steps, of that loss: it was still learning
LITTLE = 0.02  # fall of the training loss over the whole training, of its start: it learnt next to nothing
GAP = 1.5  # validation loss over training loss at the best step: it knows its own rows much better than others


@dataclass(frozen=True)
class Reading:
    """What is said of a training, and the losses it is said from; None where there is no such loss.

    Training losses are means over the tenth of the steps that ends there, measured before each update.
    """

    code: Code
    sentence: str
    train_first: float | None = None
    train_best: float | None = None
    train_last: float | None = None
    validation_best: float | None = None
    validation_last: float | None = None
    best_step: int | None = None


def reading(history: History) -> Reading:
    """What the curves of a finished training say. Best and last are by validation loss, whatever `tune.metric`."""
    train, validation = history.train, history.validation
    if not train or len(validation) < 2:
        return Reading("unknown", "Fewer than two validations: whether it over- or underfits cannot be told.")
    window = max(1, len(train) // 10)
    best = min(validation, key=lambda entry: entry["loss"])
    last = validation[-1]
    losses = Losses(
        first=mean_loss(train[:window]),
        best=mean_loss([e for e in train if e["step"] <= best["step"]][-window:]),
        last=mean_loss(train[-window:]),
        validated_best=best["loss"],
        validated_last=last["loss"],
        best_step=int(best["step"]),
        fall=late_fall(validation, history.step),
    )
    code, sentence = judged(losses)
    return Reading(
        code, sentence, losses.first, losses.best, losses.last, losses.validated_best, losses.validated_last,
        losses.best_step,
    )  # fmt: skip


@dataclass(frozen=True)
class Losses:
    """Training loss at first, at the best step and at last; validation loss at best and at last.

    `fall`: by what share of itself the validation loss fell over the last quarter of the steps.
    """

    first: float
    best: float
    last: float
    validated_best: float
    validated_last: float
    best_step: int
    fall: float


def judged(losses: Losses) -> tuple[Code, str]:
    """The first of the rules that holds, in words."""
    low, end = losses.validated_best, losses.validated_last
    if end - low > RISE * abs(low):
        rose = f"validation loss rose from {low:.4g} to {end:.4g}"
        if losses.last > losses.best + RISE * abs(losses.best):
            return "diverges", (
                f"Diverges after step {losses.best_step}: {rose}, and training loss from {losses.best:.4g} to "
                f"{losses.last:.4g}. Lower the learning rate."
            )
        return "overfits", (
            f"Overfits after step {losses.best_step}: {rose}, while training loss went from {losses.best:.4g} to "
            f"{losses.last:.4g}. Train for fewer epochs, on more rows, or hold the weights more tightly."
        )
    if losses.first - losses.last < LITTLE * abs(losses.first):
        return "underfits", (
            f"Hardly learns: training loss went from {losses.first:.4g} to {losses.last:.4g}. Raise the learning rate, "
            "or train more weights."
        )
    if losses.fall > FALL:
        return "still_learning", (
            f"Was still learning at the end: validation loss fell by {losses.fall:.1%} over the last quarter of the "
            "steps. More epochs may help."
        )
    if low > GAP * losses.best > 0:
        return "memorises", (
            f"Knows its own rows better than others: at step {losses.best_step} training loss is {losses.best:.4g}, "
            f"validation loss {low:.4g}. More rows, or more varied ones, help most."
        )
    return "settled", f"Settled: validation loss {low:.4g} at its best (step {losses.best_step}), {end:.4g} at the end."


def mean_loss(entries: Curve) -> float:
    """Mean loss of some steps."""
    return sum(entry["loss"] for entry in entries) / len(entries)


def late_fall(validation: Curve, num_steps: int) -> float:
    """The fall of the validation loss since the last validation in the first three quarters, as a share of that."""
    early = [entry["loss"] for entry in validation if entry["step"] <= 0.75 * num_steps]
    return (early[-1] - validation[-1]["loss"]) / abs(early[-1]) if early and early[-1] else 0.0


def history_values(history: History) -> dict[str, Any]:
    """What a training took and what its curves say, as JSON values."""
    return {
        "seconds": history.seconds,
        "validation_seconds": history.validation_seconds,
        "steps": history.step,
        "planned_steps": history.num_steps,
        "fit": asdict(reading(history)),
        "best_step": history.best_step,
        "trained_tokens": history.trained_tokens,
        "computed_tokens": history.computed_tokens,
        "sequence_tokens": history.sequence_tokens,
        "padded_tokens": history.padded_tokens,
        "curve": {"train": history.train, "validation": history.validation},
    }
