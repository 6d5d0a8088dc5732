"""A stage that learns several tasks at once: each is a stage of its own in all but the training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

from torch import nn

from luthier.evaluation.held_out import Figures
from luthier.methods.base import MAIN, Example
from luthier.methods.several import Part, Several, named, shares_of, task_key
from luthier.records import Ledger
from luthier.stages.chain import Start
from luthier.stages.one import StageRun
from luthier.stages.rows import StageRows
from luthier.training.checkpoint import History

OF_A_TASK = ("method", "primary_metric", "higher_is_better", "verdict", "rows", "labels", "numbers")


class SeveralRun(StageRun):
    """Rows, methods, examples and figures are the tasks'; the learner, the loop and the adapter are shared."""

    @cached_property
    def tasks(self) -> dict[str, StageRun]:
        """Each task as a stage of one method, by name."""
        return {
            name: StageRun(
                self.whole,
                self.stage.model_copy(
                    update={"name": f"{self.stage.name}/{name}", "method": task.method, "data": task.data,
                            "prompt": task.prompt, "tasks": {}}
                ),
                self.folder / "tasks" / name,
                self.before,
                parts_read=self.parts_read,
            )
            for name, task in self.stage.tasks.items()
        }  # fmt: skip

    @cached_property
    def keys(self) -> dict[str, str]:
        """What examples and heads of each task are called."""
        return {name: task_key(self.stage.name, name) for name in self.tasks}

    @cached_property
    def rows(self) -> StageRows:
        """All tasks' rows, for their hash and their notes."""
        found = [run.rows for run in self.tasks.values()]
        ledger = Ledger(notes=self.task_notes())
        train, validation, test = (
            tuple(row for rows in found for row in getattr(rows, part)) for part in ("train", "validation", "test")
        )
        return StageRows(train, validation, test, ledger)

    def task_notes(self) -> list[str]:
        """What is to be said of each task's rows, as far as it is known."""
        return [f"{name}: {note}" for name, run in self.tasks.items() for note in run.rows.ledger.notes]

    @property
    def parts(self) -> dict[str, Part]:
        """The methods with their shares of the loss."""
        shares = shares_of({name: task.weight for name, task in self.stage.tasks.items()})
        return {self.keys[name]: Part(run.method, shares[name], name) for name, run in self.tasks.items()}

    @property
    def objective(self) -> Several:
        """All tasks at once."""
        return Several(self.parts)

    def fresh_heads(self) -> dict[str, nn.Module]:
        """Each task's head under the task's own name."""
        heads: dict[str, nn.Module] = {}
        for name, run in self.tasks.items():
            own = run.fresh_heads()
            assert own.keys() <= {MAIN}, "a method has one head"
            if own:
                heads[self.keys[name]] = own[MAIN]
        return heads

    def examples(self, start: Start) -> dict[str, list[Example]]:
        """The tasks' examples one after the other."""
        parts: dict[str, list[Example]] = {}
        for name, run in self.tasks.items():
            for part, examples in run.examples(start).items():
                parts.setdefault(part, []).extend(replace(example, task=self.keys[name]) for example in examples)
        return parts

    def settings_texts(self) -> dict[str, Any]:
        """What serving needs of each task."""
        texts: dict[str, dict[str, Any]] = {}
        for name, run in self.tasks.items():
            for file, values in run.settings_texts().items():
                if isinstance(values, str):
                    continue  # a chat template: several tasks may have several
                texts.setdefault(file, {})[name] = values
        return texts

    def figures(
        self, start: Start, parts: dict[str, list[Example]], scores: tuple[Figures, Figures], history: History
    ) -> dict[str, Any]:
        """Each task's figures under its name; the task of the greatest weight gives the figure of the stage."""
        found = {
            name: run.figures(start, only(parts, self.keys[name]), self.scores_of(name, parts, scores), history)
            for name, run in self.tasks.items()
        }
        first = max(self.stage.tasks, key=lambda name: self.stage.tasks[name].weight)
        return {
            **found[first],
            "name": self.stage.name,
            "method": " + ".join(f"{name} ({value['method']})" for name, value in found.items()),
            "primary_metric": named(first, found[first]["primary_metric"]),
            "verdict": joint_verdict({name: value["verdict"] for name, value in found.items()}),
            "figures": {
                named(n, figure): pair for n, value in found.items() for figure, pair in value["figures"].items()
            },
            "rows": summed(value["rows"] for value in found.values()),
            "examples": summed(value["examples"] for value in found.values()),
            "ledger": {
                "rows_in": summed(value["ledger"]["rows_in"] for value in found.values()),
                "kept": summed(value["ledger"]["kept"] for value in found.values()),
                "reasons": merged_reasons(value["ledger"]["reasons"] for value in found.values()),
                "notes": list(dict.fromkeys([*self.task_notes(), *self.rows.ledger.notes])),
                "examples": [row for value in found.values() for row in value["ledger"]["examples"]],
            },
            "labels": [],
            "numbers": {},
            "shown": [row for value in found.values() for row in value["shown"]],
            "tasks": {name: {key: value[key] for key in OF_A_TASK} for name, value in found.items()},
            "adapter": str(self.folder / "adapter"),
        }

    def scores_of(
        self, name: str, parts: Mapping[str, list[Example]], scores: tuple[Figures, Figures]
    ) -> tuple[Figures, Figures]:
        """The figures of one task's test rows, under their plain names."""
        mine = [i for i, example in enumerate(parts["test"]) if example.task == self.keys[name]]
        before, after = (
            {
                figure.removeprefix(f"{name}/"): (above[mine], below[mine])
                for figure, (above, below) in found.items()
                if figure.startswith(f"{name}/")
            }
            for found in scores
        )
        return before, after


def joint_verdict(verdicts: Mapping[str, str]) -> str:
    """One word for all tasks where they agree, then what became of each."""
    split = {name: verdict.partition(": ") for name, verdict in verdicts.items()}
    words = {word for word, _, _ in split.values()}
    if len(words) > 1 or not all(rest for _, _, rest in split.values()):
        return "mixed: " + " ".join(f"{name}: {verdict}" for name, verdict in verdicts.items())
    return f"{words.pop()}: " + " ".join(f"{name}: {rest}" for name, (_, _, rest) in split.items())


def only(parts: Mapping[str, list[Example]], key: str) -> dict[str, list[Example]]:
    """The examples of one task."""
    return {part: [example for example in examples if example.task == key] for part, examples in parts.items()}


def summed(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Counts of several tasks by name, added up."""
    total: dict[str, int] = {}
    for one in counts:
        for name, count in one.items():
            total[name] = total.get(name, 0) + count
    return total


def merged_reasons(reasons: Iterable[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    """Dropped rows by split and reason, over all tasks."""
    listed = list(reasons)
    splits = sorted({split for one in listed for split in one})
    return {split: summed(one.get(split, {}) for one in listed) for split in splits}
