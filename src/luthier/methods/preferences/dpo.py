"""Direct preference optimisation (Rafailov et al. 2023) and its kin: the policy is its own reward model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from luthier.methods.base import Batch, LossOut, Outputs, Scores
from luthier.methods.preferences import losses
from luthier.methods.preferences.pairs import (
    CHOSEN,
    REJECTED,
    TIE_NATS,
    PairValues,
    Pairwise,
    likelihood_scores,
    pair_values,
    won,
)
from luthier.recipe.methods import Dpo

Loss = Callable[[PairValues, Dpo], Tensor]


def of_difference(function: Callable[[Tensor, float, float], Tensor], per_token: bool = False) -> Loss:
    """A loss of delta_B, the chosen answer's log-ratio minus the rejected one's, with beta and smoothing."""

    def loss(values: PairValues, settings: Dpo) -> Tensor:
        delta_B = values.mean_delta_B if per_token else values.delta_B
        return function(delta_B, settings.beta, settings.label_smoothing)

    return loss


def of_both(function: Callable[[Tensor, Tensor, float], Tensor]) -> Loss:
    """A loss of both log-ratios, chosen and rejected, with beta."""

    def loss(values: PairValues, settings: Dpo) -> Tensor:
        ratios_B2 = values.ratios_B2
        return function(ratios_B2[:, CHOSEN], ratios_B2[:, REJECTED], settings.beta)

    return loss


LOSSES: dict[str, Loss] = {
    "sigmoid": of_difference(losses.dpo_sigmoid),
    "sigmoid_norm": of_difference(losses.dpo_sigmoid, per_token=True),
    "ipo": of_difference(losses.dpo_ipo, per_token=True),
    "hinge": of_difference(losses.dpo_hinge),
    "conservative": of_difference(losses.dpo_conservative),
    "robust": of_difference(losses.dpo_robust),
    "apo_zero": of_both(losses.apo_zero),
    "apo_down": of_both(losses.apo_down),
    "nca_pair": of_both(losses.nca_pair),
}


@dataclass(frozen=True)
class DpoMethod(Pairwise):
    """Pairs against a reference: the model the stage starts from."""

    name: str = "dpo"
    settings: Dpo = field(default_factory=Dpo)
    needs_reference: bool = True

    def loss(self, outputs: Outputs, batch: Batch) -> LossOut:
        """The chosen loss of each pair, + sft_weight times the chosen answer's mean token loss. Weight: pairs B."""
        values, settings = pair_values(outputs, batch), self.settings
        losses_B = LOSSES[settings.loss](values, settings)
        if settings.sft_weight:
            losses_B = losses_B - settings.sft_weight * values.means_B2[:, CHOSEN]
        return LossOut(losses_B.sum(), float(batch.num_rows))

    def scores(self, outputs: Outputs, batch: Batch) -> Scores:
        """Beside the figures of all pairs: how often, and by how much, the implicit reward prefers the chosen one.

        Both compare with the reference, so at step 0 they are 1/2 and 0 whatever the model knows.
        """
        delta_B = pair_values(outputs, batch).delta_B
        credit_B, ones_B = won(delta_B, TIE_NATS)
        return {
            **likelihood_scores(outputs, batch),
            "reward_accuracy": (credit_B, ones_B),
            "margin": (self.settings.beta * delta_B, ones_B),
        }
