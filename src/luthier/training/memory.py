"""How a training fits into memory: what it will take is said before it starts, and when memory runs out it goes on.

What was predicted, how it was cut and what it took lies in `memory.json` beside the checkpoints: a training that is
taken up again is cut as it was, so its steps are those of an undisturbed one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from collections.abc import Sequence as ManyOf
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from luthier.errors import TrainingError
from luthier.files import bytes_text, write_json
from luthier.methods.base import Example, Objective
from luthier.processes import is_first, num_processes
from luthier.recipe import Training
from luthier.runtime import available_bytes, release_free_memory, resident_bytes
from luthier.stopped import Stopped
from luthier.training.checkpoint import StepDone, set_random_state
from luthier.training.keeper import Keeper, Say, is_out_of_memory
from luthier.training.learner import Learner
from luthier.training.memory_formula import Shape, shape_of
from luthier.training.memory_layers import checkpointed, sent_away
from luthier.training.memory_prediction import Expected, Prediction, Rows, calibrated, heap_growth, heaviest_pass
from luthier.training.memory_trial import GpuMeter, Meter, Trial, meter_for
from luthier.training.probe import ProbeLearner

FILE = "memory.json"
FREE_SHARE = 0.9  # of what is free, that `auto` takes where no limit is set
SMALLEST_TOKENS = 16  # of a micro-batch, as the recipe has it
GIVE_BACK_EVERY = 4  # steps
TRIES = 30  # cuts of `auto`; each takes a twentieth off at least


@dataclass
class Room:
    """The memory of one training. `training` is its recipe with the micro-batch tokens that were found."""

    learner: Learner
    objective: Objective
    training: Training
    folder: Path
    say: Say
    values: dict[str, Any] = field(default_factory=dict)  # of memory.json
    automatic: bool = False
    is_open: bool = False  # whether steps are being made, whose peak counts
    steps_since: int = 0  # freed memory was last given back
    _ways: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Room:
        """From here on the learner's passes keep what `tune.memory` lets them. TrainingError as `refuse_idle`."""
        refuse_idle(self.learner, self.training)
        memory = self.training.memory
        self._ways.enter_context(checkpointed(self.learner.lm, memory.checkpointing))
        if memory.offload_activations:
            self._ways.enter_context(sent_away(self.learner.lm))
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._ways.close()
        if self.is_open and (kind is None or issubclass(kind, Stopped)):
            self.note_peak()

    def prepare(self, rows: Rows, done_steps: int) -> None:
        """Say what the training will take and, where that is asked, find how to cut it; or recall both.

        Call it before the first step: it makes trial steps, after which everything is as it was.
        """
        self.automatic = self.training.micro_batch_tokens == "auto"
        settings = self.training.model_dump(include={"micro_batch_tokens", "memory"})
        before = read_memory(self.folder) if done_steps else {}
        if before.get("settings") == settings:
            self.values = before
        elif self.can_predict():
            self.predict(rows)
        self.note(settings=settings)
        if self.automatic:
            self.cut(int(self.values.get("micro_batch_tokens", self.training.pass_tokens)))
        meter_for(self.learner.device).start()
        self.is_open = True

    def can_predict(self) -> bool:
        """Whether trial steps are wanted and tell something: a probe computes no layers, other processes wait."""
        return self.training.memory.predict and num_processes() == 1 and type(self.learner) is not ProbeLearner

    def predict(self, rows: Rows) -> None:
        """Two trial steps, and what follows from them; nothing of a model whose sizes are not told."""
        try:
            shape = shape_of(self.learner)
        except TrainingError as error:
            self.say(f"The memory that this takes is not predicted: {error}.")
            return
        steps = rows.heaviest()
        meter = meter_for(self.learner.device)
        prediction = calibrated(self.learner, self.objective, self.training, steps, meter)
        if prediction is None:
            return
        if self.learner.device.type == "cpu":
            prediction = replace(prediction, growth=heap_growth(rows.num_steps))
        if self.automatic:
            whole = max(sum(row.num_tokens for row in step) for step in steps)
            limit = self.training.memory.limit_bytes or self.free_bytes(prediction, meter)
            self.cut(fitting_tokens(self.learner, prediction, self.training, steps, whole, limit))
            self.cut(self.tried(shape, steps))
        expected = prediction.expected(heaviest_pass(self.learner, shape, steps, self.training).load)
        self.note(micro_batch_tokens=self.training.pass_tokens, predicted_peak_bytes=expected.total,
                  predicted={name: value for name, value in asdict(expected).items() if name != "tokens"},
                  tokens=expected.tokens)  # fmt: skip
        found = f" Micro-batches of {self.training.pass_tokens:,} tokens (found)." if self.automatic else ""
        self.say(expected.told() + found)

    def free_bytes(self, prediction: Prediction, meter: Meter) -> int:
        """What the training may take in all where the recipe sets no limit."""
        if self.learner.device.type == "cuda":
            import torch

            return int(FREE_SHARE * (torch.cuda.mem_get_info()[0] + meter.held_bytes()))
        return prediction.held + int(FREE_SHARE * available_bytes())

    def tried(self, shape: Shape, steps: ManyOf[ManyOf[Example]]) -> int:
        """On a GPU, where running out is an error and no end: the tokens at which the heaviest pass was seen to fit."""
        while self.learner.device.type == "cuda":
            heaviest = heaviest_pass(self.learner, shape, steps, self.training)
            smaller = min(heaviest.load.tokens, self.training.pass_tokens) // 2
            try:
                Trial(self.learner, self.objective, self.training, GpuMeter()).step(heaviest.rows)
                break
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or smaller < SMALLEST_TOKENS:
                    raise
            self.cut(smaller)
        return self.training.pass_tokens

    def step(self, keeper: Keeper, make: Callable[[Training], StepDone]) -> StepDone:
        """One step; with `auto`, in smaller pieces whenever memory runs out before weights were touched."""
        while True:
            try:
                done = make(self.training)
                self.stay_small()
                return done
            except (MemoryError, RuntimeError) as error:
                good = keeper.good
                smaller = self.training.pass_tokens // 2
                if not (self.automatic and good and is_out_of_memory(error)) or smaller < SMALLEST_TOKENS:
                    raise
                keeper.let_go(error)
            set_random_state(good[0])
            step = keeper.history.step + 1
            self.say(f"step {step}: out of memory; going on with micro-batches of {smaller:,} tokens.")
            self.cut(smaller)
            self.note(micro_batch_tokens=smaller)

    def stay_small(self) -> None:
        """`give_back` where the process has outgrown what is in use, every GIVE_BACK_EVERY steps at most."""
        self.steps_since += 1
        in_use = {name: size for name, size in self.values.get("predicted", {}).items() if name != "heap"}
        expected = sum(in_use.values())
        if expected and self.steps_since >= GIVE_BACK_EVERY and resident_bytes() > expected:
            self.give_back()

    def give_back(self) -> None:
        """Give freed memory back to the system.

        Steps and validations of many shapes leave the heap in pieces, so that it grows by a few megabytes each time.
        """
        self.steps_since = 0
        if self.learner.device.type == "cpu":
            release_free_memory()

    def cut(self, tokens: int) -> None:
        """Set the tokens of a micro-batch."""
        self.training = self.training.model_copy(update={"micro_batch_tokens": tokens})

    def note(self, **values: Any) -> None:
        """Keep values in memory.json."""
        self.values |= values
        if is_first():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / FILE, self.values)

    def note_peak(self) -> None:
        """Keep the most that the training has taken, those parts included that a stop has ended."""
        peak = meter_for(self.learner.device).peak_bytes()
        self.note(peak_bytes=max(peak, int(self.values.get("peak_bytes", 0))))


