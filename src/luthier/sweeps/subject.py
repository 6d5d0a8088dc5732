"""What is swept: a run, or stages. Each can train one trial without touching test rows, and run the best in full."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, cast

from luthier.corpus.prepare import data_hash
from luthier.errors import RecipeError
from luthier.files import content_hash
from luthier.locks import alone
from luthier.methods.several import named
from luthier.pipeline import Pipeline, check_rows
from luthier.progress import Listener, Silent
from luthier.recipe import Recipe
from luthier.recipe.space import AnyRecipe, first_stage
from luthier.recipe.stages import TrainRecipe
from luthier.recipe.sweep import Space
from luthier.stages.chain import Left
from luthier.stages.one import PATHS, StageRun
from luthier.stages.run import Stages, train
from luthier.training.checkpoint import History, Progress

Hear = Callable[[Progress], None]
TRIAL_PARTS = ("train", "validation")  # of the rows: no trial reads a test row
RUN_FIGURES = {"head": "accuracy", "candidates": "accuracy", "sft": "bits_per_byte"}


class Subject(Protocol):
    """A recipe that can be tried with other values."""

    kind: str

    @property
    def key(self) -> str:
        """Content hash of recipe and rows: trials of another one cannot be compared with these."""
        ...

    @property
    def deciding(self) -> str:
        """The figure that decides for the method."""
        ...

    @property
    def validation_rows(self) -> int:
        """Rows that trials are compared on."""
        ...

    def train(self, recipe: AnyRecipe, folder: Path, hear: Hear) -> History:
        """One trial's training; goes on where it was stopped."""
        ...

    def run(self, recipe: AnyRecipe, folder: Path, listener: Listener) -> dict[str, Any]:
        """The whole recipe with its held-out rows; returns its result."""
        ...

    def carry_over(self, trial: Path, target: Path) -> None:
        """Let a full run in `target` begin with what a trial has trained."""
        ...


def subject_of(recipe: AnyRecipe, space: Space, out: Path, listener: Listener) -> Subject:
    """The subject of a recipe of either kind."""
    if isinstance(recipe, Recipe):
        return RunSubject(recipe, out, listener)
    return StagesSubject(recipe, space, out, listener)


class Quiet(Silent):
    """What the rows and the first trial have to say; later trials say much the same. Whoever watches tells progress."""

    def __init__(self, listener: Listener):
        self.listener = listener
        self.talks = True

    def say(self, text: str) -> None:
        """Something the user should know."""
        if self.talks:
            self.listener.say(text)


class RunSubject:
    """A recipe of `luthier run`: a trial is the first training of the tuned arm, without refit and other arms."""

    kind = "run"

    def __init__(self, recipe: Recipe, out: Path, listener: Listener):
        if "tuned" not in recipe.arms:
            raise RecipeError(recipe.name, ["arms: a sweep tries ways to tune, and the arm tuned is not among them."])
        self.recipe, self.quiet = recipe, Quiet(listener)
        self.base = Pipeline(recipe, out / "shared", self.quiet)
        check_rows(self.base.rows)
        self.base.__dict__.pop("model", None)  # only its tokenizer was needed; each trial loads its own

    @cached_property
    def key(self) -> str:
        """Content hash of recipe and rows."""
        plain = self.recipe.model_dump(exclude={"name": True, "sweep": True, "arms": True, "ask": True, "judge": True,
                                                "cost": True, "data": {"train", "test"}})  # fmt: skip
        return content_hash(plain, data_hash(self.base.prepared))

    @property
    def deciding(self) -> str:
        """Accuracy, where labels are chosen."""
        return RUN_FIGURES[self.recipe.tune.method]

    @property
    def validation_rows(self) -> int:
        """Rows that trials are compared on."""
        return len(self.base.rows.validation)

    def train(self, recipe: AnyRecipe, folder: Path, hear: Hear) -> History:
        """The first training of the tuned arm."""
        pipeline = Pipeline(cast("Recipe", recipe), folder, self.quiet)
        pipeline.__dict__["rows_data"] = self.base.rows_data  # a corpus is prepared once
        _, history = pipeline.fitting(hear).first()
        self.quiet.talks = False
        return history

    def run(self, recipe: AnyRecipe, folder: Path, listener: Listener) -> dict[str, Any]:
        """Every arm on the held-out rows."""
        pipeline = Pipeline(cast("Recipe", recipe), folder, listener)
        pipeline.__dict__["rows_data"] = self.base.rows_data
        return pipeline.run()

    def carry_over(self, trial: Path, target: Path) -> None:
        """The first training is there already."""
        shutil.copytree(trial, target)


