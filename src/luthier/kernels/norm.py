"""Root-mean-square normalisation (Zhang and Sennrich 2019) that keeps one number per row for backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class RmsNorm(torch.autograd.Function):
    """y = x r w with r = 1 / sqrt(mean(x^2) + eps), row by row.

    x [..., D], w [D] -> y [..., D]. Saves x, w and r [..., 1].
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """The normalised rows."""
        inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight_D, inverse)
        return torch.mul(x, inverse).mul_(weight_D)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """dx = r (g w) - x r^3 mean(g w x);  dw = sum over rows of g x r."""
        x, weight_D, inverse = ctx.saved_tensors
        grad_x = grad_weight_D = None
        if ctx.needs_input_grad[1]:
            grad_weight_D = (grad * x).mul_(inverse).flatten(0, -2).sum(0)
        if ctx.needs_input_grad[0]:
            grad_x = grad * weight_D
            slope = (grad_x * x).mean(-1, keepdim=True).mul_(inverse.pow(3)).neg_()
            grad_x.mul_(inverse).addcmul_(x, slope)
        return grad_x, grad_weight_D, None
