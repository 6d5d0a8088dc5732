"""Rotary position embedding (Su et al. 2021) without turning, joining or copying halves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Rotary(torch.autograd.Function):
    """y = x cos + turned(x) sin, where turned(x) is (-second half, first half) of the last axis.

    x [B, H, N, D]; cos, sin broadcast to it -> y [B, H, N, D], laid out in memory as x is.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """The rotated heads."""
        ctx.save_for_backward(cos, sin)
        half = x.shape[-1] // 2
        out = torch.mul(x, cos)
        out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
        out[..., half:].addcmul_(x[..., :half], sin[..., half:])
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The transpose: the halves turn the other way, each with the sine of where its value went."""
        cos, sin = ctx.saved_tensors
        half = grad.shape[-1] // 2
        grad_x = torch.mul(grad, cos)
        grad_x[..., :half].addcmul_(grad[..., half:], sin[..., half:])
        grad_x[..., half:].addcmul_(grad[..., :half], sin[..., :half], value=-1)
        return grad_x, None, None
