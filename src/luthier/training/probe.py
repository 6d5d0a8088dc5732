"""A linear probe: a head on hidden states of the frozen model, which are computed once and kept on disk.

The model has no adapter, so what it says of a row never changes: after the first pass an epoch costs one product of
the kept features with the head. Features are kept by content: the model, and the tokens and spans of each sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as ManyOf
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from luthier.adapters import Plain
from luthier.errors import TrainingError
from luthier.files import content_hash, new_folder
from luthier.forest.forward import choose_backend, hidden_states, readout
from luthier.methods.base import Batch, Example, Outputs, split_by_tokens
from luthier.models import LoadedModel
from luthier.records import Sequence
from luthier.training.learner import HEAD_FILE, Learner

FEATURES = "features.safetensors"


class ProbeLearner(Learner):
    """Heads alone are trained. `features` holds what they read of each sequence [spans, D], by the sequence's key."""

    def __init__(self, model: LoadedModel, heads: Mapping[str, nn.Module], attention: str, folder: Path):
        if not heads:
            raise TrainingError(
                "tune.adapter.kind: none trains a head only, and this method has none. Use it with classify, tag, "
                "regress and their like, or choose lora."
            )
        backend, _ = choose_backend(model.model, attention)
        super().__init__(Plain(model.model), heads, backend)
        self.features: dict[str, Tensor] = load_file(str(folder / FEATURES)) if (folder / FEATURES).is_file() else {}
        self.folder = folder

    def prepare(self, examples: ManyOf[Example], max_tokens: int) -> None:
        """Compute the features that are not there yet, and keep them on disk."""
        missing = [e for e in examples if any(feature_key(s) not in self.features for s in e.sequences)]
        for micro in split_by_tokens(missing, max_tokens):
            self.read(self.batch(micro))
        if missing:
            with new_folder(self.folder) as aside:
                save_file(self.features, str(aside / FEATURES))

    @torch.no_grad()
    def read(self, batch: Batch) -> None:
        """The features of a batch's sequences."""
        read_PD = readout(batch.forest, hidden_states(self.lm, batch.forest, self.backend)).float().cpu()
        sequences = batch.forest.sequences
        parts = read_PD.split([len(sequence.reads) for sequence in sequences])
        self.features |= {feature_key(s): part.clone() for s, part in zip(sequences, parts, strict=True)}

    def forward(self, batch: Batch) -> Outputs:
        """What the task's head says of the kept features."""
        keys = [feature_key(sequence) for sequence in batch.forest.sequences]
        if any(key not in self.features for key in keys):
            self.read(batch)
        rows_PD = torch.cat([self.features[key] for key in keys])
        return Outputs(logits_PL=self.heads[batch.task](rows_PD.to(self.device)))

    def save(self, folder: Path) -> None:
        """The heads; there is no adapter."""
        state = {name: tensor.contiguous() for name, tensor in self.heads.state_dict().items()}
        save_file(state, str(folder / HEAD_FILE))

    def load(self, folder: Path) -> None:
        """Put back in place what `save` wrote."""
        self.heads.load_state_dict(load_file(str(folder / HEAD_FILE)))


def feature_key(sequence: Sequence) -> str:
    """What a sequence's features depend on, beside the model."""
    return content_hash(sequence.tokens, sequence.reads)
