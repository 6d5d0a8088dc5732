"""Log-probabilities of the model a stage starts from, computed once and kept by content."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as ManyOf
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from luthier.files import content_hash, new_folder
from luthier.methods.base import Example, sequence_logprobs
from luthier.processes import gathered, num_processes, wait
from luthier.records import Sequence
from luthier.training.learner import Learner
from luthier.training.ranks import here

FILE = "logprobs.safetensors"


def with_reference(
    learner: Learner,
    examples: ManyOf[Example],
    max_tokens: int,
    folder: Path,
    update: Callable[[int, int], None] | None = None,
) -> list[Example]:
    """The examples with log p of each sequence under `learner` as it is now: the model the stage starts from.

    `folder` keeps what was computed, by the tokens and targets of each sequence; the caller gives each starting model
    a folder of its own. Adding rows computes the new ones only.
    """
    known = load_file(str(folder / FILE)) if (folder / FILE).is_file() else {}
    keys = [[sequence_key(sequence) for sequence in example.sequences] for example in examples]
    missing = [example for example, names in zip(examples, keys, strict=True) if any(n not in known for n in names)]
    if missing:
        for part in gathered(computed(learner, missing, max_tokens, update)):
            known |= part
        with new_folder(folder) as aside:
            save_file(known, str(aside / FILE))
        wait()
    return [
        replace(example, reference_S=tuple(float(known[name]) for name in names))
        for example, names in zip(examples, keys, strict=True)
    ]


@torch.no_grad()
def computed(
    learner: Learner, examples: ManyOf[Example], max_tokens: int, update: Callable[[int, int], None] | None
) -> dict[str, torch.Tensor]:
    """log p of each sequence by its key; each of several processes computes its share of the examples."""
    learner.eval()
    found: dict[str, torch.Tensor] = {}
    done = 0
    plain = [replace(example, reference_S=()) for example in examples]
    for micro, _ in here().passes(learner, plain, max_tokens):
        batch = learner.batch(micro)
        values_S = sequence_logprobs(learner(batch), batch).double().cpu()
        sequences = [sequence for example in micro for sequence in example.sequences]
        found |= {sequence_key(s): value.clone() for s, value in zip(sequences, values_S, strict=True)}
        done += len(micro) * num_processes()
        if update is not None:
            update(min(done, len(examples)), len(examples))
    return found


def sequence_key(sequence: Sequence) -> str:
    """What a sequence's log-probability depends on, beside the model."""
    return content_hash(sequence.tokens, sequence.targets, sequence.weights, sequence.wanted, sequence.temperatures)
