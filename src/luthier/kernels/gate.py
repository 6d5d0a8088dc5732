"""The gate of a SwiGLU block (Shazeer 2020): silu(gate) * up, keeping its two inputs only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


class SiluGate(torch.autograd.Function):
    """y = silu(gate) * up, all [..., I]; silu(gate) is worked out again in backward instead of being kept."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        """The gated rows."""
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """d up = g silu(gate);  d gate = g up silu'(gate)."""
        gate, up = ctx.saved_tensors
        grad_gate = grad_up = None
        if ctx.needs_input_grad[0]:
            grad_gate = grad * up
            torch.ops.aten.silu_backward.grad_input(grad_gate, gate, grad_input=grad_gate)
        if ctx.needs_input_grad[1]:
            grad_up = functional.silu(gate).mul_(grad)
        return grad_gate, grad_up
