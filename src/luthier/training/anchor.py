"""Penalties that hold a training to where it starts, and the Fisher information that says what matters there."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as ManyOf
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from luthier.methods.base import Example, Objective
from luthier.training.learner import Learner
from luthier.training.step import annotated

Tensors = Mapping[str, Tensor]


def anchored_penalty(values: Tensors, start: Tensors, importance: Tensors | None, strength: float) -> Tensor:
    """(strength / 2) sum_i F_i (theta_i - theta*_i)^2, in float64.

    values, start: theta and theta*, tensors of any shape by name. importance: F, of the same shapes, by which it is
    elastic weight consolidation (Kirkpatrick et al. 2017, equation 3); None is F = 1, which is L2-SP (Xuhong et al.
    2018, equation 2).
    """
    total = torch.zeros((), dtype=torch.float64)
    for name, value in values.items():
        moved = (value.double() - start[name].double()).square()
        total = total + (moved if importance is None else importance[name].double() * moved).sum().to(total.device)
    return 0.5 * strength * total


def update_penalty(factors: ManyOf[tuple[Tensor, Tensor, float]], strength: float) -> Tensor:
    """(strength / 2) sum_layers ||s B A||_F^2 in float64: L2-SP on the weights that an adapter changes.

    A [R, I], B [O, R], s the adapter's scale. ||B A||_F^2 is the sum over (B^T B) * (A A^T), both [R, R], so the
    update [O, I] is never formed. It is 0 where B is, at the start of a fresh adapter.
    """
    total = torch.zeros((), dtype=torch.float64)
    for a_RI, b_OR, scale in factors:
        a, b = a_RI.double(), b_OR.double()
        total = total + scale**2 * ((b.T @ b) * (a @ a.T)).sum().to(total.device)
    return 0.5 * strength * total


@dataclass(frozen=True)
class AnchoredAdapter:
    """The penalty on a continued adapter's own parameters, around `start`."""

    parameters: Mapping[str, nn.Parameter]
    start: Tensors
    importance: Tensors | None
    strength: float

    def __call__(self) -> Tensor:
        """The penalty now."""
        return anchored_penalty(self.parameters, self.start, self.importance, self.strength)


@dataclass(frozen=True)
class SmallUpdate:
    """The penalty on what a fresh adapter changes in the weights under it."""

    factors: tuple[tuple[nn.Parameter, nn.Parameter, float], ...]
    strength: float

    def __call__(self) -> Tensor:
        """The penalty now."""
        return update_penalty(self.factors, self.strength)


def hold_adapter(learner: Learner, strength: float, importance: Tensors | None = None) -> AnchoredAdapter:
    """Hold the adapter's parameters to what they are now."""
    parameters = adapter_parameters(learner)
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    return AnchoredAdapter(parameters, start, importance, strength)


def hold_update(learner: Learner, strength: float) -> SmallUpdate:
    """Hold the weights under a fresh adapter to what they are now."""
    modules: list[Any] = [module for module in learner.modules() if hasattr(module, "lora_A")]
    factors = [
        (module.lora_A[name].weight, module.lora_B[name].weight, float(module.scaling[name]))
        for module in modules
        for name in module.active_adapters
        if name in module.lora_A
    ]
    return SmallUpdate(tuple(factors), strength)


def adapter_parameters(learner: Learner) -> dict[str, nn.Parameter]:
    """The trained parameters but for the heads: an earlier task's answer hangs on its own head only."""
    return {name: p for name, p in learner.trained().items() if not name.startswith("heads.")}


def fisher_diagonal(
    learner: Learner, objective: Objective, examples: ManyOf[Example], max_tokens: int
) -> dict[str, Tensor]:
    """F_i = sum_b (d l_b / d theta_i)^2 / sum_b w_b over the adapter's parameters, in float32.

    l_b is the loss of row b before any division, w_b its weight: the Fisher information of the normalised loss that
    the loop minimises, so that strength 1 weighs the earlier rows like this stage's. It is the empirical one (the
    answers are the rows' own, not drawn from the model; Kunstner et al. 2019 on the difference). One pass a row,
    without dropout.
    """
    rows, _ = annotated(learner, objective, examples, max_tokens)
    learner.eval()
    parameters = adapter_parameters(learner)
    sums = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for row in rows:
        batch = learner.batch([row])
        total = objective.loss(learner(batch), batch).total
        gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
        for held, gradient in zip(sums.values(), gradients, strict=True):
            if gradient is not None:
                held.add_(gradient.square())
    weight = sum(objective.weight(row) for row in rows)
    return {name: held / weight for name, held in sums.items()}
