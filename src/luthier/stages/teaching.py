"""What a stage that distils does beyond the others: its teacher is checked, asked, and its words kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from luthier.methods.base import Example
from luthier.methods.distillation import Distillation, TeacherAnswers
from luthier.methods.stage import StageMethod
from luthier.models import LoadedModel
from luthier.progress import Listener
from luthier.prompts import Dialogue
from luthier.recipe.methods import Distil
from luthier.recipe.stages import TrainRecipe
from luthier.stages.rows import StageRows
from luthier.stages.teacher import Teacher, TeacherKeys, WaitingTeacher, refuse_other_tokenizer, with_teacher
from luthier.stages.teacher_answers import with_answers
from luthier.stages.teacher_endpoint import EndpointTeacher

FOLDER = "teacher"


def refuse_other_teachers(recipe: TrainRecipe, tokenizer: Any, keys: TeacherKeys) -> None:
    """ModelError for a teacher with another tokenizer or without its adapter, before anything is computed.

    One that was here in an earlier call and is gone was checked then.
    """
    for stage in recipe.stages:
        for task in stage.each.values():
            if isinstance(task.method, Distil) and not keys.is_gone(task.method):
                refuse_other_tokenizer(task.method, tokenizer)
                keys.of(task.method)


def teaching_key(settings: Any, keys: TeacherKeys) -> str:
    """The content of a stage's teacher, part of what the stage depends on; empty without one."""
    return keys.of(settings) if isinstance(settings, Distil) else ""


def taught_rows(
    method: StageMethod, rows: StageRows, prompt: Dialogue, seed: int, folder: Path, listener: Listener, key: str
) -> StageRows:
    """The rows, with the teacher's answers where the method learns these; folder of the stage, key of the teacher."""
    if not isinstance(method, TeacherAnswers):
        return rows
    return with_answers(rows, prompt, (method.distil, key), seed, folder / FOLDER, listener)


def taught_examples(
    method: StageMethod,
    parts: Mapping[str, list[Example]],
    student: LoadedModel,
    running: tuple[str, int],
    folder: Path,
    update: Callable[[int, int], None],
    key: str,
) -> tuple[StageMethod, dict[str, list[Example]]]:
    """The method and its examples with what the teacher knows: with its candidates, or (online) with the teacher.

    `running`: the attention's backend and the distinct tokens of one forward pass. `key` is the teacher's.
    """
    if not isinstance(method, Distillation):
        return method, dict(parts)
    teacher = make_teacher(method.settings, student, *running, key)
    if method.settings.online:
        return replace(method, teacher=teacher), dict(parts)
    flat = [example for examples in parts.values() for example in examples]
    filled = iter(with_teacher(teacher, flat, folder / FOLDER, update))
    return method, {name: [next(filled) for _ in examples] for name, examples in parts.items()}


def make_teacher(settings: Distil, student: LoadedModel, attention: str, max_tokens: int, key: str = "") -> Teacher:
    """A model on this machine, loaded when it is asked, or behind its address."""
    if settings.address is not None:
        return EndpointTeacher(settings, student.tokenizer)
    return WaitingTeacher(settings, student, attention, max_tokens, key)
