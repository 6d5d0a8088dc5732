"""A learner in shards: PyTorch's FSDP2 (Zhao et al. 2023, arXiv:2304.11277), one group of parameters a layer.

Each rank keeps 1/R of every parameter, its gradient and its moments. A layer's parameters are gathered right before
its forward and again before its backward pass, and freed after each; gradients are summed as they are cut up. The
heads, which are small and of which a step may use some only, stay whole on every rank.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from luthier.errors import TrainingError
from luthier.processes import num_processes
from luthier.recipe import Training
from luthier.training.course import Penalty
from luthier.training.learner import Learner
from luthier.training.memory_layers import layers_of

ELEMENTWISE = {"adamw", "adam", "sgd", "rmsprop", "lion"}  # optimizers that look at one number at a time
KINDS = {"lora", "full", "ia3"}  # adapters whose parameters are plain tensors inside the layers


def is_sharded(learner: nn.Module) -> bool:
    """Whether a learner lies in shards."""
    return isinstance(learner, FSDPModule)


def refuse_unsharded(training: Training, penalty: Penalty | None) -> None:
    """TrainingError where a setting needs whole parameters."""
    kind, optimizer = training.adapter.kind, training.optimizer.kind
    if kind not in KINDS:
        why = f"adapter.kind: {kind} cannot be cut into shards (those that can: {', '.join(sorted(KINDS))})"
    elif optimizer not in ELEMENTWISE:
        why = f"optimizer: {optimizer} looks at whole matrices (those that do not: {', '.join(sorted(ELEMENTWISE))})"
    elif training.layer_drop:
        why = "layer_drop skips layers that all ranks gather together"
    elif training.memory.offload_optimizer or training.memory.offload_activations:
        why = "memory.offload_* moves whole tensors"
    elif training.unfreeze.kind != "none" or training.cache_below:
        why = "unfreeze and cache_below change which layers take part"
    elif penalty is not None:
        why = "keep.penalty compares whole parameters"
    else:
        return
    raise TrainingError(f"tune.parallel: shard does not go with this training: {why}. Set tune.parallel: replicate.")


def sharded(learner: Learner) -> Learner:
    """A learner like this one, in shards. The given one stays as it is: whole, in the computer's memory.

    Both share one memory until the shards are cut, so that the model is never there twice.
    """
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(parameter.detach(), parameter.requires_grad) for parameter in learner.parameters()
    }
    twin = copy.deepcopy(learner, memo)
    mesh = init_device_mesh(learner.device.type, (num_processes(),))
    for layer in layers_of(twin.lm):
        fully_shard(layer, mesh=mesh)
    fully_shard(twin, mesh=mesh, reshard_after_forward=True, ignored_params=set(twin.heads.parameters()))
    for module in twin.modules():
        if isinstance(module, FSDPModule):  # sums, not means: the loss is divided by the weight of the whole step
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return twin


@torch.no_grad()
def bring_home(twin: Learner, learner: Learner) -> None:
    """Gather the trained weights of a learner in shards into the whole one it was made from."""
    whole = learner.trained()
    for name, parameter in twin.trained().items():
        gathered = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        whole[name].copy_(gathered)
