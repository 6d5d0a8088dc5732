"""A recipe of stages: methods of any kind one after the other, each starting from the last. No torch here."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from luthier.errors import RecipeError
from luthier.recipe.adapter_rules import Worn, chain_problems, suited_rate, with_continued
from luthier.recipe.base import Part, Seed, Share, explain
from luthier.recipe.corpus import Input
from luthier.recipe.methods import METHODS, Headed, MethodSettings, Reward
from luthier.recipe.reading import RecipeSource, read_values, require_kind, source_name
from luthier.recipe.run import Cost
from luthier.recipe.sweep import Sweep
from luthier.recipe.template import ChatTemplate
from luthier.recipe.training import LEARNING_RATE, Training, tune_problems

TUNES: dict[str, dict[str, Any]] = {method.model_fields["kind"].default: method.tune for method in METHODS}
HEADS = (*get_args(Headed), Reward)  # methods that learn a head of their own
TASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class Rows(Part):
    """The rows of a stage: any shape that `luthier data prepare` reads."""

    train: list[Input] = Field(
        min_length=1, description="Training rows: a file, a list of files, or inputs with their own keys."
    )
    test: list[Input] = Field(
        default_factory=list, description="Held-out rows. Without them `test_share` of `train` is held out."
    )
    validation_share: float = Field(0.1, ge=0, lt=1, description="Share of `train` for choosing the best step.")
    test_share: float = Field(0.1, ge=0, lt=1, description="Share of `train` held out where there is no `test`.")
    max_rows: int = Field(
        0, ge=0, description="Take at most this many training rows, by seed, and validation rows in the same "
        "proportion; 0: all.",
    )  # fmt: skip
    max_test_rows: int = Field(0, ge=0, description="Take at most this many test rows, by seed; 0: all.")
    max_tokens: int = Field(1024, ge=16, description="Rows with a longer sequence are dropped, and said.")
    too_long: Literal["drop", "cut"] = Field(
        "drop",
        description="`cut`: training rows keep their first `max_tokens` tokens. Validation and test rows are dropped "
        "all the same: a figure is one of whole rows.",
    )
    max_dropped_share: float = Field(0.5, ge=0, le=1, description="The run refuses when more rows are dropped.")

    @field_validator("train", "test", mode="before")
    @classmethod
    def listed(cls, value: Any) -> Any:
        """One path or several stand for inputs with nothing else said."""
        items = value if isinstance(value, list) else [value]
        return [{"path": item} if isinstance(item, str) else item for item in items]


class Asking(ChatTemplate):
    """How a row becomes a text."""

    layout: Literal["chat", "hash", "plain"] = Field(
        "chat",
        description="`chat`: the model's chat template; `hash`: ### Instruction, ### Context, ### Response; `plain`: "
        "prompt and answer one after the other.",
    )
    system: str = Field("", description="A system message before every conversation that has none.")

    @model_validator(mode="after")
    def read(self) -> Asking:
        """A template only where one is read."""
        if self.layout != "chat" and (self.template or self.template_arguments):
            message = "template and template_arguments have no effect while layout is {layout}"
            raise PydanticCustomError("unused", message, {"layout": self.layout})
        return self


class Task(Part):
    """One of several tasks that a stage learns at once."""

    method: MethodSettings = Field(description="What is learnt: a name (`tag`), or the name with its keys (`kind`).")
    data: Rows = Field(description="The rows.")
    prompt: Asking = Field(default_factory=Asking, description="How a row becomes a text.")
    weight: float = Field(
        1.0, gt=0, strict=False, description="Share of the loss, beside the weights of the other tasks."
    )

    @model_validator(mode="before")
    @classmethod
    def named(cls, values: Any) -> Any:
        """A method by its name alone."""
        return with_kind(values)


class Mixing(Part):
    """How many rows of each task a step has. Each step has its share of every task, as near as whole rows can."""

    by: Literal["proportional", "equal", "temperature"] = Field(
        "proportional",
        description="`proportional`: as many as the task has rows; `equal`: the same for each task; `temperature`: in "
        "proportion to rows ** (1 / temperature), which lies between.",
    )
    temperature: float = Field(2.0, ge=1, strict=False, description="1 is proportional; large ones come near equal.")

    @property
    def power(self) -> float:
        """The temperature that the rule stands for."""
        return {"proportional": 1.0, "equal": math.inf, "temperature": self.temperature}[self.by]


class Keep(Part):
    """What a stage does so that the earlier stages' tasks are not forgotten."""

    replay_share: float = Field(
        0.0, ge=0, lt=1, strict=False, description="Share of each step's rows that come from the earlier stages' "
        "training rows, learnt by their own methods and heads; it is their share of the loss as well.",
    )  # fmt: skip
    penalty: Literal["none", "l2", "ewc"] = Field(
        "none",
        description="Hold the weights to where the stage starts: `l2` all alike, `ewc` each by what it matters to the "
        "earlier stages (their Fisher information).",
    )
    strength: float = Field(1.0, gt=0, strict=False, description="What the penalty is multiplied by.")
    fisher_rows: int = Field(
        256, ge=1, description="Training rows of each earlier stage that the Fisher information is estimated from."
    )


