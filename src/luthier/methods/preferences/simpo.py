"""Simple preference optimisation (Meng et al. 2024): length-normalised likelihood with a margin, no reference."""

from __future__ import annotations

from dataclasses import dataclass, field

from luthier.methods.base import Batch, LossOut, Outputs, Scores
from luthier.methods.preferences.losses import simpo
from luthier.methods.preferences.pairs import CHOSEN, REJECTED, Pairwise, likelihood_scores, pair_values
from luthier.recipe.methods import SimPo


@dataclass(frozen=True)
class SimPoMethod(Pairwise):
    """Pairs by their mean log-probabilities."""

    name: str = "simpo"
    settings: SimPo = field(default_factory=SimPo)

    def loss(self, outputs: Outputs, batch: Batch) -> LossOut:
        """The loss of each pair. Weight: pairs B."""
        means_B2, settings = pair_values(outputs, batch).means_B2, self.settings
        losses_B = simpo(means_B2[:, CHOSEN], means_B2[:, REJECTED], settings.beta, settings.margin)
        return LossOut(losses_B.sum(), float(batch.num_rows))

    def scores(self, outputs: Outputs, batch: Batch) -> Scores:
        """The figures of all pairs."""
        return likelihood_scores(outputs, batch)
