"""One training step with the sparse adapter (MEFT), its dense self, and LoRA of as many trained parameters.

Each side runs in a fresh process, so peak memory is its own. `step memory` is what is left of the peak without the
loaded model and 16 bytes for each trained parameter (weight, gradient, two moments): activations and scratch space.
`rows_used` is the share of the neurons that some token of a step uses: near 1, an optimizer that skips unused rows
would save nothing.

    python benchmarks/sparse_adapter.py                  # 4096 neurons a layer, 64 a token
    python benchmarks/sparse_adapter.py --width 1024 --top 32 --json
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import workload
from luthier.adapters.sparse import SparseBlock
from luthier.adapters.sparse_neurons import chosen_neurons
from luthier.methods import make_method
from luthier.methods.base import MAIN, Example
from luthier.models import load_model
from luthier.recipe import Lora, Tune
from luthier.recipe.adapters import Sparse
from luthier.runtime import keep_big_blocks, num_threads, peak_memory_bytes, reset_peak_memory
from luthier.training.learner import Learner, label_head, new_learner
from luthier.training.optimizers import make_optimizer
from luthier.training.step import one_step

SIDES = ("sparse", "dense", "lora")
LORA_PER_RANK = 305_280  # trained parameters of the starter model's LoRA on all linear layers, for each rank
WIDTH, LAYERS = 576, 30  # of the starter model


@dataclass(frozen=True)
class Run:
    """What one child measured; the first step is a warm-up and not counted."""

    parameters: int
    losses: list[float]
    step_seconds: float
    cpu_seconds: float  # of all threads: what counts where others use the machine too
    step_memory_bytes: int
    peak_memory_bytes: int
    rows_used: float | None


def main() -> int:
    """Every side in a process of its own; a table, or one line of JSON."""
    arguments = parse_arguments()
    if arguments.child:
        print(json.dumps(asdict(measured(arguments))))
        return 0
    found = {side: run_child(side) for side in arguments.sides}
    if arguments.json:
        sides = {side: asdict(run) for side, run in found.items()}
        print(json.dumps({"sides": sides, "settings": vars(arguments)}, default=str))
    else:
        print(table(found))
    return 0


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="A step of the sparse adapter beside LoRA of as many parameters.")
    parser.add_argument("--rows", type=Path, default=workload.NEWSROOM, help="labelled rows")
    parser.add_argument("--width", type=int, default=4096, help="neurons a layer")
    parser.add_argument("--top", type=int, default=64, help="neurons a token uses")
    parser.add_argument("--groups", type=int, default=64)
    parser.add_argument("--active-groups", type=int, default=8)
    parser.add_argument("--rank", type=int, default=0, help="of LoRA; 0: as many parameters as the sparse adapter")
    parser.add_argument("--batch", type=int, default=16, help="rows of a step")
    parser.add_argument("--steps", type=int, default=3, help="timed steps")
    parser.add_argument("--threads", type=int, default=num_threads())
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    return parser.parse_args()


def run_child(side: str) -> Run:
    """The figures of one side."""
    command = [sys.executable, __file__, *sys.argv[1:], "--child", side]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-2000:]}")
    return Run(**json.loads(done.stdout.splitlines()[-1]))


def adapter_of(arguments: argparse.Namespace) -> Lora | Sparse:
    """What the side trains."""
    width = arguments.width
    if arguments.child == "lora":
        rank = arguments.rank or round(2 * width * WIDTH * LAYERS / LORA_PER_RANK)
        return Lora(rank=rank, alpha=float(2 * rank))
    if arguments.child == "dense":
        return Sparse(width=width, top=width, groups=1, active_groups=1)
    return Sparse(width=width, top=arguments.top, groups=arguments.groups, active_groups=arguments.active_groups)


def measured(arguments: argparse.Namespace) -> Run:
    """Steps on the first rows of the file, all under one instruction."""
    keep_big_blocks()
    torch.set_num_threads(arguments.threads)
    size = arguments.batch
    rows = workload.read_labelled(arguments.rows)
    model = load_model(workload.MODEL)
    before = resident_bytes()
    prompt = workload.make_prompt(rows, model.tokenizer, lists_labels=False)
    tune = Tune(adapter=adapter_of(arguments), batch_size=size)
    method = make_method(tune, prompt.task)
    learner = new_learner(model, tune.adapter, 0, "auto", {MAIN: label_head(model, prompt)})
    optimizer = make_optimizer(learner, tune)
    examples = method.view(prompt, rows[: size * (arguments.steps + 1)])
    losses, seconds, busy = [], [], []
    for step in range(arguments.steps + 1):
        if step == 1:  # the optimizer's state is there now
            reset_peak_memory()
        chosen = examples[step * size : (step + 1) * size]
        started, worked = time.perf_counter(), time.process_time()
        losses.append(one_step(learner, method, chosen, optimizer, 0.1, tune, step).loss)
        seconds.append(time.perf_counter() - started)
        busy.append(time.process_time() - worked)
    peak = peak_memory_bytes()
    parameters = sum(parameter.numel() for name, parameter in learner.trained().items() if "heads." not in name)
    used = rows_used(learner, examples[:size])
    spent = statistics.median(seconds[1:]), statistics.median(busy[1:])
    return Run(parameters, losses, *spent, peak - before - 16 * parameters, peak, used)


@torch.no_grad()
def rows_used(learner: Learner, examples: list[Example]) -> float | None:
    """Share of all neurons that some token of a batch uses."""
    blocks = [module for module in learner.modules() if isinstance(module, SparseBlock)]
    shares: list[float] = []

    def count(block: SparseBlock, inputs: tuple[torch.Tensor, ...]) -> None:
        x_ND = inputs[0].reshape(-1, inputs[0].shape[-1])
        _, neuron_NK = chosen_neurons(x_ND, block.gates(x_ND), block.keys, block.choice)
        shares.append(len(neuron_NK.unique()) / len(block.keys))

    hooks = [block.register_forward_pre_hook(count) for block in blocks]
    learner(learner.batch(examples))
    for hook in hooks:
        hook.remove()
    return statistics.mean(shares) if shares else None


def resident_bytes() -> int:
    """Memory of the process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def table(found: dict[str, Run]) -> str:
    """One line a side."""
    heads = ("parameters", "s a step", "CPU s", "step memory", "peak", "rows used", "losses")
    lines = ["{:8}{:>13}{:>10}{:>8}{:>13}{:>9}{:>11}  {}".format("", *heads)]
    for side, run in found.items():
        memory = f"{run.step_memory_bytes / 2**20:,.0f} MB", f"{run.peak_memory_bytes / 2**30:.2f} GB"
        used = "-" if run.rows_used is None else f"{run.rows_used:.0%}"
        losses = ", ".join(f"{loss:.3f}" for loss in run.losses)
        lines.append(
            f"{side:8}{run.parameters:>13,}{run.step_seconds:>10.2f}{run.cpu_seconds:>8.2f}{memory[0]:>13}"
            f"{memory[1]:>9}{used:>11}  {losses}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
