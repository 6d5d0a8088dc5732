"""The optimizer of a training, with a peak rate and a decay for each group of parameters."""

from __future__ import annotations

import torch
from torch import nn

from luthier.errors import TrainingError
from luthier.recipe import Training
from luthier.training.learner import Learner


def make_optimizer(learner: Learner, training: Training) -> torch.optim.Optimizer:
    """AdamW; the head has its own peak rate, vectors and biases have no decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in learner.trained().items():
        peak = training.head_learning_rate if name.startswith("heads.") else training.learning_rate
        decay = training.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((peak, decay), []).append(parameter)
    if not groups:
        raise TrainingError("nothing would be trained: the adapter matches no layer. Check tune.adapter.targets.")
    listed = [{"params": p, "peak": peak, "lr": peak, "weight_decay": decay} for (peak, decay), p in groups.items()]
    return torch.optim.AdamW(listed, fused=True)
