"""Trainings in one process or several, for tests/test_ranks.py: `python ranked.py MODEL` reads jobs and forks them.

Everything heavy is imported once. A job is a line of JSON {"work", "size", "folder", ...}; each of its processes leaves
FOLDER/result-RANK.json, and what the job comes to is a line "0" (all is well) or the first bad exit status.
"""

import json
import os
import signal
import socket
import sys
import time
import traceback
import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file

import luthier.training.ranks_together  # noqa: F401 - so that forks need not
from luthier import stages
from luthier.models import load_model
from luthier.recipe import Lora
from luthier.recipe.adapters import Full, Ia3
from luthier.stopped import Stopped
from test_training import ROWS, VALIDATION, Training, tune_of

LIMIT_SECONDS = 100
ADAPTERS = {
    "lora": Lora(rank=2, alpha=4.0),
    "lora-1": Lora(rank=1, alpha=4.0),
    "dropout": Lora(rank=2, alpha=4.0, dropout=0.2),
    "dora": Lora(rank=2, alpha=4.0, dora=True),
    "ia3": Ia3(),
    "full": Full(),
}


def loop(
    folder: Path, model: str, adapter: str = "lora", rows: int = 10, stop_after: int = 0, die_after: int = 0,
    others: bool = False, **tune,
) -> dict:  # fmt: skip
    """A training of the loop's own tests.

    The last process is told to stop after step `stop_after`, killed after `die_after`, and has `others` rows.
    """
    number, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    own = ROWS[1:] if others and number else ROWS[:rows]
    training = Training(Path(model), tune_of(adapter=ADAPTERS[adapter], **tune), rows=own, validation=VALIDATION)
    steps: list[int] = []

    def report(progress) -> None:
        steps.append(progress.step)
        if number == size - 1 and progress.step in (stop_after, die_after):
            os.kill(os.getpid(), signal.SIGTERM if progress.step == stop_after else signal.SIGKILL)

    told: list[str] = []
    try:
        history = training.run(folder / "run", report, told.append)
    except Stopped as stopped:
        return {"stopped": str(stopped), "steps": steps}
    if number == 0:
        save_file(training.weights(), folder / "weights.safetensors")
    return {
        "steps": steps,
        "train": history.train,
        "validation": history.validation,
        "best_step": history.best_step,
        "tokens": [history.trained_tokens, history.computed_tokens, history.sequence_tokens, history.padded_tokens],
        "parameters": sorted(type(p).__name__ for p in training.learner.parameters()),
        "distributed": torch.distributed.is_initialized(),
    }


def chain(folder: Path, recipe: str, overrides: list[str]) -> dict:
    """`luthier.stages.train` on a recipe."""
    return stages.train(recipe, folder / "run", overrides)


def work(job: dict) -> dict:
    """A job in this process."""
    job = dict(job)
    job.pop("size")
    return {"loop": loop, "chain": chain}[job.pop("work")](folder=Path(job.pop("folder")), **job)


def child(job: dict, rank: int, port: int) -> int:
    """Fork a process of a job; its id."""
    number = os.fork()
    if number:
        return number
    code = 1
    try:
        if job["size"] > 1:
            os.environ |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(job["size"]),
                "LOCAL_WORLD_SIZE": str(job["size"]), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            }  # fmt: skip
        result = {"value": work(job)}
        code = 0
    except BaseException as error:  # noqa: BLE001 - a fork that fails says so and ends
        result = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
        code = 3
    finally:
        aside = Path(job["folder"]) / f"result-{rank}.part"  # whole or not at all: a process may be ended here
        aside.write_text(json.dumps(result))
        aside.rename(aside.with_suffix(".json"))
        os._exit(code)


def done(job: dict) -> int:
    """Run a job; the first bad exit status, which ends its other processes, or 0."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    left = {child(job, rank, port) for rank in range(job["size"])}
    started, status = time.monotonic(), 0
    while left:
        number, code = os.waitpid(-1, os.WNOHANG)
        left.discard(number)
        if number == 0:
            time.sleep(0.01)
        status = status or code
        if time.monotonic() - started > LIMIT_SECONDS and left:
            status = status or 99
        if status == 99 or os.WIFSIGNALED(status):
            for number in left:
                os.kill(number, signal.SIGKILL)
    return status


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    for kind in (DeprecationWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=kind)  # torch and its friends warn about their own future
    load_model(sys.argv[1])  # what is worked out at the first load need not be worked out in every fork
    for line in sys.stdin:
        print(done(json.loads(line)), flush=True)
