"""Activations that are not kept: layers worked out again in the backward pass, norms and gates, tensors sent away.

All of it stands around a model's layers from outside while a training runs, so model code, the forest's attention and
the fused LoRA products know nothing of it. Numbers do not change: what is worked out again is computed by the same
functions from the same inputs, with the random state of the first time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from luthier.errors import TrainingError
from luthier.forest.forward import backbone
from luthier.kernels import is_gated

AWAY_BYTES = 1 << 20  # smaller tensors stay: a transfer costs more than they take
ELEMENTWISE = ("torch.nn.modules.activation", "transformers.activations")

Call = Callable[..., Any]


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers of a transformers model, in order."""
    config: Any = model.config
    count = getattr(config.get_text_config(), "num_hidden_layers", None)
    for module in backbone(model).modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    raise TrainingError(
        f"tune.memory.checkpointing: {type(model).__name__} has no list of layers that luthier can find. Set it to off."
    )


@contextlib.contextmanager
def checkpointed(model: nn.Module, way: str | int) -> Iterator[None]:
    """Inside it, passes with gradient keep fewer activations: see `tune.memory.checkpointing`."""
    with contextlib.ExitStack() as changes:
        layers = [] if way == "off" else layers_of(model)
        for layer in layers if isinstance(way, str) else layers[::way]:
            if way == "selective":
                keep_no_cheap_ones(layer, changes)
            else:
                changes.callback(replace_forward(layer, Recomputed(layer.forward)))
        yield


@contextlib.contextmanager
def sent_away(model: nn.Module) -> Iterator[Away]:
    """Inside it, what passes with gradient keep of a model's body waits in the computer's memory."""
    body = backbone(model)
    inner = body.forward
    away = away_from(model)

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return inner(*args, **kwargs)
        with saved_tensors_hooks(away.pack, away.unpack):
            return inner(*args, **kwargs)

    with contextlib.ExitStack() as changes:
        changes.callback(replace_forward(body, forward))
        yield away


def replace_forward(module: nn.Module, forward: Call) -> Callable[[], None]:
    """Give one module another forward; returns what puts its own back."""
    own = module.__dict__.get("forward")
    module.forward = forward

    def undo() -> None:
        del module.__dict__["forward"]
        if own is not None:
            module.forward = own

    return undo


@dataclass(frozen=True)
class Recomputed:
    """The forward of a layer of which only the input is kept (Chen et al. 2016)."""

    inner: Call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the layer is called."""
        if not torch.is_grad_enabled():
            return self.inner(*args, **kwargs)
        return checkpoint(self.inner, *args, use_reentrant=False, **kwargs)


# --- selective: results of norms and gates are made again where they are read ------------------------------------


@dataclass(frozen=True)
class Made:
    """How a tensor was made: by a function without state, from tensors that are kept anyway."""

    by: Call
    inputs: tuple[Tensor, ...]

    @torch.no_grad()
    def again(self) -> Tensor:
        """The same numbers."""
        out: Tensor = self.by(*self.inputs)
        return out


@dataclass(frozen=True)
class Again:
    """Stands where autograd would keep a tensor: how its storage is made, and how the tensor lies in it."""

    made: Made
    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    def tensor(self) -> Tensor:
        """The tensor that was not kept."""
        return self.made.again().as_strided(self.size, self.stride, self.offset)


@dataclass
class CheapOnes:
    """During one pass of a layer: the results of norms and gates, by storage.

    A weak reference keeps a storage's number from being given to another one while the layer runs; the version tells
    whether something was written into it since.
    """

    known: dict[int, tuple[StorageWeakRef, int, Made]] = field(default_factory=dict)

    def note(self, out: Tensor, by: Call, *inputs: Tensor) -> None:
        """`out` has been made by `by(*inputs)`."""
        made = Made(by, tuple(tensor.detach() for tensor in inputs))
        reference = StorageWeakRef(out.untyped_storage())
        self.known[reference.cdata] = reference, out._version, made

    def pack(self, tensor: Tensor) -> Tensor | Again:
        """What autograd keeps of a tensor."""
        _, version, made = self.known.get(tensor.untyped_storage()._cdata, (None, None, None))
        if made is None or version != tensor._version:
            return tensor
        return Again(made, tensor.size(), tensor.stride(), int(tensor.storage_offset()))

    @staticmethod
    def unpack(kept: Tensor | Again) -> Tensor:
        """The tensor itself."""
        return kept.tensor() if isinstance(kept, Again) else kept


def keep_no_cheap_ones(layer: nn.Module, changes: contextlib.ExitStack) -> None:
    """Watch a layer's norms, activations and gates, and let autograd keep none of their results."""
    cheap = CheapOnes()
    inner = layer.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return inner(*args, **kwargs)
        try:
            with saved_tensors_hooks(cheap.pack, cheap.unpack):
                return inner(*args, **kwargs)
        finally:
            cheap.known.clear()

    changes.callback(replace_forward(layer, forward))
    for module in layer.modules():
        if is_cheap(module):
            changes.callback(module.register_forward_hook(watcher(cheap)).remove)
        elif is_gated(module):
            watch_gate(module, cheap, changes)