def fitting_tokens(
    learner: Learner, prediction: Prediction, training: Training, steps: ManyOf[ManyOf[Example]], whole: int, limit: int
) -> int:
    """The most tokens of a micro-batch, up to `whole`, whose predicted peak is within `limit`.

    Raises:
        TrainingError: not even the longest row fits.
    """
    tokens = max(whole, SMALLEST_TOKENS)
    for _ in range(TRIES):
        cut = training.model_copy(update={"micro_batch_tokens": tokens})
        expected = prediction.expected(heaviest_pass(learner, prediction.shape, steps, cut).load)
        if expected.total <= limit:
            return tokens
        if expected.tokens > tokens or tokens == SMALLEST_TOKENS:  # one row, which is not cut
            break
        passing = expected.activations + expected.heap
        room = max(0, limit - (expected.total - passing)) / passing
        tokens = max(SMALLEST_TOKENS, int(min(tokens, expected.tokens) * min(0.95, room)))
    raise TrainingError(
        f"tune.micro_batch_tokens: auto: the longest row alone ({expected.tokens:,} tokens) takes about "
        f"{bytes_text(expected.total)}, and {bytes_text(limit)} are allowed. {told_savings(training, expected)}"
    )


def told_savings(training: Training, expected: Expected) -> str:
    """What would make a training smaller."""
    ways = []
    if training.memory.checkpointing != "all":
        ways.append("set tune.memory.checkpointing: all")
    if not training.memory.optimizer_in_backward and expected.gradients > expected.activations:
        ways.append("set tune.memory.optimizer_in_backward: true")
    ways.append("lower data.max_tokens")
    ways.append("raise tune.memory.limit_bytes" if training.memory.limit_bytes else "free memory")
    text = ", ".join(ways)
    return f"{text[0].upper()}{text[1:]}."


def refuse_idle(learner: Learner, training: Training) -> None:
    """TrainingError for settings that cannot do here what they are for."""
    memory = training.memory
    for key in ("offload_optimizer", "offload_activations"):
        if getattr(memory, key) and learner.device.type == "cpu":
            raise TrainingError(
                f"tune.memory.{key}: the model is on the CPU, so there is no other memory to move to. Leave it out; "
                "checkpointing and smaller micro-batches save memory here."
            )
    if num_processes() > 1 and memory.optimizer_in_backward:
        raise TrainingError(
            "tune.memory.optimizer_in_backward: with several processes gradients are added up after the backward "
            "pass, and the update comes after that. Leave it out."
        )
    if num_processes() > 1 and training.micro_batch_tokens == "auto":
        raise TrainingError(
            "tune.micro_batch_tokens: auto is found by one process for itself. With several, set a number: run once "
            "with one process to see what fits."
        )


def read_memory(folder: Path) -> dict[str, Any]:
    """What memory.json says of the training in a folder; empty where there is none."""
    path = folder / FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
