"""Preference methods with LoRA: luthier against TRL's trainers, on the same pairs, tokens, batches and references.

Fresh children run in turn (luthier, trl, luthier, trl, ...), as in sft_vs_trl.py beside this file: peak memory is each
child's own, and a slow spell of the machine hits both. A pair is one unit for every method; KTO takes it as two thumbs.

    trl-env/bin/python benchmarks/methods_vs_trl.py --rows PATH/instruct_pref.jsonl
    trl-env/bin/python benchmarks/methods_vs_trl.py --rows PATH/hh_harmless_test.jsonl --methods dpo kto --json
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
from transformers.trainer_pt_utils import get_length_grouped_indices

import workload
from luthier.corpus.lines import Problem
from luthier.corpus.rows import LIMITS, readable
from luthier.methods.base import Example, make_batch
from luthier.methods.registry import make_stage_method
from luthier.models import load_model
from luthier.prompts import Dialogue, Layout
from luthier.recipe.corpus import Input
from luthier.recipe.methods import Dpo, Kto, Orpo, Reward
from luthier.recipe.training import Training
from luthier.records import Preference, Sequence
from luthier.runtime import keep_big_blocks, num_threads, peak_memory_bytes
from luthier.stages.reference import with_reference
from luthier.training.learner import Learner, new_learner
from luthier.training.optimizers import make_optimizer
from luthier.training.step import one_step
from pairs import Clock, lacks_trl, positive, run_pairs

SIDES = ("luthier", "trl")
METHODS: dict[str, Any] = {"dpo": Dpo(), "kto": Kto(), "orpo": Orpo(), "reward": Reward()}
BATCH_PAIRS, MAX_TOKENS = 8, 512
NUM_COMPARED_STEPS, LARGEST_LOSS_DIFFERENCE = 3, 1e-3
PACKAGES = ("luthier", "trl", "torch", "transformers", "peft", "accelerate", "datasets")


@dataclass(frozen=True)
class Run:
    """What one child measured; step 0 is the warm-up. computed_tokens: what went through the layers."""

    losses: list[float]
    step_seconds: list[float]
    computed_tokens: list[int]
    peak_memory_bytes: int


# --- the parent ----------------------------------------------------------------------------------------


def main() -> int:
    """Each method's pairs of children; 1 where the two sides did not train alike, 2 where TRL is missing."""
    arguments = parse_arguments()
    if arguments.child:
        CHILDREN[arguments.child](arguments)
        return 0
    if lacks_trl():
        return 2
    found = {method: measured(method, arguments) for method in arguments.methods}
    result = {
        "methods": found,
        "settings": {
            "rows": str(arguments.rows), "steps": arguments.steps, "repeats": arguments.repeats,
            "threads": arguments.threads, "batch_pairs": BATCH_PAIRS, "max_tokens": MAX_TOKENS, "model": workload.MODEL,
            "tune": training_of("dpo").model_dump(),
        },
        "versions": workload.versions(*PACKAGES),
        "machine": workload.machine(),
    }  # fmt: skip
    print(json.dumps(result) if arguments.json else table(found))
    unlike = [method for method, figures in found.items() if figures["max_loss_difference"] > LARGEST_LOSS_DIFFERENCE]
    if unlike:
        print(
            f"{', '.join(unlike)}: the losses of the first {NUM_COMPARED_STEPS} steps differ by more than "
            f"{LARGEST_LOSS_DIFFERENCE:g}, so the speeds say nothing.",
            file=sys.stderr,
        )
    return int(bool(unlike))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Preference methods with LoRA: luthier against TRL.")
    add = parser.add_argument
    add("--rows", type=Path, required=True, help="pairs, in any shape that luthier reads")
    add("--methods", nargs="+", choices=tuple(METHODS), default=list(METHODS), help="which methods (default all)")
    add("--steps", type=positive, default=8, help="timed steps, after one warm-up step (default 8)")
    add("--repeats", type=positive, default=2, help="pairs of children (default 2)")
    add("--threads", type=positive, default=num_threads(), help="OpenMP threads of each child")
    add("--json", action="store_true", help="one line of JSON instead of the table")
    add("--child", choices=tuple(CHILDREN), help=argparse.SUPPRESS)
    add("--method", choices=tuple(METHODS), help=argparse.SUPPRESS)
    add("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def measured(method: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The rows, references and adapter once, then the sides in turn."""
    with tempfile.TemporaryDirectory() as name:
        runs = run_pairs(Run, SIDES, Path(name), arguments, figures, "--method", method, name=method)
        facts = json.loads((Path(name) / "facts.json").read_text(encoding="utf-8"))
    return compare(runs, facts)


def figures(run: Run) -> str:
    """What is said of a child."""
    return f"{pairs_per_second([run]):.2f} pairs/s, {run.peak_memory_bytes / 1e9:.2f} GB"


def pairs_per_second(runs: list[Run]) -> float:
    """Median over the timed steps of all runs."""
    return BATCH_PAIRS / statistics.median(seconds for run in runs for seconds in run.step_seconds[1:])


def compare(runs: dict[str, list[Run]], facts: dict[str, Any]) -> dict[str, Any]:
    """All figures of a method; ratios are above 1 where luthier is faster, and where it takes less memory."""
    rate = {side: pairs_per_second(runs[side]) for side in SIDES}
    peak = {side: statistics.median(run.peak_memory_bytes for run in runs[side]) for side in SIDES}
    losses = {side: runs[side][0].losses for side in SIDES}
    differences = [abs(ours - theirs) for ours, theirs in zip(losses["luthier"], losses["trl"], strict=True)]
    first = differences[:NUM_COMPARED_STEPS]
    return {
        "pairs_per_second_ratio": rate["luthier"] / rate["trl"],
        "peak_memory_ratio": peak["trl"] / peak["luthier"],
        "max_loss_difference": max(first) if all(map(math.isfinite, first)) else math.inf,
        "losses": losses,
        "pairs_per_second": rate,
        "peak_memory_bytes": peak,
        "computed_tokens_per_step": {side: statistics.mean(runs[side][0].computed_tokens[1:]) for side in SIDES},
        "step_seconds": {side: [run.step_seconds for run in runs[side]] for side in SIDES},
        "workload": facts,
    }


def table(found: dict[str, Any]) -> str:
    """The comparison for a terminal."""
    lines = [f"{'':8}{'pairs/s':>18}{'':9}{'memory, GB':>16}{'':9}{'tokens a step':>18}  losses of the first steps"]
    for method, figures in found.items():
        rate, peak, tokens, losses = (
            [figures[name][side] for side in SIDES]
            for name in ("pairs_per_second", "peak_memory_bytes", "computed_tokens_per_step", "losses")
        )
        first = ", ".join(
            f"{a:.5f}/{b:.5f}" for a, b in itertools.islice(zip(*losses, strict=True), NUM_COMPARED_STEPS)
        )
        lines.append(
            f"{method:8}{rate[0]:9.2f}{rate[1]:9.2f}{figures['pairs_per_second_ratio']:8.2f}x"
            f"{peak[0] / 1e9:8.2f}{peak[1] / 1e9:8.2f}{figures['peak_memory_ratio']:8.2f}x"
            f"{tokens[0]:9.0f}{tokens[1]:9.0f}  {first}"
        )
    return "\n".join([*lines, "Of each two numbers the first is luthier's, the second TRL's."])


# --- the children --------------------------------------------------------------------------------------


def training_of(method: str) -> Training:
    """luthier's defaults of the method, a step in one piece, and one rate for adapter and head, as TRL has."""
    values = METHODS[method].tune | {"micro_batch_tokens": 1 << 20}
    return Training(**values, head_learning_rate=values["learning_rate"], batch_size=BATCH_PAIRS)


def prepare(arguments: argparse.Namespace) -> None:
    """Batches of tokenised pairs with their references, and the adapter that both sides start from."""
    method, folder = make_stage_method(METHODS[arguments.method]), arguments.folder
    model = load_model(workload.MODEL, precision="float32")
    prompt = Dialogue(Layout(model.tokenizer))
    records = [row for row in readable(Input(path=str(arguments.rows)), LIMITS) if isinstance(row, Preference)]
    rows = [row for row in records if not isinstance(method.accept(row), Problem)]
    lengths = [max(len(s.tokens) for s in example.sequences) for example in method.view(prompt, rows)]
    kept = [(row, length) for row, length in zip(rows, lengths, strict=True) if length <= MAX_TOKENS]
    batches = choose_batches([length for _, length in kept], arguments.steps)
    learner = fresh_learner(arguments.method)
    learner.save(folder / "adapter")
    examples = [method.view(prompt, [kept[i][0] for i in batch]) for batch in batches]
    if method.needs_reference:
        flat = iter(with_reference(learner, [e for batch in examples for e in batch], 4096, folder / "reference"))
        examples = [[next(flat) for _ in batch] for batch in examples]
    stored = [[asdict(example) for example in batch] for batch in examples]
    (folder / "batches.json").write_text(json.dumps(stored), encoding="utf-8")
    forests = [make_batch(batch).forest for batch in examples]
    facts = {
        "pairs": len(kept),
        "tokens_per_batch": statistics.mean(forest.num_sequence_tokens for forest in forests),
        "distinct_tokens_per_batch": statistics.mean(forest.num_tokens for forest in forests),
    }
    (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


def choose_batches(lengths: list[int], steps: int) -> list[list[int]]:
    """The warm-up batch (the longest) and `steps` batches evenly spaced in transformers' own length grouping."""
    order = get_length_grouped_indices(lengths, BATCH_PAIRS, generator=torch.Generator().manual_seed(0))
    batches = [order[i : i + BATCH_PAIRS] for i in range(0, len(order) - BATCH_PAIRS + 1, BATCH_PAIRS)]
    if len(batches) <= steps:
        raise SystemExit(f"--steps {steps} needs {(steps + 1) * BATCH_PAIRS} pairs, the file has {len(lengths)}.")
    rest = batches[1:]
    return [batches[0], *(rest[int((i + 0.5) * len(rest) / steps)] for i in range(steps))]


def fresh_learner(method: str) -> Learner:
    """luthier's learner at step 0."""
    model = load_model(workload.MODEL, precision="float32")
    heads = make_stage_method(METHODS[method]).heads(model.hidden_size)
    return new_learner(model, training_of(method).adapter, 0, "grouped", heads)


def read_batches(folder: Path) -> list[list[Example]]:
    """What `prepare` chose."""
    batches = json.loads((folder / "batches.json").read_text(encoding="utf-8"))
    return [[example_of(values) for values in batch] for batch in batches]


def example_of(values: dict[str, Any]) -> Example:
    """An example from its JSON values."""
    sequences = [
        Sequence(tuple(s["tokens"]), tuple(s["targets"]), tuple(s["weights"]), reads=tuple(map(tuple, s["reads"])))
        for s in values["sequences"]
    ]
    return Example(tuple(sequences), tuple(values["gold"]), tuple(values["reference_S"]), values["num_bytes"])


def finish(folder: Path, side: str, losses: list[float], ends: list[float], computed: list[int]) -> None:
    """Write a child's Run; `ends` are clock times: the start, then the end of each step."""
    seconds = [after - before for before, after in itertools.pairwise(ends)]
    assert len(seconds) == len(losses) == len(computed), "one of each per step"
    run = Run(losses, seconds, computed, peak_memory_bytes())
    (folder / f"{side}.json").write_text(json.dumps(asdict(run)), encoding="utf-8")


def train_luthier(arguments: argparse.Namespace) -> None:
    """luthier's own step, as its training loop runs it."""
    keep_big_blocks()
    batches, tune = read_batches(arguments.folder), training_of(arguments.method)
    learner, method = fresh_learner(arguments.method), make_stage_method(METHODS[arguments.method])
    learner.load(arguments.folder / "adapter")
    optimizer = make_optimizer(learner, tune)
    losses: list[float] = []
    computed: list[int] = []
    ends = [time.perf_counter()]
    for step, batch in enumerate(batches):
        done = one_step(learner, method, batch, optimizer, 1.0, tune, step)
        losses.append(done.loss)
        computed.append(done.computed_tokens)
        ends.append(time.perf_counter())
    finish(arguments.folder, "luthier", losses, ends, computed)


def train_trl(arguments: argparse.Namespace) -> None:
    """TRL's trainer; what is not set here or in trl_preferences.py is its own default."""
    import trl_preferences

    keep_big_blocks()
    batches, tune, folder = read_batches(arguments.folder), training_of(arguments.method), arguments.folder
    losses: list[Any] = []
    clock = Clock()
    computed: list[int] = []

    model = load_model(workload.MODEL, precision="float32")
    wrapped = trl_preferences.adapted(arguments.method, model, folder / "adapter", folder)
    more = {
        "output_dir": str(folder / "trl"),
        "max_steps": len(batches),
        "per_device_train_batch_size": BATCH_PAIRS * (2 if arguments.method == "kto" else 1),
        "train_sampling_strategy": "sequential",  # the rows stand in the order of the batches
        "learning_rate": tune.learning_rate,
        "weight_decay": tune.weight_decay,
        "max_grad_norm": tune.clip_norm,
    }
    examples = [example for batch in batches for example in batch]
    trainer = trl_preferences.make_trainer(
        arguments.method, METHODS[arguments.method], wrapped, examples, model.tokenizer, more
    )
    trainer.add_callback(clock)
    plain_step = trainer.training_step

    def recorded_step(model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
        """Keeps each step's loss and size; logging every step would cost TRL time."""
        names = ("input_ids", "KL_input_ids", "chosen_input_ids", "rejected_input_ids")
        computed.append(sum(inputs[name].numel() for name in names if name in inputs))
        loss = plain_step(model, inputs, *rest, **named)
        losses.append(loss.detach())
        return loss

    trainer.training_step = recorded_step
    trainer.train()
    finish(folder, "trl", [float(loss) for loss in losses], clock.ends, computed)


CHILDREN = {"prepare": prepare, "luthier": train_luthier, "trl": train_trl}


if __name__ == "__main__":
    sys.exit(main())
