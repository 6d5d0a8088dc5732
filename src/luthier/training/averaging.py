"""An average of the trained weights over the steps, which is validated and saved in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from luthier.recipe.averaging import Ema, Swa
from luthier.recipe.base import Kind
from luthier.training.learner import Learner


@dataclass
class WeightAverage:
    """The average so far, in float32, by the parameter's name; empty before it begins. `tensors` is all its state."""

    settings: Kind
    num_steps: int
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def update(self, step: int, learner: Learner) -> None:
        """Take the weights in as 0-based `step` left them. A parameter that is new to it comes in as it is."""
        share = share_of(self.settings, step, self.num_steps)
        if not share:
            return
        for name, parameter in learner.trained().items():
            if name in self.tensors:
                self.tensors[name].lerp_(parameter.float(), share)
            else:
                self.tensors[name] = parameter.detach().float().clone()

    def restore(self, tensors: Mapping[str, Tensor], learner: Learner) -> None:
        """Go on from the tensors of a checkpoint."""
        self.tensors = {name: tensor.to(learner.device) for name, tensor in tensors.items()}

    @contextmanager
    def in_place(self, learner: Learner) -> Iterator[None]:
        """The learner with the average for its weights; afterwards it has its own again, bit for bit."""
        trained = learner.trained()
        own = {name: trained[name].detach().clone() for name in self.tensors}
        put(learner, self.tensors)
        try:
            yield
        finally:
            put(learner, own)


@torch.no_grad()
def put(learner: Learner, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors into the parameters of their names."""
    trained = learner.trained()
    for name, tensor in tensors.items():
        trained[name].copy_(tensor)


def share_of(settings: Kind, step: int, num_steps: int) -> float:
    """What the weights after 0-based `step` count in the average from then on; 0 where they are not taken in.

    Ema: 1 - min(decay, (1 + step) / (10 + step)), the warm-up of TensorFlow's ExponentialMovingAverage. Swa: 1 / n for
    the n-th weights that are averaged, so that all of them count alike.
    """
    if isinstance(settings, Ema):
        return 1.0 - min(settings.decay, (1 + step) / (10 + step))
    if not isinstance(settings, Swa):
        return 0.0
    since = step - int(settings.begin_share * num_steps)
    return 1.0 / (since // settings.every + 1) if since >= 0 and since % settings.every == 0 else 0.0
