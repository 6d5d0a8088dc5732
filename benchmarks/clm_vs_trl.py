"""Continued pre-training with LoRA: luthier's clm against TRL's packed SFTTrainer, on the same full windows.

Fresh children run in turn (luthier, trl, luthier, trl, ...), as in sft_vs_trl.py beside this file. Every window lies
inside one document and is full, so TRL's packing of them gives the same windows again: no token is padding on either
side, and the losses of every step are comparable.

    trl-env/bin/python benchmarks/clm_vs_trl.py
    trl-env/bin/python benchmarks/clm_vs_trl.py --rows PATH/docs.jsonl --json
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

from peft import PeftModel

import workload
from luthier.corpus.lines import Problem
from luthier.corpus.rows import LIMITS, readable
from luthier.methods.base import Example, make_batch
from luthier.methods.documents import DocumentClm, encode_text
from luthier.models import load_model
from luthier.prompts import Dialogue, Layout
from luthier.recipe.corpus import Input
from luthier.recipe.methods import Clm
from luthier.recipe.training import Training
from luthier.records import Document, Sequence
from luthier.runtime import keep_big_blocks, num_threads
from luthier.training.learner import new_learner
from luthier.training.optimizers import make_optimizer
from luthier.training.step import one_step
from pairs import Clock, lacks_trl, positive, run_pairs
from sft_vs_trl import (
    LARGEST_LOSS_DIFFERENCE,
    NUM_COMPARED_STEPS,
    PACKAGES,
    SIDES,
    UNLIKE,
    Run,
    finish,
    loss_difference,
)

DOCUMENTS = Path(__file__).resolve().parent.parent / "examples" / "bakery" / "documents.jsonl"


@dataclass(frozen=True)
class Settings:
    """What is run. Both sides get all of it, but for TRL's packing."""

    rows: str
    steps: int
    repeats: int
    threads: int
    num_windows: int  # of one step
    window_tokens: int
    precision: str  # "float32"; "bfloat16": luthier's rounded products, TRL's bf16 autocast
    trl_packing: str  # trl only

    @property
    def trained_tokens(self) -> int:
        """Of one step: every token of a window but its first, which nothing predicts."""
        return self.num_windows * (self.window_tokens - 1)

    @property
    def training(self) -> Training:
        """luthier's defaults of clm, a step in one piece."""
        whole = self.num_windows * self.window_tokens
        return Training(**{**Clm.tune, "batch_size": self.num_windows, "micro_batch_tokens": whole})


# --- the parent ----------------------------------------------------------------------------------------


def main() -> int:
    """Run the pairs, print the comparison; 1 where the two sides did not train alike, 2 where TRL is missing."""
    arguments = parse_arguments()
    child, folder, as_json = (arguments.__dict__.pop(name) for name in ("child", "folder", "json"))
    settings = Settings(**vars(arguments) | {"rows": str(arguments.rows)})
    if child:
        CHILDREN[child](folder, settings)
        return 0
    if lacks_trl():
        return 2
    with tempfile.TemporaryDirectory() as name:
        runs = run_pairs(Run, SIDES, Path(name), settings, lambda run: figures(run, settings))
        facts = json.loads((Path(name) / "facts.json").read_text(encoding="utf-8"))
    found = compare(settings, runs, facts)
    print(json.dumps(found) if as_json else table(found))
    difference, allowed = found["max_loss_difference"], LARGEST_LOSS_DIFFERENCE[settings.precision]
    if difference <= allowed:
        return 0
    print(
        UNLIKE.format(steps=NUM_COMPARED_STEPS[settings.precision], found=difference, allowed=allowed), file=sys.stderr
    )
    return 1


