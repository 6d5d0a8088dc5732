"""A reward model: a number for each answer, learnt from pairs (Bradley-Terry) or whole rankings (Plackett-Luce)."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as ManyOf
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from luthier.corpus.lines import Problem
from luthier.corpus.wire import key_of, kind_of
from luthier.errors import DataError
from luthier.methods.base import MAIN, Batch, Example, LossOut, Outputs, Scores
from luthier.methods.heads.base import described
from luthier.methods.preferences.losses import bradley_terry, plackett_luce
from luthier.methods.preferences.pairs import SAME, Turns, answered, no_choice, prompt_key
from luthier.prompts import Dialogue
from luthier.recipe.methods import Reward
from luthier.records import Message, Preference, Ranking, Record, Sequence

Ranked = Ranking | Preference
NO_SCORES = (
    "reward: method.use_margins asks for leads as wide as the gaps of the scores, but none of the {count:,} training "
    "rows has scores that differ. Give pairs score_chosen and score_rejected (or margin) and rankings scores, or leave "
    "use_margins out."
)
GAPS = ("small", "middle", "large")  # thirds of the training pairs by how far their scores lie apart


@dataclass(frozen=True)
class RewardMethod:
    """All answers to a prompt in one row; the head reads the last token of each, its end of turn."""

    name: str = "reward"
    settings: Reward = field(default_factory=Reward)
    gap_edges: tuple[float, ...] = ()  # two score gaps that part the training pairs into thirds
    mean: float = 0.0  # of the trained model's rewards
    deviation: float = 1.0  # of the same
    primary: str = "accuracy"
    higher_is_better: bool = True
    needs_reference: bool = False

    def accept(self, record: Record) -> list[Ranked] | Problem:
        """Pairs and rankings."""
        if isinstance(record, Preference):
            return no_choice(record) or self.contradiction(record) or [record]
        if isinstance(record, Ranking):
            if record.scores is not None and record.scores[0] == record.scores[-1]:
                return Problem("only_ties", "all answers have the same score: there is no order to learn.")
            return SAME if ranks_twins(record) else [record]
        detail = f"a {kind_of(record)} has no answers in an order. Give prompt, chosen and rejected, or a ranking."
        return Problem("wrong_kind", detail)

    def fitted(self, rows: ManyOf[Ranked]) -> RewardMethod:
        """The method with the thirds of the training pairs' score gaps, where rows have scores.

        Raises:
            DataError: margins are asked for, and no row has scores that differ.
        """
        scored = [scores for row in rows if (scores := known_scores(row))]
        if self.settings.use_margins and not scored:
            raise DataError(NO_SCORES.format(count=len(rows)))
        gaps = sorted(a - b for scores in scored for i, a in enumerate(scores) for b in scores[i + 1 :] if a > b)
        edges = (gaps[len(gaps) // 3], gaps[2 * len(gaps) // 3]) if len(gaps) >= len(GAPS) else ()
        return replace(self, gap_edges=edges if len(set(edges)) == len(edges) else ())

    def contradiction(self, record: Preference) -> Problem | None:
        """The problem of a pair whose scores prefer the rejected answer, where they are asked for margins."""
        if not self.settings.use_margins or record.scores is None or record.scores[0] >= record.scores[1]:
            return None
        detail = "the rejected answer has the higher score, so there is no margin to ask for."
        return Problem("bad_order", f"{detail} Mend the row, or leave method.use_margins out.")

    def noted(self, record: Record, row: Any) -> str | None:
        """Whether margins are asked for and a row has none."""
        missing = self.settings.use_margins and not known_scores(row)
        return "have no scores that differ, so method.use_margins asks no lead of them" if missing else None

    def scale(self, figures: Mapping[str, float]) -> dict[str, Any]:
        """Mean and deviation of the rewards; a deviation of 0, where all are the same, is written as 1."""
        mean = figures["reward"]
        deviation = max(figures["squared_reward"] - mean**2, 0.0) ** 0.5
        return described(self, mean=mean, deviation=deviation or 1.0)

    def answer(self, reward: float) -> dict[str, float]:
        """The reward of one answer as it is, and in deviations from the mean."""
        return {"reward": reward, "normalised": (reward - self.mean) / self.deviation}

    def heads(self, width: int) -> Mapping[str, nn.Module]:
        """One output without bias (a reward has no zero point), drawn as in Stiennon et al. 2020."""
        head = nn.Linear(width, 1, bias=False)
        with torch.no_grad():
            head.weight.normal_(0.0, (width + 1) ** -0.5, generator=torch.Generator().manual_seed(0))
        return {MAIN: head}

    def view(self, prompt: Dialogue, rows: ManyOf[Ranked]) -> list[Example]:
        """One sequence an answer, best first, read at its last token; `gold` the scores, where they are known."""
        flat = iter(answered(prompt, [(row.prompt, turns) for row in rows for turns in ranked(row)]))
        return [
            Example(
                tuple(read_last(next(flat).sequence) for _ in ranked(row)),
                known_scores(row),
                key=key_of(row),
                group=row.source.group or prompt_key(row.prompt),
            )
            for row in rows
        ]

    def weight(self, example: Example) -> float:
        """Each prompt counts one, however many pairs its answers make (Ouyang et al. 2022)."""
        return 1.0

    def loss(self, outputs: Outputs, batch: Batch) -> LossOut:
        """The loss of each row's answers. Weight: rows B."""
        values, settings = ranked_values(outputs, batch), self.settings
        if settings.loss == "plackett_luce":
            losses_B = plackett_luce(values.rewards_BN, values.better_BNN, settings.centring)
        else:
            margins_BNN = values.gaps_BNN if settings.use_margins else torch.zeros_like(values.gaps_BNN)
            losses_B = bradley_terry(values.rewards_BN, values.better_BNN, margins_BNN, settings.centring)
        return LossOut(losses_B.sum(), float(batch.num_rows))

    def scores(self, outputs: Outputs, batch: Batch) -> Scores:
        """`accuracy` of pairs (a tie counts half), also by thirds of the score gap; `margin`: mean lead of the better.

        `reward` and `squared_reward` are means over all answers: what normalising the rewards takes.
        """
        values = ranked_values(outputs, batch)
        leads_BNN = values.rewards_BN[:, :, None] - values.rewards_BN[:, None, :]
        credit_BNN = torch.where(leads_BNN == 0, 0.5, (leads_BNN > 0).double())
        pairs_BNN, answers_B = values.better_BNN.double(), values.answers_BN.double().sum(1)
        found: Scores = {
            "accuracy": pair_sums(credit_BNN, pairs_BNN),
            "margin": pair_sums(leads_BNN, pairs_BNN),
            "reward": (values.rewards_BN.sum(1), answers_B),
            "squared_reward": ((values.rewards_BN**2).sum(1), answers_B),
        }
        if self.gap_edges:
            third_BNN = torch.bucketize(values.gaps_BNN, values.gaps_BNN.new_tensor(self.gap_edges), right=True)
            known_BNN = pairs_BNN * (values.gaps_BNN > 0)
            for third, name in enumerate(GAPS):
                found[f"accuracy_{name}_gap"] = pair_sums(credit_BNN, known_BNN * (third_BNN == third))
        return found


