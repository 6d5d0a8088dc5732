"""Next-token cross-entropy: what continued pre-training, supervised fine-tuning and their like share."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.methods.base import Batch, Example, LossOut, Outputs, Scores, bits_per_byte


@dataclass(frozen=True)
class Likelihood:
    """Weighted negative log-likelihood of the targets; each method says by its view what the targets are."""

    name: str

    def weight(self, example: Example) -> float:
        """Sum of the target weights: trained tokens."""
        return float(sum(sum(sequence.weights) for sequence in example.sequences))

    def loss(self, outputs: Outputs, batch: Batch) -> LossOut:
        """-sum_m w_m log p_m, over all targets m of the batch; weight sum_m w_m.

        logprobs_M [M], weight_M [M]. Mean token cross-entropy once the loop has divided.
        """
        assert outputs.logprobs_M is not None
        total = -(outputs.logprobs_M * batch.weight_M).sum()
        return LossOut(total, float(batch.weight_M.sum()))

    def scores(self, outputs: Outputs, batch: Batch) -> Scores:
        """Bits per byte of the text that the targets spell."""
        return {"bits_per_byte": bits_per_byte(outputs, batch)}
