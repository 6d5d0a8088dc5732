"""Bottleneck adapters (Houlsby et al. 2019, figure 2; Pfeiffer et al. 2020): two small layers behind a part's output.

    f(h) = h + s (act(h D^T + d) U^T + u)

h is what a part gives once it has projected back to the width of the hidden states, before the residual is added.
`houlsby` has one behind the attention and one behind the MLP, `pfeiffer` the second alone. U and u begin at zero, so
that f(h) = h exactly. Norms of the model stay frozen, unlike in the paper of 2019.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from luthier.adapters.placed import ACTIVATIONS, PlacedKind, draw_uniform, trained_dtype, width_of
from luthier.adapters.sites import ATTENTION_OUT, MLP_OUT, After, Around, places, required_places, text_config
from luthier.errors import ModelError
from luthier.recipe.adapters import Bottleneck


class BottleneckLayers(nn.Module):
    """The two layers: down [S, D] with bias [S], up [D, S] with bias [D]."""

    def __init__(self, settings: Bottleneck, width: int, like: Tensor, dtype: torch.dtype):
        super().__init__()
        self.down = nn.Linear(width, settings.size, device=like.device, dtype=dtype)
        self.up = nn.Linear(settings.size, width, device=like.device, dtype=dtype)
        self.activation = ACTIVATIONS[settings.activation]
        self.scale = settings.scale

    def draw(self, generator: torch.Generator) -> None:
        """Fresh layers that change nothing yet."""
        draw_uniform(self.down.weight, self.down.in_features, generator)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        inner = self.activation(self.down(hidden.to(self.down.weight.dtype)))
        return torch.add(hidden, self.up(inner).to(hidden.dtype), alpha=self.scale)


class BottleneckKind(PlacedKind):
    """Bottleneck adapters as a kind; see AdapterKind."""

    peft_type: ClassVar[str] = "LUTHIER_BOTTLENECK"
    section: ClassVar[type[Bottleneck]] = Bottleneck

    def sites(self, model: nn.Module, settings: Bottleneck) -> dict[str, type[Around]]:
        """The last linear layer of the MLP, and of the attention too for `houlsby`."""
        found = required_places(model, MLP_OUT, "bottleneck: the MLPs")
        if settings.style == "houlsby":
            attention = places(model, ATTENTION_OUT)
            if not attention:
                raise ModelError(
                    f"tune.adapter.style: houlsby puts an adapter behind the attention, and in a "
                    f"{text_config(model).model_type} model luthier knows no layer there. Set style: pfeiffer."
                )
            found += attention
        return dict.fromkeys(found, After)

    def adapter(self, settings: Bottleneck, model: nn.Module) -> nn.Module:
        """One pair of layers."""
        like = next(model.parameters())
        return BottleneckLayers(settings, width_of(model), like, trained_dtype(model))
