"""A finished stage with a head as an object that answers texts: labels, grades, numbers, tags."""

from __future__ import annotations

import json
from collections.abc import Sequence as ManyOf
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from luthier.errors import DataError, RunError, did_you_mean
from luthier.methods.base import MAIN, Example, split_by_tokens
from luthier.methods.heads import ClassifyHead, MultiLabelHead, OrdinalHead, RegressHead, TagHead
from luthier.methods.heads.texts import text_sequences, word_sequences
from luthier.methods.registry import make_stage_method
from luthier.methods.several import task_key
from luthier.models import LoadedModel
from luthier.recipe.methods import HEADED, MethodSettings
from luthier.records import Sequence
from luthier.stages.answer import model_below, read_result, stage_folder, stage_number
from luthier.training.learner import Learner, load_learner

METHOD_FILE = "method.json"
BATCH_TOKENS = 4096

Head = ClassifyHead | MultiLabelHead | OrdinalHead | RegressHead | TagHead


@dataclass(frozen=True)
class Kind:
    """Stages that can be asked in one way, and what is said where there is none, or one is not."""

    methods: tuple[str, ...]
    none: str
    not_one: str
    others: str


HEADS = Kind(
    HEADED,
    "no stage has a head to label texts with",
    "has no head to label texts with",
    "A model that writes is asked by `luthier answer`, a reward model by `luthier score`.",
)


@dataclass(frozen=True)
class Opened:
    """What is to be asked: the adapter's folder, the model below it, the method, and what the learner calls its head.

    `task` is the name of one of several that the stage learnt.
    """

    left: Path
    model: LoadedModel
    method: Any
    key: str = MAIN
    task: str | None = None


@dataclass(frozen=True)
class HeadPredictor:
    """What `luthier.stages.load_head(run)` returns."""

    learner: Learner
    method: Head
    tokenizer: Any
    context_tokens: int
    key: str = MAIN

    @torch.no_grad()
    def predict(self, texts: ManyOf[str]) -> list[dict[str, Any]]:
        """What the head says of each text, in their order: `label`, `labels`, `number` or `tags`, and probabilities.

        Words to be tagged are parted by white space. DataError where a text cannot be read.
        """
        if isinstance(texts, str):
            raise TypeError('predict takes a list of texts: predict(["..."])')
        self.learner.eval()
        sequences = self.sequences(texts)
        for place, problem in self.refused(sequences).items():
            raise DataError(f"text {place + 1}: {problem}")
        examples = [
            Example((sequence,), key=str(place), task=self.key) for place, sequence in enumerate(sequences) if sequence
        ]
        found: dict[int, dict[str, Any]] = {}
        for micro in split_by_tokens(examples, BATCH_TOKENS):
            batch = self.learner.batch(micro)
            logits_PL = self.learner(batch).logits_PL
            assert logits_PL is not None, "every text is read"
            for row, example in enumerate(micro):
                found[int(example.key)] = self.method.answer(logits_PL[batch.row_P == row])
        return [found[number] for number in range(len(examples))]

    def sequences(self, texts: ManyOf[str]) -> list[Sequence | None]:
        """The texts as the head was trained to read them."""
        if not isinstance(self.method, TagHead):
            return text_sequences(self.tokenizer, texts)
        settings = self.method.settings
        return word_sequences(self.tokenizer, [tuple(text.split()) for text in texts], settings.reads, settings.twice)

    def problems(self, texts: ManyOf[str]) -> dict[int, str]:
        """What is wrong with each of the texts that `predict` would refuse, by its place from 0."""
        return self.refused(self.sequences(texts))

    def refused(self, sequences: ManyOf[Sequence | None]) -> dict[int, str]:
        """The same of their sequences: those with nothing to read, or no room for it."""
        found = {}
        for place, sequence in enumerate(sequences):
            if sequence is None or not sequence.reads:
                found[place] = "the tokenizer leaves it, or one of its words, without a token. Mend it."
            elif len(sequence.tokens) > self.context_tokens:
                size = f"{len(sequence.tokens):,} tokens; the model reads {self.context_tokens:,}"
                found[place] = f"it has {size}. Give it in parts."
        return found


def load_head(
    run: str | Path, stage: str | None = None, task: str | None = None, attention: str = "auto"
) -> HeadPredictor:
    """The head that a stage of a finished run left: the last one with a head, or the stage of that name.

    `task` names one of a stage that learnt several. Raises RunError where the run is not finished, the stage has no
    head, several tasks have one and none is named, or the model is another one now.
    """
    found = opened(run, stage, task, HEADS)
    learner = load_learner(found.model, found.left, attention)
    context_tokens = found.model.context_tokens - learner.virtual_tokens
    return HeadPredictor(learner, found.method, found.model.tokenizer, context_tokens, found.key)


def opened(run: str | Path, stage: str | None, task: str | None, kind: Kind) -> Opened:
    """The stage of a kind that is to be asked, or its task."""
    folder, result = Path(run), read_result(Path(run))
    stages = result["stages"]
    number, task = asked_stage(folder, stages, stage, task, kind)
    left = stage_folder(folder, stages, number) / "adapter"
    method = restored(left / METHOD_FILE, task)
    model = model_below(folder, result, number)
    return Opened(left, model, method, MAIN if task is None else task_key(stages[number]["name"], task), task)


def asked_stage(
    folder: Path, stages: list[dict[str, Any]], name: str | None, task: str | None, kind: Kind
) -> tuple[int, str | None]:
    """Number of the stage to ask, and its task: None for a stage of one method."""
    names = [stage["name"] for stage in stages]
    able = [tasks_of_kind(stage, kind) for stage in stages]
    headed = [number for number, tasks in enumerate(able) if tasks]
    chosen = None if name is None else stage_number(folder, stages, name)
    if not headed or (chosen is not None and chosen not in headed):
        there = f"; there is {', '.join(names[number] for number in headed)}" if headed else ""
        asked = kind.none if name is None else f'stage "{name}" {kind.not_one}'
        raise RunError(f"{folder}: {asked}{there}. {kind.others}")
    with_task = [number for number in headed if task in able[number]]
    number = chosen if chosen is not None else (with_task or headed)[-1]
    tasks = [one for one in able[number] if one is not None]
    if task is not None and task not in tasks:
        there = f"those to be asked so: {', '.join(tasks)}" if tasks else "it has no tasks; leave --task out"
        raise RunError(
            f'{folder}: stage "{names[number]}" has no such task "{task}" ({there}).{did_you_mean(task, tasks)}'
        )
    if task is None and len(tasks) > 1:
        raise RunError(
            f'{folder}: stage "{names[number]}" has several tasks. Say which, with --task: {", ".join(tasks)}.'
        )
    return number, task if task is not None or not tasks else tasks[0]


def tasks_of_kind(stage: dict[str, Any], kind: Kind) -> list[str | None]:
    """The tasks of a stage that can be asked so; [None] for a stage of one method that can."""
    methods = {name: one["method"] for name, one in (stage.get("tasks") or {}).items()} or {None: stage["method"]}
    return [name for name, method in methods.items() if method in kind.methods]


def restored(path: Path, task: str | None = None) -> Any:
    """The method of a stage, or of one of its tasks, with what it had learnt from its rows."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        stored = stored if task is None else stored[task]
        settings: Any = TypeAdapter(MethodSettings).validate_python(stored["settings"])
        method: Any = make_stage_method(settings)
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        raise RunError(f"{path}: missing, damaged or from another version. Run the recipe again.") from None
    learnt = {field.name for field in fields(method)} - {"name", "settings"}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()}
    return replace(method, **{name: values[name] for name in learnt & values.keys()})
