"""A sweep: trials one after the other until all are given out, the best recipe written down, a page.

OUT/sweep.yaml           the recipe, and what is searched
OUT/study.db             the trials (SQLite), unless --storage names another data base
OUT/trials/0007/         the run folder of a trial; only the best one keeps its weights
OUT/shared/              what all trials share: stages that the space does not change
OUT/best.yaml            the recipe of the best trial, every default spelled out
OUT/final-0007/          its full run, where that was asked for
OUT/sweep.json, .html    the result and its page, written anew after every trial
"""

from __future__ import annotations

import datetime
import gc
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from luthier.errors import LuthierError, RunError, TrainingError
from luthier.files import content_hash, write_json, write_text
from luthier.locks import alone
from luthier.processes import num_processes
from luthier.progress import Listener, Silent
from luthier.recipe.reading import RecipeSource
from luthier.recipe.space import (
    AnyRecipe,
    changed_recipe,
    is_whole,
    last_tune,
    load_any,
    meant,
    own_values,
    resolved_sweep,
    shown,
    value_at,
)
from luthier.recipe.sweep import Sweep
from luthier.report.sweep_page import write_sweep_page
from luthier.runtime import machine_values
from luthier.stopped import Stopped
from luthier.sweeps.metric import Metric, NoFigureError, Pruned, Watch, curve_of, metric_of, rung_epochs
from luthier.sweeps.subject import Subject, subject_of
from luthier.training.checkpoint import History, Progress

if TYPE_CHECKING:
    from luthier.sweeps.study import Book, Turn

FAILED_AT_ONCE = 3  # trials that fail before one is trained: the recipe itself does not run


def sweep(
    recipe: AnyRecipe | RecipeSource,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    listener: Listener | None = None,
    *,
    trials: int = 0,
    storage: str = "",
    study: str = "",
    final: bool = False,
) -> dict[str, Any]:
    """Try a recipe with other values and return the result; best.yaml and sweep.html stand in the folder.

    The recipe is one of a run or of stages. What is searched stands under its key `sweep`, or its method brings it
    along. Trials are compared on validation rows; none reads a test row. `final` runs the best recipe in full
    afterwards, and only that run has test figures.

    `out` defaults to runs/NAME-sweep. Called again with the same folder it goes on where it stopped; called several
    times at once, or on several machines with one `storage` (an SQLAlchemy address) and one `study`, the processes
    share the trials. `trials` overrides the recipe's number.

    Raises:
        RecipeError: the recipe, or a key or value of the space.
        RunError: Optuna is not installed, the folder or the data base is another sweep's, or no trial could be trained.
    """
    if not isinstance(recipe, AnyRecipe):
        recipe = load_any(recipe, overrides)
    resolved = resolved_sweep(recipe)
    if trials:
        resolved = resolved.model_copy(update={"trials": trials})
    folder = Path(out) if out else Path("runs") / f"{recipe.name}-sweep"
    place = Place(storage or f"sqlite:///{folder.absolute() / 'study.db'}", study or recipe.name)
    sweeper = Sweeper(recipe, resolved, folder, place, listener or Silent())
    return sweeper.run(final)


@dataclass(frozen=True)
class Place:
    """Where trials are kept: the address of a data base, and the name of a study in it."""

    storage: str
    study: str


