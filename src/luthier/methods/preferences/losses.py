"""The losses, each a pure function of float64 tensors: one number per row, averaged by the loop over all rows.

Letters as in records.py: B rows, N answers to one prompt. `delta_B` is the difference of the log-ratios of the
chosen (w) and the rejected answer (l):

    delta = (log p(w|x) - log p_ref(w|x)) - (log p(l|x) - log p_ref(l|x))
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu


def dpo_sigmoid(delta_B: Tensor, beta: float, smoothing: float) -> Tensor:
    """-log sigmoid(beta delta) (Rafailov et al. 2023, equation 7), [B]; no smoothing in it."""
    assert smoothing == 0, "the recipe refuses it"
    return -logsigmoid(beta * delta_B)


def dpo_ipo(delta_B: Tensor, beta: float, smoothing: float) -> Tensor:
    """(delta - 1 / (2 beta))^2 (Azar et al. 2023, equation 17; beta is their tau), [B]; no smoothing in it.

    delta_B is the difference of log-ratios per token: the square of a sum would grow with the answers' length.
    """
    assert smoothing == 0, "the recipe refuses it"
    return (delta_B - 1 / (2 * beta)) ** 2


def dpo_hinge(delta_B: Tensor, beta: float, smoothing: float) -> Tensor:
    """max(0, 1 - beta delta) (Zhao et al. 2023, SLiC, on DPO's reward), [B]; no smoothing in it."""
    assert smoothing == 0, "the recipe refuses it"
    return relu(1 - beta * delta_B)


def dpo_conservative(delta_B: Tensor, beta: float, smoothing: float) -> Tensor:
    """-(1 - e) log sigmoid(beta delta) - e log sigmoid(-beta delta) (Mitchell 2023, cDPO), [B].

    e is the share of pairs that are the wrong way round; the best delta is finite.
    """
    return -(1 - smoothing) * logsigmoid(beta * delta_B) - smoothing * logsigmoid(-beta * delta_B)


def dpo_robust(delta_B: Tensor, beta: float, smoothing: float) -> Tensor:
    """(-(1 - e) log sigmoid(beta delta) + e log sigmoid(-beta delta)) / (1 - 2e), [B].

    Its mean over pairs of which a share e was swapped is the plain loss of the unswapped ones (Chowdhury et al. 2024).
    """
    kept, swapped = logsigmoid(beta * delta_B), logsigmoid(-beta * delta_B)
    return (-(1 - smoothing) * kept + smoothing * swapped) / (1 - 2 * smoothing)


def apo_zero(chosen_B: Tensor, rejected_B: Tensor, beta: float) -> Tensor:
    """1 - sigmoid(beta r_w) + sigmoid(beta r_l), [B] (D'Oosterlinck et al. 2024, equation 7).

    r: the log-ratios. It makes the chosen answer likelier than the reference has it: for answers better than the
    model's own.
    """
    return torch.sigmoid(-beta * chosen_B) + torch.sigmoid(beta * rejected_B)


def apo_down(chosen_B: Tensor, rejected_B: Tensor, beta: float) -> Tensor:
    """sigmoid(beta r_w) + 1 - sigmoid(beta (r_w - r_l)), [B] (D'Oosterlinck et al. 2024, equation 8).

    It makes both answers less likely, the rejected one more so: for answers worse than the model's own.
    """
    return torch.sigmoid(beta * chosen_B) + torch.sigmoid(-beta * (chosen_B - rejected_B))


def nca_pair(chosen_B: Tensor, rejected_B: Tensor, beta: float) -> Tensor:
    """-log sigmoid(beta r_w) - (log sigmoid(-beta r_w) + log sigmoid(-beta r_l)) / 2, [B] (Chen et al. 2024).

    r: the log-ratios. Noise-contrastive alignment, which keeps the chosen answer from becoming less likely.
    """
    pushed_down = logsigmoid(-beta * chosen_B) + logsigmoid(-beta * rejected_B)
    return -logsigmoid(beta * chosen_B) - pushed_down / 2


def kto(ratio_S: Tensor, good_S: Tensor, point_S: Tensor, beta: float, weights: tuple[float, float]) -> Tensor:
    """w_good (1 - sigmoid(beta (r - z))) of a good answer, w_bad (1 - sigmoid(beta (z - r))) of a bad one, [S].

    ratio_S: r = log p(y|x) - log p_ref(y|x) of each answer. good_S: whether it was rated good. point_S: z, the
    reference point, a constant. weights: (w_good, w_bad). Ethayarajh et al. 2024, equation 8.
    """
    sign_S = torch.where(good_S, 1.0, -1.0)
    weight_S = torch.where(good_S, weights[0], weights[1])
    return weight_S * torch.sigmoid(-beta * sign_S * (ratio_S - point_S.detach()))


def orpo(chosen_B: Tensor, rejected_B: Tensor, weight: float) -> Tensor:
    """-log p(w|x) - weight * log sigmoid(log odds(w|x) - log odds(l|x)), [B] (Hong et al. 2024, equations 6 and 7).

    chosen_B, rejected_B: mean log-probabilities per token; odds = p / (1 - p).
    """
    return -chosen_B - weight * logsigmoid(log_odds(chosen_B) - log_odds(rejected_B))


def log_odds(logprob_B: Tensor) -> Tensor:
    """log (p / (1 - p)) of log p < 0, exact at both ends: 1 - p is taken from expm1 or log1p, whichever keeps it."""
    below_B = logprob_B.clamp(max=-1e-12)  # p = 1 has no odds
    certain_B = below_B > -math.log(2.0)
    near_B = torch.where(certain_B, below_B, -1.0)
    far_B = torch.where(certain_B, -1.0, below_B)
    return below_B - torch.where(certain_B, torch.log(-torch.expm1(near_B)), torch.log1p(-torch.exp(far_B)))


def simpo(chosen_B: Tensor, rejected_B: Tensor, beta: float, margin: float) -> Tensor:
    """-log sigmoid(beta (log p(w|x) - log p(l|x) - margin)), [B] (Meng et al. 2024, equation 6; gamma = beta margin).

    chosen_B, rejected_B: mean log-probabilities per token.
    """
    return -logsigmoid(beta * (chosen_B - rejected_B - margin))


def bradley_terry(rewards_BN: Tensor, better_BNN: Tensor, margins_BNN: Tensor, centring: float) -> Tensor:
    """Mean over a row's pairs (i better than j) of -log sigmoid(r_i - r_j - m_ij) + centring (r_i + r_j)^2, [B].

    better_BNN: which answers i are to beat which j. margins_BNN: by how much (0: by anything). Ouyang et al. 2022,
    equation 1; the margin as in Touvron et al. 2023, equation 2; the centring as in Eisenstein et al. 2023.
    """
    gaps_BNN = rewards_BN[:, :, None] - rewards_BN[:, None, :]
    sums_BNN = rewards_BN[:, :, None] + rewards_BN[:, None, :]
    losses_BNN = -logsigmoid(gaps_BNN - margins_BNN) + centring * sums_BNN**2
    return pair_mean(losses_BNN, better_BNN)


def plackett_luce(rewards_BN: Tensor, better_BNN: Tensor, centring: float) -> Tensor:
    """-sum_i log (exp r_i / (exp r_i + sum of exp r_j over the worse j)), + centring as in `bradley_terry`, [B].

    The order is drawn from the top: each answer wins against those below it (Plackett 1975; Luce 1959). Tied answers
    are not set against each other. Of two answers it is Bradley-Terry.
    """
    below_BNN = torch.where(better_BNN, rewards_BN[:, None, :], -math.inf)
    against_BNX = torch.cat([rewards_BN[:, :, None], below_BNN], dim=2)
    order_B = (torch.logsumexp(against_BNX, dim=2) - rewards_BN).sum(1)
    sums_BNN = rewards_BN[:, :, None] + rewards_BN[:, None, :]
    return order_B + centring * pair_mean(sums_BNN**2, better_BNN)


def pair_mean(values_BNN: Tensor, pairs_BNN: Tensor) -> Tensor:
    """Mean over each row's pairs, [B]; every row has one at least."""
    return (values_BNN * pairs_BNN).sum((1, 2)) / pairs_BNN.sum((1, 2))
