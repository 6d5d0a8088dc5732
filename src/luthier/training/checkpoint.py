"""Checkpoints: the state before step n, whole or not there, without pickle.

Tensors (trained weights, optimizer moments, random state) are safetensors, the rest is JSON, checksums of all
files stand beside them and are verified before anything is loaded.
"""

from __future__ import annotations

import errno
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from luthier.errors import RunError, TrainingError
from luthier.files import bytes_text, check_folder, new_folder, os_error_number, write_json
from luthier.processes import any_of
from luthier.training.judging import best_step
from luthier.training.learner import Learner
from luthier.training.ranks import here

FORM = 2  # of a checkpoint's files; raised when an older reader could not read them
NOTES = "checkpoint.json"
OVERFITS, LOST_ACCURACY = 1.25, 0.05  # final validation loss over the best one, and accuracy lost: overfitting


@dataclass(frozen=True)
class Progress:
    """What a progress line shows, and all validations so far: whoever hears of it may end the training by an error."""

    step: int
    num_steps: int
    loss: float
    figures: dict[str, float]  # of the last validation
    seconds_left: float
    validation: tuple[dict[str, float], ...] = ()
    best_step: int = 0


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

    def record_validation(self, step: int, loss: float, figures: dict[str, float], metric: str = "loss") -> None:
        """One validation done; `best_step` is that of the lowest loss, or of another metric's best value.

        A figure that could not be computed, NaN, is left out.

        On the hundred rows that validation has, accuracy moves in steps of a point and by chance; the loss sees
        how sure each answer was.
        """
        known = {name: value for name, value in figures.items() if not math.isnan(value)}
        self.validation.append({"step": step, "loss": loss, **known})
        self.best_step = best_step(self.validation, metric)

    def validated(self) -> bool:
        """Whether the last step was validated."""
        return bool(self.validation) and self.validation[-1]["step"] == self.step

    def length_share(self) -> float:
        """How much of the schedule to train again: all of it, or up to the best step where it overfits after that.

        A training that was stopped early (`tune.stop`) says the same of its best step.

        Losses before the end are those of a learning rate that has not decayed yet, so a step that looks a little
        better is no reason to stop there. A final loss a quarter above the best one is, where accuracy fell too:
        a loss also rises when right answers only become surer and a few wrong ones with them.
        """
        losses = [entry["loss"] for entry in self.validation]
        shares = [entry["accuracy"] for entry in self.validation if "accuracy" in entry]
        lost = not shares or max(shares) - shares[-1] > LOST_ACCURACY
        overfits = bool(losses) and losses[-1] > OVERFITS * min(losses) and lost
        return self.best_step / self.num_steps if overfits or 0 < self.step < self.num_steps else 1.0

    def progress(self) -> Progress:
        """The line to show now."""
        mean = (self.seconds + self.validation_seconds) / max(1, self.step)
        last = self.validation[-1] if self.validation else {}
        figures = {name: value for name, value in last.items() if name not in ("step", "loss")}
        left = mean * (self.num_steps - self.step)
        looks = tuple(self.validation)
        return Progress(self.step, self.num_steps, self.train[-1]["loss"], figures, left, looks, self.best_step)


