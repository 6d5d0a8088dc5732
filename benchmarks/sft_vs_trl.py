"""Completion-only SFT with LoRA: luthier's token forest against TRL's SFTTrainer, on the same batches.

The parent has the rows rendered once and starts fresh children in turn (luthier, trl, luthier, trl, ...), so
peak memory is each child's own and a slow spell of the machine hits both. What is compared, what both get and
why that is fair stands in README.md beside this file.

    python benchmarks/sft_vs_trl.py
    python benchmarks/sft_vs_trl.py --rows PATH/curie1.txt --json
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers.trainer_pt_utils import get_length_grouped_indices

import workload
from luthier.methods.base import Example
from luthier.methods.sft import LabelSft
from luthier.models import load_model
from luthier.recipe import Tune
from luthier.records import Sequence
from luthier.runtime import keep_big_blocks, num_threads, peak_memory_bytes
from luthier.training.learner import new_learner
from luthier.training.optimizers import make_optimizer
from luthier.training.step import one_step
from pairs import Clock, lacks_trl, positive, run_pairs

SIDES = ("luthier", "trl")
PACKAGES = ("luthier", "trl", "torch", "transformers", "peft", "accelerate", "datasets")
# LoRA by luthier's defaults: rank 16, alpha 32, every linear layer below the head, no dropout
TUNE = Tune(method="sft", learning_rate=5e-4, batch_size=16)
LARGEST_LOSS_DIFFERENCE = {"float32": 1e-3, "bfloat16": 5e-2}
# in bfloat16 the two sides round in other places, and the first update at full rate carries that on
NUM_COMPARED_STEPS = {"float32": 3, "bfloat16": 1}
UNLIKE = """The two sides did not train alike: the losses of the first {steps} steps differ by {found:.2e}
({allowed:g} is allowed), so their speeds say nothing. Look for a difference in tokens, masks, adapter weights
or optimizer."""


@dataclass(frozen=True)
class Settings:
    """What is run. Both sides get all of it, but for the two that say so."""

    rows: str
    steps: int
    repeats: int
    threads: int
    lists_labels: bool
    trl_padding_free: bool  # trl only
    keep_big_blocks: str  # "both" or "luthier": who tells glibc to keep freed memory
    precision: str  # "float32"; "bfloat16": luthier's rounded products, TRL's bf16 autocast


@dataclass(frozen=True)
class Row:
    """One tokenised row: the answer's tokens, end of turn included, stand from `answer_start` on."""

    tokens: tuple[int, ...]
    answer_start: int


@dataclass(frozen=True)
class Run:
    """What one child measured; step 0 is the warm-up. computed_tokens: what went through the layers."""

    losses: list[float]
    step_seconds: list[float]
    computed_tokens: list[int]
    peak_memory_bytes: int


# --- the parent ----------------------------------------------------------------------------------------


