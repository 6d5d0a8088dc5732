"""Attention of one part: some queries over some keys, with the log-sum-exp, forward and backward.

Parts of one attention are merged by their log-sum-exp (FlashAttention, Dao et al. 2022, section 3.1; Hydragen,
Juravsky et al. 2024). Backward needs no merge: with the whole attention's output and log-sum-exp, each part's
gradient stands alone, since P_ij = exp(s_ij - lse_i) and dS = P * (dO V^T - rowsum(dO * O)).

Shapes: query [B, H, Q, D]; key, value [B, H, J, D] (heads already matched); mask [B or 1, 1, Q, J], additive;
out [B, H, Q, D]; lse [B, H, Q]. A query that sees no key of a part gets
an lse of about -1e30 there, so the part weighs exactly nothing in the merge.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MASKED = -1e30  # added to a score; finite, so that a query with nothing to see stays free of NaN


@dataclass(frozen=True)
class Scores:
    """How scores are made: scale, and Gemma 2's soft cap (cap * tanh(score / cap)), None for no cap."""

    scale: float
    softcap: float | None = None


def part_forward(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scores: Scores
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of one part."""
    if fused(query, scores):
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, attn_mask=mask, scale=scores.scale
        )
        return out, lse
    logits, _ = score(query, key, mask, causal, scores)
    lse = torch.logsumexp(logits, dim=-1)
    weights = torch.exp(logits - lse.unsqueeze(-1))
    return torch.matmul(weights, value), lse


def part_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    mask: Tensor | None,
    causal: bool,
    scores: Scores,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for query, key and value, given the output and log-sum-exp of the whole attention."""
    if fused(query, scores):
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, query, key, value, out, lse, 0.0, causal, attn_mask=mask, scale=scores.scale
        )
    logits, slope = score(query, key, mask, causal, scores)
    weights = torch.exp(logits - lse.unsqueeze(-1))
    grad_value = torch.matmul(weights.transpose(-1, -2), grad)
    delta = (grad * out).sum(-1, keepdim=True)
    grad_logits = weights * (torch.matmul(grad, value.transpose(-1, -2)) - delta)
    if slope is not None:
        grad_logits = grad_logits * slope
    grad_logits = grad_logits * scores.scale
    return torch.matmul(grad_logits, key), torch.matmul(grad_logits.transpose(-1, -2), query), grad_value


def fused(query: Tensor, scores: Scores) -> bool:
    """Whether torch's CPU flash kernel does this part; elsewhere plain products do."""
    return query.device.type == "cpu" and scores.softcap is None


def score(
    query: Tensor, key: Tensor, mask: Tensor | None, causal: bool, scores: Scores
) -> tuple[Tensor, Tensor | None]:
    """Masked scores [B, H, Q, J], and the soft cap's slope 1 - tanh^2 where there is one."""
    logits = torch.matmul(query, key.transpose(-1, -2)) * scores.scale
    slope = None
    if scores.softcap is not None:
        capped = torch.tanh(logits / scores.softcap)
        slope = 1 - capped * capped
        logits = capped * scores.softcap
    if causal:
        size = logits.shape[-1]
        future = torch.ones(size, size, dtype=torch.bool, device=logits.device).triu(1)
        logits = logits.masked_fill(future, MASKED)
    if mask is not None:
        logits = logits + mask
    return logits, slope
