"""Updates that need less memory: each parameter alone, as soon as its gradient is there, its state brought for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from luthier.errors import Diverged

Update = Callable[[nn.Parameter], None]


class EarlyUpdates:
    """Within it, a backward pass updates each parameter once its gradient is complete, and frees the gradient.

    The same numbers as an update after the pass: nothing reads a parameter whose gradient is complete.
    """

    def __init__(self, parameters: list[nn.Parameter], update: Update):
        self.parameters = parameters
        self.update = update
        self.squares = 0.0
        self._hooks = ExitStack()

    def __enter__(self) -> EarlyUpdates:
        for parameter in self.parameters:
            self._hooks.callback(parameter.register_post_accumulate_grad_hook(self._ready).remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()

    @property
    def norm(self) -> float:
        """Norm of all gradients so far."""
        return math.sqrt(self.squares)

    def _ready(self, parameter: Tensor) -> None:
        assert parameter.grad is not None and isinstance(parameter, nn.Parameter)
        norm = float(torch.linalg.vector_norm(parameter.grad))
        if not math.isfinite(norm):
            raise Diverged(
                f"a gradient of norm {norm:g}; its parameter and those still to come were not updated, others of this "
                "step were (tune.memory.optimizer_in_backward). Lower tune.learning_rate or raise tune.warmup_share, "
                "and run again: the last checkpoint is intact."
            )
        self.squares += norm * norm
        self.update(parameter)
        parameter.grad = None


@contextmanager
def alone(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> Iterator[None]:
    """Within it, the optimizer knows of one parameter only."""
    whole = [group["params"] for group in optimizer.param_groups]
    try:
        for group in optimizer.param_groups:
            group["params"] = [known for known in group["params"] if known is parameter]
        yield
    finally:
        for group, parameters in zip(optimizer.param_groups, whole, strict=True):
            group["params"] = parameters


@contextmanager
def brought(state: dict[str, object], device: torch.device, home: torch.device) -> Iterator[None]:
    """Within it, the tensors of an optimizer's state are on `device`; before and after at `home`.

    Single numbers stay where they are: some optimizers count steps on the CPU, some beside the parameter.
    """
    move(state, device)
    try:
        yield
    finally:
        move(state, home)


def move(state: dict[str, object], device: torch.device) -> None:
    """Move a state's larger tensors."""
    for name, value in state.items():
        if isinstance(value, Tensor) and value.numel() > 1:
            state[name] = value.to(device)
