"""Peak memory of a LoRA step on a batch of long sequences: luthier's ways of keeping less, and TRL's SFTTrainer.

Each variant is a fresh process that makes the same steps on the same full windows from the same adapter; its peak is
the most resident memory the process ever had, imports and model loading included. What TRL's defaults are is read
from TRL and printed: in TRL 1.16 they are gradient checkpointing and bfloat16, so both are also switched off.

    trl-env/bin/python benchmarks/memory.py
    trl-env/bin/python benchmarks/memory.py --windows 8 --window-tokens 1024 --json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel

import clm_vs_trl
import workload
from luthier.methods.documents import DocumentClm
from luthier.models import load_model
from luthier.models.load import load_tokenizer
from luthier.models.store import find_model
from luthier.recipe.memory import Memory
from luthier.recipe.methods import Clm
from luthier.recipe.training import Training
from luthier.runtime import keep_big_blocks, num_threads
from luthier.training.learner import new_learner
from luthier.training.memory import Room
from luthier.training.optimizers import make_optimizer
from luthier.training.step import one_step
from pairs import lacks_trl, positive, run_child, run_of
from sft_vs_trl import LARGEST_LOSS_DIFFERENCE, PACKAGES, Run, finish


@dataclass(frozen=True)
class Variant:
    """One way of making the step. `changes`: of luthier's `tune`, or of TRL's SFTConfig."""

    side: str
    changes: dict[str, Any]
    about: str
    precision: str = "float32"


VARIANTS = {
    "luthier": Variant("luthier", {}, "luthier at its defaults: passes of 1,024 tokens, chunked head"),
    "luthier_whole": Variant("luthier", {"micro_batch_tokens": 1 << 20}, "luthier, the batch in one pass"),
    "luthier_selective": Variant(
        "luthier", {"memory": Memory(checkpointing="selective")}, "luthier, norms and gates made again"
    ),
    "luthier_all": Variant("luthier", {"memory": Memory(checkpointing="all")}, "luthier, every layer made again"),
    "trl": Variant("trl", {}, "TRL at its defaults", "bfloat16"),
    "trl_float32": Variant("trl", {"bf16": False}, "TRL at its defaults, but in float32"),
    "trl_plain": Variant("trl", {"bf16": False, "gradient_checkpointing": False}, "TRL in float32, not checkpointing"),
}


def main() -> int:
    """Run the variants one after another, print the comparison; 1 where losses differ, 2 where TRL is missing."""
    arguments = parse_arguments()
    settings = clm_vs_trl.Settings(
        str(arguments.rows), arguments.steps, 1, arguments.threads, arguments.num_windows, arguments.window_tokens,
        "float32", "wrapped",
    )  # fmt: skip
    if arguments.child:
        run_variant(arguments.child, arguments.folder, settings)
        return 0
    if lacks_trl():
        return 2
    with tempfile.TemporaryDirectory() as name:
        run_child("prepare", Path(name), settings.threads)
        runs = {}
        for variant in arguments.variants:
            run = runs[variant] = run_of(Run, variant, Path(name), settings.threads)
            figures = f"{run.peak_memory_bytes / 1e9:.2f} GB, {run.step_seconds[-1]:.1f} s a step"
            print(f"{variant}: {figures}", file=sys.stderr)
        facts = json.loads((Path(name) / "facts.json").read_text(encoding="utf-8"))
    found = compare(settings, runs, facts)
    print(json.dumps(found) if arguments.json else table(found))
    if found["alike"]:
        return 0
    print("The first losses differ by more than rounding: the variants did not train alike.", file=sys.stderr)
    return 1


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Peak memory of a LoRA step: luthier's ways beside TRL's.")
    add = parser.add_argument
    add("--rows", type=Path, default=clm_vs_trl.DOCUMENTS, help="documents, in any shape that luthier reads")
    add("--steps", type=positive, default=1, help="steps after the first (default 1); memory is full at the second")
    add("--threads", type=positive, default=num_threads(), help="OpenMP threads of each child")
    add("--windows", dest="num_windows", type=positive, default=8, help="windows of one step (default 8, as TRL's)")
    add("--window-tokens", type=positive, default=1024, help="tokens of a window (default 1024, TRL's max_length)")
    add("--variants", nargs="+", choices=tuple(VARIANTS), default=list(VARIANTS), help="which to run; default all")
    add("--json", action="store_true", help="one line of JSON instead of the table")
    add("--child", choices=("prepare", *VARIANTS), help=argparse.SUPPRESS)
    add("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def compare(settings: clm_vs_trl.Settings, runs: dict[str, Run], facts: dict[str, Any]) -> dict[str, Any]:
    """Peaks, and their ratios to each of TRL's; a ratio is below 1 where luthier takes less."""
    peaks = {name: run.peak_memory_bytes for name, run in runs.items()}
    ratios = {
        f"{ours}_to_{theirs}": peaks[ours] / peaks[theirs]
        for ours in peaks
        for theirs in peaks
        if VARIANTS[ours].side == "luthier" and VARIANTS[theirs].side == "trl"
    }
    first = next(iter(runs.values())).losses[0]
    differences = {name: abs(run.losses[0] - first) for name, run in runs.items()}
    return {
        "peak_memory_ratio": ratios.get("luthier_to_trl"),
        "checkpointed_ratio": ratios.get("luthier_all_to_trl"),
        "ratios": ratios,
        "peak_memory_bytes": peaks,
        "step_seconds": {name: run.step_seconds for name, run in runs.items()},
        "first_losses": {name: run.losses[0] for name, run in runs.items()},
        "alike": all(gap <= LARGEST_LOSS_DIFFERENCE[VARIANTS[name].precision] for name, gap in differences.items()),
        "trl_defaults": trl_defaults(),
        "settings": asdict(settings) | {"model": workload.MODEL},
        "workload": facts,
        "versions": workload.versions(*PACKAGES),
        "machine": workload.machine(),
    }


