"""Processes that are killed, starved and filled up; tests/test_survival.py starts this file and reads what it prints.

Everything is loaded once, in a process that never trains: each life is a fork of it, so a life begins within
milliseconds. One thread throughout, since a fork takes no threads along.
"""

import json
import os
import resource
import shutil
import signal
import struct
import sys
import time
import traceback
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import torch
from safetensors.torch import load_file

from luthier.errors import LuthierError
from luthier.recipe import Lora
from luthier.training.checkpoint import latest_checkpoint, step_of
from test_training import Training, tune_of

SETTINGS = [{"every": 1}, {"every": 3, "keep": 1}, {"every": 2, "keep_every": 8}]
STEPS = 40


def tune(**checkpoints: object):
    """Forty steps with dropout, validated every third."""
    adapter = Lora(rank=2, alpha=4.0, dropout=0.2)
    return tune_of(
        method="head",
        epochs=STEPS * 4 / 10,
        evaluate_every=3,
        adapter=adapter,
        checkpoints=checkpoints,
        memory={"predict": False},
    )


def forked(work) -> int:
    """A child that does the work and ends; its number."""
    number = os.fork()
    if number:
        return number
    code = 1
    try:
        work()
        code = 0
    finally:  # whatever it was, the child must not go on as its parent would
        if code:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)


def life(training: Training, folder: Path, seconds: float | None) -> tuple[int, list[int], float]:
    """One life, killed after so many seconds: how it ended, the steps it told of, and when it told of the first."""
    reading, writing = os.pipe()
    started = time.monotonic()
    number = forked(lambda: training.run(folder, lambda progress: os.write(writing, struct.pack("i", progress.step))))
    os.close(writing)
    told = os.read(reading, 4) if seconds is None else b""
    first = time.monotonic() - started
    if seconds is not None:
        time.sleep(seconds)
        os.kill(number, signal.SIGKILL)
    status = os.waitpid(number, 0)[1]
    with os.fdopen(reading, "rb") as pipe:
        told += pipe.read()
    return status, [step for (step,) in struct.iter_unpack("i", told)], first


def contents(folder: Path) -> dict[str, object]:
    """All that a finished training leaves, without its stopwatch."""
    last = latest_checkpoint(folder)
    history = json.loads((last / "checkpoint.json").read_text())["history"]
    files = {"state": last / "state.safetensors", "head": folder / "best" / "head.safetensors",
             "adapter": folder / "best" / "adapter_model.safetensors"}  # fmt: skip
    there = {name: load_file(file) for name, file in files.items() if name != "head" or file.is_file()}
    tensors = {f"{name}.{key}": value.clone() for name, read in there.items() for key, value in read.items()}
    return tensors | {key: value for key, value in history.items() if "seconds" not in key}


def same(found: dict, wanted: dict) -> bool:
    """Bit for bit."""
    return found.keys() == wanted.keys() and all(
        torch.equal(found[key], value) if isinstance(value, torch.Tensor) else found[key] == value
        for key, value in wanted.items()
    )


def killed(model: Path, folder: Path, kills: int) -> dict:
    """A hundred kills at random moments, the settings by turns, a fresh training whenever one is done."""
    trainings = [Training(model, tune(**settings)) for settings in SETTINGS]
    status, steps, first = life(trainings[0], folder / "whole", None)
    assert status == 0 and steps == list(range(1, STEPS + 1)), (status, steps)
    started = time.monotonic()
    life(trainings[0], folder / "timed", None)
    step_seconds = (time.monotonic() - started - first) / STEPS
    wanted = contents(folder / "whole")
    draw = np.random.default_rng(4)
    counts = {"kills": 0, "while_writing": 0, "finished": 0, "lost_steps": 0, "wrong_ends": 0, "wrong_starts": 0}
    while counts["kills"] < kills:
        turn = counts["finished"] % len(SETTINGS)
        at, reached, saved = folder / f"{counts['finished']}", 0, 0
        every = SETTINGS[turn]["every"]
        while True:
            seconds = draw.uniform(0, first + 8 * step_seconds) if counts["kills"] < kills else None
            status, steps, _ = life(trainings[turn], at, seconds)
            counts["wrong_starts"] += bool(steps) and steps[0] != saved + 1
            left = latest_checkpoint(at)
            saved = 0 if left is None else step_of(left)
            reached = max([reached, *steps])
            if status == 0:
                break
            assert status == signal.SIGKILL, status
            counts["kills"] += 1
            counts["while_writing"] += any(at.glob("checkpoints/.step-*")) or any(at.glob(".best.*"))
            counts["lost_steps"] += saved < (reached - 1) // every * every  # the step last told of may not be saved yet
        counts["finished"] += 1
        counts["wrong_ends"] += not same(contents(at), wanted)
        hidden = [path.name for path in at.rglob(".*")]
        assert not hidden, f"half-written is left: {hidden}"
    return counts