@dataclass
class StagesSubject:
    """A recipe of `luthier train`: a trial is the training of its stages, compared by the validation of the last.

    Stages before the first one that the space changes are trained once, for all trials.
    """

    recipe: TrainRecipe
    space: Space
    out: Path
    listener: Listener
    kind: str = "train"
    quiet: Quiet = field(init=False)

    def __post_init__(self) -> None:
        self.quiet = Quiet(self.listener)
        if not self.validation_rows:
            last = len(self.recipe.stages) - 1
            raise RecipeError(
                self.recipe.name,
                [f"stages.{last}.data.validation_share: is 0, and trials are compared on validation rows. Raise it."],
            )

    @cached_property
    def base(self) -> Stages:
        """The recipe as it stands, its shared stages in a folder of their own."""
        whole = Stages(self.recipe, self.out / "shared", self.quiet)
        with alone(self.out / "shared.lock"):
            whole.check()
            whole.close()  # from here on that lock keeps the processes of a sweep apart: they take turns
        return whole

    @cached_property
    def plain_runs(self) -> list[StageRun]:
        """The stages without anything done, for their rows and methods."""
        left = Left(self.recipe.model)
        return [self.base.stage_run(number, left, ()) for number in range(1, len(self.recipe.stages) + 1)]

    @cached_property
    def key(self) -> str:
        """Content hash of recipe and rows."""
        stages = [stage.model_dump(exclude=PATHS) for stage in self.recipe.stages]
        settings = self.recipe.model_dump(exclude={"name", "sweep", "stages", "judge", "cost"})
        return content_hash(settings, stages, [run.rows.key for run in self.plain_runs])

    @property
    def deciding(self) -> str:
        """The deciding figure of the last stage, of its heaviest task where it has several."""
        last = self.plain_runs[-1]
        if not last.stage.tasks:
            return last.method.primary
        first = max(last.stage.tasks, key=lambda name: last.stage.tasks[name].weight)
        return named(first, last.tasks[first].method.primary)

    @property
    def validation_rows(self) -> int:
        """Rows that trials are compared on."""
        return len(self.plain_runs[-1].rows.validation)

    @cached_property
    def shared(self) -> tuple[Left, tuple[StageRun, ...]]:
        """The stages that are the same in all trials, trained."""
        left: Left = Left(self.recipe.model)
        runs: tuple[StageRun, ...] = ()
        base = self.base
        with alone(self.out / "shared.lock"):
            for number in range(1, first_stage(self.space) + 1):
                left, runs = trained_stage(base, number, left, runs)
        return left, runs

    def train(self, recipe: AnyRecipe, folder: Path, hear: Hear) -> History:
        """All stages that differ between trials; the last one is heard of."""
        whole = Stages(cast("TrainRecipe", recipe), folder, self.quiet)
        if (whole.recipe.model, whole.recipe.precision) == (self.recipe.model, self.recipe.precision):
            whole.__dict__["model"] = self.base.model
        whole.check()
        first, last = first_stage(self.space) + 1, len(whole.recipe.stages)
        left, runs = self.shared if first > 1 else (Left(whole.recipe.model), ())
        for number in range(first, last):
            left, runs = trained_stage(whole, number, left, runs)
        run = whole.stage_run(last, left, runs)
        run.parts_read, run.hear = TRIAL_PARTS, hear
        start, _, plan = run.ready()
        self.quiet.talks = False
        return run.fit(start, plan)

    def run(self, recipe: AnyRecipe, folder: Path, listener: Listener) -> dict[str, Any]:
        """Every stage with its held-out figures."""
        return train(cast("TrainRecipe", recipe), folder, listener=listener)

    def carry_over(self, trial: Path, target: Path) -> None:
        """The trainings of all stages are there already."""
        shutil.copytree(trial, target)
        for name in ["stages"] if first_stage(self.space) else []:
            shutil.copytree(self.out / "shared" / name, target / name, dirs_exist_ok=True)


def trained_stage(
    whole: Stages, number: int, left: Left, earlier: tuple[StageRun, ...]
) -> tuple[Left, tuple[StageRun, ...]]:
    """A stage trained without its held-out figures, once; returns what the next one starts from."""
    assert whole.folder.path.is_dir()
    run = whole.stage_run(number, left, earlier)
    run.parts_read = TRIAL_PARTS

    def compute() -> dict[str, Any]:
        start, parts, plan = run.ready()
        history = run.fit(start, plan)
        run.save(start, parts)
        return {"steps": history.num_steps, "best_step": history.best_step}

    whole.folder.stage(f"{run.folder.name}-unscored", run.inputs, compute)
    return run.left, (*earlier, run)