def is_cheap(module: nn.Module) -> bool:
    """A norm or an activation function: one tensor in, one out, no product."""
    kind = type(module)
    return not list(module.children()) and ("Norm" in kind.__name__ or kind.__module__ in ELEMENTWISE)


def watcher(cheap: CheapOnes) -> Call:
    """A forward hook that notes how a module's result was made."""

    def noticed(module: nn.Module, inputs: tuple[Any, ...], out: Any) -> None:
        if torch.is_grad_enabled() and len(inputs) == 1 and isinstance(out, Tensor):
            cheap.note(out, module.forward, inputs[0])

    return noticed


def watch_gate(block: Any, cheap: CheapOnes, changes: contextlib.ExitStack) -> None:
    """Note how the product of a gated block is made, where it is seen to be act(gate) * up."""
    halves: dict[str, Tensor] = {}
    trusted: list[bool] = []

    def gated(gate: Tensor, up: Tensor) -> Tensor:
        out: Tensor = block.act_fn.forward(gate)
        return out * up

    def half(name: str) -> Call:
        def noticed(_module: nn.Module, _inputs: tuple[Any, ...], out: Tensor) -> None:
            if torch.is_grad_enabled():
                halves[name] = out

        return noticed

    def product(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        gate, up = halves.pop("gate", None), halves.pop("up", None)
        if gate is None or up is None or not torch.is_grad_enabled():
            return
        if not trusted:
            trusted.append(torch.equal(Made(gated, (gate, up)).again(), inputs[0]))
        if trusted[0]:
            cheap.note(inputs[0], gated, gate, up)

    changes.callback(block.gate_proj.register_forward_hook(half("gate")).remove)
    changes.callback(block.up_proj.register_forward_hook(half("up")).remove)
    changes.callback(block.down_proj.register_forward_pre_hook(product).remove)


# --- offload: large tensors wait in the computer's memory --------------------------------------------------------


@dataclass
class Away:
    """Sends what autograd keeps to the computer's memory, and brings it back for the backward pass.

    Weights are kept by the products that they are in; they are no activations and stay.
    """

    staying: frozenset[int]  # storages of the parameters
    sent_bytes: int = 0

    def pack(self, tensor: Tensor) -> Tensor | tuple[torch.device, Tensor]:
        """What autograd keeps of a tensor."""
        if tensor.nbytes < AWAY_BYTES or tensor.untyped_storage()._cdata in self.staying:
            return tensor
        self.sent_bytes += tensor.nbytes
        there = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        return tensor.device, there.copy_(tensor, non_blocking=True)

    @staticmethod
    def unpack(kept: Tensor | tuple[torch.device, Tensor]) -> Tensor:
        """The tensor itself, where it was."""
        return kept if isinstance(kept, Tensor) else kept[1].to(kept[0], non_blocking=True)


def away_from(model: nn.Module) -> Away:
    """An Away that leaves a model's weights where they are."""
    return Away(frozenset(tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]))
