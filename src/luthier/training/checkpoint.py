"""Checkpoints: the state before step n, whole or not there, without pickle.

Tensors (trained weights, optimizer moments, random state) are safetensors, the rest is JSON, checksums of all
files stand beside them and are verified before anything is loaded.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from luthier.errors import RunError
from luthier.files import check_folder, new_folder, restore_folder, write_json
from luthier.training.learner import Learner

KEEP = 2
OVERFITS, LOST_ACCURACY = 1.25, 0.05  # final validation loss over the best one, and accuracy lost: overfitting


@dataclass(frozen=True)
class Progress:
    """What a progress line shows."""

    step: int
    num_steps: int
    loss: float
    figures: dict[str, float]  # of the last validation
    seconds_left: float


@dataclass(frozen=True)
class StepDone:
    """What one optimizer step did. Tokens: with a loss; computed; of all sequences; of the padded batch.

    `penalty` is the part of the loss that is one; None where the training has none.
    """

    loss: float
    gradient_norm: float
    trained_tokens: int
    computed_tokens: int
    sequence_tokens: int
    padded_tokens: int
    penalty: float | None = None


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
    validation: list[dict[str, float]] = field(default_factory=list)

    def record_step(self, step: int, done: StepDone, rate: float) -> None:
        """One optimizer step done."""
        self.step = step + 1
        entry = {"step": step + 1, "loss": done.loss, "learning_rate": rate, "gradient_norm": done.gradient_norm}
        self.train.append(entry if done.penalty is None else {**entry, "penalty": done.penalty})
        self.trained_tokens += done.trained_tokens
        self.computed_tokens += done.computed_tokens
        self.sequence_tokens += done.sequence_tokens
        self.padded_tokens += done.padded_tokens

    def record_validation(self, step: int, loss: float, figures: dict[str, float]) -> None:
        """One validation done; `best_step` is that of the lowest loss.

        On the hundred rows that validation has, accuracy moves in steps of a point and by chance; the loss sees
        how sure each answer was.
        """
        self.validation.append({"step": step, "loss": loss, **figures})
        best = min(self.validation, key=lambda entry: entry["loss"])
        self.best_step = int(best["step"])

    def length_share(self) -> float:
        """How much of the schedule to train again: all of it, or up to the best step where it overfits after that.

        Losses before the end are those of a learning rate that has not decayed yet, so a step that looks a little
        better is no reason to stop there. A final loss a quarter above the best one is, where accuracy fell too:
        a loss also rises when right answers only become surer and a few wrong ones with them.
        """
        losses = [entry["loss"] for entry in self.validation]
        shares = [entry["accuracy"] for entry in self.validation if "accuracy" in entry]
        lost = not shares or max(shares) - shares[-1] > LOST_ACCURACY
        overfits = bool(losses) and losses[-1] > OVERFITS * min(losses) and lost
        return self.best_step / self.num_steps if overfits else 1.0

    def progress(self) -> Progress:
        """The line to show now."""
        mean = (self.seconds + self.validation_seconds) / max(1, self.step)
        last = self.validation[-1] if self.validation else {}
        figures = {name: value for name, value in last.items() if name not in ("step", "loss")}
        return Progress(self.step, self.num_steps, self.train[-1]["loss"], figures, mean * (self.num_steps - self.step))


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


def load_checkpoint(path: Path, learner: Learner, optimizer: torch.optim.Optimizer, num_steps: int) -> History:
    """Restore weights, optimizer and random state in place; returns the history.

    RunError where the checkpoint belongs to another training: other weights, or another number of steps.
    """
    tensors = load_file(str(path / "state.safetensors"))
    history = History(**json.loads((path / "history.json").read_text(encoding="utf-8")))
    saved = {name.removeprefix("weight."): t.shape for name, t in tensors.items() if name.startswith("weight.")}
    wanted = {name: parameter.shape for name, parameter in learner.trained().items()}
    if saved != wanted or history.num_steps != num_steps:
        raise RunError(
            f"{path}: belongs to another training ({len(saved)} tensors, {history.num_steps} steps; this one has "
            f"{len(wanted)} tensors, {num_steps} steps). Give another folder, or delete this one to start anew."
        )
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
    return history


def save_best(learner: Learner, folder: Path) -> None:
    """Keep the best adapter so far, in best/."""
    with new_folder(folder / "best") as aside:
        learner.save(aside)


def load_best(learner: Learner, folder: Path) -> None:
    """Put the best adapter's weights back into the learner, ready to answer."""
    learner.load(folder / "best")
    learner.eval()


def clear_leftovers(folder: Path) -> None:
    """Remove what a killed training left half-written; a best/ that was being replaced comes back."""
    restore_folder(folder / "best")
    for left in (folder / "checkpoints").glob(".step-*"):
        shutil.rmtree(left, ignore_errors=True)