def ranked(row: Ranked) -> list[Turns]:
    """The answers of a row, best first."""
    if isinstance(row, Preference):
        return [row.chosen, row.rejected]
    return [(Message("assistant", answer),) for answer in row.answers]


def known_scores(row: Ranked) -> tuple[float, ...]:
    """The scores of a row's answers, best first; none of a pair where they do not set chosen above rejected."""
    if row.scores is None or (isinstance(row, Preference) and not row.scores[0] > row.scores[1]):
        return ()
    return row.scores


def ranks_twins(record: Ranking) -> bool:
    """Whether two answers of different rank are the same but for white space."""
    levels = record.scores or tuple(range(len(record.answers)))
    places = {(answer.strip(), level) for answer, level in zip(record.answers, levels, strict=True)}
    return len(places) > len({answer for answer, _ in places})


def read_last(sequence: Sequence) -> Sequence:
    """The sequence with nothing to predict, read at its last token."""
    size = len(sequence.tokens)
    return Sequence(sequence.tokens, reads=((size - 1, size),))


@dataclass(frozen=True)
class RankedValues:
    """Of B rows of at most N answers: rewards (0 where a row has fewer), which answers there are, and their pairs.

    better_BNN: answer i is to beat answer j. gaps_BNN: by how much its score is higher, 0 where scores are unknown.
    """

    rewards_BN: Tensor
    answers_BN: Tensor
    better_BNN: Tensor
    gaps_BNN: Tensor


def ranked_values(outputs: Outputs, batch: Batch) -> RankedValues:
    """The head's output, one read span a sequence, laid out by row and rank, in float64."""
    assert outputs.logits_PL is not None and len(outputs.logits_PL) == len(batch.row_S), "one span a sequence"
    shape = (batch.num_rows, int(batch.role_S.max()) + 1)
    place = (batch.row_S, batch.role_S)
    rewards_S = outputs.logits_PL[:, 0].double()
    blank_BN = torch.zeros(shape, dtype=torch.float64, device=rewards_S.device)
    known_B = torch.zeros(batch.num_rows, dtype=torch.bool, device=rewards_S.device)
    known_B[batch.row_G] = True
    scores_S = torch.zeros_like(rewards_S).masked_scatter(known_B[batch.row_S], batch.gold_G)
    answers_BN = blank_BN.bool().index_put(place, torch.ones_like(batch.row_S, dtype=torch.bool))
    levels_S = torch.where(known_B[batch.row_S], scores_S, -batch.role_S.double())
    levels_BN = blank_BN.index_put(place, levels_S)
    both_BNN = answers_BN[:, :, None] & answers_BN[:, None, :]
    gaps_BNN = levels_BN[:, :, None] - levels_BN[:, None, :]
    better_BNN = both_BNN & (gaps_BNN > 0)
    return RankedValues(
        rewards_BN=blank_BN.index_put(place, rewards_S),
        answers_BN=answers_BN,
        better_BNN=better_BNN,
        gaps_BNN=torch.where(better_BNN & known_B[:, None, None], gaps_BNN, 0.0),
    )


def pair_sums(values_BNN: Tensor, pairs_BNN: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over each row's pairs, and how many they are."""
    return (values_BNN * pairs_BNN).sum((1, 2)), pairs_BNN.sum((1, 2))