class Stage(Part):
    """One method on some rows, or several at once (`tasks`)."""

    name: str = Field("", pattern=r"^[A-Za-z0-9._-]*$", description="Names the stage's folder; by default the method.")
    method: MethodSettings | None = Field(
        None, description="What is learnt: a name (`dpo`), or the name with its keys (`kind`)."
    )
    data: Rows | None = Field(None, description="The rows.")
    prompt: Asking = Field(default_factory=Asking, description="How a row becomes a text.")
    tasks: dict[str, Task] = Field(
        default_factory=dict,
        description="In the place of `method` and `data`: several tasks by name, each with its own rows, method and "
        "head, learnt at once.",
    )
    mixing: Mixing = Field(default_factory=Mixing, description="How many rows of each of the `tasks` a step has.")
    start: Literal["stack", "continue", "merge"] = Field(
        "stack",
        description="Where the weights start: `stack` puts a fresh adapter over the earlier stages' (the saved one "
        "holds them all); `continue` trains the last stage's adapter on; `merge` writes the earlier stages into the "
        "model's weights first. A reference (`dpo`, `kto`) is always the model this stage starts from.",
    )
    keep: Keep = Field(default_factory=Keep, description="What keeps the earlier stages' tasks from being forgotten.")
    tune: Training = Field(default_factory=Training, description="How weights learn.")

    @model_validator(mode="before")
    @classmethod
    def filled(cls, values: Any) -> Any:
        """A method or a mixing by its name alone, the stage's name, and the rates that suit the methods."""
        if not isinstance(values, dict):
            return values
        values = with_kind(values)
        if isinstance(values.get("mixing"), str):
            values["mixing"] = {"by": values["mixing"]}
        tasks = values.get("tasks")
        kinds = [kind_of_method(task) for task in tasks.values()] if isinstance(tasks, dict) else []
        kinds = kinds or [kind_of_method(values)]
        tunes = [TUNES[kind] for kind in kinds if kind in TUNES]
        if len(tunes) == len(kinds):
            values.setdefault("name", kinds[0] if len(kinds) == 1 else "tasks")
            tune = values.get("tune", {})
            if isinstance(tune, dict):
                agreed = {key: value for key, value in tunes[0].items() if all(one.get(key) == value for one in tunes)}
                values["tune"] = {**agreed, **suited_rate(tune, agreed.get("learning_rate", LEARNING_RATE))}
        return values

    @property
    def rows(self) -> Rows:
        """The rows of a stage of one method."""
        assert self.data is not None, "checked by stage_problems"
        return self.data

    @property
    def each(self) -> dict[str, Task]:
        """The stage's tasks: those of `tasks`, or its one method, called main."""
        if self.tasks:
            return self.tasks
        assert self.method is not None, "checked by stage_problems"
        return {"main": Task(method=self.method, data=self.rows, prompt=self.prompt)}


def with_kind(values: Any) -> Any:
    """A copy of a section whose method may be given by its name alone."""
    if not isinstance(values, dict):
        return values
    method = values.get("method")
    return {**values, "method": {"kind": method}} if isinstance(method, str) else dict(values)


def kind_of_method(values: Any) -> str:
    """The name of the method in a section's plain values; empty where it has none."""
    method = values.get("method") if isinstance(values, dict) else None
    kind = method.get("kind") if isinstance(method, dict) else method
    return kind if isinstance(kind, str) else ""


class StageJudge(Part):
    """How the figures of stages are judged. They have many units, so no one gain is worth having in all of them."""

    confidence: Share = Field(0.95, description="Confidence of every interval.")
    resamples: int = Field(10000, ge=200, description="Bootstrap resamples that the intervals are taken from.")
    samples: int = Field(
        3,
        ge=0,
        le=100,
        description="Held-out prompts that a stage which teaches answers is asked before and after its training, for "
        "the page: 64 tokens each, the likeliest ones. 0: none.",
    )


