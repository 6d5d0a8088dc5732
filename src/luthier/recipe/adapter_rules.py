"""Rules about kinds of adapters: of one alone, and of one after the other. No torch here.

What two adapters do together has to be exactly one of them again, or the weights; what is neither is refused before
anything is trained.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.recipe.adapters import KINDS, AdapterKeys, Full, Ia3, Lora, LowRank, Probe, Sparse, with_kind


@dataclass(frozen=True)
class Worn:
    """What a stage says of its adapter: where it stands in the recipe, how it starts, what else looks at it."""

    where: str
    start: str
    adapter: AdapterKeys
    penalty: str = "none"
    referenced: tuple[str, ...] = ()  # its methods that compare with the model it starts from


def adapter_problems(adapter: Any, where: str) -> list[str]:
    """Rules of one adapter that need more than one field."""
    problems = []
    if isinstance(adapter, Lora) and adapter.init == "orthogonal" and adapter.rank % 2:
        problems.append(f"{where}.init: orthogonal needs an even rank (it is {adapter.rank}).")
    if isinstance(adapter, Full) and (wrong := pattern_problem(adapter.pattern)):
        problems.append(f"{where}.pattern: {adapter.pattern!r} is no regular expression ({wrong}).")
    if isinstance(adapter, Ia3):
        if (adapter.targets == "auto") != (adapter.feedforward == "auto"):
            problems.append(f"{where}: give both targets and feedforward, or neither; which is which is not guessed.")
        elif extra := sorted(set(adapter.feedforward) - set(adapter.targets)):
            problems.append(f"{where}.feedforward: {', '.join(extra)} must also stand in targets.")
    if isinstance(adapter, Sparse):
        problems += [f"{where}.{problem}" for problem in adapter.problems]
    return problems


def pattern_problem(pattern: str) -> str | None:
    """What is wrong with a regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        return str(error)
    return None


def chain_problems(stages: Sequence[Worn]) -> list[str]:
    """What speaks against the adapters of stages that follow one another."""
    problems: list[str] = []
    worn: AdapterKeys | None = None
    for stage in stages:
        problems += [*start_problems(stage, worn), *penalty_problems(stage, worn), *reference_problems(stage, worn)]
        if not isinstance(stage.adapter, Probe):
            worn = stage.adapter
        elif stage.start == "merge":
            worn = None
    return problems


def start_problems(stage: Worn, worn: AdapterKeys | None) -> list[str]:
    """How a stage starts from the adapter in force."""
    above, where = stage.adapter, f"{stage.where}.start"
    if worn is None:
        return []
    cannot_fold = f"{worn.told} cannot be written into the weights, as {stage.start} has to. "
    if stage.start == "merge" and not worn.folds:
        return [f"{where}: {cannot_fold}Set start: continue, with the same adapter."]
    if isinstance(above, Probe):
        return [] if worn.folds else [f"{where}: {cannot_fold}Put the linear probe into a recipe of its own."]
    if stage.start == "continue":
        return continue_problems(stage, worn)
    if stage.start == "stack" and not above.stacks_on(worn):
        instead = "start: merge" if worn.folds else "start: continue, with the same adapter"
        also = ", or start: continue to train the same adapter on" if worn.folds else ""
        return [
            f"{where}: {above.told} over {worn.told} is not exactly one adapter, which stack has to save. "
            f"Set {instead}{also}."
        ]
    return []


def continue_problems(stage: Worn, worn: AdapterKeys) -> list[str]:
    """An adapter that is trained on keeps its settings; only the ratio of two rates is the training's own."""
    above = stage.adapter
    if isinstance(above, LowRank) and isinstance(worn, LowRank):
        worn = worn.model_copy(update={"lora_plus": above.lora_plus})
    if above == worn:
        return []
    if type(above) is not type(worn):
        return [
            f"{stage.where}.tune.adapter: start: continue trains the earlier stage's adapter on ({worn.told}), and "
            f"this is {above.told}. Leave the section out, or set start: merge."
        ]
    other = [key for key in type(above).model_fields if getattr(above, key) != getattr(worn, key)]
    return [
        f"{stage.where}.tune.adapter.{key}: {getattr(above, key)!r} cannot be read, start: continue trains the earlier "
        f"stage's adapter on ({getattr(worn, key)!r}). Leave the section out."
        for key in other
    ]


def penalty_problems(stage: Worn, worn: AdapterKeys | None) -> list[str]:
    """l2 holds the change of the weights, which must be known: whole weights, or B A of plain updates."""
    adapter = stage.adapter
    if stage.penalty != "l2" or (stage.start == "continue" and worn is not None) or isinstance(adapter, Full):
        return []
    if isinstance(adapter, LowRank) and not adapter.dora and not (isinstance(adapter, Lora) and adapter.changes_base):
        return []
    return [
        f"{stage.where}.keep.penalty: l2 holds the change of the weights, which {adapter.told} does not spell out. "
        "Use lora or full, or leave it out."
    ]


def reference_problems(stage: Worn, worn: AdapterKeys | None) -> list[str]:
    """A reference is the model a stage starts from, so a fresh adapter must leave it as it is."""
    if not stage.referenced or stage.adapter.starts_equal or (stage.start == "continue" and worn is not None):
        return []
    return [
        f"{stage.where}.tune.adapter.kind: {stage.adapter.kind} changes the answers before the first step, so the "
        f"reference of {' and '.join(stage.referenced)} would not be the model that the stage starts from. Use lora, "
        "or train the adapter by another method first and set start: continue."
    ]


# --- what is filled in before the recipe is checked --------------------------------------------------------------


def rate_factor(tune: Mapping[str, Any]) -> float:
    """The learning rate that suits the adapter of a tune section (plain values), over the one that suits lora."""
    adapter = with_kind(tune.get("adapter"))
    if isinstance(adapter, AdapterKeys):
        return adapter.rate_factor
    kind = adapter.get("kind") if isinstance(adapter, dict) else "lora"
    return next((one.rate_factor for one in KINDS if one.model_fields["kind"].default == kind), 1.0)


def suited_rate(tune: Any, rate: float) -> Any:
    """A tune section (plain values) with the learning rate that suits its kind of adapter; one that is set stays."""
    if not isinstance(tune, dict) or "learning_rate" in tune:
        return tune
    factor = rate_factor(tune)
    return tune if factor == 1.0 else {**tune, "learning_rate": float(f"{rate * factor:.6g}")}


def with_continued(stages: Any) -> Any:
    """Stages (plain values) in which one that trains an adapter on, and says nothing of it, has the earlier one's."""
    if not isinstance(stages, list):
        return stages
    filled: list[Any] = []
    worn: Any = None
    for stage in stages:
        tune = stage.get("tune", {}) if isinstance(stage, dict) else None
        if isinstance(tune, dict):
            if stage.get("start") == "continue" and "adapter" not in tune and worn is not None:
                stage = {**stage, "tune": {**tune, "adapter": worn}}
            adapter = with_kind(stage.get("tune", {}).get("adapter"))
            if not (isinstance(adapter, dict) and adapter.get("kind") == "none"):
                worn = adapter
        filled.append(stage)
    return filled
