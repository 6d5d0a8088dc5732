"""Attention of one part: some queries over some keys, with the log-sum-exp, forward and backward.

Parts of one attention are merged by their log-sum-exp (FlashAttention, Dao et al. 2022, section 3.1; Hydragen,
Juravsky et al. 2024). Backward needs no merge: with the whole attention's output and log-sum-exp, each part's
gradient stands alone, since P_ij = exp(s_ij - lse_i) and dS = P * (dO V^T - rowsum(dO * O)).

Weights are taken to base 2, exp(s) = 2^(s log2 e): torch's exp takes 20 times as long as its exp2 where scores are
masked, since MKL's exp leaves its fast path when a result is zero.

A query that sees no key of a part gets an lse of about -1e30 there, so the part weighs exactly nothing in the merge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MASKED = -1e30  # added to a score; finite, so that a query with nothing to see stays free of NaN
LOG2_E = 1 / math.log(2)
PRODUCT_KEYS = 256  # up to so many keys plain products beat torch's flash kernel on a CPU (measured: 128 to 256)


@dataclass(frozen=True)
class Scores:
    """How scores are made: scale, and Gemma 2's soft cap (cap * tanh(score / cap)), None for no cap."""

    scale: float
    softcap: float | None = None


@dataclass(frozen=True)
class Part:
    """query [B, H, Q, D]; key, value [B, K, J, D], H a multiple of K; mask [B or 1, 1, Q, J], additive, or None.

    `causal`: query i sees keys up to i, and mask is None.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None = None
    causal: bool = False

    @property
    def groups(self) -> int:
        """Query heads of one key head."""
        return self.query.shape[1] // self.key.shape[1]


@dataclass(frozen=True)
class Whole:
    """Of the whole attention of a part's queries: grad and out [B, H, Q, D]; lse and delta [B, H, Q].

    delta is rowsum(grad * out); out is needed by the flash kernel only.
    """

    grad: Tensor
    out: Tensor | None
    lse: Tensor
    delta: Tensor


def part_forward(part: Part, scores: Scores) -> tuple[Tensor, Tensor]:
    """Output [B, H, Q, D] and log-sum-exp [B, H, Q] of one part, from its own keys alone."""
    if is_flash(part.query, part.key.shape[2], scores):
        key, value, mask = for_flash(part)
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            part.query, key, value, 0.0, part.causal, attn_mask=mask, scale=scores.scale
        )
        return out, lse
    query, key, value = matched(part)
    logits, _ = score(part, query, key, scores)
    highest = logits.amax(-1, keepdim=True)
    weights = logits.sub_(highest).exp2_()
    total = weights.sum(-1, keepdim=True)
    out = torch.bmm(weights.to(value.dtype), value).div_(total.to(value.dtype))
    return out.view(part.query.shape), total.log2_().add_(highest).div_(LOG2_E).view(part.query.shape[:3])


def part_backward(part: Part, whole: Whole, scores: Scores) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for query [B, H, Q, D], key and value [B, K, J, D]."""
    if is_flash(part.query, part.key.shape[2], scores):
        key, value, mask = for_flash(part)
        assert whole.out is not None
        dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            whole.grad, part.query, key, value, whole.out, whole.lse, 0.0, part.causal,
            attn_mask=mask, scale=scores.scale,
        )  # fmt: skip
        return dq, shrink(dk, part.groups), shrink(dv, part.groups)
    query, key, value = matched(part)
    grad = whole.grad.reshape(query.shape)
    logits, slope = score(part, query, key, scores)
    weights = logits.sub_(whole.lse.reshape(*query.shape[:2], 1) * LOG2_E).exp2_()
    dv = torch.bmm(weights.to(grad.dtype).transpose(1, 2), grad)
    slopes = torch.bmm(grad, value.transpose(1, 2)).to(weights.dtype)
    slopes.sub_(whole.delta.reshape(*query.shape[:2], 1)).mul_(weights)
    if slope is not None:
        slopes.mul_(slope)
    slopes = slopes.to(query.dtype)
    dq = scaled_product(slopes, key, scores.scale).view(part.query.shape)
    dk = scaled_product(slopes.transpose(1, 2), query, scores.scale)
    heads, size = part.key.shape[:2], part.key.shape[2:]
    dk, dv = (grad.view(*heads, -1, *size).sum(2) if len(grad) > heads.numel() else grad for grad in (dk, dv))
    return dq, dk.view(part.key.shape), dv.view(part.key.shape)


def is_flash(query: Tensor, num_keys: int, scores: Scores) -> bool:
    """Whether torch's CPU flash kernel does a part; elsewhere plain products do."""
    return query.device.type == "cpu" and scores.softcap is None and num_keys > PRODUCT_KEYS


def for_flash(part: Part) -> tuple[Tensor, Tensor, Tensor | None]:
    """Key and value with as many heads as the query, and the mask in its type."""
    mask = None if part.mask is None else part.mask.to(part.query.dtype)
    return expand(part.key, part.groups), expand(part.value, part.groups), mask


def matched(part: Part) -> tuple[Tensor, Tensor, Tensor]:
    """query [X, Y, D], key and value [X, J, D] to multiply batch by batch.

    Query heads that share a key head become more queries of it where that copies nothing or the queries are few;
    else keys and values are repeated.
    """
    query, key, value = part.query, part.key, part.value
    heads, rows = key.shape[:2].numel(), query.shape[2]
    if part.groups == 1:
        return query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)
    if query.is_contiguous() or rows < key.shape[2]:
        return query.reshape(heads, part.groups * rows, -1), key.flatten(0, 1), value.flatten(0, 1)
    return query.flatten(0, 1), expand(key, part.groups).flatten(0, 1), expand(value, part.groups).flatten(0, 1)


def score(part: Part, query: Tensor, key: Tensor, scores: Scores) -> tuple[Tensor, Tensor | None]:
    """Masked scores to base 2 [X, Y, J], float32 at least, and the soft cap's slope 1 - tanh^2 where there is one."""
    scale = scores.scale * LOG2_E if scores.softcap is None else scores.scale / scores.softcap
    logits = scaled_product(query, key.transpose(1, 2), scale)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    slope = None
    if scores.softcap is not None:
        logits.tanh_()
        slope = 1 - logits * logits
        logits.mul_(scores.softcap * LOG2_E)
    mask = causal_mask(part.query) if part.causal else part.mask
    if mask is not None:
        batch, heads, rows, _ = part.query.shape
        logits.view(batch, heads, rows, -1).add_(mask)
    return logits, slope


def causal_mask(query: Tensor) -> Tensor:
    """[1, 1, Q, Q], MASKED where the key stands after the query."""
    size = query.shape[2]
    return torch.full((1, 1, size, size), MASKED, dtype=torch.float32, device=query.device).triu_(1)


def scaled_product(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """scale * left @ right for batches, the scale inside the product."""
    return torch.baddbmm(left.new_empty(1, 1, 1), left, right, beta=0, alpha=scale)


def expand(tensor: Tensor, groups: int) -> Tensor:
    """Key/value heads repeated for their query heads: [B, K, ...] -> [B, K * groups, ...]."""
    return tensor.repeat_interleave(groups, dim=1) if groups > 1 else tensor


def shrink(tensor: Tensor, groups: int) -> Tensor:
    """Gradient of `expand`: sums over the query heads that share a key head."""
    return tensor.unflatten(1, (-1, groups)).sum(2) if groups > 1 else tensor
