"""The losses of heads, and what turns their outputs into answers: pure functions of tensors.

P read spans, L labels or outputs, K = L - 1 thresholds between ordered labels. A gold index of -1 is a label that no
training row has: it cannot be learnt, so its term is exactly zero.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import huber_loss, logsigmoid


def weighted_cross_entropy(logprobs_PL: Tensor, gold_P: Tensor, weights_L: Tensor, smoothing: float) -> Tensor:
    """Sum over spans of -((1 - e) w_y log p_y + e / L sum_l w_l log p_l), a scalar.

    y = gold_P [P], w = weights_L [L], e = smoothing. Label smoothing: Szegedy et al. 2016, section 7, each label's
    share with its own weight. To be divided by the sum of w_y.
    """
    known_P = (gold_P >= 0).to(logprobs_PL)
    gold_P = gold_P.clamp_min(0)
    weighted_PL = logprobs_PL * weights_L
    gold = weighted_PL.gather(1, gold_P[:, None])[:, 0]
    return -(known_P * ((1 - smoothing) * gold + smoothing * weighted_PL.mean(1))).sum()


def focal(logprobs_PL: Tensor, gold_P: Tensor, weights_L: Tensor, gamma: float) -> Tensor:
    """Sum over spans of -w_y (1 - p_y)^g log p_y, a scalar (Lin et al. 2017, equation 5); g = 0 is cross-entropy.

    y = gold_P [P], w = weights_L [L]. To be divided by the sum of w_y.
    """
    known_P = (gold_P >= 0).to(logprobs_PL)
    gold_P = gold_P.clamp_min(0)
    log_p_P = logprobs_PL.gather(1, gold_P[:, None])[:, 0]
    missed_P = -torch.expm1(log_p_P)  # 1 - p without cancellation
    return -(known_P * weights_L[gold_P] * missed_P.clamp_min(1e-12) ** gamma * log_p_P).sum()


def binary_focal(logits_BL: Tensor, gold_BL: Tensor, weights_L: Tensor, gamma: float) -> Tensor:
    """Sum over rows of the mean over labels of -w (1 - q)^g log q, a scalar; g = 0 is binary cross-entropy.

    q = sigmoid(z) where the row has the label and 1 - sigmoid(z) where not; w = weights_L where it has it, else 1
    (Lin et al. 2017, equation 4). z = logits_BL, gold_BL 0 or 1. To be divided by the rows B.
    """
    signed_BL = torch.where(gold_BL > 0, logits_BL, -logits_BL)
    factor_BL = torch.where(gold_BL > 0, weights_L.to(logits_BL), torch.ones_like(logits_BL))
    return -(factor_BL * torch.exp(gamma * logsigmoid(-signed_BL)) * logsigmoid(signed_BL)).mean(1).sum()


def cumulative(logits_PK: Tensor, gold_P: Tensor) -> Tensor:
    """Sum over spans of the sum over thresholds of the binary cross-entropy of "above threshold k", a scalar.

    -sum_p sum_k [y_p > k] log s(z_pk) + [y_p <= k] log(1 - s(z_pk)), s the logistic function, z = logits_PK falling
    in k, y = gold_P in 0..K (Cao, Mirjalili and Raschka 2020, equation 6). To be divided by the spans P.
    """
    known_P = (gold_P >= 0).to(logits_PK)
    above_PK = gold_P[:, None] > torch.arange(logits_PK.shape[1], device=gold_P.device)
    signed_PK = torch.where(above_PK, logits_PK, -logits_PK)
    return -(known_P * logsigmoid(signed_PK).sum(1)).sum()


def grade_shares(logits_PK: Tensor) -> Tensor:
    """Probabilities of the ordered labels, [P, K + 1]: differences of P(y > k), which falls in k, so none is negative.

    The cumulative link model (McCullagh 1980, equation 2.1).
    """
    above_PK = torch.sigmoid(logits_PK)
    first, last = torch.ones_like(above_PK[:, :1]), torch.zeros_like(above_PK[:, :1])
    bounds = torch.cat([first, above_PK, last], dim=1)
    return bounds[:, :-1] - bounds[:, 1:]


def squared_or_huber(values_P: Tensor, gold_P: Tensor, delta: float | None) -> Tensor:
    """Sum over spans of the squared error, or with `delta` of Huber's loss, a scalar.

    Huber (1964): e^2 / 2 up to |e| = delta, then delta (|e| - delta / 2). To be divided by the spans P.
    """
    if delta is None:
        return ((values_P - gold_P) ** 2).sum()
    return huber_loss(values_P, gold_P, reduction="sum", delta=delta)
