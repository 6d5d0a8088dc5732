"""The optimizer of a training: which kind, and the peak rate and decay of each parameter.

Parameters of one rate and one decay are one group. `peak` stands in each group beside `lr`, which the loop sets before
every step to the peak times the schedule's factor.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from luthier.errors import TrainingError
from luthier.recipe import Training
from luthier.recipe.adapters import LowRank
from luthier.recipe.base import Kind
from luthier.recipe.optimizers import Adafactor, Adam, Adam8bit, AdamW, GaLore, Lion, Muon, RmsProp, Sgd
from luthier.training.galore import GaLoreOptimizer
from luthier.training.height import depths
from luthier.training.learner import Learner
from luthier.training.lion import LionOptimizer

Group = dict[str, Any]
# factors of one number a channel, which PEFT keeps as matrices of one row or column; rows before every text
NOT_MATRICES = ("ia3_", "prompt_embeddings")


@dataclass(frozen=True)
class Place:
    """A trained parameter: its name in the learner, what it is a part of, and how deep it is."""

    name: str
    is_matrix: bool
    is_embedding: bool = False
    is_head: bool = False
    depth: int = 0  # layers above it

    @property
    def is_hidden(self) -> bool:
        """Whether it is a matrix inside the model."""
        return self.is_matrix and not (self.is_embedding or self.is_head)


def peak_of(place: Place, training: Training) -> float:
    """The peak learning rate of a parameter; B of a low-rank update may have more than A (LoRA+), lower layers less."""
    if place.name.startswith("heads."):
        return training.head_learning_rate
    adapter = training.adapter
    ratio = adapter.lora_plus if isinstance(adapter, LowRank) and ".lora_B." in place.name else 1.0
    return training.learning_rate * ratio * training.layer_rate_factor**place.depth


def decay_of(place: Place, training: Training) -> float:
    """The weight decay of a parameter: none of vectors (biases, norms), none of embeddings (rare rows would fade)."""
    return training.weight_decay if place.is_matrix and not place.is_embedding else 0.0


def make_optimizer(learner: Learner, training: Training) -> torch.optim.Optimizer:
    """The optimizer of the recipe over what is trained.

    Raises:
        TrainingError: nothing is trained, or the optimizer cannot run here.
    """
    trained = learner.trained()
    if not trained:
        raise TrainingError("nothing would be trained: the adapter matches no layer. Check tune.adapter.targets.")
    kind = training.optimizer
    apart = type(kind) in FOR_MATRICES
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for place in places(learner, depths(learner) if training.layer_rate_factor != 1.0 else {}):
        hidden = apart and place.is_hidden and trained[place.name].ndim == 2
        groups.setdefault((peak_of(place, training), decay_of(place, training), hidden), []).append(trained[place.name])
    listed: dict[bool, list[Group]] = {False: [], True: []}
    for (peak, decay, hidden), parameters in groups.items():
        listed[hidden].append({"params": parameters, "peak": peak, "lr": peak, "weight_decay": decay})
    if not apart:
        return MAKERS[type(kind)](kind, listed[False])
    refuse_without_matrices(kind, listed[True])
    matrices = FOR_MATRICES[type(kind)](kind, listed[True])
    return Together([matrices, adamw(AdamW(), listed[False])]) if listed[False] else matrices


def refuse_without_matrices(kind: Kind, groups: list[Group]) -> None:
    """TrainingError where an optimizer for the matrices inside a model finds none that it is for."""
    smallest = kind.rank if isinstance(kind, GaLore) else 0
    if any(min(parameter.shape) > smallest for group in groups for parameter in group["params"]):
        return
    larger = f" with both sides over its rank of {smallest}" if smallest else ""
    raise TrainingError(
        f"tune.optimizer: {kind.kind} is for matrices inside the model{larger}, and none is trained here. Take adamw, "
        "or train whole weights (tune.adapter: full)."
    )


def places(learner: Learner, depth_of: Mapping[str, int] = MappingProxyType({})) -> list[Place]:
    """Where each trained parameter stands, in their order; `depth_of` may say how deep."""
    embeddings = {
        id(p) for module in learner.modules() if isinstance(module, nn.Embedding) for p in module.parameters(False)
    }
    top: Any = getattr(learner.lm, "get_output_embeddings", lambda: None)()
    heads = {id(p) for module in (top, learner.heads) if module is not None for p in module.parameters()}
    return [
        Place(
            name,
            parameter.ndim > 1 and not any(part in name for part in NOT_MATRICES),
            id(parameter) in embeddings,
            id(parameter) in heads,
            depth_of.get(name, 0),
        )
        for name, parameter in learner.trained().items()
    ]


class Together(torch.optim.Optimizer):
    """Optimizers of different parameters as one: their groups and states are its own."""

    def __init__(self, parts: list[torch.optim.Optimizer]):
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts
        for part in parts:
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of each."""
        assert closure is None, "the loop has the gradients already"
        for part in self.parts:
            part.step()


