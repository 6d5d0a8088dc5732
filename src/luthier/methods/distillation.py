"""Distillation: learning from a teacher's probabilities of the next token, or from the answers it writes.

A teacher's distribution is kept as its likeliest tokens; all other tokens of the vocabulary are one bucket. Both sides
are coarsened in the same way, so the divergence is that of two distributions over K + 1 outcomes. It never exceeds the
whole one (data processing inequality), and equals it where K is the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as ManyOf
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from luthier.corpus.lines import Problem
from luthier.corpus.wire import kind_of
from luthier.methods.base import Ask, Batch, Candidates, Example, LossOut, Outputs, Scores, bits_per_byte, per_row
from luthier.methods.conversations import ConversationSft
from luthier.prompts import Dialogue
from luthier.recipe.methods import Distil, Sft
from luthier.records import Completion, Conversation, Instruction, Preference, Prompt, Ranking, Rating, Record

LEAST_REST = 1e-6  # a smaller bucket of other tokens is lost in the rounding of float32 log-probabilities
NO_PROMPT = "has no prompt that a teacher could answer. distil takes conversations, instructions and prompts."

# --- the pure part ------------------------------------------------------------------------------------------------


def log_rest(logprobs_M: Tensor, position_M: Tensor, num_positions: int) -> Tensor:
    """log(1 - sum of the kept tokens' probabilities) of each position, [Q]; at least LEAST_REST, flat below it."""
    kept_Q = logprobs_M.new_zeros(num_positions).index_add(0, position_M, logprobs_M.exp())
    return (1 - kept_Q).clamp_min(LEAST_REST).log()


def coarse_kl(first_M: Tensor, second_M: Tensor, position_M: Tensor, num_positions: int) -> Tensor:
    """KL(p || q) in nats of each position, [Q], over the kept tokens and the bucket of all others.

        KL_i = sum_k p_ik (log p_ik - log q_ik) + r_i (log r_i - log s_i),  r_i = 1 - sum_k p_ik,  s_i = 1 - sum_k q_ik

    first_M: log p, second_M: log q of M (position, token) pairs; position_M: the position of each pair, below Q.
    Forward KL (Hinton et al. 2015, section 2, less the teacher's entropy): p is the teacher. Reverse KL (Gu et al.
    2024, eq. 1): p is the student.
    """
    shares_M = first_M.exp() * (first_M - second_M)
    kept_Q = first_M.new_zeros(num_positions).index_add(0, position_M, shares_M)
    first_Q, second_Q = (log_rest(values, position_M, num_positions) for values in (first_M, second_M))
    return kept_Q + first_Q.exp() * (first_Q - second_Q)


def distillation_loss(kl_Q: Tensor, weight_Q: Tensor, nats: Tensor, temperature: float, hard_weight: float) -> Tensor:
    """(1 - h) T^2 sum_i w_i KL_i + h sum_m w_m (-log p_m), a scalar.

    kl_Q, weight_Q [Q]: divergence and weight of each position, both distributions at temperature T. nats: the second
    sum, of the row's own tokens at temperature 1. T^2 keeps the size of the soft gradient, which shrinks as 1 / T^2
    (Hinton et al. 2015, section 2).
    """
    return (1 - hard_weight) * temperature**2 * (weight_Q * kl_Q).sum() + hard_weight * nats


# --- the methods --------------------------------------------------------------------------------------------------


class Teacher(Protocol):
    """Whoever gives candidates: a model on this machine, a server, or a file of what they said."""

    def candidates(self, examples: ManyOf[Example]) -> list[Candidates]:
        """Those of each example, for every target of its one sequence."""
        ...


@dataclass(frozen=True)
class Distillation:
    """KL between teacher and student at each trained position of the rows' own answers.

    Offline, the examples carry the teacher's candidates before training begins; online (`teacher`), each step asks.
    """

    settings: Distil
    name: str = "distil"
    teacher: Teacher | None = None
    primary: str = "kl"
    higher_is_better: bool = False
    needs_reference: bool = False

    @property
    def view_of(self) -> ConversationSft:
        """Which turns are read: those that supervised fine-tuning would learn."""
        return ConversationSft(may_part=False)

    def accept(self, record: Record) -> list[Any] | Problem:
        """Whatever supervised fine-tuning takes."""
        return self.view_of.accept(record)

    def fitted(self, rows: ManyOf[Any]) -> Distillation:
        """Nothing to learn from the rows beforehand."""
        return self

    def heads(self, width: int) -> Mapping[str, nn.Module]:
        """None."""
        return {}

    def view(self, prompt: Dialogue, rows: ManyOf[Any]) -> list[Example]:
        """One sequence a row, its answers the targets. The teacher's candidates come later."""
        return self.view_of.view(prompt, rows)

    def annotated(self, ask: Ask, rows: ManyOf[Example]) -> list[Example]:
        """The rows with the teacher's candidates, asked for now where they have none."""
        missing = [row for row in rows if row.teacher is None]
        if not missing:
            return list(rows)
        assert self.teacher is not None, "the stage gives every row its candidates, or the method its teacher"
        found = iter(self.teacher.candidates(missing))
        return [row if row.teacher is not None else replace(row, teacher=next(found)) for row in rows]

    def weight(self, example: Example) -> float:
        """Sum of the weights of the row's own targets: trained positions."""
        return float(sum(sum(sequence.weights) for sequence in example.sequences))

    def loss(self, outputs: Outputs, batch: Batch) -> LossOut:
        """`distillation_loss` of the batch; weight: that of the rows' own targets."""
        kl_Q, weight_Q, _ = self.divergences(outputs, batch)
        assert outputs.logprobs_M is not None
        weight_M = own_weights(batch)
        own = -(outputs.logprobs_M.double() * weight_M).sum()
        total = distillation_loss(kl_Q, weight_Q, own, self.settings.temperature, self.settings.hard_weight)
        return LossOut(total, float(weight_M.sum()))

    def scores(self, outputs: Outputs, batch: Batch) -> Scores:
        """Nats of divergence per position, and bits per byte of the rows' own answers."""
        assert outputs.logprobs_M is not None and batch.teacher_M is not None
        kl_Q, weight_Q, row_Q = self.divergences(outputs, batch)
        own = Outputs(logprobs_M=torch.where(batch.teacher_M.isnan(), outputs.logprobs_M.double(), 0.0))
        return {
            "kl": (
                per_row(kl_Q * weight_Q, row_Q, batch.num_rows),
                per_row(own_weights(batch), batch.row_M, batch.num_rows),
            ),
            "bits_per_byte": bits_per_byte(own, batch),
        }

    def divergences(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """KL, weight and row of each position, [Q], in float64. A position without candidates has none."""
        assert outputs.logprobs_M is not None and batch.teacher_M is not None, "the rows have met their teacher"
        taught = ~batch.teacher_M.isnan()
        student_C, teacher_C = outputs.logprobs_M.double()[taught], batch.teacher_M[taught]
        position_C, num_positions = positions(batch, taught)
        weight_Q, row_Q = (
            torch.zeros(num_positions, dtype=values.dtype, device=values.device).scatter(0, position_C, values[taught])
            for values in (batch.weight_M.double(), batch.row_M)
        )
        pair = (student_C, teacher_C) if self.settings.what == "reverse_kl" else (teacher_C, student_C)
        return coarse_kl(*pair, position_C, num_positions), weight_Q, row_Q


def positions(batch: Batch, taught: Tensor) -> tuple[Tensor, int]:
    """A number for the position of each candidate, and how many positions there are.

    The candidates of a position follow one another, and two rows may share a forest row: both decide.
    """
    row_M = torch.from_numpy(batch.forest.row_M).to(taught.device)
    places_C2 = torch.stack([batch.sequence_M[taught], row_M[taught]], dim=1)
    unique, position_C = torch.unique_consecutive(places_C2, return_inverse=True, dim=0)
    return position_C, len(unique)


def own_weights(batch: Batch) -> Tensor:
    """Weights [M] of the rows' own targets in float64, 0 for the teacher's candidates."""
    assert batch.teacher_M is not None
    return torch.where(batch.teacher_M.isnan(), batch.weight_M.double(), 0.0)


@dataclass(frozen=True)
class TeacherAnswers(ConversationSft):
    """Sequence-level distillation (Kim and Rush 2016, section 3.2): cross-entropy on the teacher's own answers.

    The stage has the teacher answer each row's prompt before the rows are read.
    """

    name: str = "distil"
    settings: Sft = field(default_factory=lambda: Sft(train_on="last_answer"))
    distil: Distil = field(kw_only=True)

    def accept(self, record: Record) -> list[Any] | Problem:
        """Whatever has a prompt; an answer of its own will be replaced by the teacher's."""
        if isinstance(record, Conversation | Completion | Instruction | Prompt):
            return [record]
        if isinstance(record, Preference | Ranking | Rating):
            return [Prompt(record.prompt, record.source)]
        return Problem("wrong_kind", f"a {kind_of(record)} {NO_PROMPT}")


def make_distillation(settings: Distil) -> Distillation | TeacherAnswers:
    """The method that the settings ask for."""
    return TeacherAnswers(distil=settings) if settings.what == "answers" else Distillation(settings=settings)
