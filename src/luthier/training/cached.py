"""Training the upper layers on kept states of the frozen ones below: the same numbers, and epochs without those layers.

What the frozen layers say of a token depends on its sequence up to it and never changes. It is computed once, for each
distinct token of a micro-batch, and kept on disk; a training step gathers the rows of its forest from there and works
out the rest. A sequence that was not prepared is computed as it comes, to the same result.
"""

from __future__ import annotations

from collections.abc import Sequence as ManyOf
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier.errors import TrainingError
from luthier.forest.tree import Forest, build_forest, computed_tokens
from luthier.methods.base import Example, Objective, Varying
from luthier.methods.several import Several
from luthier.recipe import Training
from luthier.records import Sequence
from luthier.training.cut import cut_below
from luthier.training.kept import GIGABYTE, RowStore, key_of, weights_hash
from luthier.training.learner import Learner
from luthier.training.ranks import here


class CachedLearner(Learner):
    """A learner in place of another one, with the states below its lowest trained layer kept in `folder`."""

    def __init__(self, learner: Learner, folder: Path, most_gigabytes: float, precision: str):
        super().__init__(learner.wrapper, dict(learner.heads.items()), learner.backend)
        self.cut = cut_below(self)
        words = "states", str(len(self.cut.lower)), precision, self.backend
        self.kept = RowStore(folder, weights_hash(self.cut.frozen_weights(), *words), int(most_gigabytes * GIGABYTE))

    @torch.no_grad()
    def prepare(self, examples: ManyOf[Example], max_tokens: int) -> None:
        """Compute the states that are not there yet, and keep them on disk."""
        self.eval()
        read = {key_of(tokens): tokens for e in examples for s in e.sequences for tokens in [self.read_tokens(s)]}
        missing = [Example((Sequence(tokens),)) for key, tokens in read.items() if key not in self.kept]
        forests = [
            build_forest([e.sequences[0] for e in micro], self.causal)
            for micro, _ in here().passes(self, missing, max_tokens)
        ]
        lm: Any = self.lm
        row_bytes = lm.config.hidden_size * next(lm.parameters()).element_size()
        self.kept.reserve(sum(forest.num_tokens for forest in forests) * row_bytes)
        try:
            for forest in forests:
                rows = {key_of(s.tokens): forest.rows_of(i) for i, s in enumerate(forest.sequences)}
                self.kept.add(self.cut.below(forest), rows)
        finally:
            self.kept.flush()
        self.kept.share()

    def hidden(self, forest: Forest) -> Tensor:
        """The last hidden states [N, D]: the lower layers' from what is kept, the upper layers worked out."""
        states_ND = self.states(forest)
        if states_ND is None:
            states_ND = self.cut.below(forest)
        return self.cut.above(forest, states_ND.to(self.device))

    def states(self, forest: Forest) -> Tensor | None:
        """What is kept of a forest's tokens, [N, D]; None where a sequence was not prepared."""
        keys = [key_of(self.read_tokens(sequence)) for sequence in forest.sequences]
        if any(key not in self.kept for key in keys):
            return None
        borders = np.flatnonzero(np.diff(forest.first_N)) + 1  # rows of one owner stand together
        runs = np.split(np.arange(forest.num_tokens), borders)
        return self.kept.gather([(keys[forest.first_N[run[0]]], forest.positions_N[run]) for run in runs])

    def read_tokens(self, sequence: Sequence) -> tuple[int, ...]:
        """The tokens of a sequence that are computed."""
        return computed_tokens(sequence) if self.causal else sequence.tokens


def cached(learner: Learner, training: Training, folder: Path, precision: str) -> Learner:
    """The learner, or a cached one in its place where the recipe asks for it.

    Raises:
        TrainingError: nothing lies below what is trained, or it would not say the same of a row at each step.
    """
    return CachedLearner(learner, folder, training.cache_gigabytes, precision) if training.cache_below else learner


def refuse_varying(training: Training, objective: Objective) -> None:
    """TrainingError where states would be kept of rows that are another each time."""
    learnt = [part.method for part in objective.parts.values()] if isinstance(objective, Several) else [objective]
    varying = sorted({method.name for method in learnt if isinstance(method, Varying)})
    if training.cache_below and varying:
        raise TrainingError(
            f"tune.cache_below: {varying[0]} learns from a row in another form at each step, so what the frozen "
            "layers say of it cannot be computed once. Leave it out."
        )
