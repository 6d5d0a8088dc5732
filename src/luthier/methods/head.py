"""A classification head on the mean hidden state over the text."""

from __future__ import annotations

from collections.abc import Sequence as ManyOf
from dataclasses import dataclass

import torch

from luthier.methods.base import Batch, Example, LossOut, Outputs, smoothed_cross_entropy
from luthier.prompts import ClassifyPrompt
from luthier.records import Labelled, Sequence


@dataclass(frozen=True)
class HeadMethod:
    """Prompt only: no answer token is computed, in training or in serving."""

    smoothing: float = 0.0
    name: str = "head"
    head: bool = True

    def view(self, prompt: ClassifyPrompt, rows: ManyOf[Labelled]) -> list[Example]:
        """The prompt of each row, nothing after it."""
        gold = [prompt.task.labels.index(row.label) for row in rows]
        sequences = readable_sequences(prompt, [row.text for row in rows])
        return [Example((sequence,), label) for sequence, label in zip(sequences, gold, strict=True)]

    def weight(self, example: Example) -> float:
        """Each row counts one."""
        return 1.0

    def loss(self, outputs: Outputs, batch: Batch) -> LossOut:
        """-sum_b log softmax_l(z_bl)[gold_b], with label smoothing; z = logits_BL [B, L]. Weight: rows B."""
        assert outputs.logits_BL is not None
        logprobs_BL = torch.log_softmax(outputs.logits_BL, dim=1)
        total = smoothed_cross_entropy(logprobs_BL, batch.gold_B, self.smoothing)
        hits = float((logprobs_BL.argmax(1) == batch.gold_B).sum())
        return LossOut(total, float(len(batch.gold_B)), {"accuracy": hits})


def readable_sequences(prompt: ClassifyPrompt, texts: ManyOf[str]) -> list[Sequence]:
    """The prompt of each text, read from where the text's own part begins: for training and for serving."""
    return [Sequence(tokens, read_from=start) for tokens, start in prompt.encode_readable(texts)]
