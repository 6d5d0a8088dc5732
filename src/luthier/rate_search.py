"""`luthier lr-find`: the learning-rate range test on a recipe's own rows and model. No run folder is written to."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from luthier.errors import RecipeError, RunError
from luthier.files import write_json, write_text
from luthier.methods import make_method
from luthier.methods.base import Example, Objective
from luthier.pipeline import Pipeline, check_rows
from luthier.progress import Listener, Silent
from luthier.recipe import Recipe, Training
from luthier.recipe.reading import RecipeSource
from luthier.recipe.space import AnyRecipe, load_any
from luthier.recipe.stages import TrainRecipe
from luthier.report.rate_chart import Mark, rate_chart
from luthier.stages.chain import Left
from luthier.stages.one import StageRun
from luthier.stages.run import Stages
from luthier.training.course import Course
from luthier.training.learner import ADAPTER_FILE, Learner
from luthier.training.lr_find import FEWEST, Advice, Point, advice, range_test, rising_rates

JSON, PLOT, WORK = "lr_find.json", "lr_find.svg", ".lr-find"
LOW, HIGH, STEPS = 1e-6, 1.0, 80


@dataclass(frozen=True)
class Subject:
    """What is trained: all that the training itself would begin with."""

    name: str
    learner: Learner
    objective: Objective
    examples: list[Example]
    training: Training
    course: Course | None = None


def find_rate(
    recipe: AnyRecipe | RecipeSource,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    listener: Listener | None = None,
    stage: str = "",
    run: str | Path | None = None,
    rates: tuple[float, float] = (LOW, HIGH),
    steps: int = STEPS,
) -> dict[str, Any]:
    """Test rising learning rates on a recipe of either kind; returns the curve and what it suggests.

    `out` defaults to runs/NAME-lr-find and gets lr_find.json and lr_find.svg. `stage` is a stage's name or number, by
    default the first; what a later one starts from is read from `run`, by default runs/NAME. A training that is there
    is left as it is.

    Raises:
        RecipeError: the recipe, the stage or the rates are not what they should be.
        RunError: the stages before are not trained yet.
    """
    if not isinstance(recipe, Recipe | TrainRecipe):
        recipe = load_any(recipe, overrides)
    if problems := rate_problems(rates, steps):
        raise RecipeError("lr-find", problems)
    listener = listener or Silent()
    folder = Path(out) if out else Path("runs") / f"{recipe.name}-lr-find"
    finished = Path(run) if run else Path("runs") / recipe.name
    listener.plan(["lr-find"])
    listener.begin("lr-find")
    with workplace(folder) as work:
        if isinstance(recipe, Recipe):
            subject = of_run(recipe, stage, work, finished, listener)
        else:
            subject = of_stage(recipe, stage, work, finished, listener)
        points = range_test(
            subject.learner, subject.objective, subject.examples, subject.training, recipe.seed,
            rising_rates(*rates, steps), listener.update, subject.course,
        )  # fmt: skip
    found = advice(points)
    value = result_values(subject, points, found, folder)
    write_json(folder / JSON, value)
    if len(points) > 1:
        write_text(folder / PLOT, plot(subject.name, points, found))
    listener.end("lr-find", False, found.sentence)
    return value


def rate_problems(rates: tuple[float, float], steps: int) -> list[str]:
    """Why no curve could come of this."""
    low, high = rates
    problems = []
    if not 0 < low < high:
        problems.append(f"rates: the lowest ({low:g}) must be above 0 and below the highest ({high:g}).")
    if steps < FEWEST:
        problems.append(f"steps: {steps} are too few to read a curve; give {FEWEST} or more.")
    return problems


@contextmanager
def workplace(folder: Path) -> Iterator[Path]:
    """A folder for what the preparation of a training writes; it is gone afterwards.

    Raises:
        RunError: the folder cannot be written.
    """
    work = folder / WORK
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error}). Give another folder with --out.") from error
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def of_run(recipe: Recipe, stage: str, work: Path, finished: Path, listener: Listener) -> Subject:
    """The tuned arm of `luthier run`."""
    if stage:
        raise RecipeError("lr-find", [f'stage: {recipe.name} has no stages, and so no "{stage}". Leave it out.'])
    pipeline = Pipeline(recipe, work / "run", listener)
    if (finished / "corpus").is_dir():  # prepared already
        pipeline.__dict__["rows_data"] = Pipeline(recipe, finished, listener).rows_data
    check_rows(pipeline.rows)
    assert pipeline.folder.path.is_dir()
    fitting = pipeline.fitting()
    method = make_method(recipe.tune, recipe.task)
    examples = method.view(fitting.prompt, fitting.rows.train)
    return Subject(recipe.name, fitting.fresh(examples), method, examples, recipe.tune)


def of_stage(recipe: TrainRecipe, stage: str, work: Path, finished: Path, listener: Listener) -> Subject:
    """One stage of `luthier train`, as it would start from the stages before it."""
    number = stage_number(recipe, stage)
    done, whole = Stages(recipe, finished, listener), Stages(recipe, work, listener)
    whole.__dict__["model"] = done.model
    whole.check()
    left = Left(recipe.model)
    earlier: tuple[StageRun, ...] = ()
    for before in range(1, number):
        run = done.stage_run(before, left, earlier)
        refuse_untrained(run, finished)
        left, earlier = run.left, (*earlier, run)
    run = whole.stage_run(number, left, earlier)
    run.parts_read = ("train", "validation")
    start, _, plan = run.ready()
    return Subject(run.stage.name, start.learner, plan.objective, plan.train, run.stage.tune, plan.course)


def stage_number(recipe: TrainRecipe, stage: str) -> int:
    """The number of a stage that is given by its name or number; the first where none is given."""
    names = [one.name for one in recipe.stages]
    if not stage:
        return 1
    if stage in names:
        return names.index(stage) + 1
    if stage.isdecimal() and 1 <= int(stage) <= len(names):
        return int(stage)
    raise RecipeError("lr-find", [f'stage: there is no "{stage}"; {recipe.name} has {", ".join(names)}.'])


def refuse_untrained(run: StageRun, finished: Path) -> None:
    """RunError unless a stage has left what the next one starts from."""
    left = [run.folder / "adapter" / ADAPTER_FILE, run.folder / "adapter" / "head.safetensors"]
    if not any(file.is_file() for file in left):
        raise RunError(
            f"{finished}: the stage {run.stage.name} is not trained there, and the one asked for starts from it. Run "
            "luthier train first, or say with --run where that was done."
        )


def result_values(subject: Subject, points: Sequence[Point], found: Advice, folder: Path) -> dict[str, Any]:
    """What lr_find.json holds."""
    training = subject.training
    ratio = training.head_learning_rate / training.learning_rate
    return {
        "name": subject.name,
        **asdict(found),
        "head_learning_rate": found.suggested and found.suggested * ratio if subject.learner.heads else None,
        "learning_rate_now": training.learning_rate,
        "optimizer": training.optimizer.kind,
        "batch_size": training.batch_size,
        "points": [asdict(point) for point in points],
        "plot": str(folder / PLOT) if len(points) > 1 else None,
    }


def plot(name: str, points: Sequence[Point], found: Advice) -> str:
    """The SVG of a curve with the rates that are pointed at."""
    marks = [
        Mark(rate, f"{words} {rate:.2g}")
        for words, rate in (("lowest / 10", found.tenth), ("steepest", found.steepest), ("lowest", found.lowest))
        if rate is not None and points[0].rate <= rate <= points[-1].rate
    ]
    rates, losses, smoothed = ([getattr(point, key) for point in points] for key in ("rate", "loss", "smoothed"))
    return rate_chart(rates, losses, smoothed, marks, f"Learning-rate range test of {name}")
