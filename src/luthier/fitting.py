"""How the adapter of a run comes to be: trained, validated, its temperature fitted, then refitted on all rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.evaluation.arms import Classifier, Rows
from luthier.evaluation.arms.base import gold_indices
from luthier.evaluation.metrics import fit_temperature
from luthier.methods import make_method
from luthier.methods.base import MAIN, Example
from luthier.models import LoadedModel
from luthier.prompts import ClassifyPrompt
from luthier.recipe import Probe, Recipe, Tune
from luthier.runtime import peak_memory_bytes, reset_peak_memory
from luthier.training.cached import cached
from luthier.training.checkpoint import History, Progress
from luthier.training.curves import history_values
from luthier.training.learner import Learner, calibrate_head, label_head, new_learner, unloaded
from luthier.training.loop import planned, train
from luthier.training.memory import read_memory
from luthier.training.probe import ProbeLearner

REFIT = "refit"
# of both trainings together, where there are two
SUMMED = ("seconds", "trained_tokens", "computed_tokens", "sequence_tokens", "padded_tokens")


@dataclass(frozen=True)
class Fitting:
    """What the training stage needs. `folder` holds its checkpoints, `update` hears of steps done."""

    recipe: Recipe
    model: LoadedModel
    prompt: ClassifyPrompt
    rows: Rows
    folder: Path
    update: Callable[[int, int, str], None]
    hear: Callable[[Progress], None] = lambda progress: None  # of every step; what it raises ends the training
    say: Callable[[str], None] = lambda text: None  # what the user should know

    def first(self) -> tuple[Learner, History]:
        """The training that validation rows judge, without a second one on all rows."""
        method = make_method(self.recipe.tune, self.recipe.task)
        training, validation = (method.view(self.prompt, rows) for rows in (self.rows.train, self.rows.validation))
        return self.fit(training, validation, self.folder)

    def run(self) -> tuple[Learner, dict[str, Any]]:
        """The finished learner, and the figures of its training. Goes on where an earlier call was stopped."""
        tune = self.recipe.tune
        method = make_method(tune, self.recipe.task)
        training, validation = (method.view(self.prompt, rows) for rows in (self.rows.train, self.rows.validation))
        reset_peak_memory()
        learner, history = self.fit(training, validation, self.folder)
        trained, whole = learner.sizes()
        temperature = self.fitted_temperature(learner, history)
        done = [history]
        if tune.refit:
            unloaded(learner)
            learner, again = self.fit(training + validation, [], self.folder / REFIT, history)
            done.append(again)
        return learner, {
            "method": method.name,
            "temperature": temperature,
            "refit": {"steps": again.num_steps, "rows": len(training + validation)} if tune.refit else None,
            **history_values(history),
            **{name: sum(getattr(part, name) for part in done) for name in SUMMED},
            "rows": len(training),
            "epochs": min(tune.epochs, planned(tune, len(training))[0] / len(training)),
            "peak_rss_bytes": peak_memory_bytes(),
            "memory": read_memory(self.folder),
            "trainable_parameters": trained,
            "total_parameters": whole,
        }

    def fit(
        self, examples: list[Example], validation: list[Example], folder: Path, first: History | None = None
    ) -> tuple[Learner, History]:
        """A fresh adapter, trained; after a `first` training, for the share of the schedule that this one advises."""
        recipe, learner = self.recipe, self.fresh(examples)
        learner.prepare(validation, recipe.tune.pass_tokens)
        before = 0 if first is None else first.num_steps

        def report(progress: Progress) -> None:
            accuracy = f", validation {progress.figures['accuracy']:.1%}" if "accuracy" in progress.figures else ""
            self.tell(before + progress.step, before + progress.num_steps, f"loss {progress.loss:.3f}{accuracy}")
            self.hear(progress)

        history = train(
            learner,
            make_method(recipe.tune, recipe.task),
            examples,
            validation,
            recipe.tune,
            recipe.seed,
            folder,
            report,
            length_share=1.0 if first is None else first.length_share(),
            say=self.say,
            watch=lambda step, num_steps, share: self.tell(
                before + step, before + num_steps, f"validating, {share:.0%}"
            ),
        )
        return learner, history

    def fresh(self, examples: list[Example]) -> Learner:
        """The learner before its first step."""
        recipe = self.recipe
        learner = self.fresh_learner()
        learner.prepare(examples, recipe.tune.pass_tokens)
        calibrate_head(learner, examples, recipe.ask.batch_tokens)
        return learner

    def fresh_learner(self) -> Learner:
        """The learner at step 0; what it keeps of rows lies beside the checkpoints, for both trainings."""
        recipe, tune = self.recipe, self.recipe.tune
        heads = {MAIN: label_head(self.model, self.prompt)} if tune.method == "head" else {}
        if isinstance(tune.adapter, Probe):
            return ProbeLearner(self.model, heads, recipe.attention, self.folder / "features", tune.cache_gigabytes)
        learner = new_learner(self.model, tune.adapter, recipe.seed, recipe.attention, heads)
        return cached(learner, tune, self.folder / "states", self.model.precision)

    def tell(self, step: int, num_steps: int, note: str) -> None:
        """How far both trainings are, of as many steps as are planned or one of them says."""
        self.update(step, max(self.num_steps(), num_steps), note)

    def num_steps(self) -> int:
        """Steps of both trainings, for the time left."""
        tune, num_train = self.recipe.tune, len(self.rows.train)
        rows = [num_train, num_train + len(self.rows.validation)] if tune.refit else [num_train]
        return sum(planned(tune, count)[1] for count in rows)

    def fitted_temperature(self, learner: Learner, history: History) -> float:
        """The temperature of the answers on validation rows, which this learner has not been trained on."""
        classifier = Classifier(learner, self.prompt, self.recipe.ask.batch_tokens)
        texts = [row.text for row in self.rows.validation]
        steps = history.num_steps
        logprobs = classifier.logprobs(texts, lambda n, total: self.tell(steps, steps, f"calibrating, {n / total:.0%}"))
        return fit_temperature(logprobs, gold_indices(self.rows.validation, self.recipe.task.labels))


def best_folder(folder: Path, tune: Tune) -> Path:
    """Where the adapter that a finished training leaves lies, below the folder of its checkpoints."""
    return (folder / REFIT if tune.refit else folder) / "best"
