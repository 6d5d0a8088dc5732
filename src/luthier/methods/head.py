"""A classification head on the mean hidden state over the text."""

from __future__ import annotations

from collections.abc import Sequence as ManyOf
from dataclasses import dataclass

import torch

from luthier.methods.base import Batch, Example, LossOut, Outputs, Scores, hits, smoothed_cross_entropy
from luthier.prompts import ClassifyPrompt
from luthier.records import Labelled, Sequence


@dataclass(frozen=True)
class HeadMethod:
    """Prompt only: no answer token is computed, in training or in serving."""

    smoothing: float = 0.0
    name: str = "head"

    def view(self, prompt: ClassifyPrompt, rows: ManyOf[Labelled]) -> list[Example]:
        """The prompt of each row, nothing after it."""
        gold = [prompt.task.labels.index(row.label) for row in rows]
        sequences = readable_sequences(prompt, [row.text for row in rows])
        return [Example((s,), (label,), key=row.key) for s, label, row in zip(sequences, gold, rows, strict=True)]

    def weight(self, example: Example) -> float:
        """Each row counts one."""
        return 1.0

    def loss(self, outputs: Outputs, batch: Batch) -> LossOut:
        """-sum_b log softmax_l(z_bl)[gold_b], with label smoothing; z = logits_PL, one span a row. Weight: rows B."""
        assert outputs.logits_PL is not None
        logprobs_BL = torch.log_softmax(outputs.logits_PL, dim=1)
        return LossOut(smoothed_cross_entropy(logprobs_BL, batch.gold_B, self.smoothing), float(batch.num_rows))

    def scores(self, outputs: Outputs, batch: Batch) -> Scores:
        """Accuracy of the head's first choice."""
        assert outputs.logits_PL is not None
        return {"accuracy": hits(outputs.logits_PL.argmax(1), batch.gold_B)}


def readable_sequences(prompt: ClassifyPrompt, texts: ManyOf[str]) -> list[Sequence]:
    """The prompt of each text, read from where the text's own part begins: for training and for serving."""
    return [Sequence(tokens, reads=((start, len(tokens)),)) for tokens, start in prompt.encode_readable(texts)]