def adamw(settings: AdamW, groups: list[Group]) -> torch.optim.Optimizer:
    """torch's, fused."""
    return torch.optim.AdamW(groups, betas=(settings.beta1, settings.beta2), eps=settings.eps, fused=True)


def adam(settings: Adam, groups: list[Group]) -> torch.optim.Optimizer:
    """torch's, fused."""
    return torch.optim.Adam(groups, betas=(settings.beta1, settings.beta2), eps=settings.eps, fused=True)


def sgd(settings: Sgd, groups: list[Group]) -> torch.optim.Optimizer:
    """torch's, fused."""
    return torch.optim.SGD(groups, momentum=settings.momentum, nesterov=settings.nesterov, fused=True)


def rmsprop(settings: RmsProp, groups: list[Group]) -> torch.optim.Optimizer:
    """torch's."""
    return torch.optim.RMSprop(groups, alpha=settings.alpha, momentum=settings.momentum, eps=settings.eps)


def adafactor(settings: Adafactor, groups: list[Group]) -> torch.optim.Optimizer:
    """torch's."""
    return torch.optim.Adafactor(
        groups, beta2_decay=settings.beta2_decay, eps=(None, settings.smallest_scale), d=settings.clip
    )


def lion(settings: Lion, groups: list[Group]) -> torch.optim.Optimizer:
    """Our own: no library that we have brings it."""
    return LionOptimizer(groups, (settings.beta1, settings.beta2))


def muon(settings: Muon, groups: list[Group]) -> torch.optim.Optimizer:
    """torch's, its updates as large as AdamW's."""
    return torch.optim.Muon(
        groups,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        ns_steps=settings.iterations,
        adjust_lr_fn="match_rms_adamw",
    )


def galore(settings: GaLore, groups: list[Group]) -> torch.optim.Optimizer:
    """Our own; its file says why."""
    return GaLoreOptimizer(groups, settings)


def refuse_missing(settings: Kind) -> None:
    """TrainingError where the optimizer's library is not installed."""
    if isinstance(settings, Adam8bit) and importlib.util.find_spec("bitsandbytes") is None:
        raise TrainingError(
            "tune.optimizer: adam8bit needs the package bitsandbytes, which is not installed. Install luthier[qlora], "
            "or take another optimizer (adafactor and lion need little memory too)."
        )


def adam8bit(settings: Adam8bit, groups: list[Group]) -> torch.optim.Optimizer:
    """bitsandbytes'. Tensors of less than 4096 numbers keep moments of 32 bits."""
    refuse_missing(settings)
    from bitsandbytes.optim import AdamW8bit

    made: torch.optim.Optimizer = AdamW8bit(groups, betas=(settings.beta1, settings.beta2), eps=settings.eps)
    return made


Maker = Callable[[Any, list[Group]], torch.optim.Optimizer]
MAKERS: Mapping[type[Kind], Maker] = MappingProxyType(
    {AdamW: adamw, Adam: adam, Sgd: sgd, RmsProp: rmsprop, Adafactor: adafactor, Lion: lion, Adam8bit: adam8bit}
)
# For the matrices inside the model; all other parameters go by AdamW.
FOR_MATRICES: Mapping[type[Kind], Maker] = MappingProxyType({Muon: muon, GaLore: galore})
