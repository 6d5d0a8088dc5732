"""Which command asks what a run has learnt: one for each stage, or each of its tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luthier.adapters import CONFIG
from luthier.adapters.registry import read_config
from luthier.recipe.methods import asked_by

# command, what the user gives it, what is said of such a stage
WRITES = ("answer", '--text "a question"', "learnt to write, and is asked with the layout it was trained with")
LABELS = ("predict", '--text "a text"', "has a head, which says of a text what it learnt to say")
SCORES = ("score", "answers.jsonl", "is a reward model, which scores answers to prompts")
WAYS = {way[0]: way for way in (WRITES, LABELS, SCORES)}


def ways_to_ask(stages: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The last stage's first, then those of the stages before it: `stage`, `told` (a clause), `command`."""
    return [
        {"stage": stage["name"], "told": way[2], "command": command(way, stage["name"], task, last=number == 0)}
        for number, stage in enumerate(reversed(stages))
        for task, method in methods_of(stage)
        if (way := way_of(method)) is not None
    ]


def methods_of(stage: dict[str, Any]) -> list[tuple[str | None, str]]:
    """(name of the task, None for a stage of one method; its method)."""
    tasks = stage.get("tasks") or {}
    return [(name, one["method"]) for name, one in tasks.items()] or [(None, stage["method"])]


def way_of(method: str) -> tuple[str, str, str] | None:
    """How a method's models are asked; None where no command asks them (an encoder that guesses words)."""
    return WAYS.get(asked_by(method))


def command(way: tuple[str, str, str], stage: str, task: str | None, last: bool) -> str:
    """The line to type."""
    parts = ["luthier", way[0], "RUN_FOLDER"]
    if way is SCORES:
        parts.append(way[1])
    if not last:
        parts += ["--stage", stage]
    if task is not None:
        parts += ["--task", task]
    return " ".join(parts if way is SCORES else [*parts, way[1]])


def saved_format(adapter: str | Path) -> str:
    """Who reads what a stage saved: `peft`, `luthier` alone, or a `head` where nothing below it was trained."""
    folder = Path(adapter)
    if not (folder / CONFIG).is_file():
        return "head"
    return "luthier" if str(read_config(folder).get("peft_type")).startswith("LUTHIER_") else "peft"
