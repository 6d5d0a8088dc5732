"""Lion (Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", algorithm 2), which torch does not have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class LionOptimizer(torch.optim.Optimizer):
    """theta <- theta - lr (sign(beta1 m + (1 - beta1) g) + decay theta), then m <- beta2 m + (1 - beta2) g.

    g the gradient of a parameter theta, m its mean gradient, zero at first; all of one shape. A parameter without
    gradient stays.
    """

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float]):
        super().__init__(groups, {"lr": 1e-4, "weight_decay": 0.0, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step, in place."""
        assert closure is None, "the loop has the gradients already"
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["mean"] = torch.zeros_like(parameter)
                mean = state["mean"]
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(mean.lerp(parameter.grad, 1 - beta1).sign_(), alpha=-group["lr"])
                mean.lerp_(parameter.grad, 1 - beta2)
