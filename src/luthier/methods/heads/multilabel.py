"""Any number of labels for each text: one logistic output a label on the mean hidden state over the text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from collections.abc import Sequence as ManyOf
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from luthier.corpus.labels import listed_labels
from luthier.corpus.lines import Problem
from luthier.methods.base import Batch, Example, LossOut, Outputs, Scores, label_f1
from luthier.methods.heads import base, losses
from luthier.prompts import Dialogue
from luthier.recipe.methods import MultiLabel
from luthier.records import Labelled, Record


@dataclass(frozen=True)
class MultiLabelHead:
    """Binary cross-entropy or focal loss over the labels.

    Gold of a row: 0 or 1 for each label, then how many of its labels no training row has.
    """

    name: str = "multilabel"
    settings: MultiLabel = field(default_factory=MultiLabel)
    labels: tuple[str, ...] = ()
    label_weights: tuple[float, ...] = ()
    primary: str = "micro_f1"
    higher_is_better: bool = True
    needs_reference: bool = False
    stratified: bool = True

    def accept(self, record: Record) -> list[Labelled] | Problem:
        """Labelled texts whose labels, a list or parted by the separator, are the settings' where they name some."""
        row = base.labelled(record, self.name)
        if isinstance(row, Problem):
            return row
        problems = (base.known(label, self.settings.labels, "method.labels") for label in sorted(self.parted(row)))
        return next((problem for problem in problems if problem), None) or [row]

    def parted(self, row: Labelled) -> set[str]:
        """The labels of a row; the word for none gives none."""
        if row.label.strip() == self.settings.none:
            return set()
        parts = listed_labels(row.label)
        if parts is not None:
            return {*parts} - {self.settings.none, ""}
        return {part.strip() for part in row.label.split(self.settings.separator) if part.strip()}

    def fitted(self, rows: ManyOf[Labelled]) -> MultiLabelHead:
        """With the labels of the training rows; balanced, a label that holds counts (rows without) / (rows with)."""
        counts = Counter(label for row in rows for label in self.parted(row))
        labels = base.labels_of(counts, self.settings.labels, self.name)
        weights = (1.0,) * len(labels)
        if self.settings.class_weights == "balanced":
            weights = tuple((len(rows) - counts[label]) / max(counts[label], 1) or 1.0 for label in labels)
        return replace(self, labels=labels, label_weights=weights)

    def described(self) -> dict[str, Any]:
        """Labels in the order of the head's outputs."""
        return base.described(self, labels=list(self.labels))

    def remarks(self, rows: ManyOf[Labelled]) -> list[str]:
        """Labels that the head cannot give."""
        return base.remark(Counter(label for row in rows for label in self.parted(row) - {*self.labels}), len(rows))

    def labels_in(self, row: Labelled) -> tuple[str, ...]:
        """All of them."""
        return tuple(sorted(self.parted(row)))

    def told(self, row: Labelled) -> str:
        """Its labels, or the word for none."""
        return f"{self.settings.separator.strip()} ".join(self.labels_in(row)) or self.settings.none

    def heads(self, width: int) -> Mapping[str, nn.Module]:
        """One output a label."""
        return base.fresh_head(width, len(self.labels))

    def view(self, prompt: Dialogue, rows: ManyOf[Labelled]) -> list[Example]:
        """The text alone, read as a whole."""
        return base.text_examples(prompt, rows, self.gold)

    def gold(self, row: Labelled) -> tuple[float, ...]:
        """0 or 1 for each label, and the number of labels that are not known."""
        there = self.parted(row)
        return (*(float(label in there) for label in self.labels), float(len(there - {*self.labels})))

    def weight(self, example: Example) -> float:
        """Each row counts one."""
        return 1.0

    def gold_BL(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(0 or 1 for each label [B, L], unknown labels of each row [B])."""
        gold = batch.gold_G.view(batch.num_rows, len(self.labels) + 1)
        return gold[:, :-1], gold[:, -1]

    def loss(self, outputs: Outputs, batch: Batch) -> LossOut:
        """Mean over labels of the binary loss, summed over rows; weight: rows."""
        assert outputs.logits_PL is not None
        logits_BL = outputs.logits_PL
        weights_L = torch.tensor(self.label_weights, dtype=logits_BL.dtype, device=logits_BL.device)
        total = losses.binary_focal(logits_BL, self.gold_BL(batch)[0], weights_L, self.settings.focal_gamma)
        return LossOut(total, float(batch.num_rows))

    def scores(self, outputs: Outputs, batch: Batch) -> Scores:
        """Micro-F1 (2 TP over 2 TP + FP + FN), rows on which the whole set is right, and the mean F1 of the labels.

        In that mean labels that no training row has count as one more, which is never given.
        """
        assert outputs.logits_PL is not None
        gold_BL, unknown_B = self.gold_BL(batch)
        given_BL = self.given(outputs.logits_PL).double()
        both_B = (given_BL * gold_BL).sum(1)
        counted_B = given_BL.sum(1) + gold_BL.sum(1) + unknown_B
        exact_B = (given_BL == gold_BL).all(1) & (unknown_B == 0)
        more_BL = torch.stack([torch.zeros_like(unknown_B), unknown_B], dim=1)
        given, gold = torch.cat([given_BL, more_BL[:, :1]], 1), torch.cat([gold_BL.double(), more_BL[:, 1:]], 1)
        return {
            "micro_f1": (2 * both_B, counted_B),
            "exact_match": (exact_B.double(), torch.ones_like(counted_B)),
            "macro_f1": label_f1(given, gold),
        }

    def given(self, logits_BL: Tensor) -> Tensor:
        """Which labels are given: those from the threshold on."""
        return torch.sigmoid(logits_BL.double()) >= self.settings.threshold

    def answer(self, logits_PL: Tensor) -> dict[str, Any]:
        """The labels of one text, and the probability of each."""
        shares = torch.sigmoid(logits_PL[0].double()).tolist()
        chosen = [label for label, given in zip(self.labels, self.given(logits_PL[0]).tolist(), strict=True) if given]
        return {"labels": chosen, "probabilities": dict(zip(self.labels, shares, strict=True))}