def trl_defaults() -> dict[str, Any]:
    """What TRL sets that memory depends on, as it says itself."""
    from trl import SFTConfig

    with tempfile.TemporaryDirectory() as name:
        config = SFTConfig(output_dir=name, use_cpu=True, report_to="none")
    names = ("gradient_checkpointing", "bf16", "max_length", "packing", "padding_free", "per_device_train_batch_size")
    return {name: getattr(config, name) for name in names}


def table(found: dict[str, Any]) -> str:
    """The comparison for a terminal."""
    peaks = found["peak_memory_bytes"]
    theirs = [name for name in peaks if VARIANTS[name].side == "trl"]
    lines = [f"{'':62}{'peak, GB':>10}{'s a step':>10}" + "".join(f"{'to ' + name:>17}" for name in theirs)]
    for name, peak in peaks.items():
        ratios = "".join(f"{peak / peaks[other]:17.2f}" for other in theirs)
        lines.append(f"{VARIANTS[name].about:62}{peak / 1e9:10.2f}{found['step_seconds'][name][-1]:10.1f}{ratios}")
    told = ", ".join(f"{name} {value}" for name, value in found["trl_defaults"].items())
    return "\n".join([*lines, f"TRL's defaults here: {told}"])


# --- the children --------------------------------------------------------------------------------------


def run_variant(name: str, folder: Path, settings: clm_vs_trl.Settings) -> None:
    """Batches once, or one variant."""
    if name == "prepare":
        clm_vs_trl.prepare(folder, settings)
    elif VARIANTS[name].side == "trl":
        train_trl(name, folder, settings)
    else:
        train_luthier(name, folder, settings)


def train_luthier(name: str, folder: Path, settings: clm_vs_trl.Settings) -> None:
    """luthier's own step, under `tune.memory` as the training loop has it."""
    keep_big_blocks()
    batches = [[clm_vs_trl.make_example(window) for window in batch] for batch in clm_vs_trl.read_batches(folder)]
    tune = Training(**{**Clm.tune, "batch_size": settings.num_windows, **VARIANTS[name].changes})
    model = load_model(workload.MODEL, precision="float32")
    learner = new_learner(model, tune.adapter, seed=1, backend="grouped")
    learner.load(folder / "adapter")
    optimizer, method = make_optimizer(learner, tune), DocumentClm()
    losses: list[float] = []
    computed: list[int] = []
    ends = [time.perf_counter()]
    with Room(learner, method, tune, folder, print):
        for step, batch in enumerate(batches):
            done = one_step(learner, method, batch, optimizer, 1.0, tune, step)
            losses.append(done.loss)
            computed.append(done.computed_tokens)
            ends.append(time.perf_counter())
    finish(folder, name, losses, ends, computed)


def train_trl(name: str, folder: Path, settings: clm_vs_trl.Settings) -> None:
    """TRL's SFTTrainer at its own defaults but for the variant's changes, with no work beside training."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    keep_big_blocks()
    batches = clm_vs_trl.read_batches(folder)
    losses: list[Any] = []
    computed: list[int] = []
    ends = [time.perf_counter()]

    class Recorder(SFTTrainer):
        """Keeps each step's loss, size and time."""

        def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
            computed.append(inputs["input_ids"].numel())
            loss = super().training_step(model, inputs, *rest, **named)
            losses.append(float(loss.detach()))
            ends.append(time.perf_counter())
            return loss

    base = find_model(workload.MODEL)
    model = AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    trainer = Recorder(
        model=PeftModel.from_pretrained(model, folder / "adapter", is_trainable=True),
        args=SFTConfig(
            output_dir=str(folder / name),
            max_steps=len(batches),
            per_device_train_batch_size=settings.num_windows,
            train_sampling_strategy="sequential",
            max_length=settings.window_tokens,
            learning_rate=Training(**Clm.tune).learning_rate,
            lr_scheduler_type="constant",
            use_cpu=True,
            dataloader_pin_memory=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **VARIANTS[name].changes,
        ),
        train_dataset=Dataset.from_list([{"input_ids": list(window)} for batch in batches for window in batch]),
        processing_class=load_tokenizer(base),
    )
    trainer.train()
    finish(folder, name, losses, ends, computed)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
