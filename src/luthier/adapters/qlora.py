"""LoRA over weights in 4 bits (QLoRA, Dettmers et al. 2023): bitsandbytes packs and unpacks, the products are torch's.

A layer's weights are unpacked for its product and again for its gradient, and never kept. bitsandbytes' own layer takes
other kernels in training than in answering, rounded ones on some processors; here both are the same numbers.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import PeftModel
from torch import Tensor, nn

from luthier.adapters.lora import LoraKind, linear_weights, lora_config, refuse_on_head, said_of_left_out
from luthier.adapters.parts import linear_names
from luthier.adapters.peft_files import change_config, has_transposed, load_peft, put_in, save_peft
from luthier.adapters.snapshot import Snapshot
from luthier.errors import ModelError
from luthier.files import write_json
from luthier.kernels import product
from luthier.recipe.adapters import Qlora
from luthier.runtime import leave_file

QUANTIZED = "quantized.json"  # beside a saved adapter: how the weights under it were kept
BLOCK = 64  # weights that share a scale


class PackedProduct(torch.autograd.Function):
    """y = x W^T with W unpacked on the way, forward and backward. x [..., I], W [O, I] -> y [..., O]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: PackedLinear) -> Tensor:
        """The product."""
        ctx.layer = layer
        return product(x, layer.weight.to(x.dtype).T, layer.precision)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """dx = g W."""
        return product(grad, ctx.layer.weight.to(grad.dtype), ctx.layer.precision), None


class PackedLinear(nn.Linear):
    """A frozen linear layer that keeps its weights in 4 bits; `weight` unpacks them."""

    def __init__(self, layer: nn.Linear, double: bool):
        from bitsandbytes.functional import quantize_4bit

        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        packed, state = quantize_4bit(
            layer.weight.detach().contiguous(), blocksize=BLOCK, compress_statistics=double, quant_type="nf4"
        )
        self.packed = nn.Parameter(packed, requires_grad=False)
        self.packed.quant_state = state  # type: ignore[attr-defined]
        self.bias = layer.bias
        self.precision = "float32"

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weights [O, I] as they count."""
        from bitsandbytes.functional import dequantize_4bit

        state: Any = self.packed.quant_state  # type: ignore[attr-defined]
        if state.absmax.device != self.packed.device:
            state.to(self.packed.device)
        return dequantize_4bit(self.packed.data, state)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., I] -> [..., O]."""
        out: Tensor = PackedProduct.apply(x, self)
        return out if self.bias is None else out + self.bias


class QloraKind(LoraKind):
    """QLoRA as a kind of adapter; see AdapterKind. What is saved is a LoRA adapter, and a note on the weights below."""

    peft_type: ClassVar[str] = "LORA"

    def add(self, model: nn.Module, settings: Qlora, seed: int, base_folder: Path) -> PeftModel:  # type: ignore[override]
        """A fresh adapter over packed weights."""
        told = said_of_left_out(model, settings)
        snapshot = pack(model, settings.double)
        wrapper: Any = put_in(model, lora_config(model, settings, base_folder), seed)
        refuse_on_head(model, settings)
        wrapper.left_out = told
        wrapper.snapshot, wrapper.double = snapshot, settings.double
        return wrapper

    def load(self, model: nn.Module, folder: Path, trainable: bool) -> PeftModel:
        """A saved one, over weights packed as they were."""
        double = is_double(folder)
        snapshot = pack(model, double)
        wrapper: Any = load_peft(model, folder, trainable)
        wrapper.snapshot, wrapper.double = snapshot, double
        return wrapper

    def save(self, wrapper: Any, folder: Path) -> None:
        """In PEFT's format, with the note."""
        save_peft(wrapper, folder)
        change_config(folder, init_lora_weights=True)
        write_json(folder / QUANTIZED, {"type": "nf4", "block": BLOCK, "double": wrapper.double})

    def fold(self, model: nn.Module, folder: Path) -> None:
        """The updates added to the weights that packing left: what was trained, exactly."""
        refuse_missing()
        double = is_double(folder)
        with torch.no_grad():
            for name in linear_names(model):
                layer: Any = model.get_submodule(name)
                layer.weight.copy_(PackedLinear(layer, double).weight)
        super().fold(model, folder)

    def remove(self, wrapper: Any) -> None:
        """The plain layers again, with their weights as they were."""
        model = wrapper.base_model.model
        wrapper.unload()
        for name in linear_names(model):
            layer: Any = model.get_submodule(name)
            plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device=layer.packed.device)
            plain.bias = layer.bias
            model.set_submodule(name, plain.requires_grad_(False).train(layer.training))
        wrapper.snapshot.restore(linear_weights(model))

    def join(self, lower: Path, upper: Path, target: Path) -> None:
        """Refused: the weights under the second adapter were packed with the first one in them."""
        raise ModelError(f"{upper}: qlora over {lower} is not one adapter. Set start: continue for the next stage.")


def pack(model: nn.Module, double: bool) -> Snapshot:
    """Keep the linear layers of `model` (but for the output head) in 4 bits, in place; returns what they were.

    Raises:
        ModelError: bitsandbytes is missing, or the model keeps its weights transposed.
    """
    refuse_missing()
    if has_transposed(model):
        raise ModelError("tune.adapter.kind: qlora does not know transposed weights (GPT-2's). Use lora.")
    snapshot = Snapshot(linear_weights(model))
    for name in linear_names(model):
        layer: Any = model.get_submodule(name)
        model.set_submodule(name, PackedLinear(layer, double).train(layer.training))
    leave_file(model.parameters())
    return snapshot


def is_double(folder: Path) -> bool:
    """Whether the scales under a saved adapter were in 8 bits."""
    return bool(json.loads((folder / QUANTIZED).read_text(encoding="utf-8"))["double"])


def refuse_missing() -> None:
    """ModelError where bitsandbytes is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            "tune.adapter.kind: qlora needs the package bitsandbytes, which is not installed. Install luthier[qlora], "
            "or use lora."
        )
