"""Matrix products whose factors are rounded to bfloat16, forward and backward; gradients of weights stay float32.

Processors with matrix units for it (AMX) round float32 factors inside the product, add up and answer in float32.
Everywhere else, and where a weight is kept in bfloat16, the factors are cast, as torch's autocast does it: the sums are
float32, and the answer is rounded too. The products that are not rounded (attention, the output head) may take TF32 on
a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from luthier.runtime import has_matrix_units


def round_on(device: str, precision: str) -> None:
    """Let the other float32 products of a GPU be TF32 where its linear layers are rounded, and exact where not."""
    if device.startswith("cuda"):
        exactness = "tf32" if precision == "bfloat16" else "ieee"
        torch.backends.cuda.matmul.fp32_precision = exactness


def product(a: Tensor, b: Tensor, precision: str) -> Tensor:
    """a @ b, of a's type."""
    if is_cast(a, b, precision):
        return (a.to(torch.bfloat16) @ b.to(torch.bfloat16)).to(a.dtype)
    with rounding(precision):
        return a @ b


def add_product(out: Tensor, a: Tensor, b: Tensor, precision: str) -> Tensor:
    """out + a @ b, in place."""
    if is_cast(a, b, precision):
        a, b = a.to(torch.bfloat16), b.to(torch.bfloat16)
        return out.addmm_(a, b) if out.dtype == torch.bfloat16 else out.add_(a @ b)
    with rounding(precision):
        return out.addmm_(a, b)


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, precision: str) -> Tensor:
    """x W^T + b, [..., O], of x's type."""
    if is_cast(x, weight_OI, precision):
        out = product(x, weight_OI.T, precision)
        return out if bias_O is None else out.add_(bias_O)
    with rounding(precision):
        return nn.functional.linear(x, weight_OI, bias_O)


def is_cast(a: Tensor, b: Tensor, precision: str) -> bool:
    """Whether the factors a and b are rounded by casting them."""
    if precision != "bfloat16":
        return False
    return a.device.type != "cpu" or torch.bfloat16 in (a.dtype, b.dtype) or not has_matrix_units()


def thin_type(x: Tensor) -> torch.dtype:
    """The type that the thin products of a low-rank update have beside those of x, which may be cast.

    With matrix units they are float32 all the same: they would be no faster, and oneDNN makes and keeps half a megabyte
    of kernel for each number of rows that each of them meets (docs/memory.md); without, the kernels are small.
    """
    is_kept = x.dtype != torch.bfloat16 or x.device.type != "cpu" or not has_matrix_units()
    return x.dtype if is_kept else torch.float32


class RoundedLinear(torch.autograd.Function):
    """y = x W^T + b. x [..., I], W [O, I], b [O] or None -> y [..., O]; factors are rounded in backward too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        """The product."""
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight_OI)
        return linear(x, weight_OI, bias_O, "bfloat16")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """dx = g W;  dW = g^T x;  db = the sum of g."""
        x, weight_OI = ctx.saved_tensors
        grad_x = product(grad, weight_OI, "bfloat16") if ctx.needs_input_grad[0] else None
        grad_NO = grad.reshape(-1, grad.shape[-1])
        grad_weight = None if x is None else product(grad_NO.T, x.reshape(-1, x.shape[-1]), "bfloat16")
        return grad_x, grad_weight, grad_NO.sum(0) if ctx.needs_input_grad[2] else None


def rounded_linear(self: Any, x: Tensor) -> Tensor:
    """The forward of a linear layer whose products are rounded."""
    out: Tensor = RoundedLinear.apply(x, self.weight, self.bias)
    return out


def round_products(model: nn.Module) -> None:
    """Let the linear layers below the output head multiply in bfloat16."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    for module in model.modules():
        if type(module) is nn.Linear and module is not head:
            module.forward = MethodType(rounded_linear, module)  # type: ignore[method-assign]


def is_rounded(module: Any) -> bool:
    """Whether a module is a linear layer whose products are rounded."""
    return getattr(module.__dict__.get("forward"), "__func__", None) is rounded_linear


@contextmanager
def rounding(precision: str) -> Iterator[None]:
    """Inside it, float32 matrix products on a CPU round their factors to bfloat16 and add up in float32."""
    if precision != "bfloat16":
        yield
        return
    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before
