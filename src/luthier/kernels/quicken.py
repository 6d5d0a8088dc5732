"""Which modules of a transformers model get the kernels: those that a trial shows to compute exactly what they do.

Nothing is known by a family's name. A module that looks like a kernel's kind is called on made-up numbers, and gets
the kernel as its `forward` where the kernel gives the same numbers; every other module keeps its own.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable
from itertools import pairwise
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from luthier.kernels.gate import SiluGate
from luthier.kernels.norm import RmsNorm
from luthier.kernels.products import is_rounded
from luthier.kernels.rotary import Rotary
from luthier.runtime import leave_file

ROTATE = "apply_rotary_pos_emb"  # transformers' name, in every family, of the function that rotates query and key
GATED = ("gate_proj", "up_proj", "down_proj")  # transformers' names of a gated block's layers
STATES = "A_log"  # transformers' name of the parameter that state-space layers, and no others, have
NARROW = "luthier_narrow"  # a gated block's mark: between layers that are kept in bfloat16
ROTATE_PARAMETERS = ["q", "k", "cos", "sin", "unsqueeze_dim"]


def quicken(model: nn.Module) -> int:
    """Give every module of `model` that fits a kernel's forward; returns how many there are.

    The kernels work on float32 and float64 on a CPU; elsewhere a module's own forward is called.
    """
    functions: dict[Any, Any] = {}
    num_changed = 0
    for module in model.modules():
        if "forward" in module.__dict__:
            continue
        forward = fitting(module, functions)
        if forward is not None:
            module.forward = MethodType(forward, module)
            num_changed += 1
    return num_changed


def fitting(module: Any, known: dict[Any, Any]) -> Callable[..., Any] | None:
    """The forward of the kernel that a module fits; one that fails when it is tried on made-up numbers fits none."""
    try:
        return quick_norm(module) or quick_gate(module, known) or quick_rotation(module, known)
    except Exception:  # noqa: BLE001 - a family's own code may ask for more than the trial gives, and say so as it likes
        return None


def suits(x: Tensor) -> bool:
    """Whether the kernels know this kind of tensor."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def quick_norm(module: Any) -> Callable[..., Any] | None:
    """The kernel's forward for a root-mean-square norm, with a weight of w or (Gemma) 1 + w."""
    weight_D = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if "RMSNorm" not in type(module).__name__ or not isinstance(weight_D, Tensor) or not isinstance(eps, float):
        return None
    if weight_D.ndim != 1 or not suits(weight_D) or not takes_one_tensor(module):
        return None
    trial = numbers(3, len(weight_D)).to(weight_D.dtype)
    with torch.no_grad():
        wanted = type(module).forward(module, trial)
        for forward in (norm_forward, offset_norm_forward):
            if agree(forward(module, trial), wanted):
                return forward
    return None


def norm_forward(self: Any, hidden_states: Tensor) -> Any:
    """A norm's forward, scaled by its weight."""
    if not suits(hidden_states):
        return type(self).forward(self, hidden_states)
    return RmsNorm.apply(hidden_states, self.weight, epsilon(self))


def offset_norm_forward(self: Any, x: Tensor) -> Any:
    """A norm's forward, scaled by one more than its weight."""
    return RmsNorm.apply(x, self.weight + 1.0, epsilon(self)) if suits(x) else type(self).forward(self, x)


def takes_one_tensor(module: nn.Module) -> bool:
    """Whether a module's class has a forward of self and one argument."""
    return len(inspect.signature(type(module).forward).parameters) == 2


def epsilon(norm: Any) -> float:
    """What a norm adds to the mean square; the families have two names for it."""
    return float(norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps)


def quick_gate(module: Any, known: dict[Any, Any]) -> Callable[..., Any] | None:
    """The kernel's forward for a block down(silu(gate(x)) * up(x)); tried once for each class and activation."""
    if not is_gated(module) or not takes_one_tensor(module):
        return None
    kind = type(module), type(module.act_fn)
    if kind not in known:
        width = getattr(module.gate_proj, "in_features", None)
        weight = next(module.parameters(), None)
        if not isinstance(width, int) or weight is None or not suits(weight):
            return None
        trial = numbers(3, width).to(weight.dtype)
        with torch.no_grad():
            known[kind] = agree(gate_forward(module, trial), type(module).forward(module, trial))
    return gate_forward if known[kind] else None


def is_gated(module: Any) -> bool:
    """A block down(act(gate(x)) * up(x)), as most decoders have it."""
    return all(isinstance(getattr(module, name, None), nn.Module) for name in (*GATED, "act_fn"))


