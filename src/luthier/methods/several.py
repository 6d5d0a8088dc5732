"""Several tasks learnt at once: each example goes to its own task's method, each task counts by its share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as ManyOf
from dataclasses import dataclass
from typing import Any

from luthier.methods.base import Annotating, Ask, Batch, Example, LossOut, Objective, Outputs, Scores, Varying


@dataclass(frozen=True)
class Part:
    """One task of several: its method, its share of the loss, and what stands before the names of its figures."""

    method: Objective
    share: float
    label: str = ""


@dataclass(frozen=True)
class Several:
    """sum_t a_t L_t / W_t: L_t and W_t are the loss and the weight of task t's rows in the step, a_t its share.

    `parts` by the task that examples name. The shares sum to 1, so one task with share 1 is that task alone. The loop
    divides by W_t; a task without a row in the step adds nothing to it.
    """

    parts: Mapping[str, Part]
    name: str = "several"

    def weight(self, example: Example) -> float:
        """What the row counts among the rows of its task."""
        return self.parts[example.task].method.weight(example)

    def loss(self, outputs: Outputs, batch: Batch) -> LossOut:
        """a_t times the loss of the batch's task t; its weight unchanged."""
        part = self.parts[batch.task]
        out = part.method.loss(outputs, batch)
        return LossOut(part.share * out.total, out.weight)

    def scores(self, outputs: Outputs, batch: Batch) -> Scores:
        """The figures of the batch's task, named TASK/FIGURE."""
        part = self.parts[batch.task]
        return {named(part.label, figure): pair for figure, pair in part.method.scores(outputs, batch).items()}

    def annotated(self, ask: Ask, rows: ManyOf[Example]) -> list[Example]:
        """Each task's rows as its method annotates them, in the order they came."""
        return self.by_task(rows, Annotating, lambda method, own: method.annotated(ask, own))

    def varied(self, rows: ManyOf[Example], seed: int, step: int) -> list[Example]:
        """Each task's rows in the form its method gives them in this step, in the order they came."""
        return self.by_task(rows, Varying, lambda method, own: method.varied(own, seed, step))

    def by_task(
        self, rows: ManyOf[Example], able: Any, change: Callable[[Any, list[Example]], list[Example]]
    ) -> list[Example]:
        """The rows, those of tasks whose method is `able` changed by it."""
        found = list(rows)
        for task, part in self.parts.items():
            places = [place for place, row in enumerate(rows) if row.task == task]
            if places and isinstance(part.method, able):
                for place, row in zip(places, change(part.method, [rows[place] for place in places]), strict=True):
                    found[place] = row
        return found


def named(label: str, figure: str) -> str:
    """TASK/FIGURE, or the figure alone where there is one task."""
    return f"{label}/{figure}" if label else figure


def task_key(stage: str, task: str) -> str:
    """What the examples and the head of a stage's task are called: no other stage's task is called so.

    A module's name may hold no dot and may not be an attribute's; a stage's name holds neither / nor :.
    """
    return f"{stage}/{task}".replace(".", ":")


def shares_of(weights: Mapping[str, float]) -> dict[str, float]:
    """Weights as shares that sum to 1."""
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}
