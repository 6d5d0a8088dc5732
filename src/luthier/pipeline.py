"""Recipe -> stages -> run folder -> report page."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from luthier.adapters import name_base_model
from luthier.corpus.build import prepare_corpus
from luthier.corpus.prepare import Prepared, data_hash, prepare
from luthier.errors import DataError
from luthier.evaluation.arms import (
    VARIANTS,
    Arm,
    ArmResult,
    Classifier,
    Majority,
    PromptArm,
    Rows,
    Tfidf,
    Tuned,
)
from luthier.evaluation.arms.base import Floats
from luthier.evaluation.prior import check_enough, label_shares, prior_shares, with_prior
from luthier.files import check_folder, new_folder, write_checksums, write_json, write_text
from luthier.fitting import Fitting, best_folder
from luthier.forest.forward import choose_backend, set_backend
from luthier.models import LoadedModel, load_model, public_name, token_counter
from luthier.predictor import PRIOR_FILE, describe_prior, describe_prompt
from luthier.processes import first_goes_first, is_first, wait
from luthier.progress import Listener, Silent
from luthier.prompts import ClassifyPrompt, Dialogue, layout_of, template_left
from luthier.prompts.templates import FILE as TEMPLATE_FILE
from luthier.recipe import Data, Recipe, dump_recipe, load_recipe
from luthier.recipe.reading import RecipeSource
from luthier.recipe.template import ChatTemplate
from luthier.recipe.training import NOT_OF_RESULTS
from luthier.records import Ledger
from luthier.report.data_page import write_data_page
from luthier.result import build_result
from luthier.run_folder import RunFolder
from luthier.runtime import set_up_torch
from luthier.stages.suits import refuse_unsuited_tuning
from luthier.training.checkpoint import Progress
from luthier.training.learner import Learner, load_learner

ONE_SHARD = 1 << 40  # rows
REFITTED = ("tfidf", "retrieval")  # arms that answer with validation rows too, where the tuned one learns them


def run(
    recipe: Recipe | RecipeSource,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Run a recipe (a file, or its values as a dict) and return its result.

    result.json, report.html and the adapter stand in the run folder.

    `out` defaults to runs/NAME. Called again with the same folder it goes on where it stopped; stages whose
    inputs did not change are not done again.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, overrides)
    pipeline = Pipeline(recipe, Path(out) if out else Path("runs") / recipe.name, listener or Silent())
    try:
        return pipeline.run()
    finally:
        pipeline.close()


@dataclass
class Pipeline:
    """The stages of one run. Model and data are loaded when a stage first needs them."""

    recipe: Recipe
    out: Path
    listener: Listener

    @cached_property
    def folder(self) -> RunFolder:
        """The run folder, proven writable."""
        folder = RunFolder(self.out)
        folder.prepare(dump_recipe(self.recipe))
        return folder

    @cached_property
    def model(self) -> LoadedModel:
        """The base model."""
        set_up_torch()
        with first_goes_first(each_machine=True):
            exact = self.recipe.tune.exact_weights
            return load_model(self.recipe.model, precision=self.recipe.precision, exact=exact)

    @cached_property
    def backend(self) -> str:
        """How attention runs; says why where it is not the forest."""
        backend, reason = choose_backend(self.model.model, self.recipe.attention)
        if reason:
            self.listener.say(f"attention: {reason}.")
        return backend

    @cached_property
    def prompt(self) -> ClassifyPrompt:
        """The task's prompt on this model."""
        layout = layout_of(self.model.tokenizer, self.recipe.prompt)
        if not layout.has_template:
            self.listener.say(
                f'model "{self.recipe.model}" has no chat template: prompts use a plain layout '
                "(instruction, text, answer). An -instruct model of the same family usually asks better."
            )
        return ClassifyPrompt(self.recipe.task, layout, self.recipe.task.instruction)

    @cached_property
    def tuned_prompt(self) -> ClassifyPrompt:
        """The prompt the tuned arm learns and serves with. A head has a row for each label: no list of them is read."""
        return self.prompt.with_(lists_labels=False) if self.recipe.tune.method == "head" else self.prompt

    @cached_property
    def prepared(self) -> Prepared:
        """Clean, split rows with their ledger."""
        count_tokens = token_counter(self.model.tokenizer)
        return prepare(self.recipe.task, self.rows_data, self.recipe.seed, count_tokens)

    @cached_property
    def rows_data(self) -> Data:
        """Where the rows are: as the recipe says, or in the corpus that is prepared first, under `corpus`."""
        data = self.recipe.data
        if data.corpus is None:
            return data
        folder = self.out / "corpus"
        corpus = data.corpus.model_copy(update={"shard_rows": ONE_SHARD, "output": "jsonl", "write": "luthier"})
        if is_first():
            ledger = prepare_corpus(corpus, folder, self.listener)
            write_data_page(folder / "data.html", ledger)
        wait()
        records = folder / "records"
        test = records / "test-00000.jsonl"
        changes = {"train": str(records / "train-00000.jsonl"), "test": str(test) if test.is_file() else None}
        return data.model_copy(update={**changes, "format": "jsonl", "text": "text", "label": "label"})

    @cached_property
    def rows(self) -> Rows:
        """The rows every arm gets."""
        return Rows(self.prepared.train, self.prepared.validation, self.prepared.test)

    @cached_property
    def base_inputs(self) -> dict[str, Any]:
        """What every stage depends on."""
        return {
            "data": data_hash(self.prepared),
            "model": self.model.sha256,
            "prompt": self.prompt.key,
            "seed": self.recipe.seed,
            "attention": self.backend,
            "precision": self.model.precision,
        }

    def close(self) -> None:
        """Let others work in the run folder."""
        if "folder" in self.__dict__:
            self.folder.release()

    def run(self) -> dict[str, Any]:
        """All stages in order; the training stage stands right before the tuned arm."""
        recipe = self.recipe
        assert self.folder.path.is_dir()
        asked = [name for name in recipe.arms if name != "tuned"]
        generated_stage = ["generated"] if recipe.ask.generate_rows else []
        trained = ["training", "tuned"] if "tuned" in recipe.arms else []
        self.listener.plan(["data", *asked, *generated_stage, *trained, "report"])
        self.listener.begin("data")
        check_rows(self.rows)
        if trained:
            refuse_unsuited_tuning(f"recipe {recipe.name}", recipe.tune, self.model)
        self.check_rooms()
        if recipe.data.class_prior is not None:
            check_enough(len(self.rows.test), len(recipe.task.labels), "test rows")
        kept = self.prepared.ledger.kept
        self.listener.end("data", False, ", ".join(f"{count} {split}" for split, count in kept.items()))
        for note in [*dropped_notes(self.prepared.ledger), *self.prepared.ledger.notes]:
            self.listener.say(note)
        arms: dict[str, Any] = {name: self.run_arm(name) for name in asked}
        generated = self.run_generated() if recipe.ask.generate_rows else None
        training = None
        if "tuned" in recipe.arms:
            training = self.run_training()
            arms["tuned"] = self.run_tuned()
        return self.write_report(arms, training, generated)

    @property
    def room(self) -> int:
        """Tokens of a prompt that the tuned model reads."""
        return self.model.context_tokens - self.recipe.tune.adapter.virtual_tokens

    def check_rooms(self) -> None:
        """DataError, before anything is computed, where a row's prompt is longer than what the model reads."""
        from luthier.peek import check_room

        every = (*self.rows.train, *self.rows.validation, *self.rows.test)
        if any(name in VARIANTS for name in self.recipe.arms):
            check_room(self.prompt, every, self.model.context_tokens)
        if "tuned" in self.recipe.arms:
            check_room(self.tuned_prompt, every, self.room)

    def run_arm(self, name: str) -> dict[str, Any]:
        """One untrained arm, from the run folder if it is there."""
        self.listener.begin(name)
        asks = {} if name in ("majority", "tfidf") else self.recipe.ask.model_dump(exclude={"generate_rows"})
        inputs = {**self.base_inputs, "arm": name, "ask": asks}
        if name in REFITTED:
            inputs["refit"] = self.recipe.tune.refit

        def compute() -> dict[str, Any]:
            arm = self.make_arm(name)
            return store(arm.run(self.rows, self.prompt, self.recipe.ask, self.recipe.seed, self.listener.update))

        value, cached = self.folder.stage(name, inputs, compute)
        judged = self.judged(value)
        self.listener.end(name, cached, self.accuracy_note(judged))
        return judged

    @cached_property
    def train_shares(self) -> Floats:
        """How often each label comes in the training rows [L]."""
        return label_shares(self.rows.train + self.rows.validation, self.recipe.task.labels)

    def judged(self, value: dict[str, Any]) -> dict[str, Any]:
        """A stored arm with the answers that count: weighted, where shares of the labels are expected."""
        prior, labels = self.recipe.data.class_prior, self.recipe.task.labels
        if prior is None:
            return value
        return with_prior(value, labels, prior_shares(prior, labels, self.train_shares), self.recipe.seed)

    def make_arm(self, name: str) -> Arm:
        """The arm a name stands for; prompt arms ask the untrained model."""
        if name == "majority":
            return Majority()
        if name == "tfidf":
            return Tfidf(self.recipe.tune.refit)
        set_backend(self.model.model, self.backend)
        return PromptArm(name, self.model.model, self.backend, VARIANTS[name], self.recipe.tune.refit)

    @property
    def training_inputs(self) -> dict[str, Any]:
        """What the adapter depends on."""
        return {**self.base_inputs, "tune": self.recipe.tune.model_dump(exclude=set(NOT_OF_RESULTS))}

    def run_training(self) -> dict[str, Any]:
        """Train the adapter, or take up a training that was stopped."""
        self.listener.begin("training")
        self.forget_damaged()
        value, cached = self.folder.stage("training", self.training_inputs, self.train, together=True)
        note = f"best at step {value['best_step']} of {value['steps']}"
        if value["refit"]:
            note += f", refitted in {value['refit']['steps']} steps"
        self.listener.end("training", cached, note)
        return value

    def forget_damaged(self) -> None:
        """Let the stages be done again whose files are missing or not as they were written."""
        if check_folder(self.folder.adapter):
            self.folder.forget("tuned")
            if check_folder(best_folder(self.folder.training, self.recipe.tune)):
                self.folder.forget("training")

    def train(self) -> dict[str, Any]:
        """The training stage itself."""
        fitting = self.fitting()
        self.__dict__["learner"], figures = fitting.run()
        return figures

    def fitting(self, hear: Callable[[Progress], None] = lambda progress: None) -> Fitting:
        """All that the training needs; `hear` is told of every step."""
        from luthier.peek import check_trainable

        recipe = self.recipe
        check_trainable(self.tuned_prompt, self.rows.train, recipe.tune, self.room)
        self.forget_other_training()
        set_backend(self.model.model, self.backend)
        folder, listener = self.folder.training, self.listener
        return Fitting(recipe, self.model, self.tuned_prompt, self.rows, folder, listener.update, hear, listener.say)

    def forget_other_training(self) -> None:
        """Checkpoints of another recipe, data set or code must not be resumed."""
        told = self.folder.take_up("training", self.folder.training, self.training_inputs)
        if told:
            self.listener.say(told)

    @cached_property
    def learner(self) -> Learner:
        """The trained learner, from this process or from the run folder."""
        best = best_folder(self.folder.training, self.recipe.tune)
        return load_learner(self.model, best, self.recipe.attention)

    def run_tuned(self) -> dict[str, Any]:
        """The tuned arm; its adapter is put together with its prompt before it answers the test rows."""
        self.listener.begin("tuned")
        value, cached = self.folder.stage("tuned", {**self.training_inputs, "arm": "tuned"}, self.answer_tuned)
        judged = self.judged(value)
        self.listener.end("tuned", cached, self.accuracy_note(judged))
        self.keep_weights(judged)
        return judged

    def keep_weights(self, tuned: dict[str, Any]) -> None:
        """Beside the adapter, so that `predict` answers as the tuned arm was judged."""
        file = self.folder.adapter / PRIOR_FILE
        if "weights" not in tuned and not file.is_file():
            return
        if "weights" in tuned:
            write_json(file, describe_prior(self.recipe.task.labels, tuned["weights"], len(self.rows.test)))
        elif is_first():
            file.unlink(missing_ok=True)
        write_checksums(self.folder.adapter)

    def answer_tuned(self) -> dict[str, Any]:
        """Predictions of the tuned arm; writes the adapter folder."""
        tune = self.recipe.tune
        training = self.folder.value("training")
        classifier = Classifier(self.learner, self.tuned_prompt, self.recipe.ask.batch_tokens, training["temperature"])
        chosen = f"{tune.adapter.told}, method {tune.method}, {training['epochs']:.3g} epochs"
        if training["refit"]:
            chosen += f", refitted on training and validation rows ({training['refit']['steps']} steps)"
        arm = Tuned(classifier, chosen)
        value = store(arm.run(self.rows, self.tuned_prompt, self.recipe.ask, self.recipe.seed, self.listener.update))
        with new_folder(self.folder.adapter) as aside:
            self.learner.save(aside)
            if self.learner.has_adapter:
                name_base_model(aside, public_name(self.recipe.model))
            write_json(
                aside / "prompt.json",
                describe_prompt(
                    self.tuned_prompt, self.recipe, self.model.sha256, classifier.temperature, self.train_shares
                ),
            )
            if self.recipe.prompt != ChatTemplate():
                write_text(aside / TEMPLATE_FILE, template_left(Dialogue(self.prompt.layout)) or "")
        return value

    def run_generated(self) -> dict[str, Any]:
        """Let the untrained model write its answers, and say how each parsed."""
        from luthier.evaluation.written import write_answers

        self.listener.begin("generated")
        rows = self.rows.test[: self.recipe.ask.generate_rows]

        def compute() -> dict[str, Any]:
            set_backend(self.model.model, self.backend)
            return write_answers(self.model.model, self.backend, self.prompt, rows, self.listener.update)

        inputs = {**self.base_inputs, "rows": len(rows)}
        value, cached = self.folder.stage("generated", inputs, compute)
        self.listener.end("generated", cached, f"{value['accuracy']:.1%} of {value['n']} written answers right")
        return value

    def accuracy_note(self, value: dict[str, Any]) -> str:
        """Accuracy on the test rows, for the progress line."""
        right = sum(p["label"] == row.label for p, row in zip(value["predictions"], self.rows.test, strict=True))
        return f"{right / len(self.rows.test):.1%} of {len(self.rows.test)} test rows right"

    def write_report(
        self, arms: dict[str, Any], training: dict[str, Any] | None, generated: dict[str, Any] | None
    ) -> dict[str, Any]:
        """result.json and report.html."""
        from luthier.report.page import write_page

        self.listener.begin("report")
        result = build_result(
            self.recipe,
            self.model,
            self.backend,
            self.tuned_prompt,
            self.prepared,
            arms,
            training,
            generated,
            self.out,
        )
        result["created"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        if result["shares"]["note"]:
            self.listener.say(result["shares"]["note"])
        write_json(self.folder.path / "result.json", result)
        write_page(self.folder.path / "report.html", result)
        self.listener.end("report", False, str(self.folder.path / "report.html"))
        return result


def store(result: ArmResult) -> dict[str, Any]:
    """An arm's result as JSON values."""
    return asdict(result)


def dropped_notes(ledger: Ledger) -> list[str]:
    """How many rows of each part were dropped, and why."""
    notes = []
    for part, total in ledger.rows_in.items():
        if reasons := ledger.reasons(part):
            told = ", ".join(f"{reason} {count:,}" for reason, count in sorted(reasons.items(), key=lambda x: -x[1]))
            notes.append(f"{part}: {sum(reasons.values()):,} of {total:,} rows dropped ({told}); see data peek.")
    return notes


def check_rows(rows: Rows) -> None:
    """At least one row to train on, to choose on and to test on."""
    for name in ("train", "validation", "test"):
        if not getattr(rows, name):
            raise DataError(f"no rows are left for {name}; see the ledger (`luthier data peek`).")