@dataclass
class Sweeper:
    """One process of a sweep."""

    recipe: AnyRecipe
    sweep: Sweep
    out: Path
    place: Place
    listener: Listener

    @cached_property
    def subject(self) -> Subject:
        """What is tried; its rows are read once."""
        return subject_of(self.recipe, self.sweep.space, self.out, self.listener)

    @cached_property
    def metric(self) -> Metric:
        """What trials are compared by."""
        return metric_of(self.recipe, self.sweep, self.subject.deciding, self.subject.validation_rows)

    @cached_property
    def book(self) -> Book:
        """The study, proven to be of this recipe and of these rows."""
        opened = optional_study()
        key = content_hash(self.subject.key, self.sweep.model_dump()["space"], self.metric.name, self.metric.higher)
        with alone(self.out / "locks" / "study"):
            return opened.open_book(
                self.place.storage, self.place.study, self.recipe, self.sweep, self.out, key, self.metric.higher
            )

    def run(self, final: bool) -> dict[str, Any]:
        """All trials that are left, then the best in full where that is wanted."""
        optional_study()
        if num_processes() > 1:
            raise RunError("a sweep has one process for each trial. Start it without torchrun, as often as you like.")
        self.prepare()
        self.listener.plan([trial_name(number) for number in range(self.sweep.trials)])
        with optional_study().explained(self.place.storage):
            while (turn := self.next_turn()) is not None:
                self.work(turn)
                self.write()
            result = self.write()
        if not result["counts"]["complete"]:
            raise RunError(self.nothing_done(result))
        if final:
            result = self.run_final(result)
        return result

    def prepare(self) -> None:
        """The folder, proven to be of this sweep, with what is searched in it."""
        if self.out.exists() and not self.out.is_dir():
            raise RunError(f"{self.out}: is a file. Give another folder with --out.")
        mark = self.out / "sweep.yaml"
        if self.out.is_dir() and any(self.out.iterdir()) and not mark.is_file():
            raise RunError(f"{self.out}: holds other files and is no sweep's folder. Give another one with --out.")
        study = self.out / "study.txt"
        if study.is_file() and study.read_text(encoding="utf-8") != self.place.study:
            raise RunError(
                f'{self.out}: holds the trials of the study "{study.read_text(encoding="utf-8")}". '
                "Give another folder with --out, or that --study."
            )
        values = self.recipe.model_copy(update={"sweep": self.sweep}).model_dump()
        write_text(mark, yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100))
        write_text(study, self.place.study)
        assert self.book is not None

    def next_turn(self) -> Turn | None:
        """The next trial; one process at a time asks."""
        with alone(self.out / "locks" / "study"):
            return self.book.next_turn()

    # --- one trial ---------------------------------------------------------------------------------------------

    def work(self, turn: Turn) -> None:
        """One trial from its values to its figure. Whatever goes wrong in it is recorded; a stop leaves it running."""
        name = trial_name(turn.number)
        self.listener.begin(name)
        started = time.monotonic()
        told = ""
        try:
            with turn.alive():
                told = self.tried(turn, started)
        except (Stopped, RunError, KeyboardInterrupt, SystemExit, *optional_study().STORAGE_ERRORS):
            turn.lock.release()  # a full disk, a data base that is gone: the trial is taken up when all is well again
            raise
        except NoFigureError as error:
            self.book.fail(turn, str(error))
            raise
        except Exception as error:  # noqa: BLE001 one bad trial is no reason to lose the others
            told = f"failed: {first_line(error)}"
            turn.note(seconds=time.monotonic() - started)
            self.book.fail(turn, message_of(error))
            self.stop_if_hopeless(error)
        finally:
            gc.collect()  # the model of this trial, before the next one is loaded
        self.tidy()
        self.listener.end(name, False, told)

    def tried(self, turn: Turn, started: float) -> str:
        """Train a trial and tell the study; returns what is said of it."""
        recipe = changed_recipe(self.recipe, turn.values)
        epochs = last_tune(recipe).epochs
        watch = Watch(turn, self.metric, epochs, rung_epochs(self.recipe, self.sweep), self.may_end(turn))
        heard: list[Progress] = []

        def hear(progress: Progress) -> None:
            heard[:] = [progress]
            watch(progress)
            figure = f", validation {self.metric.name} {watch.value:.4g}" if watch.value is not None else ""
            self.listener.update(progress.step, progress.num_steps, f"loss {progress.loss:.3f}{figure}{self.left()}")

        try:
            history = self.subject.train(recipe, self.book.folder(turn.number), hear)
        except Pruned:
            last = heard[-1]
            turn.note(seconds=time.monotonic() - started, best_step=last.best_step,
                      curve=curve_of(self.metric, last.validation, last.num_steps, epochs))  # fmt: skip
            self.book.prune(turn)
            return f"{self.figure_words(watch.value)}, ended early after {last.step} of {last.num_steps} steps"
        return self.completed(turn, history, epochs, time.monotonic() - started)

    def completed(self, turn: Turn, history: History, epochs: float, seconds: float) -> str:
        """A trial that was trained in full."""
        value = self.metric.of(history.validation, history.best_step)
        if value is None:
            raise TrainingError(
                f"{self.metric.name} could not be computed on the validation rows, at the step whose weights are kept "
                "(a precision where nothing was found): there is nothing to compare this trial by."
            )
        curve = curve_of(self.metric, history.validation, history.num_steps, epochs)
        turn.note(seconds=seconds, best_step=history.best_step, curve=curve)
        self.book.complete(turn, value)
        best = self.best()
        is_best = best is not None and best["number"] == turn.number
        return self.figure_words(value) + (", the best so far" if is_best else "")

    def may_end(self, turn: Turn) -> bool:
        """Whether a trial may be ended early: not the recipe as it stands, which the others are set beside."""
        return turn.number > 0 or self.sweep.sampler == "grid"

    def figure_words(self, value: float | None) -> str:
        """A trial's figure for its line."""
        return "no validation yet" if value is None else f"validation {self.metric.name} {value:.4g}"

    def stop_if_hopeless(self, error: Exception) -> None:
        """RunError where the first trials have all failed: the rest would too."""
        states = [trial["state"] for trial in self.trials()]
        if states.count("failed") >= FAILED_AT_ONCE and not {"complete", "pruned"} & set(states):
            self.write()
            raise RunError(
                f"the first {states.count('failed')} trials all failed, the last one with: {message_of(error)}\n"
                f"Mend the recipe and give a new --out; all messages stand in {self.out / 'sweep.html'}."
            ) from error

    def tidy(self) -> None:
        """Only the best trial keeps its weights; of the others, recipe and curve remain."""
        best = self.best()
        for trial in self.trials():
            folder = self.book.folder(trial["number"])
            if trial["state"] == "running" or (best is not None and trial["number"] == best["number"]):
                continue
            for part in ("training", "stages"):
                shutil.rmtree(folder / part, ignore_errors=True)

    # --- what is told ------------------------------------------------------------------------------------------

    def trials(self) -> list[dict[str, Any]]:
        """All trials as JSON values."""
        return optional_study().trial_values(self.book.trials(), self.sweep.space, self.out)

    def best(self) -> dict[str, Any] | None:
        """The best of the trials that were trained in full; of equals the first."""
        done = [trial for trial in self.trials() if trial["state"] == "complete"]
        sign = -1.0 if self.metric.higher else 1.0
        return min(done, key=lambda trial: (sign * trial["value"], trial["number"]), default=None)

    def left(self) -> str:
        """How long all trials will take, by those that are done."""
        seconds = self.seconds_left(self.trials())
        return f", all trials in about {clock(seconds)}" if seconds else ""

    def seconds_left(self, trials: Sequence[dict[str, Any]]) -> float:
        """Mean time of a trial, times those to come, shared by the processes at work; 0 where it is not known."""
        took = [trial["seconds"] for trial in trials if trial["seconds"] and trial["state"] in ("complete", "pruned")]
        running = sum(trial["state"] == "running" for trial in trials)
        to_come = self.sweep.trials - len(trials) + running
        return sum(took) / len(took) * to_come / max(1, running) if took and to_come > 0 else 0.0

    def write(self) -> dict[str, Any]:
        """sweep.json, sweep.html and best.yaml, as things stand."""
        result = self.result()
        if result["best"] is not None:
            write_text(self.out / "best.yaml", f"{self.heading(result)}\n{result['best_recipe']}")
        write_json(self.out / "sweep.json", result)
        write_sweep_page(self.out / "sweep.html", result)
        return result

    def result(self) -> dict[str, Any]:
        """Everything about the sweep as JSON values."""
        trials, best = self.trials(), self.best()
        importance, note = self.book.importances(self.recipe.seed)
        states = ("complete", "pruned", "failed", "running")
        own = next((t for t in trials if t["number"] == 0 and t["state"] == "complete"), None)
        is_own = own is not None and self.sweep.sampler != "grid" and self.own_first()
        return {
            "name": self.recipe.name,
            "kind": self.subject.kind,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seed": self.recipe.seed,
            "model": self.recipe.model,
            "study": self.place.study,
            "storage": optional_study().masked(self.place.storage),
            "sampler": self.sweep.sampler,
            "pruner": self.sweep.pruner,
            "metric": {
                "name": self.metric.name, "higher_is_better": self.metric.higher, "rows": self.metric.rows,
            },
            "space": {path: {**search.model_dump(), "choices": [shown(one) for one in search.choices]}
                      for path, search in self.sweep.space.items()},
            "default_space": not (self.recipe.sweep and self.recipe.sweep.space),
            "own": {path: shown(value_at(self.recipe, path)) for path in self.sweep.space},
            "wanted": self.sweep.trials,
            "counts": {state: sum(trial["state"] == state for trial in trials) for state in states},
            "seconds": sum(trial["seconds"] or 0.0 for trial in trials),
            "seconds_left": self.seconds_left(trials),
            "trials": trials,
            "best": best and {**best, "recipe": str(self.out / "best.yaml")},
            "baseline": {"number": 0, "value": own["value"]} if own is not None and is_own else None,
            "best_recipe": None if best is None else dump_plain(self.trial_recipe(best)),
            "importance": importance,
            "importance_note": note,
            "final": None,
            "environment": machine_values(),
        }  # fmt: skip

    def own_first(self) -> bool:
        """Whether the first trial is the recipe as it stands."""
        return own_values(self.recipe, self.sweep.space) is not None

    def trial_recipe(self, trial: dict[str, Any]) -> AnyRecipe:
        """The recipe of a trial."""
        values = {path: meant(search, trial["values"][path], is_whole(self.recipe, path))
                  for path, search in self.sweep.space.items()}  # fmt: skip
        return changed_recipe(self.recipe, values)

    def heading(self, result: dict[str, Any]) -> str:
        """What best.yaml begins with."""
        best = result["best"]
        values = ", ".join(f"{path} {value:.4g}" if isinstance(value, float) else f"{path} {value}"
                           for path, value in best["values"].items())  # fmt: skip
        return (
            f"# The best of {result['counts']['complete']} trials of {self.recipe.name} (trial {best['number']}): "
            f"validation {self.metric.name} {best['value']:.4g}.\n# {values}"
        )

    def nothing_done(self, result: dict[str, Any]) -> str:
        """Why there is no best recipe."""
        errors = [trial["error"] for trial in result["trials"] if trial["error"]]
        told = f" The first one that failed: {errors[0]}" if errors else ""
        return f"no trial was trained in full.{told} All of them stand in {self.out / 'sweep.html'}."

    # --- the best one in full ----------------------------------------------------------------------------------

    def run_final(self, result: dict[str, Any]) -> dict[str, Any]:
        """The best recipe with its held-out rows; its training is carried over from its trial."""
        if result["counts"]["running"]:
            self.listener.say("other processes still work at this sweep: the one that ends last makes the full run.")
            return result
        best = result["best"]
        target = self.out / f"final-{best['number']:04d}"
        trial = self.book.folder(best["number"])
        if trial.is_dir() and not target.exists():
            self.subject.carry_over(trial, target)
        found = self.subject.run(self.trial_recipe(best), target, self.listener)
        result["final"] = {"folder": str(target), "verdict": found["verdict"], "metric": found["primary_metric"]}
        write_json(self.out / "sweep.json", result)
        write_sweep_page(self.out / "sweep.html", result)
        return result


def optional_study() -> Any:
    """The module that knows Optuna.

    Raises:
        RunError: Optuna is not installed.
    """
    try:
        from luthier.sweeps import study
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "luthier":
            raise
        raise RunError(f'a sweep needs {error.name}, which is not installed. pip install "luthier[sweep]"') from error
    return study


def dump_plain(recipe: AnyRecipe) -> str:
    """A recipe as YAML, every default spelled out, without its sweep."""
    values = recipe.model_dump(exclude={"sweep"})
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)


def trial_name(number: int) -> str:
    """What a trial is called while it runs."""
    return f"trial {number}"


def first_line(error: Exception) -> str:
    """The beginning of a message."""
    return message_of(error).splitlines()[0][:160]


def message_of(error: Exception) -> str:
    """A failure in words; the kind of error too, where it is not one of ours."""
    return str(error) if isinstance(error, LuthierError) else f"{type(error).__name__}: {error}"


def clock(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 05 min`."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