def save_checkpoint(
    folder: Path,
    learner: Learner,
    optimizer: torch.optim.Optimizer,
    history: History,
    average: Mapping[str, Tensor] | None = None,
    random: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write checkpoints/step-N aside, and rename it.

    `average` is the state of an average of the weights, by name; `random` the random state to go on from, where it is
    not the present one.

    Raises:
        TrainingError: a weight or a moment is not finite; a checkpoint of that would only fail again.
        RunError: it cannot be written. What stood there before is whole.
    """
    target = checkpoint_path(folder, history.step)
    tensors, values = state_of(learner, optimizer)
    tensors |= {f"average.{name}": own(tensor) for name, tensor in (average or {}).items()}
    broken = [name for name, tensor in tensors.items() if not finite(tensor)]
    if any_of(bool(broken)):
        first = f", first {broken[0]}" if broken else "; those of another process"
        raise TrainingError(
            f"the weights after step {history.step} are not finite ({len(broken)} of {len(tensors)} tensors{first}). "
            "They are not saved. Lower tune.learning_rate or raise tune.warmup_share, and run again."
        )
    tensors |= random or random_state()
    notes = {"form": FORM, "optimizer": type(optimizer).__name__, "values": values, "history": asdict(history)}
    try:
        with here().new_folder(target) as aside:
            here().save_state(tensors, aside)
            write_json(aside / NOTES, notes)
    except RunError as error:
        raise told_size(error, target, sum(tensor.nbytes for tensor in tensors.values())) from error
    return target


def told_size(error: RunError, target: Path, needed: int) -> RunError:
    """A full disk: the bytes that are missing there, and where training goes on. Other errors stay as they are."""
    cause = error.__cause__
    if not isinstance(cause, OSError | SafetensorError) or os_error_number(cause) != errno.ENOSPC:
        return error
    folder = target.parent.parent
    free, last = shutil.disk_usage(folder).free, latest_checkpoint(folder)
    return RunError(
        f"{target}: the disk is full: a checkpoint takes {bytes_text(needed)}, and {bytes_text(free)} are free there. "
        f"Free at least {bytes_text(max(0, needed - free))}, or set tune.checkpoints.keep: 1, and run the same command "
        f"again: training goes on after step {step_of(last) if last else 0}."
    )


def state_of(learner: Learner, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (weights, optimizer state) and plain values of the optimizer's state, by name.

    Nothing is copied where it lies whole in memory of its own.
    """
    trained = learner.trained()
    names = {id(parameter): name for name, parameter in trained.items()}
    tensors = {f"weight.{name}": own(parameter.detach()) for name, parameter in trained.items()}
    values: dict[str, Any] = {}
    for parameter, state in optimizer.state.items():
        for slot, value in state.items():
            key = f"optimizer.{slot}.{names[id(parameter)]}"
            if isinstance(value, Tensor):
                tensors[key] = own(value.detach())
            else:
                assert value is None or isinstance(value, bool | int | float | str), f"{key}: cannot be saved"
                values[key] = value
    return tensors, values


def own(tensor: Tensor) -> Tensor:
    """The tensor whole and alone in its memory, as safetensors wants it."""
    alone = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if alone else tensor.contiguous().clone()


def finite(tensor: Tensor) -> bool:
    """Whether no entry is infinite or NaN (in this rank's shard, where it is cut); whole numbers are."""
    tensor = getattr(tensor, "to_local", lambda: tensor)()
    if not tensor.is_floating_point() or bool(tensor.float().sum().isfinite()):
        return True  # a sum is twenty times as fast, and finite only where every entry is
    return bool(tensor.isfinite().all())


def random_state() -> dict[str, Tensor]:
    """Torch's random state on the CPU and, where they are used, on the GPUs.

    Orders and noises are drawn from generators of their own, seeded by (seed, step): they have no state to keep.
    """
    state = {"random": torch.random.get_rng_state()}
    if torch.cuda.is_initialized():
        state |= {f"random.cuda.{i}": value for i, value in enumerate(torch.cuda.get_rng_state_all())}
    return state


def set_random_state(state: dict[str, Tensor]) -> None:
    """Go on drawing where `random_state` was taken; GPUs that are not here any more are left out."""
    torch.random.set_rng_state(state["random"])
    for name, value in state.items():
        device = int(name.rpartition(".")[2]) if name.startswith("random.cuda.") else torch.cuda.device_count()
        if device < torch.cuda.device_count():
            torch.cuda.set_rng_state(value, device)


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step stands, or would."""
    return folder / "checkpoints" / f"step-{step:06d}"


def step_of(path: Path) -> int:
    """How many steps a checkpoint holds."""
    return int(path.name.removeprefix("step-"))


def found_checkpoints(folder: Path) -> list[Path]:
    """All checkpoints, the newest first, whole or not."""
    return sorted((folder / "checkpoints").glob("step-*"), key=step_of, reverse=True)


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose checksums hold; broken ones are passed over."""
    return next((path for path in found_checkpoints(folder) if not check_folder(path)), None)


def read_notes(path: Path) -> dict[str, Any]:
    """What stands beside the tensors of a checkpoint; empty for one of an earlier form."""
    file = path / NOTES
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def load_checkpoint(
    path: Path, learner: Learner, optimizer: torch.optim.Optimizer, num_steps: int
) -> tuple[History, dict[str, Tensor]]:
    """Restore weights, optimizer and random state in place; returns the history and the average of the weights.

    RunError where the checkpoint belongs to another training (other weights, optimizer or number of steps), or was
    written by another version of luthier.
    """
    notes = read_notes(path)
    if notes.get("form") != FORM or notes["history"].keys() != {part.name for part in fields(History)}:
        raise RunError(
            f"{path}: was written by another version of luthier and cannot be read. Finish that training with the "
            "version it began with, give another folder, or delete this one to start anew."
        )
    trained = learner.trained()
    tensors = here().load_state(path, trained)
    history = History(**notes["history"])
    saved = {name.removeprefix("weight."): t.shape for name, t in tensors.items() if name.startswith("weight.")}
    wanted = {name: parameter.shape for name, parameter in trained.items()}
    used = type(optimizer).__name__
    if saved != wanted or history.num_steps != num_steps or notes["optimizer"] != used:
        raise RunError(
            f"{path}: belongs to another training ({len(saved)} tensors, {history.num_steps} steps, "
            f"{notes['optimizer']}; this one has {len(wanted)} tensors, {num_steps} steps, {used}). Give another "
            "folder, or delete this one to start anew."
        )
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(tensors[f"weight.{name}"])
    restore_optimizer(optimizer, trained, tensors, notes["values"])
    set_random_state({name: tensor for name, tensor in tensors.items() if name.startswith("random")})
    average = {name: tensor for name, tensor in tensors.items() if name.startswith("average.")}
    return history, {name.removeprefix("average."): tensor.clone() for name, tensor in average.items()}


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    trained: dict[str, torch.nn.Parameter],
    tensors: dict[str, Tensor],
    values: dict[str, Any],
) -> None:
    """The optimizer's state by parameter, each tensor in its own type, where the optimizer looks for it."""
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    for key, value in [*tensors.items(), *values.items()]:
        if not key.startswith("optimizer."):
            continue
        _, slot, name = key.split(".", 2)
        parameter = trained[name]
        if isinstance(value, Tensor):
            group = groups[id(parameter)]
            counter = slot == "step" and not (group.get("fused") or group.get("capturable"))
            device = value.device if counter else parameter.device  # torch counts on the CPU unless it is fused
            value = value.to(device, copy=True)  # else it stays a view of the file, which may go
        optimizer.state[parameter][slot] = value


def save_best(learner: Learner, folder: Path) -> None:
    """Keep the best adapter so far, in best/."""
    with new_folder(folder / "best") as aside:
        learner.save(aside)


def load_best(learner: Learner, folder: Path) -> None:
    """Put the best adapter's weights back into the learner, ready to answer.

    Raises:
        RunError: they are not there.
    """
    if not (folder / "best").is_dir():
        raise RunError(
            f"{folder / 'best'}: the weights of the best step are not there: somebody removed them, or the training "
            "never came to its first validation. Delete the folder above it, and run again."
        )
    learner.load(folder / "best")
    learner.eval()
