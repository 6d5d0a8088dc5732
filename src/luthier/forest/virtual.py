"""Learned rows before every sequence: embeddings (prompt tuning), or keys and values of each layer (prefix tuning).

In a forest they are one root above all trees, computed once. They take the first places: the tokens of a sequence
stand behind them. A model that has them carries a `Virtual` as its attribute `virtual_tokens`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from luthier.forest.plan import Past, plan_forest
from luthier.forest.tree import Forest, Node, build_forest
from luthier.records import Sequence

States = list[tuple[Tensor, Tensor]]  # key and value of each layer, [1, K, V, D], as attention sees them


@dataclass(frozen=True)
class Virtual:
    """V learned rows: either `embeddings` gives them as [V, D], or `states` as keys and values of each layer."""

    num_tokens: int
    embeddings: Callable[[], Tensor] | None = None
    states: Callable[[], States] | None = None


def virtual_of(model: nn.Module) -> Virtual | None:
    """What a model has before every sequence."""
    found: Virtual | None = getattr(model, "virtual_tokens", None)
    return found


def under_root(forest: Forest, size: int) -> Forest:
    """The forest with a root of `size` rows above all of its trees; its rows and positions move behind them."""
    root = Node(0, size, size + forest.num_tokens, -1, 0)
    nodes = (
        Node(node.start + size, node.end + size, node.subtree_end + size, node.parent + 1, node.depth + size)
        for node in forest.nodes
    )
    return replace(
        forest,
        tokens_N=np.concatenate([np.zeros(size, np.int64), forest.tokens_N]),
        positions_N=np.concatenate([np.arange(size), forest.positions_N + size]),
        nodes=(root, *nodes),
        row_M=forest.row_M + size,
        last_row_S=forest.last_row_S + size,
        first_N=np.concatenate([np.zeros(size, np.int64), forest.first_N]),
    )


def virtual_hidden_states(
    model: nn.Module, body: Any, forest: Forest, backend: str, device: torch.device, virtual: Virtual
) -> Tensor:
    """The last hidden states [N, D] of a forest's own rows, below the learned ones."""
    size = virtual.num_tokens
    plan = plan_forest(under_root(forest, size), backend, device)
    tokens_N = torch.from_numpy(forest.tokens_N).to(device)
    settings = {"attention_mask": None, "use_cache": False}
    if virtual.embeddings is not None:
        rows_ND = embedded(model, virtual, tokens_N)
        out = body(inputs_embeds=rows_ND[None], position_ids=plan.positions_N[None], forest=plan, **settings)
        return out.last_hidden_state[0, size:]
    assert virtual.states is not None
    plan = replace(plan, prefix=tuple(virtual.states()))
    positions_1N = plan.positions_N[None, size:]
    return body(input_ids=tokens_N[None], position_ids=positions_1N, forest=plan, **settings).last_hidden_state[0]


def embedded(model: nn.Module, virtual: Virtual, tokens_N: Tensor) -> Tensor:
    """The learned embeddings, and those of tokens behind them: [V + N, D]."""
    assert virtual.embeddings is not None
    rows_ND = model.get_input_embeddings()(tokens_N)  # type: ignore[operator]
    return torch.cat([virtual.embeddings().to(rows_ND.dtype), rows_ND])


def padded_inputs(model: nn.Module, tokens_ST: Tensor) -> tuple[dict[str, Any], int]:
    """What a model's body is called with, and how many of the rows that it returns stand before the sequences'."""
    virtual = virtual_of(model)
    if virtual is None:
        return {"input_ids": tokens_ST, "attention_mask": torch.ones_like(tokens_ST)}, 0
    size, (rows, length) = virtual.num_tokens, tokens_ST.shape
    mask = tokens_ST.new_ones(rows, size + length)
    if virtual.embeddings is not None:
        rows_STD = model.get_input_embeddings()(tokens_ST)  # type: ignore[operator]
        learned = virtual.embeddings().to(rows_STD.dtype).expand(rows, -1, -1)
        return {"inputs_embeds": torch.cat([learned, rows_STD], dim=1), "attention_mask": mask}, size
    return {"input_ids": tokens_ST, "attention_mask": mask, "past_key_values": prefix_cache(virtual, rows)}, 0


def prefix_cache(virtual: Virtual, rows: int) -> DynamicCache:
    """transformers' cache that holds the learned keys and values for each of `rows` sequences."""
    assert virtual.states is not None
    cache = DynamicCache()
    for layer, (key, value) in enumerate(virtual.states()):
        cache.update(key.expand(rows, -1, -1, -1), value.expand(rows, -1, -1, -1), layer)
    return cache


@torch.no_grad()
def first_past(model: nn.Module, body: Any) -> Past:
    """The past that every sequence has: the learned rows, or nothing. It records what comes next."""
    device = next(model.parameters()).device
    past = Past(torch.empty(0, dtype=torch.long, device=device), recording=True)
    virtual = virtual_of(model)
    if virtual is None:
        return past
    if virtual.states is not None:
        for layer, (key, value) in enumerate(virtual.states()):
            past.keys[layer], past.values[layer] = key, value
    else:
        assert virtual.embeddings is not None
        plan = plan_forest(build_forest([Sequence((0,) * virtual.num_tokens)]), "grouped", device, past=past)
        rows_1VD = virtual.embeddings()[None].to(next(model.parameters()).dtype)
        body(inputs_embeds=rows_1VD, position_ids=plan.positions_N[None], attention_mask=None, use_cache=False,
             forest=plan)  # fmt: skip
    past.positions_P = torch.arange(virtual.num_tokens, device=device)
    return past


@torch.no_grad()
def first_cache(model: nn.Module) -> Any:
    """The same for transformers' own decoding of one sequence: a cache, or None."""
    virtual = virtual_of(model)
    if virtual is None:
        return None
    if virtual.states is not None:
        return prefix_cache(virtual, 1)
    assert virtual.embeddings is not None
    rows_1VD = virtual.embeddings()[None].to(next(model.parameters()).dtype)
    return model(inputs_embeds=rows_1VD, use_cache=True).past_key_values
