"""Cross-entropy over the candidate labels' log-probabilities: the forest makes the label branches nearly free."""

from __future__ import annotations

from collections.abc import Sequence as ManyOf
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from luthier.methods.base import (
    Batch,
    Example,
    LossOut,
    Outputs,
    Scores,
    candidate_scores,
    hits,
    smoothed_cross_entropy,
)
from luthier.prompts import ClassifyPrompt, Shot
from luthier.records import Labelled, Sequence


@dataclass(frozen=True)
class Candidates:
    """The model's own choice among the labels, trained as a choice."""

    num_labels: int
    smoothing: float = 0.0
    name: str = "candidates"

    def view(self, prompt: ClassifyPrompt, rows: ManyOf[Labelled]) -> list[Example]:
        """One sequence a label, exactly as `score_labels` will ask; the targets are the label's tokens."""
        gold = [prompt.task.labels.index(row.label) for row in rows]
        return [
            Example(sequences, (label,), key=row.key)
            for sequences, label, row in zip(
                candidate_sequences(prompt, [row.text for row in rows]), gold, rows, strict=True
            )
        ]

    def weight(self, example: Example) -> float:
        """Each row counts one."""
        return 1.0

    def loss(self, outputs: Outputs, batch: Batch) -> LossOut:
        """-sum_b log softmax_l(s_bl)[gold_b], with s_bl = sum of log p over the tokens of label l after prompt b.

        logprobs_M [M] -> scores [B, L]. Weight: rows B.
        """
        logprobs_BL = torch.log_softmax(self.label_scores(outputs, batch), dim=1)
        return LossOut(smoothed_cross_entropy(logprobs_BL, batch.gold_B, self.smoothing), float(batch.num_rows))

    def scores(self, outputs: Outputs, batch: Batch) -> Scores:
        """Accuracy of the likeliest label."""
        return {"accuracy": hits(self.label_scores(outputs, batch).argmax(1), batch.gold_B)}

    def label_scores(self, outputs: Outputs, batch: Batch) -> Tensor:
        """log p of each label, [B, L], not normalised over the labels."""
        assert outputs.logprobs_M is not None
        return candidate_scores(outputs.logprobs_M, batch, self.num_labels)


def candidate_sequences(
    prompt: ClassifyPrompt, texts: ManyOf[str], shots: ManyOf[ManyOf[Shot]] | None = None
) -> list[tuple[Sequence, ...]]:
    """For each text one sequence per label, with targets on the label's tokens: for training and for scoring.

    The end of the turn belongs to the score only where one label begins with another: then it tells them apart.
    Elsewhere it is left out, so that no label wins or loses by how likely the model is to stop after it.
    """
    labels = prompt.task.labels
    flat_texts = [text for text in texts for _ in labels]
    flat_shots = None if shots is None else [row for row in shots for _ in labels]
    encoded = prompt.encode_answered(flat_texts, [label for _ in texts for label in labels], flat_shots)
    sequences = [
        Sequence(e.tokens, targets := tuple(range(e.answer_start, len(e.tokens))), (1.0,) * len(targets))
        for e in encoded
    ]
    rows = [tuple(sequences[i : i + len(labels)]) for i in range(0, len(sequences), len(labels))]
    return [without_common_end(row) for row in rows]


def without_common_end(row: tuple[Sequence, ...]) -> tuple[Sequence, ...]:
    """Drop the last target (the end of the turn) of each candidate, unless one label begins with another."""
    answers = [sequence.tokens[sequence.targets[0] : sequence.targets[-1]] for sequence in row]
    nested = any(a != b and b[: len(a)] == a for a in answers for b in answers)
    if nested or any(len(sequence.targets) < 2 for sequence in row):
        return row
    return tuple(replace(s, tokens=s.tokens[:-1], targets=s.targets[:-1], weights=s.weights[:-1]) for s in row)