class TrainRecipe(Part):
    """Stages of training on one model."""

    name: str = Field("train", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Names the run folder.")
    seed: Seed = Field(0, description="Every random choice follows from it.")
    model: str = Field(
        "smollm2-135m-instruct",
        description="Starter name, hub id (a revision may follow it: owner/name@revision), folder or GGUF file.",
    )
    attention: Literal["auto", "grouped", "dense", "padded"] = Field("auto", description="As for a run.")
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="As for a run.")
    stages: list[Stage] = Field(min_length=1, description="The stages, in order.")
    judge: StageJudge = Field(default_factory=StageJudge, description="How figures are judged.")
    cost: Cost = Field(default_factory=Cost, description="Prices, for what the training of each stage cost.")
    sweep: Sweep | None = Field(
        None, description="What is searched for better values; `luthier sweep` reads it, `luthier train` does not."
    )

    @model_validator(mode="before")
    @classmethod
    def continued(cls, values: Any) -> Any:
        """A stage that trains an adapter on has its settings."""
        return {**values, "stages": with_continued(values["stages"])} if "stages" in values else values


def load_stages(recipe: RecipeSource, overrides: Sequence[str] = ()) -> TrainRecipe:
    """Read a recipe of stages, a file or plain values, as `load_recipe` does. RecipeError names every problem."""
    values, problems = read_values(recipe, overrides)
    require_kind(values, source_name(recipe), ("stages",), problems)
    return parse_stages(values, source_name(recipe), problems)


def parse_stages(values: Mapping[str, Any], source: str = "recipe", problems: Sequence[str] = ()) -> TrainRecipe:
    """A TrainRecipe from plain values; RecipeError lists all problems (and those handed in) at once."""
    try:
        recipe = TrainRecipe.model_validate(values)
    except ValidationError as error:
        told = [explain(item, TrainRecipe) for item in error.errors()]
        told += stage_problems(sound_stages(values, error.errors()))
        raise RecipeError(source, [*problems, *told]) from None
    if found := [*problems, *stage_problems(recipe.stages)]:
        raise RecipeError(source, found)
    return recipe


def sound_stages(values: Mapping[str, Any], errors: Sequence[Any]) -> list[Stage | None]:
    """The stages of plain values with pydantic's `errors`; None for one that has such an error."""
    places = [item["loc"] for item in errors]
    if () in places or ("stages",) in places:
        return []
    broken = {place[1] for place in places if place[0] == "stages"}
    stages = with_continued(values["stages"])
    return [None if number in broken else Stage.model_validate(stage) for number, stage in enumerate(stages)]