def main() -> int:
    """Run the pairs, print the comparison; 1 where the two sides did not train alike."""
    arguments = parse_arguments()
    settings = Settings(
        str(arguments.rows),
        arguments.steps,
        arguments.repeats,
        arguments.threads,
        not arguments.no_label_list,
        arguments.trl_padding_free,
        arguments.keep_big_blocks,
        arguments.precision,
    )
    if arguments.child:
        CHILDREN[arguments.child](arguments.folder, settings)
        return 0
    if lacks_trl():
        return 2
    with tempfile.TemporaryDirectory() as name:
        runs = run_pairs(Run, SIDES, Path(name), settings, figures)
        facts = json.loads((Path(name) / "facts.json").read_text(encoding="utf-8"))
    found = compare(settings, runs, facts)
    print(json.dumps(found) if arguments.json else table(found))
    difference = found["max_loss_difference"]
    allowed = LARGEST_LOSS_DIFFERENCE[settings.precision]
    if difference <= allowed:
        return 0
    limits = {"steps": NUM_COMPARED_STEPS[settings.precision], "allowed": allowed}
    print(UNLIKE.format(found=difference, **limits), file=sys.stderr)
    return 1


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="SFT with LoRA: luthier against TRL on the same batches.")
    add = parser.add_argument
    add("--rows", type=Path, default=workload.NEWSROOM, help=".jsonl or .csv, or .txt of text|LABEL lines")
    add("--steps", type=positive, default=8, help="timed steps, after one warm-up step (default 8)")
    add("--repeats", type=positive, default=2, help="pairs of children (default 2)")
    add("--threads", type=positive, default=num_threads(), help="OpenMP threads of each child")
    add("--no-label-list", action="store_true", help="a shorter prompt, so that rows share less")
    add("--trl-padding-free", action="store_true", help="TRL's padding-free batches")
    add(
        "--keep-big-blocks",
        choices=("both", "luthier"),
        default="both",
        help="who runs with luthier's allocator setting: both (default), or luthier only",
    )
    add(
        "--precision",
        choices=tuple(LARGEST_LOSS_DIFFERENCE),
        default="float32",
        help="float32 on both sides (default), or bfloat16 as each side does it",
    )
    add("--json", action="store_true", help="one line of JSON instead of the table")
    add("--child", choices=tuple(CHILDREN), help=argparse.SUPPRESS)
    add("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def rows_per_second(runs: list[Run]) -> float:
    """Median over the timed steps of all runs."""
    return TUNE.batch_size / statistics.median(seconds for run in runs for seconds in run.step_seconds[1:])


def figures(run: Run) -> str:
    """What is said of a child."""
    return f"{rows_per_second([run]):.2f} rows/s, {run.peak_memory_bytes / 1e9:.2f} GB"


def compare(settings: Settings, runs: dict[str, list[Run]], facts: dict[str, Any]) -> dict[str, Any]:
    """All figures; ratios are above 1 where luthier is faster, and where it takes less memory."""
    rate = {side: rows_per_second(runs[side]) for side in SIDES}
    peak = {side: statistics.median(run.peak_memory_bytes for run in runs[side]) for side in SIDES}
    pairs = itertools.product(runs["luthier"], runs["trl"])
    return {
        "rows_per_second_ratio": rate["luthier"] / rate["trl"],
        "peak_memory_ratio": peak["luthier"] / peak["trl"],
        "max_loss_difference": max(loss_difference(*pair, NUM_COMPARED_STEPS[settings.precision]) for pair in pairs),
        "losses": {side: runs[side][0].losses for side in SIDES},
        "sides": {
            side: {
                "rows_per_second": rate[side],
                "peak_memory_bytes": peak[side],
                "computed_tokens_per_step": statistics.mean(runs[side][0].computed_tokens[1:]),
                "step_seconds": [run.step_seconds for run in runs[side]],
            }
            for side in SIDES
        },
        "settings": asdict(settings) | {"model": workload.MODEL, "tune": TUNE.model_dump()},
        "workload": facts,
        "versions": workload.versions(*PACKAGES),
        "machine": workload.machine(),
    }


def loss_difference(ours: Run, theirs: Run, num_steps: int) -> float:
    """Largest difference of the first steps' losses; infinite where a loss is no number."""
    pairs = list(zip(ours.losses, theirs.losses, strict=True))[:num_steps]
    differences = [abs(our_loss - their_loss) for our_loss, their_loss in pairs]
    return max(differences) if all(map(math.isfinite, differences)) else math.inf


def table(found: dict[str, Any]) -> str:
    """The comparison for a terminal."""

    def line(name: str, key: str, unit: float, ratio: float) -> str:
        ours, theirs = (found["sides"][side][key] / unit for side in SIDES)
        return f"{name:28}{ours:12.2f}{theirs:12.2f}{ratio:9.2f}x"

    tokens = [found["sides"][side]["computed_tokens_per_step"] for side in SIDES]
    lines = [
        f"{'':28}{SIDES[0]:>12}{SIDES[1]:>12}{'ratio':>10}",
        line("rows per second (median)", "rows_per_second", 1, found["rows_per_second_ratio"]),
        line("peak memory, GB", "peak_memory_bytes", 1e9, found["peak_memory_ratio"]),
        line("tokens computed per step", "computed_tokens_per_step", 1, tokens[1] / tokens[0]),
    ]
    for step, (ours, theirs) in enumerate(zip(*(found["losses"][side] for side in SIDES), strict=True)):
        lines.append(f"{f'loss of step {step}':28}{ours:12.6f}{theirs:12.6f}{abs(ours - theirs):10.1e}")
    share = found["workload"]["shared_share"]
    lines.append(f"{share:.0%} of the tokens of a batch stand in another of its rows already.")
    return "\n".join(lines)


# --- the children --------------------------------------------------------------------------------------


def prepare(folder: Path, settings: Settings) -> None:
    """Render and tokenise the rows, batch them by length, and draw the adapter that both sides start from."""
    rows = workload.read_labelled(Path(settings.rows))
    model = load_model(workload.MODEL)
    prompt = workload.make_prompt(rows, model.tokenizer, settings.lists_labels)
    sequences = [example.sequences[0] for example in LabelSft().view(prompt, rows)]
    batches = choose_batches([len(sequence.tokens) for sequence in sequences], settings.steps)
    chosen = [[(sequences[i].tokens, sequences[i].targets[0]) for i in batch] for batch in batches]
    (folder / "batches.json").write_text(json.dumps(chosen), encoding="utf-8")
    new_learner(model, TUNE.adapter, seed=0, backend="grouped").save(folder / "adapter")
    tokens = sum(len(row_tokens) for batch in chosen for row_tokens, _ in batch)
    distinct = sum(distinct_tokens([Row(*row) for row in batch]) for batch in chosen)
    facts = {
        "rows_in_file": len(rows),
        "labels": len(prompt.task.labels),
        "tokens_per_row": tokens / sum(map(len, chosen)),
        "shared_share": 1 - distinct / tokens,
    }
    (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


def choose_batches(lengths: list[int], steps: int) -> list[list[int]]:
    """Row indices of the warm-up batch (the one with the longest row) and of `steps` batches to time.

    Batches are those of transformers' own length grouping over the whole file; the timed ones stand evenly
    spaced in them, since the grouping orders its batches from long to short and the first few are no sample.
    """
    size = TUNE.batch_size
    order = get_length_grouped_indices(lengths, size, generator=torch.Generator().manual_seed(0))
    batches = [order[i : i + size] for i in range(0, len(order) - size + 1, size)]
    if len(batches) <= steps:
        raise SystemExit(f"--steps {steps} needs {(steps + 1) * size} rows, the file has {len(lengths)}.")
    rest = batches[1:]
    return [batches[0], *(rest[int((i + 0.5) * len(rest) / steps)] for i in range(steps))]


def distinct_tokens(batch: list[Row]) -> int:
    """Nodes of the batch's forest, counted apart from luthier's own code: distinct beginnings."""
    return len({row.tokens[: i + 1] for row in batch for i in range(len(row.tokens))})


def read_batches(folder: Path) -> list[list[Row]]:
    """What `prepare` chose."""
    batches = json.loads((folder / "batches.json").read_text(encoding="utf-8"))
    return [[Row(tuple(tokens), start) for tokens, start in batch] for batch in batches]


def finish(folder: Path, side: str, losses: list[float], ends: list[float], computed: list[int]) -> None:
    """Write a child's Run; `ends` are clock times: the start, then the end of each step."""
    seconds = [after - before for before, after in itertools.pairwise(ends)]
    assert len(seconds) == len(losses) == len(computed), "one of each per step"
    run = Run(losses, seconds, computed, peak_memory_bytes())
    (folder / f"{side}.json").write_text(json.dumps(asdict(run)), encoding="utf-8")


def make_example(row: Row) -> Example:
    """The row as luthier's sft method sees it."""
    targets = tuple(range(row.answer_start, len(row.tokens)))
    return Example((Sequence(row.tokens, targets, (1.0,) * len(targets)),))


def train_luthier(folder: Path, settings: Settings) -> None:
    """luthier's own step, as its training loop runs it."""
    keep_big_blocks()
    batches = [[make_example(row) for row in batch] for batch in read_batches(folder)]
    model = load_model(workload.MODEL, precision=settings.precision, exact=TUNE.exact_weights)
    learner = new_learner(model, TUNE.adapter, seed=1, backend="grouped")
    learner.load(folder / "adapter")
    optimizer, method = make_optimizer(learner, TUNE), LabelSft()
    losses: list[float] = []
    computed: list[int] = []
    ends = [time.perf_counter()]
    for step, batch in enumerate(batches):
        done = one_step(learner, method, batch, optimizer, 1.0, TUNE, step)
        losses.append(done.loss)
        computed.append(done.computed_tokens)
        ends.append(time.perf_counter())
    finish(folder, "luthier", losses, ends, computed)


def train_trl(folder: Path, settings: Settings) -> None:
    """TRL's SFTTrainer at its best CPU settings; what is not set here is its own default."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    if settings.keep_big_blocks == "both":
        keep_big_blocks()
    batches = read_batches(folder)
    losses: list[Any] = []
    clock = Clock()
    computed: list[int] = []

    class Recorder(SFTTrainer):
        """Keeps each step's loss and size; logging every step would cost TRL time."""

        def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
            computed.append(inputs["input_ids"].numel())
            loss = super().training_step(model, inputs, *rest, **named)
            losses.append(loss.detach())
            return loss

    model = load_model(workload.MODEL)
    rows = [row for batch in batches for row in batch]
    trainer = Recorder(
        model=PeftModel.from_pretrained(model.model, folder / "adapter", is_trainable=True),
        args=SFTConfig(
            output_dir=str(folder / "trl"),
            max_steps=len(batches),
            per_device_train_batch_size=TUNE.batch_size,
            train_sampling_strategy="sequential",  # the rows stand in the order of group_by_length already
            padding_free=settings.trl_padding_free,
            max_length=None,
            completion_only_loss=True,
            learning_rate=TUNE.learning_rate,
            lr_scheduler_type="constant",
            weight_decay=TUNE.weight_decay,
            max_grad_norm=TUNE.clip_norm,
            use_cpu=True,
            bf16=settings.precision == "bfloat16",
            gradient_checkpointing=False,
            dataloader_num_workers=0,
            dataloader_pin_memory=False,
            eval_strategy="no",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(
            [
                {
                    "input_ids": list(row.tokens),
                    "completion_mask": [int(i >= row.answer_start) for i in range(len(row.tokens))],
                }
                for row in rows
            ]
        ),
        processing_class=model.tokenizer,
        callbacks=[clock],
    )
    trainer.train()
    finish(folder, "trl", [float(loss) for loss in losses], clock.ends, computed)


CHILDREN = {"prepare": prepare, "luthier": train_luthier, "trl": train_trl}


if __name__ == "__main__":
    sys.exit(main())
