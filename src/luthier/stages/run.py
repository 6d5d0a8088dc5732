"""Recipe of stages -> trained adapters, held-out figures before and after each, result.json and a page."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from luthier.files import write_json
from luthier.models import LoadedModel, load_outline
from luthier.processes import first_goes_first
from luthier.progress import Listener, Silent
from luthier.recipe.reading import RecipeSource
from luthier.recipe.stages import TrainRecipe, dump_stages, load_stages
from luthier.report.stages_page import write_stages_page
from luthier.run_folder import RunFolder
from luthier.runtime import machine_values, set_up_torch
from luthier.stages.answer import writes
from luthier.stages.asking import saved_format, ways_to_ask
from luthier.stages.chain import Left
from luthier.stages.figures import plain
from luthier.stages.keeping import matrix
from luthier.stages.one import StageRun
from luthier.stages.several import SeveralRun
from luthier.stages.suits import refuse_unsuited
from luthier.stages.teacher import TeacherKeys
from luthier.stages.teaching import refuse_other_teachers


def train(
    recipe: TrainRecipe | RecipeSource,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Run a recipe of stages (a file, or its values as a dict) and return its result.

    Every stage's adapter stands in the run folder.

    `out` defaults to runs/NAME. Called again with the same folder it goes on where it stopped.
    """
    if not isinstance(recipe, TrainRecipe):
        recipe = load_stages(recipe, overrides)
    whole = Stages(recipe, Path(out) if out else Path("runs") / recipe.name, listener or Silent())
    try:
        return whole.run()
    finally:
        whole.close()


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
        with first_goes_first(each_machine=True):
            return load_outline(self.recipe.model, precision=self.recipe.precision, encoders=True)

    @property
    def teachers(self) -> TeacherKeys:
        """What its teachers are by content, remembered."""
        return TeacherKeys(self.out / "teachers.json")

    def run(self) -> dict[str, Any]:
        """All stages in order."""
        self.check()
        self.listener.plan([*(stage.name for stage in self.recipe.stages), "report"])
        left = Left(self.recipe.model)
        runs: list[StageRun] = []
        values = []
        for number in range(1, len(self.recipe.stages) + 1):
            run = self.stage_run(number, left, tuple(runs))
            values.append(run.run())
            left = run.left
            runs.append(run)
        return self.write_report(values)

    def close(self) -> None:
        """Let others work in the run folder."""
        if "folder" in self.__dict__:
            self.folder.release()

    def check(self) -> None:
        """Refuse, before anything is computed, what the model or the teachers cannot do; the folder is there then."""
        assert self.folder.path.is_dir()
        refuse_unsuited(self.recipe, self.model)
        refuse_other_teachers(self.recipe, self.model.tokenizer, self.teachers)

    def stage_run(self, number: int, left: Left, earlier: tuple[StageRun, ...]) -> StageRun:
        """The stage of that number, counted from 1."""
        stage = self.recipe.stages[number - 1]
        folder = self.out / "stages" / f"{number:02d}-{stage.name}"
        return (SeveralRun if stage.tasks else StageRun)(self, stage, folder, left, earlier)

    def write_report(self, stages: list[dict[str, Any]]) -> dict[str, Any]:
        """result.json and report.html beside the stages."""
        self.listener.begin("report")
        stages = [self.priced(stage) for stage in stages]
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
            "adapter_format": saved_format(last["adapter"]),
            "writes": [stage["name"] for stage in stages if writes(stage)],
            "asked": ways_to_ask(stages),
            "stages": stages,
            "matrix": plain(matrix(stages)),
            "confidence": self.recipe.judge.confidence,
            "currency": self.recipe.cost.currency,
            "machine_per_hour": self.recipe.cost.machine_per_hour,
            "recipe": dump_stages(self.recipe),
            "environment": {**machine_values(), "precision": self.model.precision},
        }  # fmt: skip
        write_json(self.out / "result.json", result)
        write_stages_page(self.out / "report.html", result)
        self.listener.end("report", False, str(self.out / "report.html"))
        return result

    def priced(self, stage: dict[str, Any]) -> dict[str, Any]:
        """A stage's values with what its training cost: a price may change without anything being done again."""
        return {**stage, "training": self.recipe.cost.priced(stage["training"])}
