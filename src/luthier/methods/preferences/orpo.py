"""Odds-ratio preference optimisation (Hong et al. 2024): supervised learning and preference in one, no reference."""

from __future__ import annotations

from dataclasses import dataclass, field

from luthier.methods.base import Batch, LossOut, Outputs, Scores
from luthier.methods.preferences.losses import orpo
from luthier.methods.preferences.pairs import CHOSEN, REJECTED, Pairwise, likelihood_scores, pair_values
from luthier.recipe.methods import Orpo


@dataclass(frozen=True)
class OrpoMethod(Pairwise):
    """Pairs by their mean log-probabilities."""

    name: str = "orpo"
    settings: Orpo = field(default_factory=Orpo)

    def loss(self, outputs: Outputs, batch: Batch) -> LossOut:
        """Token loss of the chosen answer + weight * odds-ratio loss, of each pair. Weight: pairs B."""
        means_B2 = pair_values(outputs, batch).means_B2
        losses_B = orpo(means_B2[:, CHOSEN], means_B2[:, REJECTED], self.settings.weight)
        return LossOut(losses_B.sum(), float(batch.num_rows))

    def scores(self, outputs: Outputs, batch: Batch) -> Scores:
        """The figures of all pairs."""
        return likelihood_scores(outputs, batch)
