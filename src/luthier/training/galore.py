"""GaLore (Zhao et al. 2024, "GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection", algorithm 2).

Own code: the libraries that have it keep a projector object and the step of a whole group in its state, which no
checkpoint without pickle can hold; here all state is tensors of one parameter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from luthier.recipe.optimizers import GaLore


class GaLoreOptimizer(torch.optim.Optimizer):
    """AdamW on R = P^T G (or G P^T where G [I, O] is at least as high as wide), put back as scale * P N.

    P holds the r strongest singular vectors of G on its shorter side, found anew every `refresh_every` steps; Adam's
    moments are those of R, and N is Adam's step from them. A matrix no larger than r keeps moments of its own size.
    """

    def __init__(self, groups: list[dict[str, Any]], settings: GaLore):
        super().__init__(groups, {"lr": 1e-3, "weight_decay": 0.0})
        self.settings = settings

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step, in place."""
        assert closure is None, "the loop has the gradients already"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(self.direction(parameter.grad, self.state[parameter]), alpha=-group["lr"])

    def direction(self, gradient: Tensor, state: dict[str, Tensor]) -> Tensor:
        """What to go against, of the gradient's shape."""
        settings = self.settings
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
        done = int(state["step"])
        state["step"] += 1
        if min(gradient.shape) <= settings.rank:
            return self.adam(gradient, state)
        if done % settings.refresh_every == 0:
            state["basis"] = basis(gradient, settings.rank)
        high = gradient.shape[0] >= gradient.shape[1]
        found = self.adam(gradient @ state["basis"].T if high else state["basis"].T @ gradient, state)
        return settings.scale * (found @ state["basis"] if high else state["basis"] @ found)

    def adam(self, gradient: Tensor, state: dict[str, Tensor]) -> Tensor:
        """Adam's step, moments corrected for their start at zero."""
        settings, count = self.settings, int(state["step"])
        if "exp_avg" not in state:
            state |= {"exp_avg": torch.zeros_like(gradient), "exp_avg_sq": torch.zeros_like(gradient)}
        mean = state["exp_avg"].lerp_(gradient, 1 - settings.beta1)
        square = state["exp_avg_sq"].mul_(settings.beta2).addcmul_(gradient, gradient, value=1 - settings.beta2)
        root = (square / (1 - settings.beta2**count)).sqrt_().add_(settings.eps)
        return mean / (1 - math.pow(settings.beta1, count)) / root


def basis(gradient: Tensor, rank: int) -> Tensor:
    """The strongest singular vectors of the shorter side: rows [r, O] of a high matrix, columns [I, r] of a wide."""
    left, _, right = torch.linalg.svd(
        gradient.to(torch.promote_types(gradient.dtype, torch.float32)), full_matrices=False
    )
    found = right[:rank] if gradient.shape[0] >= gradient.shape[1] else left[:, :rank]
    return found.to(gradient.dtype).contiguous()
