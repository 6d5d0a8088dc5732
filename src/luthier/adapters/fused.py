"""The LoRA layer as one function: the same numbers as PEFT's in fewer passes over memory.

PEFT computes the frozen product, then A, then B, scales, adds, and lets autograd undo each. Here the low-rank update is
added inside the matrix product, forward and backward, and nothing but the input and its rank-wide image is kept.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn

from luthier.runtime import products


class LoraLinear(torch.autograd.Function):
    """y = x W^T + b + s (x A^T) B^T (Hu et al. 2021, equation 3); W and b are frozen.

    x [N, I], W [O, I], A [R, I], B [O, R] -> y [N, O].
    """

    @staticmethod
    def forward(
        ctx: Any, x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, a_RI: Tensor, b_OR: Tensor, settings: Settings
    ) -> Tensor:
        """The frozen product with the update added in place."""
        scale, precision = settings
        with products(precision):
            y_NO = nn.functional.linear(x_NI, weight_OI, bias_O)
        low_NR = x_NI @ a_RI.T
        y_NO.addmm_(low_NR, b_OR.T, alpha=scale)
        ctx.save_for_backward(x_NI, weight_OI, a_RI, b_OR, low_NR)
        ctx.settings = settings
        return y_NO

    @staticmethod
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, ...]:
        """dx = g W + s (g B) A;  dA = s (g B)^T x;  dB = s g^T (x A^T)."""
        x_NI, weight_OI, a_RI, b_OR, low_NR = ctx.saved_tensors
        scale, precision = ctx.settings
        grad_low_NR = grad_NO @ b_OR
        grad_x_NI = None
        if ctx.needs_input_grad[0]:
            with products(precision):
                grad_x_NI = grad_NO @ weight_OI
            grad_x_NI.addmm_(grad_low_NR, a_RI, alpha=scale)
        grad_a_RI = (grad_low_NR.T @ x_NI).mul_(scale) if ctx.needs_input_grad[3] else None
        grad_b_OR = (low_NR.T @ grad_NO).mul_(scale).T if ctx.needs_input_grad[4] else None  # nearly twice as fast so
        return grad_x_NI, None, None, grad_a_RI, grad_b_OR, None


Settings = tuple[float, str]  # scale, precision of the frozen products


def fuse(wrapper: nn.Module, precision: str) -> int:
    """Give every plain LoRA layer of `wrapper` the fused forward; returns how many there are.

    Layers it does not fit (dropout, DoRA and other variants, transposed or quantised weights, a trained base) keep
    PEFT's own.
    """
    fitting = [module for module in wrapper.modules() if fits(module)]
    for module in fitting:
        module.forward = MethodType(forward_with(precision), module)
    return len(fitting)


def fits(module: Any) -> bool:
    """Whether a module is a LoRA layer of the plain kind."""
    if type(module) is not PeftLinear or type(module.base_layer) is not nn.Linear or len(module.active_adapters) != 1:
        return False
    name = module.active_adapters[0]
    return bool(
        not module.merged
        and name not in module.lora_variant
        and isinstance(module.lora_dropout[name], nn.Identity)
        and module.lora_A[name].bias is None
        and module.lora_B[name].bias is None
        and not module.base_layer.weight.requires_grad
        and module.base_layer.weight.dtype == module.lora_A[name].weight.dtype
    )


def forward_with(precision: str) -> Any:
    """The fused forward, to be bound to a layer."""

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name = self.active_adapters[0]
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        rows = x.reshape(-1, x.shape[-1])
        settings = (float(self.scaling[name]), precision)
        out = LoraLinear.apply(rows, self.base_layer.weight, self.base_layer.bias, a, b, settings)
        return out.view(*x.shape[:-1], out.shape[-1])

    return forward
