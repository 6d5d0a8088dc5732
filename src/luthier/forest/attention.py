"""The attention of a forest, plugged into transformers through its attention interface.

A model runs with `attn_implementation="luthier_forest"` and gets the plan as the keyword `forest`. Model code is
not copied: rotary embeddings, norms and projections stay the family's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from luthier.forest.parts import MASKED, Scores, part_backward, part_forward
from luthier.forest.plan import Block, Plan

IMPLEMENTATION = "luthier_forest"


def register() -> None:
    """Make the implementation known to transformers. Safe to call again."""
    AttentionInterface.register(IMPLEMENTATION, forest_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, no_mask)


def no_mask(*_: Any, **__: Any) -> None:
    """The plan says who sees whom; transformers needs no mask."""
    return


def forest_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    forest: Plan | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: query [1, H, N, D], key and value [1, K, N, D] -> [1, N, H, D]."""
    if forest is None:
        raise RuntimeError("the forest attention was called without a plan: use luthier.forest, not model(...)")
    unsupported = [name for name in ("s_aux", "position_bias", "cache") if kwargs.get(name) is not None]
    if dropout or attention_mask is not None or unsupported:
        raise RuntimeError(f"the forest attention does not know {unsupported or 'attention dropout or masks'}")
    scores = Scores(scaling if scaling is not None else query.shape[-1] ** -0.5, softcap)
    window = sliding_window or getattr(module, "sliding_window", None)
    past_key = past_value = None
    if forest.past is not None:
        past_key, past_value = remember(forest, int(module.layer_idx), key, value)  # type: ignore[arg-type]
    if forest.dense_NN is not None:
        out = dense(query, key, value, forest, scores, window, past_key, past_value)
    elif past_key is not None and past_value is not None:
        window = window_if_it_bites(forest, window)
        out, _ = grouped(query, key, value, forest, scores, window, (past_key, past_value))
    else:
        out = GroupedAttention.apply(query, key, value, forest, scores, window_if_it_bites(forest, window))
    return out.transpose(1, 2).contiguous(), None


