"""Pairs of answers to one prompt: which records give them, their sequences, and the figures that all pairs share."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as ManyOf
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from luthier.corpus.lines import Problem
from luthier.corpus.shapes.convert import convert
from luthier.corpus.shapes.turns import untrained
from luthier.corpus.wire import key_of, kind_of
from luthier.methods.base import Batch, Example, Outputs, Scores, bits_per_byte, sequence_logprobs, target_counts
from luthier.prompts import Dialogue, PromptError
from luthier.records import Message, Preference, Prompt, Ranking, Record, Sequence, Source

Turns = tuple[Message, ...]
CHOSEN, REJECTED = 0, 1  # roles
# Log-ratios this near to each other (nats) are a tie: rounding in bfloat16 moves the same sequence by nearly as much
TIE_NATS = 0.02


@dataclass(frozen=True)
class Pairwise:
    """What DPO, ORPO and SimPO share: the view of a pair, and its figures."""

    primary: str = "accuracy"
    higher_is_better: bool = True
    needs_reference: bool = False

    def accept(self, record: Record) -> list[Preference] | Problem:
        """Pairs, and of a ranking all its pairs of answers that differ."""
        if isinstance(record, Preference):
            return no_choice(record) or [record]
        if isinstance(record, Ranking):
            made = convert(record, "preference")
            if isinstance(made, Problem):
                return made
            pairs = [pair for pair in made if isinstance(pair, Preference)]
            return [pair for pair in pairs if no_choice(pair) is None] or SAME
        detail = f"a {kind_of(record)} has no two answers to choose from. Give prompt, chosen and rejected."
        return Problem("wrong_kind", detail)

    def fitted(self, rows: ManyOf[Preference]) -> Self:
        """Nothing to learn from the rows beforehand."""
        return self

    def heads(self, width: int) -> Mapping[str, nn.Module]:
        """None."""
        return {}

    def view(self, prompt: Dialogue, rows: ManyOf[Preference]) -> list[Example]:
        """Two sequences a row, chosen and rejected; their prompt is one beginning of the forest."""
        answers = answered(prompt, [(row.prompt, turns) for row in rows for turns in (row.chosen, row.rejected)])
        pairs = zip(answers[::2], answers[1::2], strict=True)
        return [
            Example(
                (chosen.sequence, rejected.sequence),
                num_bytes=chosen.num_bytes,
                key=key_of(row),
                group=row.source.group or prompt_key(row.prompt),
            )
            for row, (chosen, rejected) in zip(rows, pairs, strict=True)
        ]

    def weight(self, example: Example) -> float:
        """Each pair counts one."""
        return 1.0


def no_choice(record: Preference) -> Problem | None:
    """The problem of a pair that is no choice: both say the same, or nothing, or their turns are weighed."""
    weights = {turn.weight for turn in (*record.chosen, *record.rejected) if turn.role == "assistant"}
    if not weights <= {0, 1}:
        detail = f"a turn of an answer has the weight {max(weights - {0, 1}):g}; answers are compared whole."
        return Problem("weighted_turns", f"{detail} Give their turns weight 1, or 0 where they are context.")
    chosen, rejected = (
        [text.strip() for turn in turns for text in turn.said] for turns in (record.chosen, record.rejected)
    )
    if chosen == rejected:
        what = "empty" if not any(chosen) else "the same but for white space"
        return Problem("same_answers", f"chosen and rejected are {what}. Remove the row.")
    return None


SAME = Problem("same_answers", "answers of different rank are the same but for white space. Remove the row.")


@dataclass(frozen=True)
class Answered:
    """A prompt with an answer: `sequence` has the answer's tokens as targets, the first at `start`."""

    sequence: Sequence
    start: int
    num_bytes: int

    def to(self, other: Answered) -> Sequence:
        """The other's prompt with this answer, cut to the longer of both sequences: no row gets too long by it."""
        longest = max(len(self.sequence.tokens), len(other.sequence.tokens))
        tokens = (*other.sequence.tokens[: other.start], *self.sequence.tokens[self.start :])[:longest]
        moved = (index + other.start - self.start for index in self.sequence.targets)
        targets = tuple(index for index in moved if index < len(tokens))
        return Sequence(tokens, targets, (1.0,) * len(targets))


