"""Supervised fine-tuning on the answer's tokens, end of turn included."""

from __future__ import annotations

from collections.abc import Sequence as ManyOf
from dataclasses import dataclass

from luthier.methods.base import Batch, Example, LossOut, Outputs
from luthier.prompts import ClassifyPrompt
from luthier.records import Labelled, Sequence


@dataclass(frozen=True)
class Sft:
    """Next-token cross-entropy, completion only."""

    name: str = "sft"
    head: bool = False

    def view(self, prompt: ClassifyPrompt, rows: ManyOf[Labelled]) -> list[Example]:
        """One sequence a row; the targets are the answer's tokens."""
        encoded = prompt.encode_answered([row.text for row in rows], [row.label for row in rows])
        return [
            Example(
                (
                    Sequence(
                        e.tokens,
                        targets := tuple(range(e.answer_start, len(e.tokens))),
                        (1.0,) * len(targets),
                    ),
                ),
                prompt.task.labels.index(row.label),
            )
            for e, row in zip(encoded, rows, strict=True)
        ]

    def weight(self, example: Example) -> float:
        """Trained tokens."""
        return float(sum(example.sequences[0].weights))

    def loss(self, outputs: Outputs, batch: Batch) -> LossOut:
        """-sum_m w_m log p_m, over all targets m of the batch; weight sum_m w_m.

        logprobs_M [M], weight_M [M]. Mean token cross-entropy once the loop has divided.
        """
        assert outputs.logprobs_M is not None
        total = -(outputs.logprobs_M * batch.weight_M).sum()
        return LossOut(total, float(batch.weight_M.sum()), {})
