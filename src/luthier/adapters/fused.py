"""LoRA layers as one function: the same numbers as PEFT's in fewer passes over memory.

PEFT computes the frozen product, then A, then B, scales, adds, and lets autograd undo each. Here the low-rank update is
added inside the matrix product, forward and backward, and nothing but the input (in bfloat16 where the factors of the
products are cast to it) and its rank-wide image is kept. Layers that read the same input (query, key and value; gate
and up) are one function: their A's multiply it together, and the gradients they send back add up inside the products.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn

from luthier.adapters.qlora import PackedLinear
from luthier.kernels import add_product, is_cast, linear, product, thin_type

SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # names of layers that read one tensor

# precision of the frozen products; each layer's scale; each layer that unpacks its weights where they are needed
Settings = tuple[str, tuple[float, ...], tuple[PackedLinear | None, ...]]


class LoraLinears(torch.autograd.Function):
    """y_i = x W_i^T + b_i + s_i (x A_i^T) B_i^T for layers i of one input (Hu et al. 2021, equation 3).

    W and b are frozen; W is None where a layer unpacks it, forward and backward anew. x [N, I], W_i [O_i, I], b_i [O_i]
    or None, A_i [R_i, I], B_i [O_i, R_i] -> y_i [N, O_i].
    """

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, settings: Settings, *weights: Any) -> tuple[Tensor, ...]:
        """The frozen products with the updates added in place. weights: W_i, b_i, A_i, B_i of each layer in turn."""
        frozen, biases, a_s, b_s = weights[0::4], weights[1::4], weights[2::4], weights[3::4]
        precision, scales, packed = settings
        ctx.settings, ctx.dtype = settings, x_NI.dtype
        if is_cast(x_NI, next((weight for weight in frozen if weight is not None), x_NI), precision):
            x_NI = x_NI.to(torch.bfloat16)
        ctx.thin = thin_type(x_NI)
        a_RI = joined(a_s).to(ctx.thin)
        low_NR = x_NI.to(ctx.thin) @ a_RI.T
        outs = []
        start = 0
        for weight_OI, layer, bias_O, b_OR, scale in zip(frozen, packed, biases, b_s, scales, strict=True):
            y_NO = linear(x_NI, unpacked(weight_OI, layer), bias_O, precision).to(ctx.thin)
            end = start + b_OR.shape[1]
            y_NO.addmm_(low_NR[:, start:end], b_OR.to(ctx.thin).T, alpha=scale)
            outs.append(y_NO.to(ctx.dtype))
            start = end
        ctx.save_for_backward(x_NI, low_NR, a_RI, *frozen, *b_s)
        ctx.set_materialize_grads(False)
        return tuple(outs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """With l_i = s_i g_i B_i: dx = sum_i (g_i W_i + l_i A_i);  dA_i = l_i^T x;  dB_i = s_i g_i^T (x A_i^T)."""
        x_NI, low_NR, a_RI, *rest = ctx.saved_tensors
        precision, scales, packed = ctx.settings
        frozen, b_s = rest[: len(scales)], rest[len(scales) :]
        grad_x_NI = None
        grad_lows, grad_bs = [], []
        start = 0
        for grad_NO, weight_OI, layer, b_OR, scale in zip(grads, frozen, packed, b_s, scales, strict=True):
            end = start + b_OR.shape[1]
            grad_NO = x_NI.new_zeros(len(x_NI), len(b_OR)) if grad_NO is None else grad_NO
            thin_NO = grad_NO.to(ctx.thin)
            grad_lows.append((thin_NO @ b_OR.to(ctx.thin)).mul_(scale))
            grad_b_RO = (low_NR[:, start:end].T @ thin_NO).to(b_OR.dtype)  # nearly twice as fast as g^T low
            grad_bs.append(grad_b_RO.mul_(scale).T)
            if ctx.needs_input_grad[0]:
                full_OI, grad_NO = unpacked(weight_OI, layer), grad_NO.to(x_NI.dtype)
                if grad_x_NI is None:
                    grad_x_NI = product(grad_NO, full_OI, precision)
                else:
                    add_product(grad_x_NI, grad_NO, full_OI, precision)
            start = end
        grad_low_NR = joined(grad_lows, dim=1)
        if grad_x_NI is not None:
            grad_x_NI = grad_x_NI.to(ctx.thin).addmm_(grad_low_NR, a_RI).to(ctx.dtype)
        grad_as = (grad_low_NR.T @ x_NI.to(ctx.thin)).to(b_s[0].dtype).split([b_OR.shape[1] for b_OR in b_s])
        of_layers = [grad for a, b in zip(grad_as, grad_bs, strict=True) for grad in (None, None, a, b)]
        return grad_x_NI, None, *of_layers


def unpacked(weight_OI: Tensor | None, layer: PackedLinear | None) -> Tensor:
    """A layer's frozen weights."""
    if layer is not None:
        return layer.weight
    assert weight_OI is not None
    return weight_OI


