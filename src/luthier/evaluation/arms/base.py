"""What an arm is: something that answers every held-out row, and what it learned to do so."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as ManyOf
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from luthier.prompts import ClassifyPrompt
from luthier.recipe import Ask
from luthier.records import Labelled, Outcome, Prediction

Floats = NDArray[np.float64]
Report = Callable[[int, int], None]
LATENCY_ROWS = 20  # rows asked one at a time for the latency figures
WARM_UP_ROWS = 2  # asked before the clock starts


@dataclass(frozen=True)
class Rows:
    """The rows every arm gets. What is chosen is chosen on `validation`; `test` is answered once."""

    train: tuple[Labelled, ...]
    validation: tuple[Labelled, ...]
    test: tuple[Labelled, ...]


@dataclass(frozen=True)
class ArmResult:
    """Predictions for `test` in order; what was chosen; seconds: a row in bulk, and one row at a time."""

    predictions: tuple[Prediction, ...]
    chosen: str
    seconds_per_row: float
    latencies_seconds: tuple[float, ...]
    tokens_per_row: float | None = None


class Arm(Protocol):
    """The contract: `run` may look at train and validation rows, and answers the test texts."""

    @property
    def name(self) -> str:
        """The arm's name in recipes and results."""
        ...

    def run(self, rows: Rows, prompt: ClassifyPrompt, ask: Ask, seed: int, report: Report) -> ArmResult:
        """Choose on validation, answer test."""
        ...


def predictions_from(logprobs_BL: Floats, labels: ManyOf[str]) -> tuple[Prediction, ...]:
    """The most likely label of each row, with all probabilities."""
    probabilities = np.exp(logprobs_BL - np.logaddexp.reduce(logprobs_BL, axis=1, keepdims=True))
    return tuple(
        Prediction(labels[int(row.argmax())], Outcome.ANSWERED, tuple(float(p) for p in row)) for row in probabilities
    )


def time_single_rows(answer: Callable[[str], object], texts: ManyOf[str]) -> tuple[float, ...]:
    """Seconds of each of a few rows asked alone, warm-up dropped."""
    seconds = []
    for text in texts[: LATENCY_ROWS + WARM_UP_ROWS]:
        started = time.perf_counter()
        answer(text)
        seconds.append(time.perf_counter() - started)
    return tuple(seconds[WARM_UP_ROWS:] or seconds)


def gold_indices(rows: ManyOf[Labelled], labels: ManyOf[str]) -> NDArray[np.int64]:
    """Label index of each row."""
    index = {label: i for i, label in enumerate(labels)}
    return np.array([index[row.label] for row in rows], dtype=np.int64)
