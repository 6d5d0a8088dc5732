"""Several tasks in one training order: each task's share holds all along, not only at the end."""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from luthier.errors import DataError, did_you_mean
from luthier.recipe.corpus import Mixing


@dataclass(frozen=True)
class Mixture:
    """What is mixed: rows of each task, and how many places of the order it gets (whole numbers: no rounding)."""

    sizes: Mapping[str, int]
    counts: Mapping[str, int]

    @property
    def num_rows(self) -> int:
        """Length of the order."""
        return sum(self.counts.values())

    def share(self, task: str) -> float:
        """The task's share of the order."""
        return self.counts[task] / self.num_rows

    def passes(self, task: str) -> float:
        """How often each row of the task is seen, on average."""
        return self.counts[task] / self.sizes[task]


def mixture(
    sizes: Mapping[str, int],
    weights: Mapping[str, float],
    settings: Mixing,
    seed: int,
    replay: str | None = None,
    start: int = 0,
) -> Iterator[tuple[str, int]]:
    """(task, row index) for every position of the mixed order from `start` on: `plan_mixture`, then `mixed_order`."""
    return mixed_order(plan_mixture(sizes, weights, settings, replay), seed, start)


def plan_mixture(
    sizes: Mapping[str, int], weights: Mapping[str, float], settings: Mixing, replay: str | None = None
) -> Mixture:
    """Shares by `(weight * rows) ** (1 / temperature)`, over `epochs` times all rows.

    `sizes` maps a task to its number of rows, `weights` to its weight (1 where it is missing). `replay` names the
    task of the rows of `settings.replay`: they are `replay_share` of the whole order, on top of the others' epochs;
    their number and weight do not count.

    Raises:
        DataError: no rows, replay without rows, or a weight for a task that does not exist.
    """
    assert (settings.replay is None) == (replay is None), "the replay file's task has to be named"
    replay_share = settings.replay_share if replay else 0.0
    for task in weights:
        if task not in sizes:
            raise DataError(f'mixing: a weight for the task "{task}", which has no input.{did_you_mean(task, sizes)}')
    own = {task: num_rows for task, num_rows in sizes.items() if num_rows and task != replay}
    if not own:
        raise DataError("mixing: no task has rows. Look at the ledger for what was dropped.")
    if replay is not None and not sizes.get(replay):
        raise DataError(f'mixing.replay: the task "{replay}" has no rows. Check the file, or take replay out.')
    # logarithms, and relative to the largest: a small temperature overflows nothing
    logs = {
        task: (math.log(weights.get(task, 1.0)) + math.log(num_rows)) / settings.temperature
        for task, num_rows in own.items()
    }
    largest = max(logs.values())
    powers = {task: math.exp(value - largest) for task, value in logs.items()}
    shares = {task: power / sum(powers.values()) * (1 - replay_share) for task, power in powers.items()}
    if replay is not None:
        shares[replay] = replay_share
    num_rows = round(settings.epochs * sum(own.values()) / (1 - replay_share))
    counts = whole_counts(shares, num_rows)
    return Mixture({task: sizes[task] for task in counts}, counts)


def whole_counts(shares: Mapping[str, float], num_rows: int) -> dict[str, int]:
    """Shares of `num_rows` as whole rows that sum to it (largest remainders); tasks with less than a row may go."""
    exact = {task: share * num_rows for task, share in sorted(shares.items())}
    counts = {task: int(value) for task, value in exact.items()}
    by_remainder = sorted(exact, key=lambda task: counts[task] - exact[task])
    for task in by_remainder[: max(0, num_rows - sum(counts.values()))]:
        counts[task] += 1
    return {task: count for task, count in counts.items() if count}


def mixed_order(mixed: Mixture, seed: int, start: int = 0) -> Iterator[tuple[str, int]]:
    """(task, row index) for every position from `start` on.

    No row of a task comes a second time before all its others came once; each pass has a seeded order of its own.
    A later start gives the same rows as reading on to it (it counts through the positions before, without rows).
    """
    passes: dict[str, tuple[int, np.ndarray]] = {}
    for position, (task, number) in enumerate(turns(mixed.counts)):
        if position < start:
            continue
        epoch, place = divmod(number, mixed.sizes[task])
        if task not in passes or passes[task][0] != epoch:
            passes[task] = (epoch, seeded_permutation(mixed.sizes[task], f"{seed} {epoch} {task}"))
        yield task, int(passes[task][1][place])


def turns(counts: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """(task, how many turns it had before) for each turn; after any number of turns each is within 1 of its share.

    A task with share p may take its turn k (from 0) from the time floor(k / p) on and must have had it by
    ceil((k + 1) / p). Of those that may, the most urgent goes; as the shares sum to 1, none is ever late
    (Baruah et al. 1996, "Proportionate progress").
    """
    total = sum(counts.values())
    waiting = [(0, task, 0) for task in sorted(counts)]  # (first time, task, turn)
    ready: list[tuple[int, str, int]] = []  # (deadline, task, turn)
    for time in range(total):
        while waiting and waiting[0][0] <= time:
            _, task, turn = heapq.heappop(waiting)
            heapq.heappush(ready, (-(-(turn + 1) * total // counts[task]), task, turn))
        _, task, turn = heapq.heappop(ready)
        yield task, turn
        heapq.heappush(waiting, ((turn + 1) * total // counts[task], task, turn + 1))


def seeded_permutation(num_rows: int, seed: str) -> np.ndarray:
    """0 .. num_rows - 1 in an order that follows from the text `seed`; from raw bits, which no release changes."""
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:16])
    return np.argsort(np.random.PCG64(number).random_raw(num_rows), kind="stable")
