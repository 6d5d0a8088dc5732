"""A number for each text: one output on the mean hidden state over the text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from collections.abc import Sequence as ManyOf
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from luthier.corpus.lines import Problem
from luthier.errors import DataError
from luthier.methods.base import Batch, Example, LossOut, Outputs, Scores
from luthier.methods.heads import base, losses
from luthier.prompts import Dialogue
from luthier.recipe.methods import Regress
from luthier.records import Labelled, Record

# 1,500 may be fifteen hundred or one and a half; 1,500.00 and 1,500,000 are clear, and so are 1.500,00 and 3,5
GROUP_OR_DECIMALS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}", re.ASCII)
GROUPED = {
    ",": re.compile(r"[+-]?[1-9]\d{0,2}((,\d{3})+\.\d*|(,\d{3}){2,})", re.ASCII),
    ".": re.compile(r"[+-]?[1-9]\d{0,2}((\.\d{3})+,\d*|(\.\d{3}){2,})", re.ASCII),
}
DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+", re.ASCII)


def plain_number(text: str) -> str:
    """A number without what parts its thousands and with a decimal point, where no two readings are possible."""
    if GROUPED[","].fullmatch(text):
        return text.replace(",", "")
    if GROUPED["."].fullmatch(text):
        return text.replace(".", "").replace(",", ".")
    return text.replace(",", ".") if DECIMAL_COMMA.fullmatch(text) and not GROUP_OR_DECIMALS.fullmatch(text) else text


@dataclass(frozen=True)
class RegressHead:
    """Squared error or Huber's loss of the number in deviations from the training rows' mean.

    Gold of a row: (number - mean) / deviation. Figures are in the rows' own unit.
    """

    name: str = "regress"
    settings: Regress = field(default_factory=Regress)
    mean: float = 0.0
    deviation: float = 1.0
    primary: str = "unexplained"
    higher_is_better: bool = False
    needs_reference: bool = False

    def accept(self, record: Record) -> list[Labelled] | Problem:
        """Texts whose label is a number."""
        row = base.labelled(record, self.name)
        if isinstance(row, Problem):
            return row
        number = plain_number(row.label.strip())
        if GROUP_OR_DECIMALS.fullmatch(row.label.strip()):
            detail = f'the label "{row.label}" may be {number.replace(",", "")} or {number.replace(",", ".")}'
            return Problem("not_a_number", f"{detail}. Write the one that is meant, without the comma.")
        if base.as_number(number) is None:
            advice = "Write it like 3.5 or -2e-3. For labels use classify; for labels in an order use ordinal."
            return Problem("not_a_number", f'the label "{row.label}" is no number, which regress needs. {advice}')
        return [base.relabelled(row, number)]

    def fitted(self, rows: ManyOf[Labelled]) -> RegressHead:
        """With the mean and the deviation of the training rows' numbers."""
        numbers = np.array([float(row.label) for row in rows])
        if np.ptp(numbers) == 0:
            raise DataError(f"{self.name}: all training rows have the number {numbers[0]:g}: nothing to learn.")
        return replace(self, mean=float(numbers.mean()), deviation=float(numbers.std()))

    def described(self) -> dict[str, Any]:
        """What turns the head's output into the number."""
        return base.described(self, mean=self.mean, deviation=self.deviation)

    def remarks(self, rows: ManyOf[Labelled]) -> list[str]:
        """Nothing: rows that cannot be learnt are not accepted."""
        return []

    def told(self, row: Labelled) -> str:
        """Its number."""
        return row.label

    def heads(self, width: int) -> Mapping[str, nn.Module]:
        """One output."""
        return base.fresh_head(width, 1)

    def view(self, prompt: Dialogue, rows: ManyOf[Labelled]) -> list[Example]:
        """The text alone, read as a whole."""
        return base.text_examples(prompt, rows, lambda row: ((float(row.label) - self.mean) / self.deviation,))

    def weight(self, example: Example) -> float:
        """Each row counts one."""
        return 1.0

    def loss(self, outputs: Outputs, batch: Batch) -> LossOut:
        """Squared error or Huber's loss in deviations, summed; weight: rows."""
        assert outputs.logits_PL is not None
        delta = self.settings.huber_delta if self.settings.loss == "huber" else None
        values_B = outputs.logits_PL[:, 0]
        return LossOut(losses.squared_or_huber(values_B, batch.gold_G.to(values_B), delta), float(batch.num_rows))

    def scores(self, outputs: Outputs, batch: Batch) -> Scores:
        """Mean absolute and squared error in the rows' unit, and the share of the variation that is not explained.

        That share is the squared error over the squared distance from the training rows' mean: 1 - R^2 with the mean
        that was known beforehand.
        """
        assert outputs.logits_PL is not None
        error_B = outputs.logits_PL[:, 0].double() - batch.gold_G
        ones_B = torch.ones_like(error_B)
        return {
            "unexplained": (error_B**2, batch.gold_G**2),
            "absolute_error": (error_B.abs() * self.deviation, ones_B),
            "squared_error": (error_B**2 * self.deviation**2, ones_B),
        }

    def answer(self, logits_PL: Tensor) -> dict[str, Any]:
        """The number of one text."""
        return {"number": float(logits_PL[0, 0]) * self.deviation + self.mean}