def answered(prompt: Dialogue, asked: ManyOf[tuple[Turns, Turns]]) -> list[Answered]:
    """Sequences of (prompt, answer): the assistant's turns after the prompt are the targets, ends of turn included.

    Turns of the answer with weight 0 are context, as all turns of the prompt are.

    Raises:
        PromptError: no turn of an answer has a weight; or the template makes no honest prompt of it.
    """
    encoded = prompt.encode([prompt.with_system((*untrained(question), *answer)) for question, answer in asked])
    made = []
    for tokens, turns in encoded:
        if not turns:
            raise PromptError("every turn of the answer has weight 0, or nobody asked: there is nothing to compare.")
        targets = tuple(index for turn in turns for index in range(turn.start, turn.stop))
        sequence = Sequence(tokens, targets, (1.0,) * len(targets))
        made.append(Answered(sequence, turns[0].start, sum(turn.num_bytes for turn in turns)))
    return made


def prompt_key(turns: Turns) -> str:
    """What rows of one prompt share."""
    return key_of(Prompt(turns, Source("", 0)))


# --- what losses and figures are computed from --------------------------------------------------------------------


@dataclass(frozen=True)
class PairValues:
    """Of B pairs, column 0 chosen and 1 rejected: log p, tokens, and log p under the reference (empty without one)."""

    logprobs_B2: Tensor
    tokens_B2: Tensor
    reference_B2: Tensor

    @property
    def means_B2(self) -> Tensor:
        """Mean log p per token."""
        return self.logprobs_B2 / self.tokens_B2

    @property
    def ratios_B2(self) -> Tensor:
        """log p - log p_ref of each answer."""
        return self.logprobs_B2 - self.reference_B2

    @property
    def delta_B(self) -> Tensor:
        """Difference of the log-ratios: chosen minus rejected."""
        return self.ratios_B2[:, CHOSEN] - self.ratios_B2[:, REJECTED]

    @property
    def mean_delta_B(self) -> Tensor:
        """The same of log-ratios per token."""
        ratios_B2 = self.ratios_B2 / self.tokens_B2
        return ratios_B2[:, CHOSEN] - ratios_B2[:, REJECTED]


def pair_values(outputs: Outputs, batch: Batch) -> PairValues:
    """The sums of each pair, in float64."""
    return PairValues(
        sequence_logprobs(outputs, batch).view(-1, 2),
        target_counts(batch).double().view(-1, 2),
        batch.reference_S.view(-1, 2),
    )


def likelihood_scores(outputs: Outputs, batch: Batch) -> Scores:
    """`accuracy`: which answer the model itself finds likelier per token; `bits_per_byte` of the chosen answers.

    A training that wins pairs by unlearning to speak shows in the second.
    """
    means_B2 = pair_values(outputs, batch).means_B2
    return {
        "accuracy": won(means_B2[:, CHOSEN] - means_B2[:, REJECTED]),
        "bits_per_byte": bits_per_byte(only(outputs, batch.role_M == CHOSEN), batch),
    }


def only(outputs: Outputs, counted_M: Tensor) -> Outputs:
    """The outputs with log p of all other targets at zero."""
    assert outputs.logprobs_M is not None
    return Outputs(logprobs_M=outputs.logprobs_M * counted_M)


def won(gaps_B: Tensor, tie: float = 0.0) -> tuple[Tensor, Tensor]:
    """1 for a gap above zero, a half for a tie, out of one each."""
    credit_B = torch.where(gaps_B.abs() <= tie, 0.5, (gaps_B > 0).double())
    return credit_B.double(), torch.ones_like(gaps_B, dtype=torch.float64)
