"""A wide block of neurons of which each token computes a few, forward and backward, and keeps nothing of the others.

Of R neurons, in E groups of one size, a token's router looks into A groups and uses the K neurons of the highest score:

    z_k = g_e(k) (x . w_k)        score: gate of the neuron's group, times the product with its key w_k
    y   = sum over K of a(z_k) v_k

Keys and values are tables [R, D]. Where they live on another device than x (in the memory of the CPU, beside a GPU),
scores are worked out there, and only the rows that some token uses are moved, for the forward and again for the
backward; their gradients come back row by row. (Hao et al. 2024, MEFT, sections 3.2 and 3.3.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

SUM = 0  # embedding_bag's number for it


@dataclass(frozen=True)
class Choice:
    """How many groups and neurons a token uses, and what happens to a score.

    `moved`: whether rows are gathered first even where the tables live on x's own device.
    """

    top: int
    active_groups: int
    activation: Callable[[Tensor], Tensor]
    moved: bool = False


class SparseNeurons(torch.autograd.Function):
    """x [N, D], gate [N, E], keys [R, D], values [R, D] -> y [N, D]; see the head of this file."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, gate_NE: Tensor, keys_RD: Tensor, values_RD: Tensor, choice: Choice) -> Tensor:
        """Kept for backward: x, gates, and per token K neurons with their products."""
        host = keys_RD.device
        product_NK, neuron_NK = chosen_neurons(x_ND.to(host), gate_NE.to(host), keys_RD, choice)
        product_NK, neuron_NK = product_NK.to(x_ND.device), neuron_NK.to(x_ND.device)
        ctx.save_for_backward(x_ND, gate_NE, product_NK, neuron_NK, keys_RD, values_RD)
        ctx.choice = choice
        group_NK = group_of(neuron_NK, len(keys_RD), gate_NE.shape[1])
        weight_NK = choice.activation(gate_NE.gather(1, group_NK) * product_NK)
        rows = Rows.used(neuron_NK, x_ND.device, keys_RD, choice.moved)
        return weighted_rows(rows.of(values_RD), rows.local_NK, weight_NK)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """With q_k = a'(z_k) (g . v_k): dx = sum q_k g_e w_k;  dv_k = sum a(z_k) g;  dw_k = sum q_k g_e x;
        dg_e = sum over the group of q_k (x . w_k). A neuron that no token uses has a gradient of exactly zero."""
        x_ND, gate_NE, product_NK, neuron_NK, keys_RD, values_RD = ctx.saved_tensors
        choice: Choice = ctx.choice
        grad_ND = grads[0].contiguous()
        group_NK = group_of(neuron_NK, len(keys_RD), gate_NE.shape[1])
        gate_NK = gate_NE.gather(1, group_NK)
        rows = Rows.used(neuron_NK, x_ND.device, keys_RD, choice.moved)
        pulled_NK = row_products(grad_ND, rows.of(values_RD), rows.local_NK)
        weight_NK, score_grad_NK = bent(choice.activation, gate_NK * product_NK, pulled_NK)
        key_grad_NK = score_grad_NK * gate_NK
        needs_x, needs_gate, needs_keys, needs_values = ctx.needs_input_grad[:4]
        grad_x = weighted_rows(rows.of(keys_RD), rows.local_NK, key_grad_NK) if needs_x else None
        grad_gate = None
        if needs_gate:
            grad_gate = torch.zeros_like(gate_NE).scatter_add_(1, group_NK, score_grad_NK * product_NK)
        uses = Uses.of(rows) if needs_keys or needs_values else None
        grad_keys = rows.spread(uses.summed(x_ND, key_grad_NK), keys_RD) if uses and needs_keys else None
        grad_values = rows.spread(uses.summed(grad_ND, weight_NK), values_RD) if uses and needs_values else None
        return grad_x, grad_gate, grad_keys, grad_values, None


def chosen_neurons(x_ND: Tensor, gate_NE: Tensor, keys_RD: Tensor, choice: Choice) -> tuple[Tensor, Tensor]:
    """(x . w_k [N, K], number of the neuron [N, K]) of each token's K best by gated score, in no order."""
    num_groups = gate_NE.shape[1]
    size = len(keys_RD) // num_groups
    if choice.active_groups == num_groups:
        product_NC = x_ND @ keys_RD.T
        gate_NA, group_NA = gate_NE, None
    else:
        gate_NA, group_NA = gate_NE.topk(choice.active_groups, dim=1, sorted=False)
        product_NC = grouped_products(x_ND, keys_RD.view(num_groups, size, -1), group_NA)
    score_NC = (product_NC.view(len(x_ND), -1, size) * gate_NA[:, :, None]).view(len(x_ND), -1)
    place_NK = score_NC.topk(choice.top, dim=1, sorted=False).indices
    product_NK = product_NC.gather(1, place_NK)
    if group_NA is not None:
        place_NK = numbers_of(group_NA, size).gather(1, place_NK)
    return product_NK, place_NK.int()


