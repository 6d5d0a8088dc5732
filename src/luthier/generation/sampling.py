"""Choosing the next token: the most likely one, or one drawn from a cut distribution.

Each sequence has its own stream of random numbers, named by seed, prompt and sample. A token is drawn with one
number of that stream by inverting the distribution function, so what a prompt gets depends neither on the other
prompts of its batch nor on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    temperature   0 takes the most likely token, and nothing else matters; else logits are divided by it
    top_k         only the k most likely tokens; 0 = all
    top_p         of those, the fewest most likely ones that hold this share (Holtzman et al. 2020, section 3.1)
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        assert self.temperature >= 0, "a temperature is 0 or more"
        assert 0 < self.top_p <= 1, "top_p is a share above 0"
        assert self.top_k >= 0, "top_k is 0 (all) or more"
        assert self.seed >= 0, "a seed is 0 or more"


@dataclass(frozen=True)
class Draw:
    """One sequence to be sampled: its settings, and the numbers of its prompt and of the sample of that prompt."""

    sampling: Sampling
    prompt: int
    sample: int = 0

    def stream(self) -> np.random.Generator:
        """Its random numbers: the same wherever and whenever it is drawn."""
        return np.random.default_rng([self.sampling.seed, self.prompt, self.sample])


class Chooser:
    """Draws tokens for the rows of one call; holds their streams."""

    def __init__(self, draws: Sequence[Draw]):
        self.samplings = [draw.sampling for draw in draws]
        self.streams = [draw.stream() for draw in draws]

    def greedy(self, rows: Sequence[int]) -> bool:
        """Whether nothing is random in these rows."""
        return all(self.samplings[row].temperature == 0 for row in rows)

    def choose(self, logits_SV: Tensor, rows: Sequence[int]) -> Tensor:
        """The next token of each row [S]; `rows` names the sequences that are still going on."""
        chosen = logits_SV.argmax(-1)
        drawn = [s for s, row in enumerate(rows) if self.samplings[row].temperature > 0]
        if drawn:
            samplings = [self.samplings[rows[s]] for s in drawn]
            shares = [self.streams[rows[s]].random() for s in drawn]
            chosen[drawn] = pick(cut_distribution(logits_SV[drawn], samplings), shares)
        return chosen


def cut_distribution(logits_SV: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """Probabilities [S, V] in float64 under each row's temperature, top_k and top_p; what is cut off has exactly 0.

    top_p looks at what top_k left, scaled to sum to 1. Tokens of equal probability rank by their index. The most
    likely token always stays.
    """

    def column(name: str) -> Tensor:
        return torch.tensor([[getattr(s, name)] for s in samplings], dtype=torch.float64, device=logits_SV.device)

    probs_SV = torch.softmax(logits_SV.double() / column("temperature"), dim=-1)
    if all(s.top_k == 0 and s.top_p == 1 for s in samplings):
        return probs_SV
    ranked_SV, order_SV = torch.sort(probs_SV, dim=-1, descending=True, stable=True)
    rank_V = torch.arange(ranked_SV.shape[1], device=logits_SV.device)
    top_k, top_p = column("top_k"), column("top_p")
    ranked_SV = ranked_SV * ((rank_V < top_k) | (top_k == 0))
    ranked_SV = ranked_SV / ranked_SV.sum(-1, keepdim=True)
    before_SV = ranked_SV.cumsum(-1) - ranked_SV
    ranked_SV = ranked_SV * ((before_SV < top_p) | (top_p == 1))
    ranked_SV = ranked_SV / ranked_SV.sum(-1, keepdim=True)
    return torch.zeros_like(probs_SV).scatter(-1, order_SV, ranked_SV)


def pick(probs_SV: Tensor, shares_S: Sequence[float]) -> Tensor:
    """For each row the first token at which the running sum, in the order of the vocabulary, passes the share.

    Shares lie in [0, 1). A token of probability 0 is never picked.
    """
    sums_SV = probs_SV.cumsum(-1)
    wanted_S1 = torch.tensor(shares_S, dtype=torch.float64, device=probs_SV.device)[:, None] * sums_SV[:, -1:]
    return torch.searchsorted(sums_SV, wanted_S1, right=True)[:, 0]
