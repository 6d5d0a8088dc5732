"""One of some labels in an order: one score of the text, and thresholds that rise from label to label."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as ManyOf
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from luthier.corpus.lines import Problem
from luthier.errors import DataError
from luthier.methods.base import MAIN, Batch, Example, LossOut, Outputs, Scores, hits
from luthier.methods.heads import base, losses
from luthier.prompts import Dialogue
from luthier.recipe.methods import Ordinal
from luthier.records import Labelled, Record

START_GAP = 1.0  # between neighbouring thresholds of a fresh head


class Thresholds(nn.Module):
    """z_k = w h - t_k, with t_1 = -bias_1 and t_k = t_(k-1) + softplus(bias_k): thresholds rise whatever is learnt.

    `weight` [1, D], `bias` [K]; h hidden states [P, D]; z [P, K] falls in k.
    """

    def __init__(self, weight_1D: Tensor, bias_K: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight_1D)
        self.bias = nn.Parameter(bias_K)

    def forward(self, hidden_PD: Tensor) -> Tensor:
        """Log-odds of "above threshold k"."""
        gaps = softplus(self.bias[1:]).cumsum(0)
        return hidden_PD @ self.weight.T + torch.cat([self.bias[:1], self.bias[0] - gaps])


@dataclass(frozen=True)
class OrdinalHead:
    """The cumulative link model, learnt threshold by threshold."""

    settings: Ordinal
    name: str = "ordinal"
    primary: str = "distance"
    higher_is_better: bool = False
    needs_reference: bool = False
    stratified: bool = True

    @property
    def labels(self) -> tuple[str, ...]:
        """Lowest first."""
        return tuple(self.settings.labels)

    def accept(self, record: Record) -> list[Labelled] | Problem:
        """Labelled texts of the settings' labels."""
        row = base.labelled(record, self.name)
        if isinstance(row, Problem):
            return row
        row = base.relabelled(row, self.spelled(row.label))
        return base.known(row.label, self.labels, "method.labels") or [row]

    def spelled(self, label: str) -> str:
        """A label as the settings spell it: of numbers, 1.0 is 1."""
        number = base.as_number(label)
        same = [known for known in self.labels if number is not None and base.as_number(known) == number]
        return same[0] if label not in self.labels and len(same) == 1 else label

    def fitted(self, rows: ManyOf[Labelled]) -> OrdinalHead:
        """Itself; the order is the settings'."""
        if len({row.label for row in rows}) < 2:
            raise DataError(f'{self.name}: all training rows have the label "{rows[0].label}". Give rows of others.')
        return self

    def described(self) -> dict[str, Any]:
        """Labels, lowest first."""
        return base.described(self, labels=list(self.labels))

    def remarks(self, rows: ManyOf[Labelled]) -> list[str]:
        """Nothing: rows that cannot be learnt are not accepted."""
        return []

    def labels_in(self, row: Labelled) -> tuple[str, ...]:
        """Its one label."""
        return (row.label,)

    def told(self, row: Labelled) -> str:
        """Its label."""
        return row.label

    def heads(self, width: int) -> Mapping[str, nn.Module]:
        """One weight row; thresholds one apart, the middle of them at 0."""
        start = base.filled(nn.utils.skip_init(nn.Linear, width, 1))
        count = len(self.labels) - 1
        gap = torch.log(torch.expm1(torch.tensor(START_GAP)))  # softplus of it is the gap
        bias_K = torch.full((count,), float(gap))
        bias_K[0] = START_GAP * (count - 1) / 2
        return {MAIN: Thresholds(start.weight.detach().clone(), bias_K)}

    def view(self, prompt: Dialogue, rows: ManyOf[Labelled]) -> list[Example]:
        """The text alone, read as a whole."""
        index = base.index_of(self.labels)
        return base.text_examples(prompt, rows, lambda row: (index[row.label],))

    def weight(self, example: Example) -> float:
        """Each row counts one."""
        return 1.0

    def loss(self, outputs: Outputs, batch: Batch) -> LossOut:
        """Binary cross-entropy of every threshold, summed; weight: rows."""
        assert outputs.logits_PL is not None
        return LossOut(losses.cumulative(outputs.logits_PL, batch.gold_B), float(batch.num_rows))

    def scores(self, outputs: Outputs, batch: Batch) -> Scores:
        """How many labels away the answer is on average, and accuracy."""
        assert outputs.logits_PL is not None
        given_B = self.given(outputs.logits_PL)
        away_B = (given_B - batch.gold_B).abs().double()
        return {"distance": (away_B, torch.ones_like(away_B)), "accuracy": hits(given_B, batch.gold_B)}

    def given(self, logits_BK: Tensor) -> Tensor:
        """The median label: as many thresholds as the text is likelier above than not (that distance is least)."""
        return (logits_BK > 0).sum(1)

    def answer(self, logits_PL: Tensor) -> dict[str, Any]:
        """The median label of one text, and the probability of each."""
        shares = losses.grade_shares(logits_PL.double())[0].tolist()
        return {
            "label": self.labels[int(self.given(logits_PL)[0])],
            "probabilities": dict(zip(self.labels, shares, strict=True)),
        }
