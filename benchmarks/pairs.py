"""Two sides compared in fresh child processes: the children, their turns, and a clock for a Trainer."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from transformers import TrainerCallback

INSTALL = """TRL is missing here: no package named {missing}. luthier does not need it; make an environment:
    python3 -m venv trl-env
    trl-env/bin/pip install torch==2.13.0
    trl-env/bin/pip install -c constraints.txt trl==1.16.0 datasets -e .
    trl-env/bin/python benchmarks/{program}.py"""

RunT = TypeVar("RunT")


def positive(text: str) -> int:
    """A whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


def lacks_trl() -> bool:
    """Whether TRL is not installed here; then it has been said how to get it for this program."""
    missing = [name for name in ("trl", "datasets") if importlib.util.find_spec(name) is None]
    if missing:
        print(INSTALL.format(missing=" or ".join(missing), program=Path(sys.argv[0]).stem), file=sys.stderr)
    return bool(missing)


def run_child(child: str, folder: Path, threads: int, *more: str) -> None:
    """A fresh process with the same command line and `more`; its chatter is shown only where it fails."""
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "CUDA_VISIBLE_DEVICES": "",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, *sys.argv, "--child", child, "--folder", str(folder), *more]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(['the', child, 'child', *more])} failed:\n{done.stderr.strip()[-4000:]}")


def run_of(kind: Callable[..., RunT], side: str, folder: Path, threads: int, *more: str) -> RunT:
    """What a child measured, as the Run that it left in the folder."""
    run_child(side, folder, threads, *more)
    return kind(**json.loads((folder / f"{side}.json").read_text(encoding="utf-8")))


def run_pairs(
    kind: Callable[..., RunT],
    sides: Sequence[str],
    folder: Path,
    settings: Any,
    figures: Callable[[RunT], str],
    *more: str,
    name: str = "pair",
) -> dict[str, list[RunT]]:
    """What the sides share once (`prepare`), then the sides in turn. `settings`: their `repeats` and `threads`."""
    run_child("prepare", folder, settings.threads, *more)
    runs: dict[str, list[RunT]] = {side: [] for side in sides}
    for repeat, side in itertools.product(range(settings.repeats), sides):
        runs[side].append(run_of(kind, side, folder, settings.threads, *more))
        print(f"{name} {repeat + 1} of {settings.repeats}: {side} {figures(runs[side][-1])}", file=sys.stderr)
    return runs


class Clock(TrainerCallback):
    """Notes the clock in `ends`, at the start and after each step, and in `finished`, when the training is over."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.finished = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """The start."""
        self.ends.append(time.perf_counter())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """The end of a step."""
        self.ends.append(time.perf_counter())

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """The end of all."""
        self.finished = time.perf_counter()
