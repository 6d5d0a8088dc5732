"""Cross-entropy over the candidate labels' log-probabilities: the forest makes the label branches nearly free."""

from __future__ import annotations

from collections.abc import Sequence as ManyOf
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from luthier.errors import ModelError
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
from luthier.prompts import ClassifyPrompt, Encoded, Shot
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

    Raises:
        ModelError: one label begins with another, and neither the template nor the tokenizer has an end to tell them
            apart.
    """
    labels = prompt.task.labels
    flat_texts = [text for text in texts for _ in labels]
    flat_shots = None if shots is None else [row for row in shots for _ in labels]
    encoded = prompt.encode_answered(flat_texts, [label for _ in texts for label in labels], flat_shots)
    rows = [encoded[i : i + len(labels)] for i in range(0, len(encoded), len(labels))]
    return [candidates_of(row, prompt) for row in rows]


def candidates_of(row: ManyOf[Encoded], prompt: ClassifyPrompt) -> tuple[Sequence, ...]:
    """One text's answered conversations as candidates: without the ends of their turns, or with them where needed."""
    answers = [e.tokens[e.answer_start : len(e.tokens) - int(e.ends_turn)] for e in row]
    if any(a != b and b[: len(a)] == a for a in answers for b in answers):
        return tuple(scored(e if e.ends_turn else ended(e, prompt)) for e in row)
    if not all(answers):
        return tuple(scored(e) for e in row)
    return tuple(scored(replace(e, tokens=e.tokens[: len(e.tokens) - int(e.ends_turn)])) for e in row)


def scored(encoded: Encoded) -> Sequence:
    """A conversation with targets on its answer."""
    targets = tuple(range(encoded.answer_start, len(encoded.tokens)))
    return Sequence(encoded.tokens, targets, (1.0,) * len(targets))


def ended(encoded: Encoded, prompt: ClassifyPrompt) -> Encoded:
    """A conversation whose template ends no turn, with the tokenizer's end-of-text token behind its answer."""
    end = prompt.layout.tokenizer.eos_token_id
    if end is None:
        shown = ", ".join(prompt.task.labels[:6])
        raise ModelError(
            f"the labels ({shown}) are told apart by where they end, since one begins with another, and this model "
            "marks no end: its chat template puts no special token behind an answer, and its tokenizer has no "
            "end-of-text token. Rename a label so that none begins with another, or use another model."
        )
    return replace(encoded, tokens=(*encoded.tokens, int(end)), ends_turn=True)