def gate_forward(self: Any, x: Tensor) -> Any:
    """A gated block's forward; between layers whose weights are kept in bfloat16 its inner rows are too."""
    inner = x.to(torch.bfloat16) if getattr(self, NARROW, False) else x
    if not suits(x):
        return type(self).forward(self, inner).to(x.dtype)
    return self.down_proj(SiluGate.apply(self.gate_proj(inner), self.up_proj(inner))).to(x.dtype)


def narrow(model: nn.Module) -> None:
    """Keep the weights of the layers whose products are rounded in bfloat16, in place, and give their old place back.

    Half the memory, and the same factors: a product would round them anyway. They cannot be trained, nor added to
    without loss, and tied ones are one tensor still. A weight that the code of a state-space layer (Mamba) reads
    itself stays as it is: such code does not round.
    """
    spaces = [module for module in model.modules() if hasattr(module, STATES)]
    read = {id(child) for module in spaces for child in read_from_outside(module)}
    for module in model.modules():
        if id(module) in read:
            continue
        if is_rounded(module):
            module.weight.data = module.weight.data.to(torch.bfloat16)
        elif getattr(module.__dict__.get("forward"), "__func__", None) is gate_forward:
            setattr(module, NARROW, all(is_rounded(getattr(module, name)) for name in GATED))
    leave_file(parameter for parameter in model.parameters() if parameter.dtype != torch.bfloat16)


def read_from_outside(module: nn.Module) -> list[nn.Module]:
    """The children whose weight the methods of a module read: where its code says self.NAME.weight."""
    methods = [method for method in vars(type(module)).values() if isinstance(method, FunctionType)]
    names = [[step.argval for step in dis.get_instructions(inspect.unwrap(method))] for method in methods]
    read = {first for seen in names for first, second in pairwise(seen) if second == "weight"}
    return [child for name, child in module.named_children() if name in read]


def quick_rotation(module: Any, known: dict[Any, Any]) -> Any:
    """An attention module's own forward, in which the name of the family's rotation means the kernel's."""
    forward = type(module).forward
    code, names = getattr(forward, "__code__", None), getattr(forward, "__globals__", {})
    if code is None or ROTATE not in code.co_names or ROTATE not in names:
        return None
    if list(inspect.signature(names[ROTATE]).parameters) != ROTATE_PARAMETERS:
        return None
    if forward not in known:
        rotate = rotation(names[ROTATE])
        cos, sin = numbers(1, 3, 8), numbers(1, 3, 8).flip(-1)
        query, key = numbers(1, 4, 3, 8), numbers(1, 2, 3, 8).flip(-1)
        found, wanted = rotate(query, key, cos, sin), names[ROTATE](query, key, cos, sin)
        fits = all(agree(*pair) for pair in zip(found, wanted, strict=True))
        known[forward] = with_name(forward, ROTATE, rotate) if fits else None
    return known[forward]


def rotation(own: Any) -> Callable[..., Any]:
    """The kernel in place of a family's `apply_rotary_pos_emb`, which stays for what the kernel does not know."""

    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Any:
        """Query and key, rotated; a rotation of some of the width, or one that is trained, is the family's own."""
        is_plain = cos.shape[-1] == q.shape[-1] == k.shape[-1] and not (cos.requires_grad or sin.requires_grad)
        if not is_plain or not suits(q) or q.dtype != cos.dtype:
            return own(q, k, cos, sin, unsqueeze_dim)
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return Rotary.apply(q, cos, sin), Rotary.apply(k, cos, sin)

    return rotate


def with_name(function: Any, name: str, meaning: Any) -> FunctionType:
    """The same function with another meaning of one of its module's names, for it alone."""
    other = FunctionType(
        function.__code__,
        {**function.__globals__, name: meaning},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    other.__kwdefaults__ = function.__kwdefaults__
    return other


def numbers(*shape: int) -> Tensor:
    """Numbers from -1 to 1 in no simple order, the same at each call."""
    size = torch.Size(shape)
    return torch.sin(torch.arange(size.numel(), dtype=torch.float64) * 1.7 + 0.3).view(size).float()


def agree(found: Any, wanted: Any) -> bool:
    """Whether two results are the same up to rounding."""
    return (
        isinstance(wanted, Tensor)
        and found.shape == wanted.shape
        and found.dtype == wanted.dtype
        and torch.allclose(found, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))
    )
