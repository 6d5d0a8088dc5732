"""The output head fused with log-softmax, in chunks: logits of all rows never exist at once.

Only rows that a target reads go through the head, and each such row once, however many targets read it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_ELEMENTS = 8 << 20  # logits of one chunk: 32 MiB in float32


def target_logprobs(
    rows_RD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    reader_M: Tensor,
    token_M: Tensor,
    softcap: float | None = None,
    scale: float = 1.0,
) -> Tensor:
    """log p(token_m | row reader_m), shape [M].

    rows_RD: distinct hidden rows; reader_M: which of them target m reads; softcap: Gemma 2's cap on the final
    logits; scale: factor on the logits. float32 at least, whatever the rows' type.
    """
    # index_select: on a CPU with several threads the backward of an index with repeats adds in no fixed order
    lse_R = VocabularyLogSumExp.apply(rows_RD, weight_VD, bias_V, softcap, scale)
    read_MD, written_MD = rows_RD.index_select(0, reader_M), weight_VD.index_select(0, token_M)
    logit_M = (read_MD * written_MD).sum(-1, dtype=lse_R.dtype)
    if bias_V is not None:
        logit_M = logit_M + bias_V.index_select(0, token_M)
    return cap(logit_M * scale, softcap) - lse_R.index_select(0, reader_M)


def cap(logits: Tensor, softcap: float | None) -> Tensor:
    """softcap * tanh(logits / softcap); None leaves them."""
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


def chunk_logits(rows_CD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, scale: float) -> Tensor:
    """Uncapped logits [C, V] of one chunk, in float32 at least."""
    logits = rows_CD @ weight_VD.T if bias_V is None else torch.addmm(bias_V, rows_CD, weight_VD.T)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.mul_(scale) if scale != 1.0 else logits


class VocabularyLogSumExp(torch.autograd.Function):
    """lse_R = log sum_v exp(cap(scale * (h_R . w_v + b_v))).

    The gradient with respect to a row is a softmax-weighted mean of the head's rows; it is formed in the forward
    pass while the chunk's logits are at hand, so a frozen head costs two products in all, not three. A trained
    head recomputes its chunks in backward.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows_RD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        softcap: float | None,
        scale: float,
    ) -> Tensor:
        """One number per row."""
        size = max(1, CHUNK_ELEMENTS // len(weight_VD))
        wants_rows = ctx.needs_input_grad[0]
        slope_RD = torch.empty_like(rows_RD) if wants_rows else None
        pieces = []
        for start in range(0, len(rows_RD), size):
            logits = chunk_logits(rows_RD[start : start + size], weight_VD, bias_V, scale)
            capped = cap(logits, softcap)
            lse = torch.logsumexp(capped, dim=-1)
            pieces.append(lse)
            if slope_RD is not None:
                share = logit_gradient(capped, lse, softcap, scale)
                torch.mm(share.to(weight_VD.dtype), weight_VD, out=slope_RD[start : start + size])
        ctx.save_for_backward(rows_RD, weight_VD, bias_V, slope_RD)
        ctx.settings = softcap, scale, size
        return torch.cat(pieces)

    @staticmethod
    def backward(ctx: Any, grad_R: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients for rows, weight and bias."""
        rows_RD, weight_VD, bias_V, slope_RD = ctx.saved_tensors
        softcap, scale, size = ctx.settings
        grad_rows = None if slope_RD is None else slope_RD * grad_R[:, None].to(slope_RD.dtype)
        if not (ctx.needs_input_grad[1] or ctx.needs_input_grad[2]):
            return grad_rows, None, None, None, None
        grad_weight = torch.zeros_like(weight_VD)
        grad_bias = None if bias_V is None else torch.zeros_like(bias_V)
        for start in range(0, len(rows_RD), size):
            rows = rows_RD[start : start + size]
            capped = cap(chunk_logits(rows, weight_VD, bias_V, scale), softcap)
            share = logit_gradient(capped, torch.logsumexp(capped, dim=-1), softcap, scale)
            share = share.mul_(grad_R[start : start + size, None]).to(weight_VD.dtype)
            grad_weight.addmm_(share.T, rows)
            if grad_bias is not None:
                grad_bias.add_(share.sum(0))
        return grad_rows, grad_weight, grad_bias, None, None


def logit_gradient(capped: Tensor, lse: Tensor, softcap: float | None, scale: float) -> Tensor:
    """d lse / d (uncapped, unscaled logit), [C, V]; uses up `capped` where there is no cap."""
    if softcap is None:
        share = capped.sub_(lse[:, None]).exp_()
    else:
        share = torch.exp(capped - lse[:, None]) * (1 - (capped / softcap) ** 2)
    return share.mul_(scale) if scale != 1.0 else share


@torch.no_grad()
def top_logprobs(
    rows_RD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    count: int,
    softcap: float | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The `count` likeliest tokens of each row, likeliest first, and their log-probabilities: [R, K] each."""
    size = max(1, CHUNK_ELEMENTS // len(weight_VD))
    tokens, values = [], []
    for start in range(0, len(rows_RD), size):
        logits = cap(chunk_logits(rows_RD[start : start + size], weight_VD, bias_V, scale), softcap)
        best, token = torch.topk(logits, min(count, len(weight_VD)), dim=-1)
        tokens.append(token)
        values.append(best - torch.logsumexp(logits, dim=-1, keepdim=True))
    return torch.cat(tokens), torch.cat(values)
