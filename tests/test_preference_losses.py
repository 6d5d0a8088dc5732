"""The preference losses: by hand, against float64 formulas, and by their gradients."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from luthier.methods.preferences import losses as loss

LOG2, LOG3 = math.log(2), math.log(3)


def float64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- by hand ---------------------------------------------------------------------------------------------------


def test_dpo_by_hand():
    """beta delta = log 3: sigmoid 3/4. Smoothed by 1/4: 3/4 log 4/3 + 1/4 log 4; robust: (3/4 log 4/3 - 1/4 log 4) * 2.

    IPO at delta 2, beta 1/4: (2 - 2)^2 = 0, at 5: 9. Hinge at beta delta 1/2: 1/2, at 3: 0.
    """
    delta, right, wrong = float64(2 * LOG3), math.log(4 / 3), math.log(4)
    assert float(loss.dpo_sigmoid(delta, 0.5, 0.0)) == pytest.approx(right, abs=1e-15)
    assert float(loss.dpo_sigmoid(float64(0.0), 0.5, 0.0)) == pytest.approx(LOG2, abs=1e-15)
    smoothed = 0.75 * right + 0.25 * wrong
    assert float(loss.dpo_conservative(delta, 0.5, 0.25)) == pytest.approx(smoothed, abs=1e-15)
    assert float(loss.dpo_robust(delta, 0.5, 0.25)) == pytest.approx(2 * (0.75 * right - 0.25 * wrong), abs=1e-15)
    assert loss.dpo_ipo(float64(2.0, 5.0), 0.25, 0.0).tolist() == [0.0, 9.0]
    assert loss.dpo_hinge(float64(1.0, 6.0), 0.5, 0.0).tolist() == [0.5, 0.0]


def test_losses_of_both_ratios_by_hand():
    """beta r_w = log 3, beta r_l = -log 3: sigmoids 3/4 and 1/4; of their difference, 2 log 3, 9/10."""
    chosen, rejected = float64(2 * LOG3), float64(-2 * LOG3)
    assert float(loss.apo_zero(chosen, rejected, 0.5)) == pytest.approx(1 / 4 + 1 / 4, abs=1e-15)
    assert float(loss.apo_down(chosen, rejected, 0.5)) == pytest.approx(3 / 4 + 1 / 10, abs=1e-15)
    wanted = math.log(4 / 3) + (math.log(4) + math.log(4 / 3)) / 2
    assert float(loss.nca_pair(chosen, rejected, 0.5)) == pytest.approx(wanted, abs=1e-15)


def test_kto_by_hand():
    """beta (r - z) = log 3: a good answer costs 2 * 1/4, a bad one 3 * 3/4; r = z: half of each weight."""
    ratio, good = float64(2 * LOG3 + 1, 2 * LOG3 + 1, 1, 1), torch.tensor([True, False, True, False])
    found = loss.kto(ratio, good, float64(1, 1, 1, 1), 0.5, (2.0, 3.0))
    assert found.tolist() == pytest.approx([0.5, 2.25, 1.0, 1.5], abs=1e-15)


def test_orpo_and_simpo_by_hand():
    """p = 3/4 and 1/2 have odds 3 and 1: log 4/3 + 2 log(1 + 1/3). SimPO: 2 (log 1/2 - log 1/8 - log 2) = 2 log 2."""
    found = loss.orpo(float64(math.log(0.75)), float64(-LOG2), 2.0)
    assert float(found) == pytest.approx(math.log(4 / 3) + 2 * math.log(4 / 3), abs=1e-14)
    found = loss.simpo(float64(-LOG2), float64(-3 * LOG2), 2.0, LOG2)
    assert float(found) == pytest.approx(math.log(1 + 1 / 4), abs=1e-15)


def better_of(levels: list[list[float]]) -> torch.Tensor:
    levels_BN = torch.tensor(levels)
    return levels_BN[:, :, None] > levels_BN[:, None, :]


def test_reward_losses_by_hand():
    """Rewards log 4, log 2, 0: p(1 over 2) = 2/3, p(1 over 3) = 4/5, p(2 over 3) = 2/3; the order: 4/7 * 2/3.

    In the second row answers 2 and 3 are tied: 4/6 twice; from the top: 4 / (4 + 2 + 2).
    """
    rewards = torch.stack([float64(math.log(4), LOG2, 0), float64(math.log(4), LOG2, LOG2)])
    better, none = better_of([[3, 2, 1], [3, 1, 1]]), torch.zeros(2, 3, 3, dtype=torch.float64)
    pairs = loss.bradley_terry(rewards, better, none, 0.0)
    assert pairs.tolist() == pytest.approx([(2 * math.log(3 / 2) + math.log(5 / 4)) / 3, math.log(3 / 2)], abs=1e-15)
    order = loss.plackett_luce(rewards, better, 0.0)
    assert order.tolist() == pytest.approx([math.log(7 / 4) + math.log(3 / 2), LOG2], abs=1e-15)
    margins = loss.bradley_terry(rewards[1:], better[1:], torch.full((1, 3, 3), LOG2), 0.0)
    assert float(margins) == pytest.approx(LOG2, abs=1e-7)
    for function, rest in ((loss.bradley_terry, (none[:1],)), (loss.plackett_luce, ())):
        centred = function(rewards[:1], better[:1], *rest, 0.5) - function(rewards[:1], better[:1], *rest, 0.0)
        assert float(centred) == pytest.approx(0.5 * (9 + 4 + 1) * LOG2**2 / 3, abs=1e-14)


# --- against formulas ------------------------------------------------------------------------------------------


@given(st.floats(-40, 40), st.floats(0.01, 2), st.floats(0, 0.45))
def test_dpo_losses_equal_formulas_in_double_precision(delta, beta, smoothing):
    """Written with log1p of exp instead of logsigmoid."""
    plus, minus = np.logaddexp(0, -beta * delta), np.logaddexp(0, beta * delta)
    wanted = {
        loss.dpo_conservative: (1 - smoothing) * plus + smoothing * minus,
        loss.dpo_robust: ((1 - smoothing) * plus - smoothing * minus) / (1 - 2 * smoothing),
    }
    for function, value in wanted.items():
        assert float(function(float64(delta), beta, smoothing)) == pytest.approx(value, rel=1e-9, abs=1e-9)
    mixed = (1 - smoothing) * loss.dpo_robust(float64(delta), beta, smoothing)
    mixed = mixed + smoothing * loss.dpo_robust(float64(-delta), beta, smoothing)
    assert float(mixed) == pytest.approx(plus, rel=1e-9, abs=1e-9), "unbiased under swapped pairs"


@given(st.floats(-60, -1e-9), st.floats(-60, -1e-9))
def test_odds_equal_the_plain_quotient(chosen, rejected):
    """log p - log(1 - p), by numpy's own expm1."""
    wanted = [value - np.log(-np.expm1(value)) for value in (chosen, rejected)]
    assert loss.log_odds(float64(chosen, rejected)).tolist() == pytest.approx(wanted, rel=1e-9, abs=1e-9)
    ratio = np.logaddexp(0, wanted[1] - wanted[0])
    assert float(loss.orpo(float64(chosen), float64(rejected), 0.3)) == pytest.approx(-chosen + 0.3 * ratio, rel=1e-9)