def remember(plan: Plan, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The past of this layer before this pass; with `recording`, this pass is appended for the next one."""
    past = plan.past
    assert past is not None
    before = past.keys.get(layer), past.values.get(layer)
    if past.recording:
        past.keys[layer] = key if before[0] is None else torch.cat([before[0], key], dim=2)
        past.values[layer] = value if before[1] is None else torch.cat([before[1], value], dim=2)
    return before


def window_if_it_bites(plan: Plan, window: int | None) -> int | None:
    """A sliding window longer than the deepest path changes nothing."""
    return window if window is not None and int(plan.positions_N.max()) >= window else None


def dense(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: Plan,
    scores: Scores,
    window: int | None,
    past_key: Tensor | None,
    past_value: Tensor | None,
) -> Tensor:
    """The reference: every query against every key under the whole mask, by plain differentiable products.

    Also the path of decoding and of a remembered beginning, where past keys stand before the new ones.
    """
    visible = plan.dense_NN
    assert visible is not None
    key_positions = plan.positions_N
    if past_key is not None and past_value is not None and plan.past is not None:
        size = past_key.shape[2]
        seen = plan.past.visible_NP
        if seen is None:
            seen = torch.ones(plan.num_tokens, size, dtype=torch.bool, device=query.device)
        visible = torch.cat([seen, visible], dim=1)
        key, value = torch.cat([past_key, key], dim=2), torch.cat([past_value, value], dim=2)
        key_positions = torch.cat([plan.past.positions_P[:size], key_positions])
    if window is not None:
        visible = visible & (plan.positions_N[:, None] - key_positions[None, :] < window)
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if scores.softcap is None:
        return nn.functional.scaled_dot_product_attention(query, key, value, visible[None, None], scale=scores.scale)
    logits = torch.matmul(query, key.transpose(-1, -2)) * scores.scale
    logits = torch.tanh(logits / scores.softcap) * scores.softcap
    return torch.matmul(torch.softmax(logits.masked_fill(~visible, -torch.inf), dim=-1), value)


def grouped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: Plan,
    scores: Scores,
    window: int | None,
    past: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Output [1, H, N, D] and log-sum-exp [1, H, N] by parts; `past` is one more ancestor of every row."""
    out = torch.empty_like(query)
    lse = torch.empty(query.shape[:3], dtype=torch.promote_types(query.dtype, torch.float32), device=query.device)
    groups = query.shape[1] // key.shape[1]
    for block in plan.blocks:
        mask = block_mask(block, plan, window, query.dtype)
        q, k, v = (take(tensor, block) for tensor in (query, key, value))
        part, part_lse = part_forward(q, expand(k, groups), expand(v, groups), mask, mask is None, scores)
        put(out, part, block)
        put(lse, part_lse, block)
    for cross in plan.crosses:
        rows, keys = slice(cross.query_start, cross.query_end), slice(cross.key_start, cross.key_end)
        mask = cross_mask(plan.positions_N[rows], plan.positions_N[keys], window, groups, query.dtype)
        q = fold(query[:, :, rows], groups)
        part, part_lse = part_forward(q, key[:, :, keys], value[:, :, keys], mask, False, scores)
        merge(out[:, :, rows], lse[:, :, rows], unfold(part, groups), part_lse)
    if past is not None:
        assert plan.past is not None
        positions = plan.past.positions_P[: past[0].shape[2]]
        mask = cross_mask(plan.positions_N, positions, window, groups, query.dtype)
        part, part_lse = part_forward(fold(query, groups), *past, mask, False, scores)
        merge(out, lse, unfold(part, groups), part_lse)
    return out, lse


class GroupedAttention(torch.autograd.Function):
    """Exact attention of a forest by parts, merged by log-sum-exp; backward recomputes the parts' weights.

    query [1, H, N, D]; key, value [1, K, N, D] with H a multiple of K. Saves query, key, value, output and one
    number per head and token: no matrix of weights is ever kept.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: Plan, scores: Scores, window: int | None
    ) -> Tensor:
        """Merged output [1, H, N, D]."""
        out, lse = grouped(query, key, value, plan, scores, window)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.plan, ctx.scores, ctx.window = plan, scores, window
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients for query, key and value."""
        query, key, value, out, lse = ctx.saved_tensors
        plan, scores, window = ctx.plan, ctx.scores, ctx.window
        groups = query.shape[1] // key.shape[1]
        grads = [torch.empty_like(tensor) for tensor in (query, key, value)]
        for block in plan.blocks:
            mask = block_mask(block, plan, window, query.dtype)
            q, k, v, o, g = (take(tensor, block) for tensor in (query, key, value, out, grad))
            part_lse = take(lse, block).contiguous()
            if not block.whole:  # padding repeats row 0: nothing may flow back from it
                g = g * block.valid_GT[:, None, :, None]
                part_lse = part_lse.masked_fill(~block.valid_GT[:, None], -MASKED)
            dq, dk, dv = part_backward(
                g, q, expand(k, groups), expand(v, groups), o, part_lse, mask, mask is None, scores
            )
            for target, part in zip(grads, (dq, shrink(dk, groups), shrink(dv, groups)), strict=True):
                put(target, part, block)
        for cross in plan.crosses:
            rows, keys = slice(cross.query_start, cross.query_end), slice(cross.key_start, cross.key_end)
            mask = cross_mask(plan.positions_N[rows], plan.positions_N[keys], window, groups, query.dtype)
            q, o, g = (fold(tensor[:, :, rows], groups) for tensor in (query, out, grad))
            part_lse = lse[:, :, rows].reshape(q.shape[:3])
            dq, dk, dv = part_backward(g, q, key[:, :, keys], value[:, :, keys], o, part_lse, mask, False, scores)
            grads[0][:, :, rows] += unfold(dq, groups)
            grads[1][:, :, keys] += dk
            grads[2][:, :, keys] += dv
        return grads[0], grads[1], grads[2], None, None, None


def merge(out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> None:
    """Fold one more part into output and log-sum-exp, in place."""
    part_lse = part_lse.reshape(lse.shape)
    total = torch.logaddexp(lse, part_lse)
    out.mul_(torch.exp(lse - total).unsqueeze(-1).to(out.dtype))
    out.add_(part * torch.exp(part_lse - total).unsqueeze(-1).to(out.dtype))
    lse.copy_(total)


def take(tensor: Tensor, block: Block) -> Tensor:
    """Rows of a block: [1, H, N, ...] -> [G, H, T, ...].

    Gathered along N first: transformers lays [1, H, N, D] out with the heads of a token side by side, so a row is one
    run of memory.
    """
    return tensor[0].transpose(0, 1)[block.index_GT].transpose(1, 2)


def put(target: Tensor, part: Tensor, block: Block) -> None:
    """The inverse of `take`, real rows only. Each row of a forest stands in exactly one block."""
    rows = part.transpose(1, 2).flatten(0, 1)
    target[0].transpose(0, 1)[block.row_P] = rows if block.whole else rows[block.place_P]


def expand(tensor: Tensor, groups: int) -> Tensor:
    """Key/value heads repeated for their query heads: [B, K, ...] -> [B, K * groups, ...]."""
    return tensor.repeat_interleave(groups, dim=1) if groups > 1 else tensor


def shrink(tensor: Tensor, groups: int) -> Tensor:
    """Gradient of `expand`: sums over the query heads that share a key head."""
    return tensor.unflatten(1, (-1, groups)).sum(2) if groups > 1 else tensor


def fold(tensor: Tensor, groups: int) -> Tensor:
    """Query heads of one key head side by side as more queries: [1, K * groups, Q, D] -> [1, K, groups * Q, D]."""
    batch, heads, rows, width = tensor.shape
    return tensor.reshape(batch, heads // groups, groups * rows, width)


def unfold(tensor: Tensor, groups: int) -> Tensor:
    """The inverse of `fold`."""
    batch, heads, rows, width = tensor.shape
    return tensor.reshape(batch, heads * groups, rows // groups, width)


def block_mask(block: Block, plan: Plan, window: int | None, dtype: torch.dtype) -> Tensor | None:
    """The additive mask of a block, sliding window included; None for a plain causal run."""
    mask = block.mask_G1TT
    if window is not None:
        positions = plan.positions_N[block.index_GT]
        far = positions[:, :, None] - positions[:, None, :] >= window
        if mask is None:
            length = positions.shape[1]
            far = far | torch.ones(length, length, dtype=torch.bool, device=far.device).triu(1)
            mask = torch.zeros(1, 1, 1, 1, device=far.device)
        diagonal = torch.eye(positions.shape[1], dtype=torch.bool, device=far.device)
        mask = (mask + far[:, None] * MASKED).masked_fill(diagonal, 0.0)  # padding sees itself, so no row is blind
    return None if mask is None else mask.to(dtype)


def cross_mask(queries: Tensor, keys: Tensor, window: int | None, groups: int, dtype: torch.dtype) -> Tensor | None:
    """Keys out of the sliding window, by positions, for folded queries [1, 1, groups * Q, J]; None where none is."""
    if window is None:
        return None
    far = queries[:, None] - keys[None, :] >= window
    if not bool(far.any()):
        return None
    return (far.to(dtype) * MASKED).repeat(groups, 1)[None, None]
