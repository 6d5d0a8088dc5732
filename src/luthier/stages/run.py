"""Recipe of stages -> trained adapters, held-out figures before and after each, result.json and a page."""

from __future__ import annotations

import datetime
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from luthier.errors import DataError
from luthier.evaluation.held_out import Figures, by_group, change, change_p, figure, score_rows
from luthier.files import content_hash, write_json, write_text
from luthier.methods.base import Example
from luthier.methods.registry import make_stage_method
from luthier.methods.stage import StageMethod
from luthier.models import LoadedModel, load_model
from luthier.progress import Listener, Silent
from luthier.prompts import Dialogue, Layout
from luthier.recipe.stages import Stage, TrainRecipe, dump_stages, load_stages
from luthier.records import Dropped
from luthier.run_folder import RunFolder, code_hash
from luthier.runtime import peak_memory_bytes, reset_peak_memory, set_up_torch
from luthier.stages.chain import Left, Start, start_stage
from luthier.stages.reference import with_reference
from luthier.stages.rows import StageRows, gather
from luthier.training.checkpoint import History, Progress
from luthier.training.loop import train as train_loop


def train(
    recipe: TrainRecipe | str | Path,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Run a recipe of stages and return its result; every stage's adapter stands in the run folder.

    `out` defaults to runs/NAME. Called again with the same folder it goes on where it stopped.
    """
    if not isinstance(recipe, TrainRecipe):
        recipe = load_stages(recipe, overrides)
    return Stages(recipe, Path(out) if out else Path("runs") / recipe.name, listener or Silent()).run()


@dataclass
class Stages:
    """One run of a recipe of stages."""

    recipe: TrainRecipe
    out: Path
    listener: Listener

    @cached_property
    def folder(self) -> RunFolder:
        """The run folder, proven to be writable."""
        folder = RunFolder(self.out)
        folder.prepare(dump_stages(self.recipe))
        return folder

    @cached_property
    def model(self) -> LoadedModel:
        """The model of the recipe, for its tokenizer and its name; each stage loads its own."""
        set_up_torch()
        return load_model(self.recipe.model, precision=self.recipe.precision)

    def run(self) -> dict[str, Any]:
        """All stages in order."""
        assert self.folder.path.is_dir()
        self.listener.plan([*(stage.name for stage in self.recipe.stages), "report"])
        left = Left(self.recipe.model)
        values = []
        for number, stage in enumerate(self.recipe.stages, start=1):
            runner = StageRun(self, stage, self.out / "stages" / f"{number:02d}-{stage.name}", left)
            values.append(runner.run())
            left = runner.left
        return self.write_report(values)

    def write_report(self, stages: list[dict[str, Any]]) -> dict[str, Any]:
        """result.json beside the stages."""
        self.listener.begin("report")
        last = stages[-1]
        result = {
            "name": self.recipe.name,
            "seed": self.recipe.seed,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "model": {"name": self.model.name, "family": self.model.family, "sha256": self.model.sha256,
                      "parameters": self.model.num_parameters},
            "verdict": last["verdict"],
            "primary_metric": last["primary_metric"],
            "adapter": last["adapter"],
            "stages": stages,
            "confidence": self.recipe.judge.confidence,
            "recipe": dump_stages(self.recipe),
        }  # fmt: skip
        write_json(self.out / "result.json", result)
        self.listener.end("report", False, str(self.out / "result.json"))
        return result


@dataclass
class StageRun:
    """One stage: rows, learner, figures before, training, figures after."""

    whole: Stages
    stage: Stage
    folder: Path
    before: Left

    @cached_property
    def rows(self) -> StageRows:
        """The rows; the method decides which it takes."""
        return gather(self.stage.data, make_stage_method(self.stage.method), self.whole.recipe.seed)

    @cached_property
    def method(self) -> StageMethod:
        """The method, with what the training rows decide."""
        return make_stage_method(self.stage.method).fitted(self.rows.train)

    @cached_property
    def prompt(self) -> Dialogue:
        """How rows become texts."""
        asking = self.stage.prompt
        layout = Layout(self.whole.model.tokenizer)
        if asking.layout == "chat" and not layout.has_template:
            self.whole.listener.say(f'model "{self.whole.recipe.model}" has no chat template: a plain layout is used.')
        return Dialogue(layout, asking.layout, asking.system)

    @property
    def left(self) -> Left:
        """What the next stage starts from."""
        merged = self.folder / "model"
        return Left(str(merged) if self.stage.start == "merge" else self.before.model, self.folder / "adapter")

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """What the stage depends on."""
        recipe = self.whole.recipe
        return {
            "rows": self.rows.key,
            "stage": self.stage.model_dump(exclude={"data": {"train", "test"}}),
            "before": self.before.key,
            "model": self.whole.model.sha256,
            "settings": [recipe.seed, recipe.attention, recipe.precision, recipe.judge.model_dump()],
        }

    def run(self) -> dict[str, Any]:
        """The stage's figures, from the run folder if it has been done."""
        listener = self.whole.listener
        listener.begin(self.stage.name)
        for note in self.rows.ledger.notes:
            listener.say(f"{self.stage.name}: {note}")
        value, cached = self.whole.folder.stage(self.folder.name, self.inputs, self.compute)
        listener.end(self.stage.name, cached, value["verdict"])
        return value

    def compute(self) -> dict[str, Any]:
        """Everything anew, or taken up where the training was stopped."""
        self.forget_other_training()
        recipe, training = self.whole.recipe, self.stage.tune
        heads = self.method.heads(self.whole.model.hidden_size)
        start = start_stage(
            self.stage, self.before, self.folder, heads, (recipe.seed, recipe.attention, recipe.precision)
        )
        parts = self.examples(start)
        before = self.scored(start, parts["test"], "before")
        reset_peak_memory()
        history = train_loop(
            start.learner, self.method, parts["train"], parts["validation"], training, recipe.seed,
            self.folder / "training", self.report,
        )  # fmt: skip
        after = self.scored(start, parts["test"], "after")
        start.save(self.folder / "training" / "best", self.folder / "adapter")
        write_json(self.folder / "adapter" / "dialogue.json", self.stage.prompt.model_dump())
        return self.figures(start, parts, (before, after), history)

    def examples(self, start: Start) -> dict[str, list[Example]]:
        """The examples of each part, over-long ones in the ledger, with their reference where the method needs it."""
        longest = min(self.stage.data.max_tokens, start.base.context_tokens)
        parts: dict[str, list[Example]] = {}
        for name in ("train", "validation", "test"):
            viewed = self.method.view(self.prompt, getattr(self.rows, name))
            parts[name] = [example for example in viewed if length(example) <= longest]
            lost = len(viewed) - len(parts[name])
            if lost:
                self.whole.listener.say(f"{self.stage.name}: {lost} {name} examples have over {longest} tokens.")
            if not parts[name] and (name != "validation" or self.stage.data.validation_share):
                raise DataError(f"{self.stage.name}: every {name} example has over {longest} tokens (data.max_tokens).")
        if self.method.needs_reference:
            flat = [example for examples in parts.values() for example in examples]
            most = self.stage.tune.micro_batch_tokens
            filled = iter(
                with_reference(start.learner, flat, most, self.folder / "reference", self.progress("reference"))
            )
            parts = {name: [next(filled) for _ in examples] for name, examples in parts.items()}
        return parts

    def scored(self, start: Start, examples: list[Example], when: str) -> Figures:
        """The figures of the test rows."""
        return score_rows(
            start.learner, self.method, examples, self.stage.tune.micro_batch_tokens, self.progress(f"test rows {when}")
        )

    def progress(self, what: str) -> Any:
        """An update function that says what is being worked at."""
        return lambda done, total: self.whole.listener.update(done, total, what)

    def report(self, progress: Progress) -> None:
        """A step done."""
        figures = ", ".join(f"{name} {value:.4g}" for name, value in progress.figures.items())
        note = f"loss {progress.loss:.3f}" + (f", validation {figures}" if figures else "")
        self.whole.listener.update(progress.step, progress.num_steps, note)

    def forget_other_training(self) -> None:
        """Checkpoints of other rows, settings or code must not be resumed."""
        key = content_hash(self.inputs, code_hash())
        mark = self.folder / "inputs.txt"
        if not (mark.is_file() and mark.read_text(encoding="utf-8") == key):
            shutil.rmtree(self.folder, ignore_errors=True)
            write_text(mark, key)

    def figures(
        self, start: Start, parts: dict[str, list[Example]], scores: tuple[Figures, Figures], history: History
    ) -> dict[str, Any]:
        """What the stage was worth, as JSON values."""
        judge, seed = self.whole.recipe.judge, self.whole.recipe.seed
        groups = [group_of(example) for example in parts["test"]]
        figures: dict[str, Any] = {}
        for name in scores[1]:
            before, after = (by_group(found[name], groups) for found in scores)
            draws = (judge.resamples, seed, judge.confidence)
            figures[name] = {
                "before": asdict(figure(before, *draws)),
                "after": asdict(figure(after, *draws)),
                "change": asdict(change(before, after, *draws)),
                "p": change_p(before, after, judge.resamples, seed),
                "n": len(after[0]),
            }
        trained = sum(parameter.numel() for parameter in start.learner.trained().values())
        return {
            "name": self.stage.name,
            "method": self.method.name,
            "start": self.stage.start,
            "primary_metric": self.method.primary,
            "higher_is_better": self.method.higher_is_better,
            "verdict": verdict(self.method, figures[self.method.primary]),
            "figures": figures,
            "rows": {name: len(getattr(self.rows, name)) for name in parts},
            "examples": {name: len(examples) for name, examples in parts.items()},
            "ledger": {
                "rows_in": self.rows.ledger.rows_in,
                "kept": self.rows.ledger.kept,
                "reasons": {split: self.rows.ledger.reasons(split) for split in self.rows.ledger.rows_in},
                "notes": self.rows.ledger.notes,
                "examples": [dropped_values(row) for row in self.rows.ledger.dropped[:12]],
            },
            "training": {
                "seconds": history.seconds,
                "validation_seconds": history.validation_seconds,
                "steps": history.num_steps,
                "best_step": history.best_step,
                "trained_tokens": history.trained_tokens,
                "computed_tokens": history.computed_tokens,
                "sequence_tokens": history.sequence_tokens,
                "padded_tokens": history.padded_tokens,
                "peak_rss_bytes": peak_memory_bytes(),
                "trainable_parameters": trained,
                "curve": {"train": history.train, "validation": history.validation},
            },
            "adapter": str(self.folder / "adapter"),
        }


def group_of(example: Example) -> str:
    """What is drawn together when rows are resampled: all examples of one row."""
    return example.key


def length(example: Example) -> int:
    """Tokens of the longest sequence."""
    return max(len(sequence.tokens) for sequence in example.sequences)


def dropped_values(row: Dropped) -> dict[str, Any]:
    """A dropped row as JSON values."""
    return {**asdict(replace(row)), "source": str(row.source)}


def verdict(method: StageMethod, found: dict[str, Any]) -> str:
    """One sentence: what the deciding figure did on the held-out rows."""
    before, after, moved = found["before"]["value"], found["after"]["value"], found["change"]
    name = method.primary.replace("_", " ")
    if not math.isfinite(after):
        return f"{name} could not be measured on {found['n']} held-out rows."
    better = moved["value"] > 0 if method.higher_is_better else moved["value"] < 0
    shown = moved["low"] > 0 or moved["high"] < 0
    word = ("better" if better else "worse") if shown else "no difference shown"
    share = f" ({moved['value'] / before:+.1%})" if before else ""
    return (
        f"{word}: {name} {before:.4g} -> {after:.4g}{share} on {found['n']} held-out rows, "
        f"change {moved['value']:+.4g} [{moved['low']:+.4g}, {moved['high']:+.4g}]."
    )
