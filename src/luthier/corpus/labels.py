"""Labels of the data to labels of the task: one canonical spelling."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable
from dataclasses import dataclass

from luthier.corpus.lines import Problem
from luthier.errors import nearest
from luthier.recipe import Task, fold_label

SHOWN_CHARS = 60


@dataclass(frozen=True)
class LabelTable:
    """Folded spelling (of a label or an alias) -> the label in `task.labels`."""

    by_folded: dict[str, str]
    setting: str = "task.labels"

    def resolve(self, label: str) -> str | None:
        """The canonical label; None where it is unknown."""
        return self.by_folded.get(fold_label(label))

    def nearest(self, label: str) -> str | None:
        """The label whose spelling (or alias) comes closest, None where none is close."""
        found = nearest(fold_label(label), self.by_folded)
        return self.by_folded[found] if found else None

    def problem(self, label: str) -> Problem | None:
        """What is wrong with a label, None where nothing is."""
        if not label.strip():
            return Problem("empty_label", "the label is empty. Label the row, or remove it.")
        if self.resolve(label) is not None:
            return None
        near = self.nearest(label)
        hint = f' Did you mean "{near}"?' if near else ""
        return Problem(
            "unknown_label",
            f'label "{shorten(label, SHOWN_CHARS)}" is not in {self.setting}.{hint} '
            "Fix the row, or add the label or an alias.",
        )


def written_list(labels: Iterable[str]) -> str:
    """Any number of labels of one text as the text of one: a JSON list, sorted, none of them twice."""
    return json.dumps(sorted({label.strip() for label in labels}), ensure_ascii=False)


def listed_labels(label: str) -> list[str] | None:
    """The labels of a text that is a list of them, as JSON or Python write one; None for any other text."""
    if not label.strip().startswith("["):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(label.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        plain = isinstance(value, list) and all(isinstance(item, str | int | float) for item in value)
        return [str(item).strip() for item in value] if plain else None
    return None


def label_table(task: Task) -> LabelTable:
    """The table of a task; where an alias is spelled like a label, the label wins."""
    aliases = {fold_label(alias): label for alias, label in task.aliases.items()}
    return LabelTable(aliases | {fold_label(label): label for label in task.labels})


def shorten(text: str, num_chars: int) -> str:
    """The text on one line, cut to `num_chars`."""
    line = " ".join(text.split())
    return line if len(line) <= num_chars else line[: num_chars - 1] + "…"
