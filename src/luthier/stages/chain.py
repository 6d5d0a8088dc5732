"""How a stage starts from the one before it, and what it leaves for the next.

    stack      the earlier stages' adapter is folded into the weights in memory, a fresh one is trained on top, and
               the saved adapter is the exact sum of both: it loads on the recipe's model
    continue   the last stage's adapter is trained on
    merge      the earlier stages' adapter is folded into the weights, that model is saved, and the fresh adapter
               belongs to it

In each case the learner at step 0 is the model that the last stage left: the reference of DPO, KTO and PPO.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn

from luthier.adapters import folded, joined, name_base_model
from luthier.adapters.stack import unstackable
from luthier.errors import ModelError
from luthier.files import content_hash, new_folder, sha256, write_json, write_text
from luthier.models import LoadedModel, load_model, public_name, save_model
from luthier.processes import first_goes_first
from luthier.recipe.stages import Stage
from luthier.training.cached import cached
from luthier.training.learner import ADAPTER_FILE, HEAD_FILE, Learner, continued_learner, new_learner
from luthier.training.probe import ProbeLearner


@dataclass(frozen=True)
class Left:
    """What a stage left: the model to load, and the folder of the adapter over it (None where there is none yet)."""

    model: str
    adapter: Path | None = None

    @property
    def key(self) -> str:
        """Content hash of the adapter; the model has its own."""
        return content_hash(self.model, sha256(self.adapter / ADAPTER_FILE) if self.adapter else "")


@dataclass(frozen=True)
class Start:
    """The learner a stage begins with, and what is needed to save what it becomes."""

    learner: Learner
    base: LoadedModel
    below: Path | None  # adapter that the saved one has to hold as well

    def save(self, trained: Path, target: Path, texts: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Write the adapter of the stage, with `texts` beside it; `trained` is the folder of its best weights."""
        with new_folder(target) as aside:
            if isinstance(self.learner, ProbeLearner):
                for source in (trained,) if self.below is None else (self.below, trained):
                    shutil.copytree(source, aside, dirs_exist_ok=True)
            elif self.below is None:
                shutil.copytree(trained, aside, dirs_exist_ok=True)
            else:
                joined(self.below, trained, aside)
                if (trained / HEAD_FILE).is_file():
                    shutil.copy2(trained / HEAD_FILE, aside / HEAD_FILE)
            if (aside / ADAPTER_FILE).is_file():
                name_base_model(aside, public_name(self.base.name))
            for name, values in texts.items():
                (write_text if isinstance(values, str) else write_json)(aside / name, values)


def start_stage(
    stage: Stage, before: Left, folder: Path, heads: Mapping[str, nn.Module], settings: tuple[int, str, str]
) -> Start:
    """The learner of a stage at step 0. `settings`: seed, attention, precision."""
    seed, attention, precision = settings
    name = before.model
    if stage.start == "merge" and before.adapter is not None:
        with first_goes_first():
            name = str(merged_model(before, folder / "model"))
    exact, probes = stage.tune.exact_weights, stage.tune.adapter.kind == "none"
    below = before.adapter if stage.start == "stack" or (probes and stage.start != "merge") else None
    model = load_model(name, precision=precision, encoders=True, exact=exact or below is not None)
    if below is not None:
        folded(model.model, below)
        if not exact:
            model.narrow()
    if probes:
        kept = folder / "features", stage.tune.cache_gigabytes
        return Start(ProbeLearner(model, heads, attention, *kept), model, below)
    if stage.start == "continue" and before.adapter is not None:
        learner = continued_learner(model, before.adapter, attention, heads)
        return Start(cached(learner, stage.tune, folder / "states", model.precision), model, None)
    learner = new_learner(model, stage.tune.adapter, seed, attention, heads)
    return Start(cached(learner, stage.tune, folder / "states", model.precision), model, below)


def refuse_unstackable(start: Start, family: str, stage: Stage, following: Stage | None) -> None:
    """ModelError where a stage's adapter could not be saved as one with what is below it, or with what comes above."""
    stacks = following is not None and following.start == "stack" and following.tune.adapter.kind != "none"
    upper = stage if start.below is not None and not isinstance(start.learner, ProbeLearner) else following
    special = unstackable(start.learner.wrapper)
    if not special or upper is None or (upper is following and not stacks):
        return
    raise ModelError(
        f"stage {upper.name}: start: stack would save one adapter for it and the stages before, and LoRA as it stands "
        f'in this "{family}" model is more than plain products ({", ".join(special)}), which do not add up to one. Set '
        "start: merge for that stage, or start: continue to train the same adapter on."
    )


def merged_model(before: Left, folder: Path) -> Path:
    """The model with the earlier stages in its weights, as a model folder of its own."""
    if (folder / "config.json").is_file():
        return folder
    assert before.adapter is not None
    model = load_model(before.model, device="cpu", encoders=True)
    folded(model.model, before.adapter)
    with new_folder(folder) as aside:
        save_model(model, aside)
    return folder