def joined(pieces: Any, dim: int = 0) -> Tensor:
    """One tensor of the pieces; a single one as it is."""
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)


@dataclass
class SharedInput:
    """LoRA layers of one parent that read the same tensor. The first one called works for all of them.

    The others find their results here where they are called with that very tensor, else they are worked out anew.
    """

    layers: list[Any]
    precision: str
    x: Tensor | None = None
    ready: dict[int, Tensor] = field(default_factory=dict)

    def call(self, index: int, x: Tensor) -> Tensor:
        """The output of layer `index`, [..., O]."""
        if self.x is not x or index not in self.ready:
            self.ready = dict(enumerate(run(self.layers, x, self.precision)))
            self.x = x
        out = self.ready.pop(index)
        if not self.ready:
            self.x = None
        return out


@dataclass
class Member:
    """The forward of one of the layers that share an input."""

    shared: SharedInput
    index: int

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As PEFT's layer is called."""
        return self.shared.call(self.index, x)


def run(layers: list[Any], x: Tensor, precision: str) -> list[Tensor]:
    """The outputs [..., O_i] of fused LoRA layers for one input [..., I]."""
    weights: list[Tensor | None] = []
    scales: list[float] = []
    packed: list[PackedLinear | None] = []
    for layer in layers:
        name = layer.active_adapters[0]
        base = layer.base_layer
        packed.append(base if isinstance(base, PackedLinear) else None)
        frozen = base.weight if packed[-1] is None else None
        weights += [frozen, base.bias, layer.lora_A[name].weight, layer.lora_B[name].weight]
        scales.append(float(layer.scaling[name]))
    outs = LoraLinears.apply(x.reshape(-1, x.shape[-1]), (precision, tuple(scales), tuple(packed)), *weights)
    return [out.view(*x.shape[:-1], out.shape[-1]) for out in outs]


def fuse(wrapper: nn.Module, precision: str) -> int:
    """Give every plain LoRA layer of `wrapper` the fused forward; returns how many there are.

    Layers it does not fit (dropout, DoRA and other variants, transposed weights, a trained base) keep PEFT's own.
    """
    for module in wrapper.modules():
        if isinstance(module, PackedLinear):
            module.precision = precision
    groups = []
    taken: set[int] = set()
    for module in wrapper.modules():
        for names in SAME_INPUT:
            layers: list[Any] = [getattr(module, name, None) for name in names]
            is_new = taken.isdisjoint(map(id, layers))  # PEFT's wrappers answer for the model inside them
            if is_new and all(map(fits, layers)) and len({layer.in_features for layer in layers}) == 1:
                groups.append(layers)
                taken.update(map(id, layers))
    groups += [[module] for module in wrapper.modules() if fits(module) and id(module) not in taken]
    for layers in groups:
        shared = SharedInput(layers, precision)
        for index, layer in enumerate(layers):
            layer.forward = Member(shared, index)
    return sum(map(len, groups))


def fits(module: Any) -> bool:
    """Whether a module is a LoRA layer of the plain kind."""
    kinds = (nn.Linear, PackedLinear)
    if type(module) is not PeftLinear or type(module.base_layer) not in kinds or len(module.active_adapters) != 1:
        return False
    name = module.active_adapters[0]
    return bool(
        not module.merged
        and name not in module.lora_variant
        and isinstance(module.lora_dropout[name], nn.Identity)
        and module.lora_A[name].bias is None
        and module.lora_B[name].bias is None
        and not module.base_layer.weight.requires_grad
        and module.base_layer.weight.dtype in (module.lora_A[name].weight.dtype, torch.bfloat16)
    )
