"""The sparse adapter of MEFT (Hao et al. 2024): beside each MLP a block so wide that tokens compute only part of it.

    mlp(x) + s sum over K of a(z_k) v_k            z_k = g_e(k) (x . w_k)
    g = E softmax(x R^T)                           1 for each of the E groups where the router has no opinion

A neuron has a key w_k and a value v_k; values begin at zero, so a fresh adapter changes nothing. With all neurons in
use and one group it is the parallel adapter of He et al. (2022). The gates multiply the scores, so the router learns
from the same loss.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from luthier.adapters.placed import ACTIVATIONS, PlacedKind, draw_uniform, trained_dtype, width_of
from luthier.adapters.sites import MLP, MLP_WITH_RESIDUAL, Around, Beside, BesideResidual, places, required_places
from luthier.adapters.sparse_neurons import Choice, SparseNeurons
from luthier.errors import ModelError
from luthier.recipe.adapters import Sparse


class SparseBlock(nn.Module):
    """Keys and values [R, D], and a router [E, D] where there is more than one group."""

    def __init__(self, settings: Sparse, width: int, like: Tensor, dtype: torch.dtype):
        super().__init__()
        device = "cpu" if settings.held == "cpu" else like.device
        self.keys = nn.Parameter(torch.empty(settings.width, width, device=device, dtype=dtype))
        self.values = nn.Parameter(torch.empty(settings.width, width, device=device, dtype=dtype))
        if settings.groups > 1:
            self.router = nn.Parameter(torch.empty(settings.groups, width, device=like.device, dtype=dtype))
        else:
            self.register_parameter("router", None)
        self.choice = Choice(settings.top, settings.active_groups, ACTIVATIONS[settings.activation])
        self.scale = settings.scale

    def draw(self, generator: torch.Generator) -> None:
        """Fresh neurons that change nothing yet."""
        draw_uniform(self.keys, self.keys.shape[1], generator)
        nn.init.zeros_(self.values)
        if self.router is not None:
            draw_uniform(self.router, self.router.shape[1], generator)

    def gates(self, x_ND: Tensor) -> Tensor:
        """[N, E]; their mean over the groups is 1."""
        if self.router is None:
            return x_ND.new_ones(len(x_ND), 1)
        return torch.softmax(x_ND @ self.router.T, dim=1) * len(self.router)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        x_ND = x.reshape(-1, x.shape[-1]).to(self.keys.dtype)
        y_ND = SparseNeurons.apply(x_ND, self.gates(x_ND), self.keys, self.values, self.choice)
        return (y_ND if self.scale == 1.0 else y_ND * self.scale).view(x.shape).to(x.dtype)


class SparseKind(PlacedKind):
    """Sparse adapters as a kind; see AdapterKind."""

    peft_type: ClassVar[str] = "LUTHIER_SPARSE"
    section: ClassVar[type[Sparse]] = Sparse

    def sites(self, model: nn.Module, settings: Sparse) -> dict[str, type[Around]]:
        """The MLPs; where they are two modules, the second, which has the first one's input as its residual."""
        if settings.problems:
            raise ModelError(f"tune.adapter.{settings.problems[0]}")
        found = places(model, MLP)
        if found:
            return dict.fromkeys(found, Beside)
        return dict.fromkeys(required_places(model, MLP_WITH_RESIDUAL, "sparse: the MLPs"), BesideResidual)

    def adapter(self, settings: Sparse, model: nn.Module) -> nn.Module:
        """One block."""
        like = next(model.parameters())
        return SparseBlock(settings, width_of(model), like, trained_dtype(model))
