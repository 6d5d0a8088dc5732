"""Direct preference optimisation (Rafailov et al. 2023) and its kin: the policy is its own reward model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from luthier.methods.base import Batch, LossOut, Outputs, Scores
from luthier.methods.preferences.losses import dpo_conservative, dpo_hinge, dpo_ipo, dpo_robust, dpo_sigmoid
from luthier.methods.preferences.pairs import CHOSEN, TIE_NATS, Pairwise, likelihood_scores, pair_values, won
from luthier.recipe.methods import Dpo

# (loss of delta_B, beta and smoothing; whether delta_B is taken per token)
LOSSES: dict[str, tuple[Callable[[Tensor, float, float], Tensor], bool]] = {
    "sigmoid": (dpo_sigmoid, False),
    "ipo": (dpo_ipo, True),
    "hinge": (dpo_hinge, False),
    "conservative": (dpo_conservative, False),
    "robust": (dpo_robust, False),
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
        function, per_token = LOSSES[settings.loss]
        delta_B = values.mean_delta_B if per_token else values.delta_B
        losses_B = function(delta_B, settings.beta, settings.label_smoothing)
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
