"""One stage: rows, learner, figures before, training, figures after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from luthier.corpus.wire import key_of
from luthier.errors import DataError
from luthier.evaluation.held_out import Figures, score_rows
from luthier.evaluation.rivals import Beside, rivals_beside, rivals_of
from luthier.files import check_folder, content_hash, write_text
from luthier.methods.base import MAIN, Example, Objective
from luthier.methods.registry import make_stage_method
from luthier.methods.several import Part
from luthier.methods.stage import Described, Passing, Remarking, StageMethod, Telling
from luthier.peek import ledger_values
from luthier.processes import first_goes_first, is_first
from luthier.prompts import Dialogue, layout_of, template_left
from luthier.prompts.templates import FILE as TEMPLATE_FILE
from luthier.recipe.methods import SILENT
from luthier.recipe.stages import Stage
from luthier.recipe.training import NOT_OF_RESULTS
from luthier.run_folder import code_hash, read_mark
from luthier.runtime import reset_peak_memory
from luthier.stages.beside import account, account_unread, rows_of
from luthier.stages.chain import Left, Start, refuse_unstackable, start_stage
from luthier.stages.cutting import cut
from luthier.stages.figures import figure_values, group_of, plain, training_values, verdict
from luthier.stages.keeping import Plan, all_heads, matrix_row, plan_of, settle_heads
from luthier.stages.labels import label_counts, label_rows, missing_notes, number_figures, untested
from luthier.stages.reference import with_reference
from luthier.stages.rows import StageRows, gather, reason_lines, refuse_losses, viewed_rows
from luthier.stages.samples import keep_answers, sample_values
from luthier.stages.scale import scale_outputs
from luthier.stages.shown import shown_rows
from luthier.stages.suits import refuse_unread
from luthier.stages.teaching import taught_examples, taught_rows, teaching_key
from luthier.training.cached import refuse_varying
from luthier.training.checkpoint import History, Progress
from luthier.training.learner import ADAPTER_FILE
from luthier.training.loop import train as train_loop
from luthier.training.memory import read_memory

if TYPE_CHECKING:
    from luthier.stages.run import Stages

METHOD_FILE = "method.json"  # beside an adapter: what a head's outputs mean

PATHS: Any = {"data": {"train", "test"}, "tasks": {"__all__": {"data": {"train", "test"}}}}  # the rows themselves count
TEACHERS = ("teacher", "tasks/*/teacher")  # what a teacher said, known by its content
OF_START = ("reference", "tasks/*/reference", "features", "states")  # by content too, of the model it starts from
START_FILE = "start.txt"  # what that model depends on
NUMBERS = ("forest", "kernels", "models", "adapters")  # packages that decide what a model computes


@dataclass
class StageRun:
    """One stage: rows, learner, figures before, training, figures after."""

    whole: Stages
    stage: Stage
    folder: Path
    before: Left
    earlier: tuple[StageRun, ...] = ()
    made: dict[str, list[Example]] = field(default_factory=dict)  # its examples, once they are made
    scale: dict[str, Any] = field(default_factory=dict)  # of the method's outputs, once it is trained
    parts_read: tuple[str, ...] = ("train", "validation", "test")  # a sweep's trial reads no test rows
    hear: Callable[[Progress], None] = lambda progress: None  # of every step; what it raises ends the training

    @cached_property
    def rows(self) -> StageRows:
        """The rows; the method decides which it takes."""
        return gather(self.stage.rows, make_stage_method(self.stage.method), self.whole.recipe.seed)

    @cached_property
    def method(self) -> StageMethod:
        """The method, with what the training rows decide; an error of theirs says what became of the other rows."""
        try:
            return make_stage_method(self.stage.method).fitted(self.rows.train)
        except DataError as error:
            reasons = list(reason_lines(self.rows.ledger))
            told = f" Dropped beside them: {'; '.join(reasons[:4])}." if reasons else ""
            raise DataError(f"{error}{told}") from None

    @property
    def tasks(self) -> dict[str, StageRun]:
        """The stage's tasks by name: itself, where it has one."""
        return {MAIN: self}

    @property
    def parts(self) -> dict[str, Part]:
        """The methods by the task that examples name, with their shares of the loss."""
        return {MAIN: Part(self.method, 1.0)}

    @property
    def objective(self) -> Objective:
        """What is learnt."""
        return self.method

    def fresh_heads(self) -> dict[str, nn.Module]:
        """Heads of the stage's own, untrained."""
        return dict(self.method.heads(self.whole.model.hidden_size))

    @cached_property
    def prompt(self) -> Dialogue:
        """How rows become texts."""
        asking = self.stage.prompt
        layout = layout_of(self.whole.model.tokenizer, asking)
        if asking.layout == "chat" and not layout.has_template:
            self.whole.listener.say(f'model "{self.whole.recipe.model}" has no chat template: a plain layout is used.')
        return Dialogue(layout, asking.layout, asking.system)

    @property
    def following(self) -> Stage | None:
        """The stage after this one."""
        stages = self.whole.recipe.stages
        return next((after for one, after in pairwise(stages) if one.name == self.stage.name), None)

    @property
    def left(self) -> Left:
        """What the next stage starts from."""
        merged = self.folder / "model"
        adapter = self.folder / "adapter"
        model = str(merged) if self.stage.start == "merge" else self.before.model
        return Left(model, adapter if (adapter / ADAPTER_FILE).is_file() else None)

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """What the stage depends on."""
        recipe = self.whole.recipe
        return {
            "rows": self.rows.key,
            "stage": self.stage.model_dump(exclude={**PATHS, "tune": set(NOT_OF_RESULTS)}),
            "earlier": [run.inputs["rows"] for run in self.earlier],
            "before": self.before.key,
            "model": self.whole.model.sha256,
            "teacher": [teaching_key(task.method, self.whole.teachers) for task in self.stage.each.values()],
            "settings": [recipe.seed, recipe.attention, recipe.precision, recipe.judge.model_dump()],
        }

    def run(self) -> dict[str, Any]:
        """The stage's figures, from the run folder if it has been done."""
        listener = self.whole.listener
        listener.begin(self.stage.name)
        for note in self.rows.ledger.notes:
            listener.say(f"{self.stage.name}: {note}")
        if check_folder(self.folder / "adapter"):
            self.whole.folder.forget(self.folder.name)
        value, cached = self.whole.folder.stage(self.folder.name, self.inputs, self.compute, together=True)
        listener.end(self.stage.name, cached, value["verdict"])
        return value

    def compute(self) -> dict[str, Any]:
        """Everything anew, or taken up where the training was stopped."""
        start, parts, plan = self.ready()
        before = self.scored(start, parts["test"], "before")
        keep_answers(self, start, "before")
        history = self.fit(start, plan)
        after = self.scored(start, parts["test"], "after")
        keep_answers(self, start, "after")
        self.save(start, parts)
        figures = self.figures(start, parts, (before, after), history)
        figures["samples"] = sample_values(self)
        value = {**figures, "every_task": matrix_row(self, start, parts["test"], after)}
        return {name: plain(part) for name, part in value.items()}

    def ready(self) -> tuple[Start, dict[str, list[Example]], Plan]:
        """The learner at step 0, the examples of each part, and what the loop gets."""
        self.forget_other_training()
        recipe = self.whole.recipe
        heads, fresh = all_heads(self)
        start = start_stage(
            self.stage, self.before, self.folder, heads, (recipe.seed, recipe.attention, recipe.precision)
        )
        refuse_unstackable(start, self.whole.model.family, self.stage, self.following)
        settle_heads(self, start.learner, fresh)
        parts = self.made = self.examples(start)
        plan = plan_of(self, start, parts)
        every = [*plan.train, *plan.validation, *parts.get("test", ())]
        refuse_varying(self.stage.tune, plan.objective)
        start.learner.prepare(every, self.stage.tune.pass_tokens)
        return start, parts, plan

    def fit(self, start: Start, plan: Plan) -> History:
        """The training itself; it goes on where it was stopped."""
        reset_peak_memory()
        return train_loop(
            start.learner, plan.objective, plan.train, plan.validation, self.stage.tune, self.whole.recipe.seed,
            self.folder / "training", self.report, course=plan.course, say=self.say,
            watch=self.watch,
        )  # fmt: skip

    def save(self, start: Start, parts: dict[str, list[Example]]) -> None:
        """The adapter of the best step, with what serving needs beside it."""
        scale_outputs(self, start.learner, parts)
        if is_first():
            start.save(self.folder / "training" / "best", self.folder / "adapter", self.settings_texts())

    def settings_texts(self) -> dict[str, Any]:
        """What serving needs beside the adapter, by file."""
        texts: dict[str, Any] = {"dialogue.json": self.stage.prompt.model_dump()}
        left = None if self.method.name in SILENT else template_left(self.prompt)
        texts |= {TEMPLATE_FILE: left} if left is not None else {}
        told = self.method.described() if isinstance(self.method, Described) else self.scale
        return {**texts, METHOD_FILE: told} if told else texts

    def examples(self, start: Start) -> dict[str, list[Example]]:
        """The examples of each part, over-long ones in the ledger, with their reference where the method needs it."""
        recipe, folder = self.whole.recipe, self.folder
        key = teaching_key(self.stage.method, self.whole.teachers)
        with first_goes_first():
            self.rows = taught_rows(self.method, self.rows, self.prompt, recipe.seed, folder, self.whole.listener, key)
        parts = self.viewed(start.base.context_tokens - start.learner.virtual_tokens)
        if self.method.needs_reference:
            flat = [example for examples in parts.values() for example in examples]
            most = self.stage.tune.pass_tokens
            filled = iter(
                with_reference(start.learner, flat, most, self.folder / "reference", self.progress("reference"))
            )
            parts = {name: [next(filled) for _ in examples] for name, examples in parts.items()}
        running = recipe.attention, self.stage.tune.pass_tokens
        with first_goes_first():
            self.method, parts = taught_examples(
                self.method, parts, self.whole.model, running, folder, self.progress("teacher"), key
            )
        return parts

    def viewed(self, context_tokens: int) -> dict[str, list[Example]]:
        """The examples that the method makes of each part's rows; those that cannot be used go to the ledger."""
        longest = longest_example(self.stage, context_tokens)
        parts: dict[str, list[Example]] = {}
        for name in self.parts_read:
            viewed = viewed_rows(self.method, self.prompt, getattr(self.rows, name), name, self.rows.ledger)
            parts[name] = self.fitting(viewed, name, longest)
            refuse_unread(parts[name], self.whole.model)
            account(self.rows.ledger, name, getattr(self.rows, name), (viewed, parts[name]), longest)
            if isinstance(self.method, Passing):
                account_unread(self.rows.ledger, name, getattr(self.rows, name), viewed, self.method.passed)
            if isinstance(self.method, Remarking):
                account_unread(self.rows.ledger, name, getattr(self.rows, name), viewed)
                self.remark(name)
            lost = len(viewed) - len(parts[name])
            if lost:
                self.whole.listener.say(f"{self.stage.name}: {lost} {name} examples have over {longest} tokens.")
            if not parts[name] and (name != "validation" or self.stage.rows.validation_share):
                why = f"every {name} example has over {longest} tokens (data.max_tokens)."
                raise DataError(f"{self.stage.name}: {why if viewed else self.nothing_viewed(name)}")
        refuse_losses(self.rows.ledger, self.stage.rows)
        for missing in missing_notes(self.label_counts(parts), self.parts_read):
            self.note(missing)
        return parts

    def fitting(self, viewed: list[Example], name: str, longest: int) -> list[Example]:
        """The examples of a part that are short enough; of training rows also what too long ones are cut to."""
        if name != "train" or self.stage.rows.too_long == "drop":
            return [example for example in viewed if length(example) <= longest]
        num_cut = sum(length(example) > longest for example in viewed)
        left = [example for row in viewed if (example := cut(row, longest)) is not None]
        num_cut -= len(viewed) - len(left)
        if num_cut:
            told = f"{num_cut} train rows were cut to their first {longest} tokens (data.too_long)."
            self.rows.ledger.notes.append(told)
            self.whole.listener.say(f"{self.stage.name}: {told}")
        return left

    def used(self, parts: dict[str, list[Example]]) -> dict[str, list[Any]]:
        """The rows of each part that have an example, where the method is a head."""
        if not isinstance(self.method, Telling):
            return {}
        there = {name: {example.key for example in examples} for name, examples in parts.items()}
        return {name: [row for row in getattr(self.rows, name) if key_of(row) in keys] for name, keys in there.items()}

    def label_counts(self, parts: dict[str, list[Example]]) -> dict[str, dict[str, int]]:
        """How often each label comes in each part, in rows that are used."""
        return label_counts(self.method, self.used(parts))

    def nothing_viewed(self, name: str) -> str:
        """No row of a part gives an example: what the ledger says of the last one."""
        lines = [line for line in self.rows.ledger.dropped if line.split == name]
        shown = f" (such as {lines[-1].source}: {lines[-1].detail})" if lines else ""
        return f"no {name} row gives an example{shown}. Give other rows."

    def remark(self, name: str) -> None:
        """What the method has to say of the rows of a part."""
        assert isinstance(self.method, Remarking)
        for remark in self.method.remarks(getattr(self.rows, name)):
            self.rows.ledger.notes.append(f"{name}: {remark}")
            self.whole.listener.say(f"{self.stage.name}: {name}: {remark}")

    def rivals(self, parts: dict[str, list[Example]]) -> list[Beside]:
        """Plain models on the same rows, where the method is one that has rivals."""
        if not rivals_of(self.method):
            return []
        rows = {name: rows_of(getattr(self.rows, name), examples) for name, examples in parts.items()}
        return rivals_beside(self.method, rows, parts, self.note)

    def scored(self, start: Start, examples: list[Example], when: str) -> Figures:
        """The figures of the test rows."""
        most, update = self.stage.tune.pass_tokens, self.progress(f"test rows {when}")
        return score_rows(start.learner, self.objective, examples, most, update)

    def progress(self, what: str) -> Any:
        """An update function that says what is being worked at."""
        return lambda done, total: self.whole.listener.update(done, total, what)

    def report(self, progress: Progress) -> None:
        """A step done."""
        figures = ", ".join(f"{name} {value:.4g}" for name, value in progress.figures.items())
        note = f"loss {progress.loss:.3f}" + (f", validation {figures}" if figures else "")
        self.whole.listener.update(progress.step, progress.num_steps, note)
        self.hear(progress)

    def watch(self, step: int, num_steps: int, share: float) -> None:
        """A part of a validation done."""
        self.whole.listener.update(step, num_steps, f"validating, {share:.0%}")

    def say(self, text: str) -> None:
        """Something the user should know of this stage."""
        self.whole.listener.say(f"{self.stage.name}: {text}")

    def note(self, text: str) -> None:
        """The same, which the ledger keeps."""
        self.rows.ledger.notes.append(text)
        self.say(text)

    def forget_other_training(self) -> None:
        """Checkpoints of other rows, settings or code must not be resumed; what is kept by content stays."""
        recipe, mark = self.whole.recipe, self.folder / START_FILE
        start = content_hash(
            self.before.key, self.whole.model.sha256, self.stage.start, self.stage.tune.adapter.model_dump(),
            [recipe.seed, recipe.attention, recipe.precision], code_hash(*NUMBERS),
        )  # fmt: skip
        kept = (*TEACHERS, *OF_START) if read_mark(mark) == start else TEACHERS
        told = self.whole.folder.take_up(self.folder.name, self.folder, self.inputs, kept)
        write_text(mark, start)
        if told:
            self.say(told)

    def figures(
        self, start: Start, parts: dict[str, list[Example]], scores: tuple[Figures, Figures], history: History
    ) -> dict[str, Any]:
        """What the stage was worth, as JSON values."""
        judge = self.whole.recipe.judge
        rivals = self.rivals(parts)
        groups = [group_of(example) for example in parts["test"]]
        figures = figure_values(scores, groups, judge, self.whole.recipe.seed, rivals)
        counts = self.label_counts(parts)
        outcome = verdict(self.method, figures[self.method.primary], judge.confidence, rivals)
        trained = sum(parameter.numel() for parameter in start.learner.trained().values())
        return {
            "name": self.stage.name,
            "method": self.method.name,
            "start": self.stage.start,
            "primary_metric": self.method.primary,
            "higher_is_better": self.method.higher_is_better,
            "verdict": outcome + untested(counts),
            "figures": figures,
            "rivals": [{"name": rival.name, "about": rival.about} for rival in rivals],
            "rows": {name: self.rows.ledger.kept[name] for name in parts},
            "examples": {name: len(examples) for name, examples in parts.items()},
            "ledger": ledger_values(self.rows.ledger),
            "labels": label_rows(counts, scores[1].get("macro_f1"), self.method),
            "numbers": number_figures(self.method, self.used(parts)),
            "training": training_values(history, trained, read_memory(self.folder / "training")),
            "shown": shown_rows(parts["train"], self.prompt.layout),
            "adapter": str(self.folder / "adapter"),
        }


def longest_example(stage: Stage, context_tokens: int) -> int:
    """Most tokens of a sequence. A method that cuts windows keeps its own measure: none of them is dropped."""
    window_tokens = int(getattr(stage.method, "window_tokens", 0))
    if window_tokens > context_tokens:
        raise DataError(
            f"{stage.name}: method.window_tokens is {window_tokens}, but the model reads {context_tokens} tokens at "
            f"most. Lower it to {context_tokens}."
        )
    return window_tokens or min(stage.rows.max_tokens, context_tokens)


def length(example: Example) -> int:
    """Tokens of the longest sequence."""
    return max(len(sequence.tokens) for sequence in example.sequences)
