"""Supervised fine-tuning on a label's tokens, end of turn included."""

from __future__ import annotations

from collections.abc import Sequence as ManyOf
from dataclasses import dataclass

from luthier.methods.base import Example
from luthier.methods.likelihood import Likelihood
from luthier.prompts import ClassifyPrompt
from luthier.records import Labelled, Sequence


@dataclass(frozen=True)
class LabelSft(Likelihood):
    """Next-token cross-entropy, completion only."""

    name: str = "sft"

    def view(self, prompt: ClassifyPrompt, rows: ManyOf[Labelled]) -> list[Example]:
        """One sequence a row; the targets are the answer's tokens."""
        encoded = prompt.encode_answered([row.text for row in rows], [row.label for row in rows])
        return [
            Example(
                (Sequence(e.tokens, targets := tuple(range(e.answer_start, len(e.tokens))), (1.0,) * len(targets)),),
                (prompt.task.labels.index(row.label),),
                num_bytes=len(prompt.answer(row.label).encode()),
                key=row.key,
            )
            for e, row in zip(encoded, rows, strict=True)
        ]
