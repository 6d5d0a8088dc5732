"""Checkpoints: the state before step n, whole or not there, without pickle.

Tensors (trained weights, optimizer moments, random state) are safetensors, the rest is JSON, checksums of all
files stand beside them and are verified before anything is loaded.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from luthier.files import check_folder, new_folder, write_json
from luthier.methods.base import Example
from luthier.training.learner import Learner

KEEP = 2


@dataclass(frozen=True)
class Progress:
    """What a progress line shows."""

    step: int
    num_steps: int
    loss: float
    accuracy: float | None
    seconds_left: float


@dataclass
class History:
    """What happened so far; part of every checkpoint."""

    num_steps: int
    step: int = 0
    seconds: float = 0.0
    validation_seconds: float = 0.0
    best_step: int = 0
    trained_tokens: int = 0
    computed_tokens: int = 0
    sequence_tokens: int = 0
    padded_tokens: int = 0
    train: list[dict[str, float]] = field(default_factory=list)
    validation: list[dict[str, float | None]] = field(default_factory=list)

    def record_step(
        self, step: int, loss: float, rate: float, norm: float, rows: Sequence[int], examples: Sequence[Example]
    ) -> None:
        """One optimizer step done."""
        from luthier.training.loop import distinct_tokens

        self.step = step + 1
        self.train.append({"step": step + 1, "loss": loss, "learning_rate": rate, "gradient_norm": norm})
        used = sorted((examples[i] for i in rows), key=lambda example: example.sequences[0].tokens)
        before: tuple[int, ...] = ()
        for example in used:
            self.computed_tokens += distinct_tokens(example, before)
            before = example.sequences[0].tokens
        lengths = [len(sequence.tokens) for example in used for sequence in example.sequences]
        self.sequence_tokens += sum(lengths)
        self.padded_tokens += len(lengths) * max(lengths)
        self.trained_tokens += sum(example.num_trained or 1 for example in used)

    def record_validation(self, step: int, loss: float, accuracy: float | None) -> None:
        """One validation done; `best_step` follows accuracy, then loss."""
        self.validation.append({"step": step, "loss": loss, "accuracy": accuracy})
        best = max(self.validation, key=lambda v: (v["accuracy"] or 0.0, -(v["loss"] or 0.0)))
        self.best_step = int(best["step"] or 0)

    def progress(self) -> Progress:
        """The line to show now."""
        mean = (self.seconds + self.validation_seconds) / max(1, self.step)
        accuracy = self.validation[-1]["accuracy"] if self.validation else None
        return Progress(self.step, self.num_steps, self.train[-1]["loss"], accuracy, mean * (self.num_steps - self.step))


def save_checkpoint(folder: Path, learner: Learner, optimizer: torch.optim.Optimizer, history: History) -> Path:
    """Write checkpoints/step-N aside, rename it, and drop all but the newest two."""
    target = folder / "checkpoints" / f"step-{history.step:06d}"
    names = {id(parameter): name for name, parameter in learner.trained().items()}
    tensors = {f"weight.{name}": p.detach().contiguous() for name, p in learner.trained().items()}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            tensors[f"optimizer.{key}.{names[id(parameter)]}"] = torch.as_tensor(value).contiguous().clone()
    tensors["random"] = torch.random.get_rng_state()
    with new_folder(target) as aside:
        save_file(tensors, str(aside / "state.safetensors"))
        write_json(aside / "history.json", asdict(history))
    for old in sorted((folder / "checkpoints").glob("step-*"))[:-KEEP]:
        shutil.rmtree(old)
    return target


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose checksums hold; broken ones are passed over."""
    found = sorted((folder / "checkpoints").glob("step-*"), reverse=True)
    return next((path for path in found if not check_folder(path)), None)


def load_checkpoint(path: Path, learner: Learner, optimizer: torch.optim.Optimizer) -> History:
    """Restore weights, optimizer and random state in place; returns the history."""
    tensors = load_file(str(path / "state.safetensors"))
    states: dict[str, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, slot, name = key.split(".", 2)
            states.setdefault(name, {})[slot] = tensor
    with torch.no_grad():
        for name, parameter in learner.trained().items():
            parameter.copy_(tensors[f"weight.{name}"])
            if name in states:
                optimizer.state[parameter] = states[name]
    torch.random.set_rng_state(tensors["random"])
    return History(**json.loads((path / "history.json").read_text(encoding="utf-8")))