def filled(model: Path, folder: Path, out: Path) -> dict:
    """`folder` is on a file system of a megabyte that fills up after step 5; space is made, and training goes on."""
    ballast = folder / "ballast"
    training = Training(model, tune(every=1))
    run = folder / "run"

    def fill(progress) -> None:
        if progress.step == 5:
            with ballast.open("wb") as file:
                file.write(bytes(os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize - 8192))

    try:
        training.run(run, fill)
    except LuthierError as error:
        said = str(error)
    left = step_of(latest_checkpoint(run))
    ballast.unlink()
    again = Training(model, tune(every=1))
    again.run(run)
    whole = Training(model, tune(every=1))
    whole.run(out / "whole")
    return {"said": said, "left": left, "same": same(contents(run), contents(out / "whole"))}


def limited(model: Path, folder: Path) -> dict:
    """Limits of the system on file size and on memory, met in a step; then lifted."""
    found = {}
    for name, limit in (("file", limit_files), ("memory", limit_memory)):
        reading, writing = os.pipe()

        def work(name=name, limit=limit, writing=writing) -> None:
            training = Training(model, tune(every=4))
            lift = limit(training)
            said = ""
            try:
                training.run(folder / name)
            except LuthierError as error:
                said = str(error)
            lift()
            left = step_of(latest_checkpoint(folder / name))
            steps: list[int] = []
            Training(model, tune(every=4)).run(folder / name, lambda progress: steps.append(progress.step))
            Training(model, tune(every=4)).run(folder / "whole")
            agree = same(contents(folder / name), contents(folder / "whole"))
            os.write(writing, json.dumps({"said": said, "left": left, "first": steps[0], "same": agree}).encode())

        number = forked(work)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            found[name] = json.loads(pipe.read() or b"null")
        os.waitpid(number, 0)
    return found


def limit_files(training: Training):
    """From the sixth step on no file may have over 20 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before_loss(training, 6, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard)))
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def limit_memory(training: Training):
    """In the sixth step the process may not grow by over 16 MB, and the step wants 256."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)

    def starve() -> None:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + (16 << 20), hard))
        torch.ones(64 << 20)

    before_loss(training, 6, starve)
    return lambda: resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


class Before:
    """A method that does something before the loss of a certain training step."""

    def __init__(self, training: Training, step: int, act):
        self.method, self.learner, self.step, self.act = training.method, training.learner, step, act

    def __getattr__(self, name: str):
        return getattr(self.method, name)

    def loss(self, outputs, batch):
        self.step -= self.learner.training
        if self.step == 0 and self.learner.training:
            self.act()
        return self.method.loss(outputs, batch)


def before_loss(training: Training, step: int, act) -> None:
    """Let `act` happen within that step."""
    training.method = Before(training, step, act)


def commands(recipe: Path, folder: Path, kills: int) -> dict:
    """`luthier train RECIPE` killed at random moments, from its start to its report; then undisturbed."""
    from luthier.cli.main import main

    def command(out: Path) -> int:
        def work() -> None:
            sys.argv = ["luthier", "train", str(recipe), "--out", str(out), "--json"]
            sys.stdout = (out.parent / f"{out.name}.out").open("w")
            sys.stderr = (out.parent / f"{out.name}.err").open("a")
            try:
                main()
            except SystemExit as ended:
                os._exit(ended.code or 0)

        return forked(work)

    started = time.monotonic()
    assert os.waitpid(command(folder / "whole"), 0)[1] == 0
    seconds = time.monotonic() - started
    draw, killed = np.random.default_rng(7), 0
    while killed < kills:
        number = command(folder / "killed")
        time.sleep(draw.uniform(0.05, 0.7) * seconds)
        os.kill(number, signal.SIGKILL)
        if os.waitpid(number, 0)[1] == signal.SIGKILL:
            killed += 1
        else:  # it was done before: a fresh one
            shutil.rmtree(folder / "killed")
    ends = {"killed": os.waitpid(command(folder / "killed"), 0)[1]}
    for sent in (signal.SIGINT, signal.SIGTERM):
        number = command(folder / sent.name)
        while not any((folder / sent.name).glob("stages/02-*/training/checkpoints/step-*")):
            time.sleep(0.002)
        os.kill(number, sent)
        ends[f"{sent.name} first"] = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
        ends[sent.name] = os.waitstatus_to_exitcode(os.waitpid(command(folder / sent.name), 0)[1])
    return {"killed": killed, "seconds": seconds, "ends": ends}


if __name__ == "__main__":
    torch.set_num_threads(1)
    ways = {"killed": killed, "filled": filled, "limited": limited, "commands": commands}
    way, first, *rest = sys.argv[1:]
    values = [int(word) if word.isdigit() else Path(word) for word in rest]
    print(json.dumps(ways[way](Path(first), *values)))
