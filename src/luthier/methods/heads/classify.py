"""One label for each text: a linear layer on the mean hidden state over the text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from collections.abc import Sequence as ManyOf
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from luthier.corpus.lines import Problem
from luthier.methods.base import Batch, Example, LossOut, Outputs, Scores, hits, label_f1
from luthier.methods.heads import base, losses
from luthier.prompts import Dialogue
from luthier.recipe.methods import Classify
from luthier.records import Labelled, Record


@dataclass(frozen=True)
class ClassifyHead:
    """Cross-entropy or focal loss, each label with its weight."""

    name: str = "classify"
    settings: Classify = field(default_factory=Classify)
    labels: tuple[str, ...] = ()
    label_weights: tuple[float, ...] = ()
    primary: str = "accuracy"
    higher_is_better: bool = True
    needs_reference: bool = False
    stratified: bool = True

    def accept(self, record: Record) -> list[Labelled] | Problem:
        """Labelled texts, of the settings' labels where they name some."""
        row = base.labelled(record, self.name)
        if isinstance(row, Problem):
            return row
        return base.known(row.label, self.settings.labels, "method.labels") or [row]

    def fitted(self, rows: ManyOf[Labelled]) -> ClassifyHead:
        """With the labels of the training rows and their weights."""
        counts = Counter(row.label for row in rows)
        present = base.labels_of(counts, (), self.name)
        labels = tuple(self.settings.labels) or present
        weights = base.class_weights(counts, labels, self.settings.class_weights)
        return replace(self, labels=labels, label_weights=weights)

    def described(self) -> dict[str, Any]:
        """Labels in the order of the head's outputs."""
        return base.described(self, labels=list(self.labels))

    def remarks(self, rows: ManyOf[Labelled]) -> list[str]:
        """Labels that the head cannot give."""
        return base.remark(Counter(row.label for row in rows if row.label not in self.labels), len(rows))

    def labels_in(self, row: Labelled) -> tuple[str, ...]:
        """Its one label."""
        return (row.label,)

    def told(self, row: Labelled) -> str:
        """Its label."""
        return row.label

    def heads(self, width: int) -> Mapping[str, nn.Module]:
        """One output a label."""
        return base.fresh_head(width, len(self.labels))

    def view(self, prompt: Dialogue, rows: ManyOf[Labelled]) -> list[Example]:
        """The text alone, read as a whole."""
        index = base.index_of(self.labels)
        return base.text_examples(prompt, rows, lambda row: (index.get(row.label, base.UNKNOWN),))

    def weight(self, example: Example) -> float:
        """The weight of its label."""
        (gold,) = example.gold
        return self.label_weights[int(gold)] if gold >= 0 else 0.0

    def loss(self, outputs: Outputs, batch: Batch) -> LossOut:
        """Weighted cross-entropy, or the focal loss; weight: the sum of the rows' label weights."""
        assert outputs.logits_PL is not None
        logprobs_BL = torch.log_softmax(outputs.logits_PL, dim=1)
        weights_L = torch.tensor(self.label_weights, dtype=logprobs_BL.dtype, device=logprobs_BL.device)
        if self.settings.focal_gamma:
            total = losses.focal(logprobs_BL, batch.gold_B, weights_L, self.settings.focal_gamma)
        else:
            total = losses.weighted_cross_entropy(logprobs_BL, batch.gold_B, weights_L, self.settings.label_smoothing)
        return LossOut(total, sum(self.label_weights[gold] for gold in batch.gold_B.tolist() if gold >= 0))

    def scores(self, outputs: Outputs, batch: Batch) -> Scores:
        """Accuracy and macro-F1; a label that no training row has is never hit, and all such count as one more."""
        assert outputs.logits_PL is not None
        given_B, gold_B = outputs.logits_PL.argmax(1), batch.gold_B
        kinds = torch.arange(len(self.labels) + 1, device=given_B.device)
        known_B = torch.where(gold_B < 0, len(self.labels), gold_B)
        f1 = label_f1((given_B[:, None] == kinds).int(), (known_B[:, None] == kinds).int())
        return {"accuracy": hits(given_B, gold_B), "macro_f1": f1}

    def answer(self, logits_PL: torch.Tensor) -> dict[str, Any]:
        """The likeliest label of one text, and the probability of each."""
        shares = torch.softmax(logits_PL[0].double(), 0).tolist()
        best = max(range(len(shares)), key=shares.__getitem__)
        return {"label": self.labels[best], "probabilities": dict(zip(self.labels, shares, strict=True))}
