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

from luthier.forest.parts import MASKED, Part, Scores, Whole, is_flash, part_backward, part_forward
from luthier.forest.plan import Block, Cross, Plan

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
    own = 0  # the first row of this pass; before it stands a learned prefix
    if forest.prefix is not None:
        query, key, value, own = behind_prefix(forest.prefix[int(module.layer_idx)], query, key, value)  # type: ignore[arg-type]
    if forest.past is not None:
        past_key, past_value = remember(forest, int(module.layer_idx), key, value)  # type: ignore[arg-type]
    if forest.dense_NN is not None:
        out = dense(query, key, value, forest, scores, window, past_key, past_value)
    elif past_key is not None and past_value is not None:
        window = window_if_it_bites(forest, window)
        rows, _ = grouped(query, key, value, forest, scores, window, (past_key, past_value))
        out = rows.transpose(0, 1)[None]
    else:
        out = GroupedAttention.apply(query, key, value, forest, scores, window_if_it_bites(forest, window))
    return out[:, :, own:].transpose(1, 2).contiguous(), None


def behind_prefix(
    prefix: tuple[Tensor, Tensor], query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Query, key and value with V learned rows before them, and V. Nobody reads what those rows ask: zeros."""
    size = prefix[0].shape[2]
    nothing = query.new_zeros(*query.shape[:2], size, query.shape[3])
    joined = (torch.cat([part.to(rows.dtype), rows], dim=2) for part, rows in
              zip((nothing, *prefix), (query, key, value), strict=True))  # fmt: skip
    return (*joined, size)  # type: ignore[return-value]


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
    """Output [N, H, D] and log-sum-exp [N, H] by parts; `past` is one more ancestor of every row."""
    heads, key_heads = query.shape[1], key.shape[1]
    q, k, v = padded(query, plan), padded_keys(key, plan), padded_keys(value, plan)
    outs, lses = [], []
    for i in range(len(plan.blocks)):
        part = block_part(plan, i, window, (q, k, v), (heads, key_heads))
        part_out, part_lse = part_forward(part, scores)
        outs.append(part_out.reshape(-1, part_out.shape[-1]))
        lses.append(part_lse.reshape(-1))
    place = plan.head_rows(heads).place
    out = join(outs).index_select(0, place).view(-1, heads, query.shape[-1])
    lse = join(lses).index_select(0, place).view(-1, heads)
    for cross in plan.crosses:
        rows = slice(cross.query_start, cross.query_end)
        merge(out[rows], lse[rows], *part_forward(cross_part(query, key, value, plan, cross, window), scores))
    if past is not None:
        assert plan.past is not None
        positions = plan.past.positions_P[: past[0].shape[2]]
        mask = cross_mask(plan.positions_N, positions, window)
        merge(out, lse, *part_forward(Part(query, *past, mask), scores))
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
        out = out.transpose(0, 1)[None]
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.plan, ctx.scores, ctx.window = plan, scores, window
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients for query, key and value."""
        saved = ctx.saved_tensors  # once: what is worked out again or sent away for the backward pass comes once
        query, key, value, out, lse = saved
        plan, scores, window = ctx.plan, ctx.scores, ctx.window
        delta = (grad * out).sum(-1, dtype=lse.dtype)[0].T
        grads = block_gradients(ctx, saved, grad, delta)
        for cross in plan.crosses:
            rows, keys = slice(cross.query_start, cross.query_end), slice(cross.key_start, cross.key_end)
            whole = Whole(grad[:, :, rows], out[:, :, rows], lse[rows].T[None], delta[rows].T[None])
            parts = part_backward(cross_part(query, key, value, plan, cross, window), whole, scores)
            for target, part, span in zip(grads, parts, (rows, keys, keys), strict=True):
                target[span].add_(part[0].transpose(0, 1))
        dq, dk, dv = (tensor.transpose(0, 1)[None] for tensor in grads)
        return dq, dk, dv, None, None, None


def block_gradients(ctx: Any, saved: tuple[Tensor, ...], grad: Tensor, delta: Tensor) -> list[Tensor]:
    """Gradients [N, H or K, D] that flow through the blocks: for query, key and value."""
    query, key, value, out, lse = saved
    plan, scores = ctx.plan, ctx.scores
    heads, key_heads = query.shape[1], key.shape[1]
    q, k, v = padded(query, plan), padded_keys(key, plan), padded_keys(value, plan)
    g = padded(grad, plan)
    lse, delta = (tensor.reshape(-1).index_select(0, plan.head_rows(heads).rows) for tensor in (lse, delta))
    found: list[list[Tensor]] = [[], [], []]
    for i, block in enumerate(plan.blocks):
        part = block_part(plan, i, ctx.window, (q, k, v), (heads, key_heads))
        part_lse = plan.cut(lse, i, heads)
        if not block.whole:  # padding repeats row 0: nothing may flow back from it
            part_lse = part_lse.masked_fill(~block.valid_GT[:, None], -MASKED)
        is_needed = is_flash(query, part.key.shape[2], scores)
        part_out = plan.cut(padded(out, plan), i, heads) if is_needed else None
        whole = Whole(plan.cut(g, i, heads), part_out, part_lse, plan.cut(delta, i, heads))
        for pieces, piece in zip(found, part_backward(part, whole, scores), strict=True):
            pieces.append(piece.reshape(-1, piece.shape[-1]))
    dq = join(found[0]).index_select(0, plan.head_rows(heads).place).view(-1, heads, query.shape[-1])
    rows = plan.head_rows(key_heads).key_rows  # of a trunk's rows there are copies: their gradients add up
    dk, dv = (
        grad.new_zeros(query.shape[2] * key_heads, query.shape[-1])
        .index_add_(0, rows, join(pieces))
        .view(-1, key_heads, query.shape[-1])
        for pieces in found[1:]
    )
    return [dq, dk, dv]


def padded(tensor: Tensor, plan: Plan) -> Tensor:
    """[1, H, N, D] -> the head rows of all blocks, padding included, one after another: [X, D]."""
    heads = tensor.shape[1]
    rows = tensor[0].transpose(0, 1).reshape(-1, tensor.shape[-1])
    return rows.index_select(0, plan.head_rows(heads).rows)


def padded_keys(tensor: Tensor, plan: Plan) -> Tensor:
    """[1, K, N, D] -> the head rows of the keys of all blocks, those of trunks above included: [X, D]."""
    heads = tensor.shape[1]
    rows = tensor[0].transpose(0, 1).reshape(-1, tensor.shape[-1])
    return rows.index_select(0, plan.head_rows(heads).key_rows)


def block_part(
    plan: Plan, index: int, window: int | None, rows: tuple[Tensor, Tensor, Tensor], heads: tuple[int, int]
) -> Part:
    """Block `index` and its keys. rows: queries, keys, values of all blocks; heads: how many queries and keys have."""
    q, k, v = rows
    mask = block_mask(plan.blocks[index], plan, window)
    query = plan.cut(q, index, heads[0])
    return Part(query, plan.cut_keys(k, index, heads[1]), plan.cut_keys(v, index, heads[1]), mask, mask is None)


def join(pieces: list[Tensor]) -> Tensor:
    """One tensor of the pieces; no copy of a single one."""
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def cross_part(query: Tensor, key: Tensor, value: Tensor, plan: Plan, cross: Cross, window: int | None) -> Part:
    """An ancestor's keys under all of its descendants' queries."""
    rows, keys = slice(cross.query_start, cross.query_end), slice(cross.key_start, cross.key_end)
    mask = cross_mask(plan.positions_N[rows], plan.positions_N[keys], window)
    return Part(query[:, :, rows], key[:, :, keys], value[:, :, keys], mask)


def merge(out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> None:
    """Fold one more part [1, H, Q, D], [1, H, Q] into output [Q, H, D] and log-sum-exp [Q, H], in place."""
    part, part_lse = part[0].transpose(0, 1), part_lse[0].T
    total = torch.logaddexp(lse, part_lse)
    out.mul_(torch.exp(lse - total).unsqueeze(-1).to(out.dtype))
    out.addcmul_(part, torch.exp(part_lse - total).unsqueeze(-1).to(out.dtype))
    lse.copy_(total)


def block_mask(block: Block, plan: Plan, window: int | None) -> Tensor | None:
    """The additive mask of a block, sliding window included; None for a plain causal run."""
    mask = block.mask_G1TJ
    if window is not None:
        positions_GT, positions_GJ = plan.positions_N[block.index_GT], plan.positions_N[block.keys_GJ]
        far = positions_GT[:, :, None] - positions_GJ[:, None, :] >= window
        length = positions_GT.shape[1]
        if mask is None:
            far = far | torch.ones(length, length, dtype=torch.bool, device=far.device).triu(1)
            mask = torch.zeros(1, 1, 1, 1, device=far.device)
        num_above = positions_GJ.shape[1] - length
        itself = torch.eye(length, dtype=torch.bool, device=far.device)
        itself = nn.functional.pad(itself, (num_above, 0))
        mask = (mask + far[:, None] * MASKED).masked_fill(itself, 0.0)  # padding sees itself, so no row is blind
    return mask


def cross_mask(queries: Tensor, keys: Tensor, window: int | None) -> Tensor | None:
    """Keys out of the sliding window, by positions, [1, 1, Q, J]; None where none is."""
    if window is None:
        return None
    far = queries[:, None] - keys[None, :] >= window
    return (far.float() * MASKED)[None, None] if bool(far.any()) else None