def stage_problems(stages: Sequence[Stage | None]) -> list[str]:
    """Rules that need more than one field; None stands for a stage that has problems of its own."""
    known = [stage for stage in stages if stage is not None]
    names = [stage.name for stage in known]
    problems = [
        f'stages: the name "{name}" stands twice. Give each stage a name of its own.'
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    for number, stage in enumerate(stages):
        if stage is None:
            continue
        where = f"stages.{number}"
        problems += shape_problems(stage, where) or task_problems(stage, where)
        problems += keep_problems(stage.keep, where, stage.start, first=number == 0)
        if not shape_problems(stage, where):
            validated = any(task.data.validation_share for task in stage.each.values())
            problems += tune_problems(stage.tune, f"{where}.tune", validated)
            if stage.tune.adapter.kind == "none":
                problems += probe_problems(stage, where, [one for one in stages[:number] if one is not None])
        if number == 0 and stage.start != "stack":
            problems.append(f"{where}.start: the first stage has nothing to {stage.start}; leave it at stack.")
    if not problems and len(known) == len(stages):
        problems = chain_problems([worn(stage, f"stages.{number}") for number, stage in enumerate(known)])
    return problems


def worn(stage: Stage, where: str) -> Worn:
    """What the rules of one adapter after the other look at."""
    referenced = tuple(task.method.kind for task in stage.each.values() if task.method.kind in ("dpo", "kto"))
    return Worn(where, stage.start, stage.tune.adapter, stage.keep.penalty, referenced)


def shape_problems(stage: Stage, where: str) -> list[str]:
    """A stage has a method and its data, or tasks; nothing that was set goes unread."""
    given = changed(stage)
    if not stage.tasks:
        problems = [f"{where}.{key}: missing; it has no default." for key in ("method", "data")
                    if getattr(stage, key) is None]  # fmt: skip
        if "mixing" in given:
            problems.append(f"{where}.mixing: there are no tasks to mix. Give tasks, or leave it out.")
        return problems
    problems = [
        f"{where}.{key}: stands beside tasks. Each task has its own; move it there."
        for key in ("method", "data", "prompt")
        if key in given
    ]
    problems += [
        f'{where}.tasks: "{name}" is no name for a task. Begin with a letter or digit; _ and - may follow.'
        for name in stage.tasks
        if not TASK_NAME.fullmatch(name)
    ]
    if "temperature" in changed(stage.mixing) and stage.mixing.by != "temperature":
        problems.append(f"{where}.mixing.temperature: is not read by {stage.mixing.by}. Set mixing.by: temperature.")
    return problems


def changed(part: Part) -> set[str]:
    """Keys whose value is not the default: a resolved recipe spells defaults out, and has to be one again."""
    fields = type(part).model_fields
    return {
        name
        for name in part.model_fields_set
        if getattr(part, name) != fields[name].get_default(call_default_factory=True)
    }


def task_problems(stage: Stage, where: str) -> list[str]:
    """Every task has rows to learn from and rows to be judged by."""
    problems = []
    for name, task in stage.each.items():
        at = f"{where}.tasks.{name}.data" if stage.tasks else f"{where}.data"
        if not task.data.test and not task.data.test_share:
            problems.append(f"{at}: no rows are held out. Give test, or a test_share above 0.")
        if task.data.validation_share + (0 if task.data.test else task.data.test_share) >= 1:
            problems.append(f"{at}: validation_share and test_share leave nothing to train on.")
    if len({bool(task.data.validation_share) for task in stage.each.values()}) > 1:
        problems.append(
            f"{where}.tasks: some have validation rows and some none. Give each a validation_share, or none."
        )
    return problems


def keep_problems(keep: Keep, where: str, start: str, first: bool) -> list[str]:
    """Rules of what is kept: there must be an earlier stage, and weights that its Fisher information speaks of."""
    problems = []
    if first and keep.replay_share:
        problems.append(f"{where}.keep.replay_share: the first stage has no earlier rows to replay; leave it out.")
    if first and keep.penalty == "ewc":
        problems.append(f"{where}.keep.penalty: the first stage has no earlier task to keep. Use l2, or leave it out.")
    elif keep.penalty == "ewc" and start != "continue":
        problems.append(
            f"{where}.keep.penalty: ewc weighs each trained number by what it matters to the earlier stages, and with "
            f"start: {start} all of them are new. Set start: continue, or penalty: l2, which holds the change of the "
            "weights themselves."
        )
    if "strength" in changed(keep) and keep.penalty == "none":
        problems.append(f"{where}.keep.strength: there is no penalty to multiply. Set keep.penalty to l2 or ewc.")
    if "fisher_rows" in changed(keep) and keep.penalty != "ewc":
        problems.append(f"{where}.keep.fisher_rows: only ewc reads it. Set keep.penalty: ewc, or leave it out.")
    return problems


def probe_problems(stage: Stage, where: str, earlier: Sequence[Stage]) -> list[str]:
    """A linear probe trains heads alone: each task that it learns or replays has one, and no weight is to be held."""
    problems = [
        f"{where}.{f'tasks.{name}.' if stage.tasks else ''}method: {task.method.kind} has no head, and "
        "tune.adapter.kind: none trains a head only. Use it with classify, tag, regress and their like, or choose lora."
        for name, task in stage.each.items()
        if not isinstance(task.method, HEADS)
    ]
    headless = [
        one.name
        for one in earlier
        if not shape_problems(one, "") and not all(isinstance(task.method, HEADS) for task in one.each.values())
    ]
    if stage.keep.replay_share and headless:
        problems.append(
            f"{where}.keep.replay_share: {', '.join(headless)} learnt a task without a head, and tune.adapter.kind: "
            "none trains heads only, so its rows cannot be replayed. Leave replay_share out (the model stays as it is, "
            "and forgets nothing), or choose lora."
        )
    if stage.keep.penalty != "none":
        problems.append(
            f"{where}.keep.penalty: holds weights, and tune.adapter.kind: none changes none of them. Leave it out."
        )
    return problems


def dump_stages(recipe: TrainRecipe) -> str:
    """The resolved recipe as YAML, every default spelled out."""
    return yaml.safe_dump(recipe.model_dump(), sort_keys=False, allow_unicode=True, width=100)
