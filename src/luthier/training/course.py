"""What a training does beside plain epochs: the order in which rows of several tasks come, and a penalty.

An order is a pure function of the epoch (and its seed), so that a resumed training draws what the stopped one would
have drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Sequence as ManyOf
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Order = Callable[[int], NDArray[np.int64]]  # epoch -> indices of its rows, as many in every epoch
Penalty = Callable[[], Tensor]  # a scalar of the trained parameters as they are, with its gradient


@dataclass(frozen=True)
class Course:
    """`order` of the rows (None: each epoch a permutation of all); `penalty` added to the loss once a step."""

    order: Order | None = None
    penalty: Penalty | None = None


@dataclass(frozen=True)
class MixedOrder:
    """Rows of several tasks, so spread that every run of rows has each task's share, as near as whole rows can.

    `rows` are the indices of each task's rows and `draws` how many of them an epoch has. A task goes through all its
    rows before one comes again, across the borders of epochs.
    """

    rows: tuple[tuple[int, ...], ...]
    draws: tuple[int, ...]
    seed: int

    def __call__(self, epoch: int) -> NDArray[np.int64]:
        """Draw i of n of a task stands at (i + u) / n of the epoch, u drawn for each task and epoch."""
        offsets = np.random.default_rng([self.seed, epoch]).random(len(self.rows))
        places = [(np.arange(count) + offset) / count for count, offset in zip(self.draws, offsets, strict=True)]
        drawn = [self.drawn(task, epoch) for task in range(len(self.rows))]
        return np.concatenate(drawn)[np.argsort(np.concatenate(places), kind="stable")]

    def drawn(self, task: int, epoch: int) -> NDArray[np.int64]:
        """The rows of one task in an epoch: a piece of the stream of its permutations, one after the other."""
        own, count = np.asarray(self.rows[task], np.int64), self.draws[task]
        begin, size = epoch * count, len(self.rows[task])
        turns = range(begin // size, (begin + count - 1) // size + 1)
        stream = np.concatenate([np.random.default_rng([self.seed, task, turn]).permutation(size) for turn in turns])
        return own[stream[begin - turns[0] * size :][:count]]


def mixed_draws(sizes: ManyOf[int], temperature: float) -> list[int]:
    """Rows of each task in an epoch that is as long as all rows together: proportional to size ** (1 / temperature).

    1 is proportional, infinity equal (Arivazhagan et al. 2019, section 4). Every task has one at least.
    """
    weights = [size ** (1 / temperature) for size in sizes]
    return whole_shares(sum(sizes), weights)


def replay_draws(num_rows: int, num_tasks: int, share: float) -> list[int]:
    """Rows of each earlier task in an epoch with `num_rows` new ones, so that together they are `share` of it."""
    return whole_shares(max(num_tasks, round(num_rows * share / (1 - share))), [1.0] * num_tasks)


def whole_shares(total: int, weights: ManyOf[float]) -> list[int]:
    """`total` in whole parts near the weights' proportions: floors, then the largest remainders; none below 1."""
    exact = [total * weight / math.fsum(weights) for weight in weights]
    found = [math.floor(value) for value in exact]
    first = sorted(range(len(exact)), key=lambda i: found[i] - exact[i])
    for i in first[: total - sum(found)]:
        found[i] += 1
    return [max(1, value) for value in found]
