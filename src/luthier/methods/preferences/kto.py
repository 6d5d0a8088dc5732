"""Kahneman-Tversky optimisation (Ethayarajh et al. 2024): single thumbs against a reference point."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as ManyOf
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from luthier.corpus.lines import Problem
from luthier.corpus.wire import key_of, kind_of
from luthier.errors import DataError
from luthier.methods.base import (
    Ask,
    Batch,
    Example,
    LossOut,
    Outputs,
    Scores,
    bits_per_byte,
    per_row,
    sequence_logprobs,
    target_counts,
)
from luthier.methods.preferences.losses import kto
from luthier.methods.preferences.pairs import TIE_NATS, Answered, Turns, answered, no_choice, only, prompt_key, won
from luthier.prompts import Dialogue
from luthier.recipe.methods import Kto
from luthier.records import Message, Preference, Rating, Record, Sequence

Rated = Rating | Preference
ONE_SIDED = (
    "kto: all {count:,} training rows are rated {found}; none is rated {missing}. KTO learns from the difference. "
    "Add rows with the other thumb{advice}."
)


@dataclass(frozen=True)
class KtoMethod:
    """Rated answers. A pair is one row with two ratings, so that its prompt is computed once."""

    name: str = "kto"
    settings: Kto = field(default_factory=Kto)
    weights: tuple[float, float] = (1.0, 1.0)  # of good and bad answers
    primary: str = "reward_accuracy"
    higher_is_better: bool = True
    needs_reference: bool = True

    def accept(self, record: Record) -> list[Rated] | Problem:
        """Thumbs, and pairs as two thumbs."""
        if isinstance(record, Preference):
            return no_choice(record) or [record]
        if isinstance(record, Rating):
            return [record]
        detail = f"a {kind_of(record)} has no thumb. Give prompt, completion and label (true or false), or pairs."
        return Problem("wrong_kind", detail)

    def fitted(self, rows: ManyOf[Rated]) -> KtoMethod:
        """The method with the weights of good and bad answers, and the figure that its rows allow.

        Raises:
            DataError: every answer is rated the same.
        """
        settings, goods = self.settings, [good for row in rows for _, good in judged(row)]
        num_good, num_bad = sum(goods), len(goods) - sum(goods)
        if not (num_good and num_bad):
            found, missing = ("good", "bad") if num_good else ("bad", "good")
            advice = ", or learn the good ones by sft" if num_good else ""
            raise DataError(ONE_SIDED.format(count=len(goods), found=found, missing=missing, advice=advice))
        weights = settings.good_weight, settings.bad_weight
        if settings.balanced:
            weights = weights[0] * len(goods) / (2 * num_good), weights[1] * len(goods) / (2 * num_bad)
        paired = any(isinstance(row, Preference) for row in rows)
        return replace(self, weights=weights, primary="accuracy" if paired else "reward_accuracy")

    def heads(self, width: int) -> Mapping[str, nn.Module]:
        """None."""
        return {}

    def view(self, prompt: Dialogue, rows: ManyOf[Rated]) -> list[Example]:
        """The rated answers of each row, then as many answers of another row to its prompt, for the KL term."""
        counts = [len(judged(row)) for row in rows]
        flat = iter(answered(prompt, [(row.prompt, turns) for row in rows for turns, _ in judged(row)]))
        own = [[next(flat) for _ in range(count)] for count in counts]
        keys = [prompt_key(row.prompt) for row in rows]
        strangers = mismatched(own, keys) if self.settings.reference_rows else [()] * len(rows)
        return [
            Example(
                (*(answer.sequence for answer in answers), *others),
                tuple(float(good) for _, good in judged(row)),
                num_bytes=sum(a.num_bytes for a, (_, good) in zip(answers, judged(row), strict=True) if good),
                key=key_of(row),
                group=row.source.group or key,
            )
            for row, answers, others, key in zip(rows, own, strangers, keys, strict=True)
        ]

    def annotated(self, ask: Ask, rows: ManyOf[Example]) -> list[Example]:
        """The rated answers with z: the mean log-ratio of mismatched answers over all rows of the step, at least 0.

        Of the first `reference_rows` rows. z is one number, a constant to the loss.
        """
        chosen = [strangers(row) for row in rows[: self.settings.reference_rows] if len(row.sequences) > len(row.gold)]
        ratios = [sequence_logprobs(outputs, batch) - batch.reference_S for outputs, batch in ask(chosen)]
        point = max(0.0, float(torch.cat(ratios).mean())) if ratios else 0.0
        return [
            replace(
                row,
                sequences=row.sequences[: len(row.gold)],
                reference_S=row.reference_S[: len(row.gold)],
                annotation=point,
            )
            for row in rows
        ]

    def weight(self, example: Example) -> float:
        """Each rated answer counts one."""
        return float(len(example.gold))

    def loss(self, outputs: Outputs, batch: Batch) -> LossOut:
        """The loss of each rated answer. Weight: rated answers S."""
        ratio_S = sequence_logprobs(outputs, batch) - batch.reference_S
        losses_S = kto(ratio_S, batch.gold_G > 0, batch.annotation_B[batch.row_S], self.settings.beta, self.weights)
        return LossOut(losses_S.sum(), float(len(losses_S)))

    def scores(self, outputs: Outputs, batch: Batch) -> Scores:
        """`reward_accuracy`: how often log-ratios lie on the thumb's side of z (1/2 at step 0); `margin`: by how much.

        `bits_per_byte` is of the good answers. Rows with a pair have the `accuracy` of pairs, too.
        """
        good_S = batch.gold_G > 0
        ratio_S = sequence_logprobs(outputs, batch) - batch.reference_S
        signed_S = torch.where(good_S, 1.0, -1.0) * (ratio_S - batch.annotation_B[batch.row_S])
        credit_B, answers_B = (per_row(v, batch.row_S, batch.num_rows) for v in won(signed_S, TIE_NATS))
        return {
            "accuracy": pair_accuracy(sequence_logprobs(outputs, batch) / target_counts(batch), good_S, batch),
            "reward_accuracy": (credit_B, answers_B),
            "margin": (self.settings.beta * per_row(signed_S, batch.row_S, batch.num_rows), answers_B),
            "bits_per_byte": bits_per_byte(only(outputs, good_S[batch.sequence_M]), batch),
        }


def judged(row: Rated) -> list[tuple[Turns, bool]]:
    """Each answer of a row, and whether it is good."""
    if isinstance(row, Preference):
        return [(row.chosen, True), (row.rejected, False)]
    return [((Message("assistant", row.answer),), row.good)]


def mismatched(own: ManyOf[ManyOf[Answered]], keys: ManyOf[str]) -> list[tuple[Sequence, ...]]:
    """For each row its prompt with the answers of the next row that asks something else; none where all ask the same.

    `own` holds each row's answers, `keys` its prompt's.
    """
    following = next_other(keys)
    return [
        tuple(own[j][k % len(own[j])].to(answer) for k, answer in enumerate(answers)) if j is not None else ()
        for answers, j in zip(own, following, strict=True)
    ]


def next_other(keys: ManyOf[str]) -> list[int | None]:
    """The index of the next other key after each, round the end; None where there is one key only."""
    size = len(keys)
    found: list[int | None] = [None] * size
    if len(set(keys)) < 2:
        return found
    last = 0
    for index in reversed(range(2 * size - 1)):
        if keys[index % size] != keys[(index + 1) % size]:
            last = (index + 1) % size
        if index < size:
            found[index] = last
    return found


def strangers(row: Example) -> Example:
    """The mismatched answers of a row alone."""
    rated = len(row.gold)
    return replace(row, sequences=row.sequences[rated:], reference_S=row.reference_S[rated:], gold=())


def pair_accuracy(means_S: Tensor, good_S: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Whether the good answer of a pair is the likelier one per token; rows without a pair count 0 of 0."""
    signed_S = torch.where(good_S, 1.0, -1.0).double() * means_S
    gaps_B = per_row(signed_S, batch.row_S, batch.num_rows)
    pair_B = (torch.bincount(batch.row_S, minlength=batch.num_rows) == 2).double()
    credit_B, _ = won(gaps_B)
    return credit_B * pair_B, pair_B
