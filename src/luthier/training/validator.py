"""When a training validates, and which of its weights are kept as the best."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from luthier.methods.base import Example, Objective
from luthier.recipe import Training
from luthier.training.averaging import WeightAverage
from luthier.training.checkpoint import History, save_best
from luthier.training.judging import check_metric, has_ended
from luthier.training.keeper import Keeper
from luthier.training.learner import Learner
from luthier.training.memory import Room
from luthier.training.ranks import Ranks
from luthier.training.step import evaluate

Watch = Callable[[int, int, float], None]  # step, number of steps, share of the validation rows that are done


@dataclass
class Validator:
    """`learner` is what trains, perhaps a share of `whole`, which is written to `folder`/best."""

    learner: Learner
    whole: Learner
    objective: Objective
    rows: Sequence[Example]
    training: Training
    folder: Path
    every: int  # steps
    room: Room
    keeper: Keeper
    average: WeightAverage
    ranks: Ranks
    watch: Watch

    @property
    def history(self) -> History:
        """Of the training."""
        return self.keeper.history

    def has_ended(self) -> bool:
        """Whether all steps are made, or validation says that no more are worth it."""
        return self.history.step == self.history.num_steps or has_ended(self.history.validation, self.training)

    def is_due(self) -> bool:
        """Whether this step is one to validate at and has not been validated; it may be from before a stop."""
        last = self.history.step == self.history.num_steps
        return not self.history.validated() and (
            last or (self.history.step > 0 and self.history.step % self.every == 0)
        )

    def check(self) -> None:
        """Refuse, before the first step, a metric that these rows do not have."""
        if self.training.metric != "loss" and self.rows and not self.history.validation:
            check_metric(self.figures()[1], self.training.metric)

    def judge(self) -> bool:
        """Validate if that is due, keep the best weights; whether it was. Without rows the last weights are kept."""
        if not self.rows:
            if self.history.step == self.history.num_steps and not self.history.best_step:
                with self.average.in_place(self.learner):
                    self.keep_best()
                self.history.best_step = self.history.num_steps
            return False
        if not self.is_due():
            return False
        started = time.perf_counter()
        self.room.give_back()
        with self.average.in_place(self.learner):
            loss, figures = self.figures()
            self.keeper.lift()  # what is noted as best and what lies in best/ belong together
            self.history.record_validation(self.history.step, loss, figures, self.training.metric)
            if self.history.best_step == self.history.step:
                self.keep_best()
        self.room.give_back()
        self.history.validation_seconds += time.perf_counter() - started
        self.keeper.note_good()
        return True

    def figures(self) -> tuple[float, dict[str, float]]:
        """Loss and figures of the rows, now."""
        watch = partial(self.watch, self.history.step, self.history.num_steps)
        return evaluate(self.learner, self.objective, self.rows, self.room.training.pass_tokens, watch)

    def keep_best(self) -> None:
        """Write these weights as the best so far."""
        self.ranks.bring_home(self.learner, self.whole)
        save_best(self.whole, self.folder)
