"""Keeps a training on disk: when it is saved, what is taken up again, and what is saved when a step fails."""

from __future__ import annotations

import gc
import shutil
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from luthier.errors import LuthierError, RunError, TrainingError
from luthier.files import PARTIAL, check_folder, restore_below
from luthier.processes import any_of, is_first, num_processes, told, wait
from luthier.recipe import Training
from luthier.recipe.checkpoints import Checkpoints
from luthier.signals import INTERRUPTED
from luthier.stopped import Stopped
from luthier.training.averaging import WeightAverage
from luthier.training.checkpoint import (
    History,
    checkpoint_path,
    found_checkpoints,
    latest_checkpoint,
    load_checkpoint,
    random_state,
    read_notes,
    save_checkpoint,
    step_of,
)
from luthier.training.learner import Learner

Say = Callable[[str], None]


@dataclass
class Keeper:
    """One training and the folder it lives in.

    `good` is the random state of the last moment at which weights, optimizer and history belonged together, with the
    versions of the weights then: torch counts every change of a tensor, so it can be told whether a step that failed
    had begun to change them.
    """

    folder: Path
    training: Training
    learner: Learner
    optimizer: torch.optim.Optimizer
    history: History
    average: WeightAverage | None = None
    saved_at: float = field(default_factory=time.monotonic)
    good: tuple[dict[str, Tensor], list[int]] | None = None

    def __post_init__(self) -> None:
        self.optimizer.register_step_pre_hook(lambda *_: self.lift())

    def resume(self, say: Say) -> None:
        """Put the newest whole checkpoint into learner, optimizer and history; say so where a newer one was damaged.

        A checkpoint counts as damaged too where the best weights that it speaks of are. What a killed training left
        half-written is removed. Raises RunError as `load_checkpoint` does.
        """
        found, damaged = told(newest_whole(self.folder) if is_first() else (None, []))
        if found is not None:
            self.history, average = load_checkpoint(found, self.learner, self.optimizer, self.history.num_steps)
            if self.average is not None:
                self.average.restore(average, self.learner)
        wait()  # nothing is dropped while another process may read it
        on = f"goes on after step {self.history.step}" if self.history.step else "starts from the first step"
        for path, problem in damaged:
            say(f"{path}: damaged ({problem}) and not used; training {on}.")
            if is_first():
                drop(path)
        prune(self.folder, self.training.checkpoints)

    def due(self, validated: bool) -> bool:
        """Whether to save after the step that is done: by steps, by time, or since there was a validation."""
        settings, step = self.training.checkpoints, self.history.step
        if settings.minutes and any_of(time.monotonic() - self.saved_at >= 60 * settings.minutes):
            return True
        if settings.keep_every and step % settings.keep_every == 0:
            return True
        return step % settings.every == 0 if settings.every else validated

    def save(self, random: dict[str, Tensor] | None = None) -> None:
        """Write the checkpoint of the steps that are done, and drop those that are not to be kept."""
        average = {} if self.average is None else self.average.tensors
        save_checkpoint(self.folder, self.learner, self.optimizer, self.history, average, random)
        prune(self.folder, self.training.checkpoints)
        self.saved_at = time.monotonic()

    def note_good(self) -> None:
        """From here on a failure can be answered by saving what there is now, until it changes."""
        self.good = random_state(), self.versions()

    def lift(self) -> None:
        """What there is now is about to change: it is nothing to save until `note_good`."""
        self.good = None

    def versions(self) -> list[int]:
        """How often each trained tensor was changed."""
        return [parameter._version for group in self.optimizer.param_groups for parameter in group["params"]]

    @contextmanager
    def rescue(self) -> Iterator[None]:
        """Save the last good state when the block fails, and say how to go on.

        Out of memory becomes a TrainingError that names the setting to lower; a second Ctrl-C becomes Stopped.
        Errors in writing pass through: what cannot be written cannot be saved.
        """
        try:
            yield
        except (Stopped, RunError):
            raise
        except (Exception, KeyboardInterrupt) as error:
            no_memory = is_out_of_memory(error)
            if no_memory:
                self.let_go(error)
            safe = self.saved()
            if no_memory:
                raise TrainingError(f"step {self.history.step + 1}: {self.told_memory(error)} {safe}") from error
            if isinstance(error, KeyboardInterrupt):
                raise Stopped(f"interrupted: {safe} Run the same command again to go on.", INTERRUPTED) from error
            if isinstance(error, TrainingError):
                raise TrainingError(f"{error} {safe}") from error
            if not isinstance(error, LuthierError):
                error.add_note(safe)
            raise

    def saved(self) -> str:
        """Save the last good state where there is one; a sentence on what is safe."""
        path = checkpoint_path(self.folder, self.history.step)
        good = self.good if num_processes() == 1 else None  # others may be alive and well, and would not join in
        if good is not None and good[1] == self.versions() and self.history.step and not path.exists():
            try:
                self.save(good[0])
            except (LuthierError, MemoryError, RuntimeError, OSError) as problem:
                return f"The state after step {self.history.step} could not be saved ({problem}); {self.last_whole()}"
        return self.last_whole()

    def last_whole(self) -> str:
        """The newest checkpoint in a sentence."""
        last = latest_checkpoint(self.folder)
        if last is None:
            return "Nothing is saved yet: training begins anew."
        return f"The state after step {step_of(last)} of {self.history.num_steps} is saved in {last}."

    def let_go(self, error: BaseException) -> None:
        """Free what a failed step holds (activations in the frames of its traceback, gradients): saving needs room."""
        traceback.clear_frames(error.__traceback__)
        self.optimizer.zero_grad(set_to_none=True)
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def told_memory(self, error: BaseException) -> str:
        """What to do about a step that does not fit."""
        tokens = self.training.micro_batch_tokens
        lower = f"{tokens // 2}" if isinstance(tokens, int) else "a number"
        said = " ".join(str(error).split("\n")[0].split())
        return (
            f"out of memory ({said[:200]}). Set tune.micro_batch_tokens to {lower} (now {tokens}), and run the same "
            "command again: the steps stay the same and training goes on."
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: Python's, a GPU's, or torch's on the CPU, which is a plain RuntimeError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in said or "not enough memory" in said)


def newest_whole(folder: Path) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The newest checkpoint that can be used, and the newer ones that cannot, with their damage."""
    restore_below(folder)
    damaged: list[tuple[Path, str]] = []
    for path in found_checkpoints(folder):
        problem = damage(path, folder / "best")
        if not problem:
            return path, damaged
        damaged.append((path, problem))
    return None, damaged


def damage(path: Path, best: Path) -> str:
    """What of a checkpoint cannot be used; empty where all of it can."""
    broken = check_folder(path)
    if broken:
        return f"{', '.join(broken)} missing or not as written"
    history = read_notes(path).get("history", {})
    if history.get("best_step") and (broken := check_folder(best)):
        return f"best/{broken[0]} missing or not as written"
    return ""


def prune(folder: Path, kept: Checkpoints) -> None:
    """Drop all but the newest checkpoints, and those that are kept for good."""
    if not is_first():
        return
    for path in found_checkpoints(folder)[kept.keep :]:
        if not kept.keep_every or step_of(path) % kept.keep_every:
            drop(path)


def drop(path: Path) -> None:
    """Remove a checkpoint; a kill midway leaves no half of it under its name."""
    gone = path.with_name(f".{path.name}{PARTIAL}")
    shutil.rmtree(gone, ignore_errors=True)
    path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)