def grouped_products(x_ND: Tensor, keys_EGD: Tensor, group_NA: Tensor) -> Tensor:
    """Products of each token with the keys of its A groups, [N, A * G]: one matrix product a group."""
    num_tokens, num_active = group_NA.shape
    product_NAG = x_ND.new_empty(num_tokens * num_active, keys_EGD.shape[1])
    order = group_NA.reshape(-1).argsort(stable=True)
    sizes = torch.bincount(group_NA.reshape(-1), minlength=len(keys_EGD)).tolist()
    for keys_GD, places in zip(keys_EGD, order.split(sizes), strict=True):
        if len(places):
            product_NAG[places] = x_ND[places // num_active] @ keys_GD.T
    return product_NAG.view(num_tokens, -1)


def numbers_of(group_NA: Tensor, size: int) -> Tensor:
    """The neurons of each token's groups, [N, A * G]."""
    within_G = torch.arange(size, device=group_NA.device)
    return (group_NA[:, :, None] * size + within_G).view(len(group_NA), -1)


def group_of(neuron_NK: Tensor, num_neurons: int, num_groups: int) -> Tensor:
    """The group of each neuron, looked up: whole numbers are divided far more slowly."""
    group_R = torch.arange(num_groups, device=neuron_NK.device).repeat_interleave(num_neurons // num_groups)
    return group_R[neuron_NK]


@dataclass(frozen=True)
class Rows:
    """The rows of the tables that tokens use: `used_U` of them, moved, or all of them where they are (None).

    `local_NK` says which of these rows a token uses.
    """

    local_NK: Tensor
    used_U: Tensor | None
    num_rows: int

    @classmethod
    def used(cls, neuron_NK: Tensor, device: torch.device, table_RD: Tensor, moved: bool) -> Rows:
        """For work on `device`."""
        if device == table_RD.device and not moved:
            return cls(neuron_NK, None, len(table_RD))
        used_U, local_NK = neuron_NK.long().unique(return_inverse=True)
        return cls(local_NK.int(), used_U.to(table_RD.device), len(used_U))

    def of(self, table_RD: Tensor) -> Tensor:
        """The rows of one table, on the device of the work."""
        return table_RD if self.used_U is None else table_RD[self.used_U].to(self.local_NK.device)

    def spread(self, grad_UD: Tensor, table_RD: Tensor) -> Tensor:
        """The gradient of the whole table from that of its used rows, where the table lives."""
        if self.used_U is None:
            return grad_UD
        return torch.zeros_like(table_RD).index_copy_(0, self.used_U, grad_UD.to(table_RD.device))


@dataclass(frozen=True)
class Uses:
    """Every use of a row by a token, row by row: `token_P`, the use's place in `local_NK`, and each row's first use."""

    token_P: Tensor
    place_P: Tensor
    first_U: Tensor

    @classmethod
    def of(cls, rows: Rows) -> Uses:
        """Sorted, and stably, so that sums have one order."""
        flat = rows.local_NK.reshape(-1)
        place_P = flat.argsort(stable=True)
        counts_U = torch.bincount(flat, minlength=rows.num_rows)
        return cls(place_P // rows.local_NK.shape[1], place_P, counts_U.cumsum(0) - counts_U)

    def summed(self, x_ND: Tensor, weight_NK: Tensor) -> Tensor:
        """For each row the sum, over the tokens that use it, of weight times token: [U, D]."""
        weight_P = weight_NK.reshape(-1)[self.place_P]
        return embedding_bag(self.token_P, x_ND, self.first_U, mode="sum", per_sample_weights=weight_P)


def weighted_rows(rows_UD: Tensor, local_NK: Tensor, weight_NK: Tensor) -> Tensor:
    """For each token the sum of its rows, weighted: [N, D]. The rows are never laid out per token."""
    return embedding_bag(local_NK, rows_UD, mode="sum", per_sample_weights=weight_NK)


def row_products(x_ND: Tensor, rows_UD: Tensor, local_NK: Tensor) -> Tensor:
    """Products of each token with its rows, [N, K]: what embedding_bag's own backward does for its weights.

    Ten times as fast here as laying the rows out per token, and nothing is laid out.
    """
    num_tokens, top = local_NK.shape
    token_P = torch.arange(num_tokens, device=x_ND.device).repeat_interleave(top)
    first_N = torch.arange(0, num_tokens * top, top, device=x_ND.device)
    flat_P = local_NK.reshape(-1).long()
    found_P: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        x_ND, rows_UD, flat_P, first_N, token_P, SUM
    )
    return found_P.view(num_tokens, top)


@torch.enable_grad()
def bent(activation: Callable[[Tensor], Tensor], score_NK: Tensor, pulled_NK: Tensor) -> tuple[Tensor, Tensor]:
    """a(z), and a'(z) times what pulls at it."""
    score_NK = score_NK.detach().requires_grad_()
    weight_NK = activation(score_NK)
    (grad_NK,) = torch.autograd.grad(weight_NK, score_NK, pulled_NK)
    return weight_NK.detach(), grad_NK
