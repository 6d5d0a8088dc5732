"""Labels of the data to labels of the task: one canonical spelling."""

from __future__ import annotations

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


def label_table(task: Task) -> LabelTable:
    """The table of a task; where an alias is spelled like a label, the label wins."""
    aliases = {fold_label(alias): label for alias, label in task.aliases.items()}
    return LabelTable(aliases | {fold_label(label): label for label in task.labels})


def shorten(text: str, num_chars: int) -> str:
    """The text on one line, cut to `num_chars`."""
    line = " ".join(text.split())
    return line if len(line) <= num_chars else line[: num_chars - 1] + "…"
