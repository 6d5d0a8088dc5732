"""What a training step takes, measured: real steps on a few of the run's rows, after which everything is as it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from luthier.methods.base import Example, Objective
from luthier.recipe import Training
from luthier.runtime import peak_memory_bytes, release_free_memory, reset_peak_memory, resident_bytes
from luthier.training.checkpoint import random_state, set_random_state
from luthier.training.learner import Learner
from luthier.training.optimizers import make_optimizer
from luthier.training.step import one_step


class Meter(Protocol):
    """Memory that is in use, and the most that was since the last start."""

    def start(self) -> bool:
        """Count the peak anew; False where that cannot be done."""
        ...

    def peak_bytes(self) -> int:
        """The most since the start."""
        ...

    def held_bytes(self) -> int:
        """What is in use once everything that is free is given back."""
        ...


class ProcessMeter:
    """Resident memory of this process."""

    def start(self) -> bool:
        """Through Linux; not elsewhere."""
        return reset_peak_memory()

    def peak_bytes(self) -> int:
        """High water of the resident memory."""
        return peak_memory_bytes()

    def held_bytes(self) -> int:
        """Resident memory without what the allocator keeps for later."""
        release_free_memory()
        return resident_bytes()


class GpuMeter:
    """Memory that torch has handed out on a GPU."""

    def start(self) -> bool:
        """Through torch."""
        torch.cuda.reset_peak_memory_stats()
        return True

    def peak_bytes(self) -> int:
        """The most that was handed out."""
        return torch.cuda.max_memory_allocated()

    def held_bytes(self) -> int:
        """What is handed out now."""
        return torch.cuda.memory_allocated()


def meter_for(device: torch.device) -> Meter:
    """The meter of a device."""
    return GpuMeter() if device.type == "cuda" else ProcessMeter()


@dataclass(frozen=True)
class Measured:
    """One step: the peak of its passes, the peak of its update, and what its optimizer holds afterwards, in bytes.

    Peaks count everything in use; the weights that are set aside to be put back are taken off.
    """

    passes: int
    update: int
    state: int


class Trial:
    """Real steps of a training with an optimizer of their own. Weights and random state are put back after each."""

    def __init__(self, learner: Learner, objective: Objective, training: Training, meter: Meter):
        self.learner = learner
        self.objective = objective
        self.training = training
        self.meter = meter
        self.optimizer = make_optimizer(learner, training)
        self.parameters = list(learner.trained().values())

    def step(self, rows: Sequence[Example]) -> Measured:
        """One step over some rows, in one piece where they fit into `micro_batch_tokens`."""
        early, was_training, state = self.training.memory.optimizer_in_backward, self.learner.training, random_state()
        own: list[Tensor] = self.copies() if early else []
        peaks: list[int] = []

        def before_update(*_: object) -> None:
            if not early:
                peaks.append(self.meter.peak_bytes())
                own.extend(self.copies())
                self.meter.held_bytes()  # what the passes freed would count as the update's
                self.meter.start()

        hook = self.optimizer.register_step_pre_hook(before_update)
        self.meter.held_bytes()
        self.meter.start()
        try:
            one_step(self.learner, self.objective, rows, self.optimizer, 1.0, self.training, 0)
            peaks.append(self.meter.peak_bytes() - sum(tensor.nbytes for tensor in own))
        finally:
            hook.remove()
            self.put_back(own)
            self.learner.train(was_training)
            set_random_state(state)
        return Measured(max(peaks[:-1], default=peaks[-1]), peaks[-1], self.state_bytes())

    def copies(self) -> list[Tensor]:
        """The trained weights as they are."""
        return [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def put_back(self, own: Sequence[Tensor]) -> None:
        """The weights as they were, without gradients."""
        for parameter, tensor in zip(self.parameters, own, strict=False):
            parameter.copy_(tensor)
        for parameter in self.parameters:
            parameter.grad = None

    def state_bytes(self) -> int:
        """Bytes of the optimizer's state."""
        states = self.optimizer.state.values()
        return sum(value.nbytes for state in states for value in state.values() if isinstance(value, Tensor))