def test_a_certain_answer_has_a_finite_orpo_gradient():
    logprob = float64(0.0, -1e-14, -1e-7, -800.0).requires_grad_()
    loss.orpo(logprob, torch.full_like(logprob, -1.0), 1.0).sum().backward()
    assert torch.isfinite(logprob.grad).all()


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=5), st.integers(0, 10**6))
def test_ranking_losses_equal_loops(rewards, seed):
    """Pairs and orders written out one by one, ties included."""
    levels = np.random.default_rng(seed).integers(0, 3, len(rewards))
    levels[0] = 5
    values, better = float64(*rewards)[None], better_of([levels.tolist()])
    gaps = [a - b for (a, x), (b, y) in itertools.permutations(zip(rewards, levels, strict=True), 2) if x > y]
    wanted = np.mean(np.logaddexp(0, -np.array(gaps)))
    found = loss.bradley_terry(values, better, torch.zeros(1, len(rewards), len(rewards)), 0.0)
    assert float(found) == pytest.approx(wanted, rel=1e-9)
    order = 0.0
    for a, x in zip(rewards, levels, strict=True):
        below = [b for b, y in zip(rewards, levels, strict=True) if y < x]
        order -= math.log(math.exp(a) / (math.exp(a) + sum(map(math.exp, below))))
    assert float(loss.plackett_luce(values, better, 0.0)) == pytest.approx(order, rel=1e-9, abs=1e-12)


# --- gradients -------------------------------------------------------------------------------------------------


def test_gradcheck():
    draw = torch.Generator().manual_seed(2)
    delta = torch.randn(4, generator=draw, dtype=torch.float64).requires_grad_()
    below = (-torch.rand(2, 4, generator=draw, dtype=torch.float64) * 3 - 0.01).requires_grad_()
    rewards = torch.randn(2, 3, generator=draw, dtype=torch.float64).requires_grad_()
    better, none = better_of([[3, 2, 1], [3, 1, 1]]), torch.zeros(2, 3, 3, dtype=torch.float64)
    gradcheck = torch.autograd.gradcheck
    for function in (loss.dpo_conservative, loss.dpo_robust):
        assert gradcheck(lambda d, f=function: f(d, 0.3, 0.2), (delta,))
    for function in (loss.apo_zero, loss.apo_down, loss.nca_pair):
        assert gradcheck(lambda won, lost, f=function: f(won, lost, 0.3), (delta, below[0]))
    for function in (loss.dpo_sigmoid, loss.dpo_ipo, loss.dpo_hinge):
        assert gradcheck(lambda d, f=function: f(d, 0.3, 0.0), (delta,))
    good = torch.tensor([True, False, True, False])
    assert gradcheck(lambda r: loss.kto(r, good, torch.full_like(r, 0.2), 0.5, (2.0, 1.0)), (delta,))
    assert gradcheck(lambda b: loss.orpo(b[0], b[1], 0.7), (below,))
    assert gradcheck(lambda b: loss.simpo(b[0], b[1], 2.0, 0.5), (below,))
    assert gradcheck(lambda r: loss.bradley_terry(r, better, none + 0.3, 0.1), (rewards,))
    assert gradcheck(lambda r: loss.plackett_luce(r, better, 0.1), (rewards,))


def test_no_gradient_runs_through_the_reference_point():
    ratio, point = float64(1.0, -1.0).requires_grad_(), float64(0.5, 0.5).requires_grad_()
    loss.kto(ratio, torch.tensor([True, False]), point, 1.0, (1.0, 1.0)).sum().backward()
    assert point.grad is None and bool((ratio.grad != 0).all())