def parse_arguments() -> argparse.Namespace:
    """The command line; the names are those of Settings."""
    parser = argparse.ArgumentParser(description="Continued pre-training with LoRA: luthier against TRL.")
    add = parser.add_argument
    add("--rows", type=Path, default=DOCUMENTS, help="documents, in any shape that luthier reads")
    add("--steps", type=positive, default=8, help="timed steps, after one warm-up step (default 8)")
    add("--repeats", type=positive, default=2, help="pairs of children (default 2)")
    add("--threads", type=positive, default=num_threads(), help="OpenMP threads of each child")
    add("--windows", dest="num_windows", type=positive, default=8, help="windows of one step (default 8)")
    add("--window-tokens", type=positive, default=Clm().window_tokens, help="tokens of a window (default 512)")
    add(
        "--precision",
        choices=tuple(LARGEST_LOSS_DIFFERENCE),
        default="float32",
        help="float32 on both sides (default), or bfloat16 as each side does it",
    )
    add(
        "--trl-packing",
        choices=("wrapped", "bfd_split"),
        default="wrapped",
        help="TRL's packing strategy: wrapped (default, the faster one on a CPU) or bfd_split",
    )
    add("--json", action="store_true", help="one line of JSON instead of the table")
    add("--child", choices=tuple(CHILDREN), help=argparse.SUPPRESS)
    add("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def tokens_per_second(runs: list[Run], settings: Settings) -> float:
    """Trained tokens by the median over the timed steps of all runs."""
    return settings.trained_tokens / statistics.median(seconds for run in runs for seconds in run.step_seconds[1:])


def figures(run: Run, settings: Settings) -> str:
    """What is said of a child."""
    return f"{tokens_per_second([run], settings):.0f} tokens/s, {run.peak_memory_bytes / 1e9:.2f} GB"


def compare(settings: Settings, runs: dict[str, list[Run]], facts: dict[str, Any]) -> dict[str, Any]:
    """All figures; ratios are above 1 where luthier is faster, and where it takes less memory."""
    rate = {side: tokens_per_second(runs[side], settings) for side in SIDES}
    peak = {side: statistics.median(run.peak_memory_bytes for run in runs[side]) for side in SIDES}
    pairs = itertools.product(runs["luthier"], runs["trl"])
    return {
        "tokens_per_second_ratio": rate["luthier"] / rate["trl"],
        "peak_memory_ratio": peak["trl"] / peak["luthier"],
        "max_loss_difference": max(loss_difference(*pair, NUM_COMPARED_STEPS[settings.precision]) for pair in pairs),
        "losses": {side: runs[side][0].losses for side in SIDES},
        "tokens_per_second": rate,
        "peak_memory_bytes": peak,
        "trained_tokens_per_step": settings.trained_tokens,
        "computed_tokens_per_step": {side: statistics.mean(runs[side][0].computed_tokens[1:]) for side in SIDES},
        "step_seconds": {side: [run.step_seconds for run in runs[side]] for side in SIDES},
        "settings": asdict(settings) | {"model": workload.MODEL, "tune": settings.training.model_dump()},
        "workload": facts,
        "versions": workload.versions(*PACKAGES),
        "machine": workload.machine(),
    }


def table(found: dict[str, Any]) -> str:
    """The comparison for a terminal."""

    def line(name: str, key: str, unit: float, ratio: float) -> str:
        ours, theirs = (found[key][side] / unit for side in SIDES)
        return f"{name:28}{ours:12.2f}{theirs:12.2f}{ratio:9.2f}x"

    computed = found["computed_tokens_per_step"]
    lines = [
        f"{'':28}{SIDES[0]:>12}{SIDES[1]:>12}{'ratio':>10}",
        line("tokens per second (median)", "tokens_per_second", 1, found["tokens_per_second_ratio"]),
        line("peak memory, GB", "peak_memory_bytes", 1e9, found["peak_memory_ratio"]),
        line("tokens computed per step", "computed_tokens_per_step", 1, computed["trl"] / computed["luthier"]),
    ]
    for step, (ours, theirs) in enumerate(zip(*(found["losses"][side] for side in SIDES), strict=True)):
        lines.append(f"{f'loss of step {step}':28}{ours:12.6f}{theirs:12.6f}{abs(ours - theirs):10.1e}")
    facts = found["workload"]
    source = "all documents joined and repeated" if facts["joined"] else f"{facts['documents']} documents"
    return "\n".join([*lines, f"windows: {facts['windows']} full ones from {source}"])


# --- the children --------------------------------------------------------------------------------------


def prepare(folder: Path, settings: Settings) -> None:
    """Batches of full windows, and the adapter that both sides start from."""
    method = DocumentClm(settings=Clm(window_tokens=settings.window_tokens))
    model = load_model(workload.MODEL)
    prompt = Dialogue(Layout(model.tokenizer))
    documents = read_documents(Path(settings.rows), method)
    wanted = settings.num_windows * (settings.steps + 1)
    windows = full_windows(method, prompt, documents)
    joined = len(windows) < wanted
    if joined:
        windows = full_windows(
            method, prompt, [joined_text(documents, model.tokenizer, wanted * settings.window_tokens)]
        )
    batches = [windows[i : i + settings.num_windows] for i in range(0, wanted, settings.num_windows)]
    (folder / "batches.json").write_text(json.dumps(batches), encoding="utf-8")
    new_learner(model, settings.training.adapter, seed=0, backend="grouped").save(folder / "adapter")
    forests = [make_batch([make_example(window) for window in batch]).forest for batch in batches]
    facts = {
        "documents": len(documents),
        "joined": joined,
        "windows": wanted,
        "tokens_per_batch": statistics.mean(forest.num_sequence_tokens for forest in forests),
        "distinct_tokens_per_batch": statistics.mean(forest.num_tokens for forest in forests),
    }
    (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


def read_documents(path: Path, method: DocumentClm) -> list[Document]:
    """What clm takes of a file."""
    taken = [method.accept(record) for record in readable(Input(path=str(path)), LIMITS)]
    documents = [document for found in taken if not isinstance(found, Problem) for document in found]
    if not documents:
        raise SystemExit(f"{path}: no document. Give JSONL with text, or plain text.")
    return documents


def full_windows(method: DocumentClm, prompt: Dialogue, documents: list[Document]) -> list[tuple[int, ...]]:
    """The documents' windows without the short ones at the ends."""
    windows = [example.sequences[0].tokens for example in method.view(prompt, documents)]
    return [window for window in windows if len(window) == method.settings.window_tokens]


def joined_text(documents: list[Document], tokenizer: Any, num_tokens: int) -> Document:
    """One document of at least so many tokens, for files whose own fill too few windows."""
    whole = "\n\n".join(document.text for document in documents) + "\n\n"
    tokens, _ = encode_text(tokenizer, whole)
    return Document(whole * (1 + math.ceil(num_tokens / len(tokens))), documents[0].source)


def make_example(window: tuple[int, ...]) -> Example:
    """The window as luthier's clm method sees it."""
    return Example((Sequence(window, tuple(range(1, len(window))), (1.0,) * (len(window) - 1)),))


def read_batches(folder: Path) -> list[list[tuple[int, ...]]]:
    """What `prepare` chose."""
    batches = json.loads((folder / "batches.json").read_text(encoding="utf-8"))
    return [[tuple(window) for window in batch] for batch in batches]


def train_luthier(folder: Path, settings: Settings) -> None:
    """luthier's own step, as its training loop runs it."""
    keep_big_blocks()
    batches = [[make_example(window) for window in batch] for batch in read_batches(folder)]
    tune = settings.training
    model = load_model(workload.MODEL, precision=settings.precision, exact=tune.exact_weights)
    learner = new_learner(model, tune.adapter, seed=1, backend="grouped")
    learner.load(folder / "adapter")
    optimizer, method = make_optimizer(learner, tune), DocumentClm()
    losses: list[float] = []
    computed: list[int] = []
    ends = [time.perf_counter()]
    for step, batch in enumerate(batches):
        done = one_step(learner, method, batch, optimizer, 1.0, tune, step)
        losses.append(done.loss)
        computed.append(done.computed_tokens)
        ends.append(time.perf_counter())
    finish(folder, "luthier", losses, ends, computed)


def train_trl(folder: Path, settings: Settings) -> None:
    """TRL's SFTTrainer with packing, at its best CPU settings; what is not set here is its own default."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    keep_big_blocks()
    batches, tune = read_batches(folder), settings.training
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
    windows = [list(window) for batch in batches for window in batch]
    trainer = Recorder(
        model=PeftModel.from_pretrained(model.model, folder / "adapter", is_trainable=True),
        args=SFTConfig(
            output_dir=str(folder / "trl"),
            max_steps=len(batches),
            per_device_train_batch_size=tune.batch_size,
            train_sampling_strategy="sequential",  # the windows stand in the order of the batches
            packing=True,
            packing_strategy=settings.trl_packing,
            max_length=settings.window_tokens,
            learning_rate=tune.learning_rate,
            lr_scheduler_type="constant",
            weight_decay=tune.weight_decay,
            max_grad_norm=tune.clip_norm,
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
        train_dataset=Dataset.from_dict({"input_ids": windows}),
        processing_class=model.tokenizer,
        callbacks=[clock],
    )
    assert list(trainer.train_dataset["input_ids"]) == windows, "packing full windows gives them again, in order"
    trainer.train()
    finish(folder, "trl", [float(loss) for loss in losses], clock.ends, computed)


CHILDREN = {"prepare": prepare, "luthier": train_luthier, "trl": train_trl}


if __name__ == "__main__":
    sys.exit(main())
