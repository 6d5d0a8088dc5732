"""A linear probe: a head on hidden states of the frozen model, which are computed once and kept on disk.

The model has no adapter, so what it says of a row never changes: after the first pass an epoch costs one product of
the kept features with the head. Features are kept by content: the model's weights, and the tokens and spans of each
sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as ManyOf
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from luthier.adapters import Plain
from luthier.errors import TrainingError
from luthier.forest.forward import choose_backend, hidden_states, logprobs, readout
from luthier.forest.tree import Forest
from luthier.methods.base import Batch, Example, Outputs
from luthier.models import LoadedModel
from luthier.training.kept import GIGABYTE, RowStore, key_of, named_weights, weights_hash
from luthier.training.learner import Learner
from luthier.training.ranks import here

FORWARD_ONLY = 4  # a pass that keeps no activations has room for so many times the tokens of one that does


class ProbeLearner(Learner):
    """Heads alone are trained, on what they read of each sequence: rows [spans, D], kept in `folder`."""

    def __init__(
        self,
        model: LoadedModel,
        heads: Mapping[str, nn.Module],
        attention: str,
        folder: Path,
        most_gigabytes: float,
    ):
        if not heads:
            raise TrainingError(
                "tune.adapter.kind: none trains a head only, and this method has none. Use it with classify, tag, "
                "regress and their like, or choose lora."
            )
        backend, _ = choose_backend(model.model, attention)
        super().__init__(Plain(model.model.eval()), heads, backend)
        identity = weights_hash(named_weights(model.model), "features", model.precision, backend)
        self.kept = RowStore(folder, identity, int(most_gigabytes * GIGABYTE))

    def train(self, mode: bool = True) -> ProbeLearner:
        """The heads' mode; the model stays as it is, and no step walks through its modules."""
        self.training = mode
        self.heads.train(mode)
        return self

    def trained(self) -> dict[str, nn.Parameter]:
        """Parameters of the heads, by name."""
        return {f"heads.{name}": p for name, p in self.heads.named_parameters() if p.requires_grad}

    def prepare(self, examples: ManyOf[Example], max_tokens: int) -> None:
        """Compute the features that are not there yet, and keep them on disk."""
        missing = [
            e for e in examples if any(s.reads and key_of(s.tokens, s.reads) not in self.kept for s in e.sequences)
        ]
        lm: Any = self.lm
        num_spans = sum(len(s.reads) for e in missing for s in e.sequences)
        self.kept.reserve(num_spans * lm.config.hidden_size * 4)
        try:
            for micro, _ in here().passes(self, missing, FORWARD_ONLY * max_tokens):
                self.read(self.batch(micro).forest)
        finally:
            self.kept.flush()
        self.kept.share()

    @torch.no_grad()
    def read(self, forest: Forest) -> None:
        """The features of a forest's sequences."""
        read_PD = readout(forest, hidden_states(self.lm, forest, self.backend)).float()
        starts = np.cumsum([0, *(len(s.reads) for s in forest.sequences)])
        self.kept.add(
            read_PD,
            {
                key_of(s.tokens, s.reads): np.arange(start, start + len(s.reads))
                for s, start in zip(forest.sequences, starts, strict=False)
                if s.reads
            },
        )

    def features(self, forest: Forest) -> Tensor:
        """What the heads read of a forest's sequences, [P, D]; computed where it is not kept."""
        wanted = [(key_of(s.tokens, s.reads), np.arange(len(s.reads))) for s in forest.sequences if s.reads]
        if any(key not in self.kept for key, _ in wanted):
            self.read(forest)
        return self.kept.gather(wanted)

    def forward(self, batch: Batch) -> Outputs:
        """What the task's head says of the kept features, and what the model does where a task reads no head."""
        has_spans = len(batch.row_P) > 0
        return Outputs(
            logprobs_M=self.logprobs(batch.forest) if len(batch.forest.row_M) else None,
            logits_PL=self.heads[batch.task](self.features(batch.forest).to(self.device)) if has_spans else None,
        )

    @torch.no_grad()
    def logprobs(self, forest: Forest) -> Tensor:
        """Log-probabilities [M] of a forest's targets under the model as it is, which nothing here changes."""
        return logprobs(self.lm, forest, self.hidden(forest))
