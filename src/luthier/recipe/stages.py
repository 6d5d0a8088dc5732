"""A recipe of stages: methods of any kind one after the other, each starting from the last. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from luthier.errors import RecipeError
from luthier.recipe.base import Part, explain
from luthier.recipe.corpus import Input
from luthier.recipe.methods import METHODS, MethodSettings
from luthier.recipe.run import Cost, Judge, read_values
from luthier.recipe.training import Training

TUNES: dict[str, dict[str, Any]] = {method.model_fields["kind"].default: method.tune for method in METHODS}


class Rows(Part):
    """The rows of a stage: any shape that `luthier data` reads."""

    train: list[Input] = Field(
        min_length=1, description="Training rows: a file, a list of files, or inputs with their own keys."
    )
    test: list[Input] = Field(
        default_factory=list, description="Held-out rows. Without them `test_share` of `train` is held out."
    )
    validation_share: float = Field(0.1, ge=0, lt=1, description="Share of `train` for choosing the best step.")
    test_share: float = Field(0.1, ge=0, lt=1, description="Share of `train` held out where there is no `test`.")
    max_rows: int = Field(0, ge=0, description="Take at most this many training rows, by seed; 0: all.")
    max_test_rows: int = Field(0, ge=0, description="Take at most this many test rows, by seed; 0: all.")
    max_tokens: int = Field(1024, ge=16, description="Rows with a longer sequence are dropped, and said.")
    max_dropped_share: float = Field(0.5, ge=0, le=1, description="The run refuses when more rows are dropped.")

    @field_validator("train", "test", mode="before")
    @classmethod
    def listed(cls, value: Any) -> Any:
        """One path or several stand for inputs with nothing else said."""
        items = value if isinstance(value, list) else [value]
        return [{"path": item} if isinstance(item, str) else item for item in items]


class Asking(Part):
    """How a row becomes a text."""

    layout: Literal["chat", "hash", "plain"] = Field(
        "chat",
        description="`chat`: the model's chat template; `hash`: ### Instruction, ### Context, ### Response; `plain`: "
        "prompt and answer one after the other.",
    )
    system: str = Field("", description="A system message before every conversation that has none.")


class Stage(Part):
    """One method on some rows."""

    name: str = Field("", pattern=r"^[A-Za-z0-9._-]*$", description="Names the stage's folder; by default the method.")
    method: MethodSettings = Field(description="What is learnt: a name (`dpo`), or the name with its keys (`kind`).")
    data: Rows = Field(description="The rows.")
    prompt: Asking = Field(default_factory=Asking, description="How a row becomes a text.")
    start: Literal["stack", "continue", "merge"] = Field(
        "stack",
        description="Where the weights start: `stack` puts a fresh adapter over the earlier stages' (the saved one "
        "holds them all); `continue` trains the last stage's adapter on; `merge` writes the earlier stages into the "
        "model's weights first. A reference (`dpo`, `kto`) is always the model this stage starts from.",
    )
    tune: Training = Field(default_factory=Training, description="How weights learn.")

    @model_validator(mode="before")
    @classmethod
    def filled(cls, values: Any) -> Any:
        """A method by its name alone, the stage's name, and the rates that suit the method."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        method = values.get("method")
        if isinstance(method, str):
            method = values["method"] = {"kind": method}
        kind = method.get("kind") if isinstance(method, dict) else None
        if isinstance(kind, str) and kind in TUNES:
            values.setdefault("name", kind)
            tune = values.get("tune", {})
            if isinstance(tune, dict):
                values["tune"] = {**TUNES[kind], **tune}
        return values


class TrainRecipe(Part):
    """Stages of training on one model."""

    name: str = Field("train", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Names the run folder.")
    seed: int = Field(0, ge=0, description="Every random choice follows from it.")
    model: str = Field("smollm2-135m-instruct", description="Starter name, hub id, folder or GGUF file.")
    attention: Literal["auto", "grouped", "dense", "padded"] = Field("auto", description="As for a run.")
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="As for a run.")
    stages: list[Stage] = Field(min_length=1, description="The stages, in order.")
    judge: Judge = Field(default_factory=Judge, description="What counts as worth it.")
    cost: Cost = Field(default_factory=Cost, description="Prices.")


def load_stages(path: str | Path, overrides: Sequence[str] = ()) -> TrainRecipe:
    """Read a recipe of stages. Paths inside it are relative to its folder. RecipeError names every problem."""
    values, problems = read_values(Path(path), overrides)
    return parse_stages(values, str(path), problems)


def parse_stages(values: Mapping[str, Any], source: str = "recipe", problems: Sequence[str] = ()) -> TrainRecipe:
    """A TrainRecipe from plain values; RecipeError lists all problems (and those handed in) at once."""
    found = list(problems)
    recipe = None
    try:
        recipe = TrainRecipe.model_validate(values)
    except ValidationError as error:
        found += [explain(item, TrainRecipe) for item in error.errors()]
    if recipe is not None:
        found += stage_problems(recipe)
    if found or recipe is None:
        raise RecipeError(source, found)
    return recipe


def stage_problems(recipe: TrainRecipe) -> list[str]:
    """Rules that need more than one field."""
    names = [stage.name for stage in recipe.stages]
    problems = [
        f'stages: the name "{name}" stands twice. Give each stage a name of its own.'
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    for number, stage in enumerate(recipe.stages):
        where = f"stages.{number}"
        if not stage.data.test and not stage.data.test_share:
            problems.append(f"{where}.data: no rows are held out. Give test, or a test_share above 0.")
        if stage.data.validation_share + (0 if stage.data.test else stage.data.test_share) >= 1:
            problems.append(f"{where}.data: validation_share and test_share leave nothing to train on.")
        if number == 0 and stage.start != "stack":
            problems.append(f"{where}.start: the first stage has nothing to {stage.start}; leave it at stack.")
    return problems


def dump_stages(recipe: TrainRecipe) -> str:
    """The resolved recipe as YAML, every default spelled out."""
    return yaml.safe_dump(recipe.model_dump(), sort_keys=False, allow_unicode=True, width=100)
