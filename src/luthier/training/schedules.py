"""Learning-rate schedules: a factor of the peak rate for every step."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Learning-rate factor over steps: linear warm-up, then constant, linear or cosine decay to zero."""

    kind: str
    num_steps: int
    num_warmup: int

    def factor(self, step: int) -> float:
        """Factor for 0-based `step`."""
        if step < self.num_warmup:
            return (step + 1) / (self.num_warmup + 1)
        done = (step - self.num_warmup) / max(1, self.num_steps - self.num_warmup)
        if self.kind == "constant":
            return 1.0
        return 1.0 - done if self.kind == "linear" else 0.5 * (1 + math.cos(math.pi * done))
