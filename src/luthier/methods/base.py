"""What a method is: a view (record -> sequences), a loss (a pure function), and what it needs. One file each."""

from __future__ import annotations

from collections.abc import Sequence as ManyOf
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from luthier.forest.tree import Forest, build_forest, common_prefix
from luthier.prompts import ClassifyPrompt
from luthier.records import Labelled, Sequence


@dataclass(frozen=True)
class Example:
    """One row as a method sees it: its sequences, and the index of its gold label."""

    sequences: tuple[Sequence, ...]
    gold: int

    @property
    def num_trained(self) -> int:
        """Tokens that carry a loss."""
        return sum(len(sequence.targets) for sequence in self.sequences)


@dataclass(frozen=True)
class Batch:
    """A forest of examples. gold_B: label index of each row; row_M: the row of each target, role_M: its role."""

    forest: Forest
    gold_B: Tensor
    row_M: Tensor
    role_M: Tensor
    weight_M: Tensor


@dataclass(frozen=True)
class Outputs:
    """What a method computes its loss from.

    logprobs_M: log p of each target. logits_BL: the head's answer for each row, where the method has a head.
    """

    logprobs_M: Tensor | None = None
    logits_BL: Tensor | None = None


@dataclass(frozen=True)
class LossOut:
    """Sum of the loss over a batch, the weight it is to be divided by (once, globally), and sums to report."""

    total: Tensor
    weight: float
    metrics: dict[str, float]


class Method(Protocol):
    """The contract. A method is frozen, so its attributes are read only."""

    @property
    def name(self) -> str:
        """What the recipe calls it."""
        ...

    @property
    def head(self) -> bool:
        """Whether rows are read out by a classification head instead of target tokens."""
        ...

    def view(self, prompt: ClassifyPrompt, rows: ManyOf[Labelled]) -> list[Example]:
        """Sequences of each row, with their targets."""
        ...

    def weight(self, example: Example) -> float:
        """What the row counts in the normalisation; the loss's weight is the sum over its rows."""
        ...

    def loss(self, outputs: Outputs, batch: Batch) -> LossOut:
        """The pure loss."""
        ...


def make_batch(examples: ManyOf[Example], device: torch.device | str = "cpu") -> Batch:
    """The forest of some examples, rows numbered from 0 in their order."""
    sequences = [
        replace(s, group=row, role=role)
        for row, example in enumerate(examples)
        for role, s in enumerate(example.sequences)
    ]
    forest = build_forest(sequences)
    row_S = torch.tensor([sequence.group for sequence in sequences], device=device)
    role_S = torch.tensor([sequence.role for sequence in sequences], device=device)
    sequence_M = torch.from_numpy(forest.sequence_M).to(device)
    return Batch(
        forest=forest,
        gold_B=torch.tensor([example.gold for example in examples], device=device),
        row_M=row_S[sequence_M],
        role_M=role_S[sequence_M],
        weight_M=torch.from_numpy(forest.weight_M).to(device, torch.float32),
    )


def split_by_tokens(examples: ManyOf[Example], max_tokens: int) -> list[list[Example]]:
    """Micro-batches of at most `max_tokens` distinct tokens (one example at least), neighbours by shared beginning."""
    ordered = sorted(examples, key=lambda example: example.sequences[0].tokens)
    groups: list[list[Example]] = []
    size = 0
    before: tuple[int, ...] = ()
    for example in ordered:
        fresh = distinct_tokens(example, before if groups else ())
        if not groups or size + fresh > max_tokens:
            groups.append([])
            size, fresh = 0, distinct_tokens(example, ())
        groups[-1].append(example)
        size += fresh
        before = example.sequences[0].tokens
    return groups


def distinct_tokens(example: Example, before: tuple[int, ...]) -> int:
    """Tokens this example adds to a forest that already holds the sequence `before`."""
    total, previous = 0, before
    for tokens in sorted(sequence.tokens for sequence in example.sequences):
        total += len(tokens) - common_prefix(np.asarray(tokens), np.asarray(previous))
        previous = tokens
    return total


def candidate_scores(logprobs_M: Tensor, batch: Batch, num_labels: int) -> Tensor:
    """Weighted sum of target log-probabilities of each row's candidates, [B, L]; roles are label indices."""
    flat = torch.zeros(len(batch.gold_B) * num_labels, dtype=logprobs_M.dtype, device=logprobs_M.device)
    flat = flat.index_add(0, batch.row_M * num_labels + batch.role_M, logprobs_M * batch.weight_M)
    return flat.view(-1, num_labels)


def smoothed_cross_entropy(logprobs_BL: Tensor, gold_B: Tensor, smoothing: float) -> Tensor:
    """Sum over rows of -((1 - e) log p_gold + e mean_l log p_l) (Szegedy et al. 2016, section 7), a scalar."""
    gold = logprobs_BL.gather(1, gold_B[:, None]).sum()
    return -((1 - smoothing) * gold + smoothing * logprobs_BL.mean(1).sum())
