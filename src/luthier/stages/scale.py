"""The scale of a trained method's outputs: what is to be known of them before they are used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from luthier.evaluation.held_out import ratio, score_rows
from luthier.methods.base import Example
from luthier.methods.stage import Scaled
from luthier.training.learner import Learner

if TYPE_CHECKING:
    from luthier.stages.one import StageRun


def scale_outputs(run: StageRun, learner: Learner, parts: Mapping[str, list[Example]]) -> None:
    """Let each task's method note the scale, from its validation rows, or where it has none from its training rows."""
    for key, task in zip(run.parts, run.tasks.values(), strict=True):
        if isinstance(task.method, Scaled):
            validation, train = ([row for row in parts[name] if row.task == key] for name in ("validation", "train"))
            most, update = task.stage.tune.pass_tokens, task.progress("scale of the outputs")
            found = score_rows(learner, task.method, validation or train, most, update)
            task.scale = task.method.scale({name: ratio(*sums) for name, sums in found.items()})
