"""How far below the head a parameter stands: what thaws first, and what learns at which rate."""

from __future__ import annotations

from itertools import chain
from typing import Any

from torch import nn

from luthier.forest.forward import backbone
from luthier.training.learner import Learner
from luthier.training.memory_layers import layers_of

ABOVE = 0  # heads, the output head, the last norm; then 1 for the top layer, 2 for the one below it, and so on


def rungs(learner: Learner) -> dict[str, int]:
    """The rung of each trained parameter: 0 above the layers, 1 in the top layer, L in the lowest, L + 1 below.

    Below is what reaches into the lowest layer: embeddings, virtual tokens, and what several layers share.
    """
    layers = layers_of(learner.lm)
    found = {id(p): len(layers) - i for i, layer in enumerate(layers) for p in layer.parameters()}
    found |= {id(p): ABOVE for p in above_layers(learner, layers) if id(p) not in found}
    return {name: found.get(id(p), len(layers) + 1) for name, p in learner.trained().items()}


def above_layers(learner: Learner, layers: list[nn.Module]) -> list[nn.Parameter]:
    """Parameters that only what comes out of the top layer reaches. Tied to an embedding, one counts as below."""
    lm: Any = learner.lm
    body = backbone(lm)
    children = list(body.children())
    holder = next(i for i, child in enumerate(children) if any(module is layers[0] for module in child.modules()))
    below = chain(*(child.parameters() for child in children[: holder + 1]), body.parameters(recurse=False))
    taken = {id(p) for p in below}
    outside = chain(learner.heads.parameters(), lm.parameters())
    return [p for p in outside if id(p) not in taken]


def depths(learner: Learner) -> dict[str, int]:
    """Layers above each trained parameter; the top layer, and all that stands above the layers, have none."""
    return {name: max(0, rung - 1) for name, rung in rungs(learner).items()}
