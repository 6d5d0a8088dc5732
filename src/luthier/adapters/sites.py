"""Where adapters of our own stand in a transformers model, found by the names of a layer's parts.

The model's code stays as it is: a part is replaced by one that calls it (`After`, `Beside`, `BesideResidual`), and put
back when the adapter is taken out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from luthier.errors import ModelError

# The last linear layer of each part, which projects back to the width of the hidden states: what it gives is added to
# the residual, after nothing but dropout and (in Gemma and OLMo 2) a norm.
ATTENTION_OUT = (
    "self_attn.o_proj", "attn.c_proj", "attention.dense", "attention.output.dense", "attention.out_lin", "attn.Wo",
)  # fmt: skip
MLP_OUT = (
    "mlp.down_proj", "mlp.c_proj", "mlp.dense_4h_to_h", "output.dense", "ffn.lin2", "mlp.Wo", "ff.layer_2",
)  # fmt: skip
# MLPs that are one module from hidden states to hidden states, without the residual.
MLP = ("mlp", "ffn")
# BERT's have two modules; the second one takes the inner states and the residual, which is what the first one read.
MLP_WITH_RESIDUAL = ("output",)


class Around(nn.Module):
    """A part of a model with an adapter that belongs to it."""

    def __init__(self, base: nn.Module, adapter: nn.Module):
        super().__init__()
        self.base = base
        self.adapter = adapter


class After(Around):
    """adapter(base(x)): the adapter reads what the part gives."""

    def forward(self, x: Tensor) -> Any:
        """As the part is called."""
        return self.adapter(self.base(x))


class Beside(Around):
    """base(x) + adapter(x): both read the same."""

    def forward(self, x: Tensor) -> Any:
        """As the part is called."""
        return self.base(x) + self.adapter(x)


class BesideResidual(Around):
    """norm(dense(inner) + x) becomes norm(dense(inner) + x + adapter(x)), through what the part takes for x."""

    def forward(self, inner: Tensor, x: Tensor) -> Any:
        """As the part is called."""
        return self.base(inner, x + self.adapter(x))


def places(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Paths of the modules with one of these names in their layer, layer by layer; empty unless each layer has one."""
    wanted = re.compile(rf"(?:^|\.)(\d+)\.(?:{'|'.join(map(re.escape, names))})$")
    found = [name for name, _ in model.named_modules() if wanted.search(name)]
    return found if len(found) == text_config(model).num_hidden_layers else []


def required_places(model: nn.Module, names: Sequence[str], what: str) -> list[str]:
    """The same; ModelError where there are none. `what`: which kind of adapter looks for which part."""
    found = places(model, names)
    if not found:
        raise ModelError(
            f"{what} of a {text_config(model).model_type} model are not at a place that luthier knows (in each layer "
            f"one of {', '.join(names)}). Take another kind of adapter for this model, such as lora."
        )
    return found


def put_around(model: nn.Module, place: str, kind: type[Around], adapter: nn.Module) -> None:
    """Replace the part at `place` by one that calls it and the adapter."""
    base = model.get_submodule(place)
    model.set_submodule(place, kind(base, adapter).train(base.training))


def take_out(model: nn.Module, place: str) -> None:
    """Put the part itself back."""
    around = model.get_submodule(place)
    assert isinstance(around, Around)
    model.set_submodule(place, around.base)


def adapter_at(model: nn.Module, place: str) -> nn.Module:
    """The adapter that stands at `place`."""
    around = model.get_submodule(place)
    assert isinstance(around, Around)
    return around.adapter


def text_config(model: nn.Module) -> Any:
    """The configuration of the language model."""
    config: Any = model.config
    return config.get_text_config()
