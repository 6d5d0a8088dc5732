"""A linear probe over several epochs: luthier's kept features against the Hugging Face Trainer with a frozen body.

The parent has the rows tokenised once and starts fresh children in turn (luthier, trainer, luthier, ...). Both train
the same head from the same start on the same batches. What is timed, and why that is fair, stands in README.md.

    python benchmarks/probe.py
    python benchmarks/probe.py --rows PATH/curie1.txt --prompt text --json
"""

from __future__ import annotations

import argparse
import importlib.util
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

import numpy as np
import torch
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices

import workload
from luthier.forest.forward import backbone
from luthier.methods.base import MAIN, Example, split_by_tokens
from luthier.methods.head import HeadMethod
from luthier.methods.heads import ClassifyHead
from luthier.models import load_model
from luthier.prompts import Dialogue, Layout
from luthier.recipe import Training
from luthier.recipe.adapters import Probe
from luthier.recipe.checkpoints import Checkpoints
from luthier.recipe.schedules import Constant
from luthier.records import Labelled, Sequence
from luthier.runtime import keep_big_blocks, num_threads, peak_memory_bytes
from luthier.training.course import Course
from luthier.training.loop import train
from luthier.training.probe import FORWARD_ONLY, ProbeLearner
from pairs import Clock, run_pairs

SIDES = ("luthier", "trainer")
PACKAGES = ("luthier", "torch", "transformers", "accelerate")
BATCH_SIZE, LEARNING_RATE = 16, 2e-3
LARGEST_LOSS_DIFFERENCE = 1e-3  # of any step: both train the head alone, so nothing drifts apart
INSTALL = """The Hugging Face Trainer needs accelerate, which is not here. luthier does not; make an environment:
    python3 -m venv trl-env
    trl-env/bin/pip install torch==2.13.0
    trl-env/bin/pip install -c constraints.txt accelerate -e .
    trl-env/bin/python benchmarks/probe.py"""


@dataclass(frozen=True)
class Settings:
    """What is run; both sides get all of it."""

    rows: str
    limit: int
    epochs: int
    repeats: int
    threads: int
    prompt: str  # "instruction": luthier run's prompt with its list of labels; "text": the row in the chat template


@dataclass(frozen=True)
class Work:
    """Tokenised rows: tokens, where the head begins to read (to the end), label; batches' row order of all epochs."""

    rows: list[tuple[list[int], int, int]]
    num_labels: int
    order: list[list[int]]

    def example(self, index: int) -> Example:
        """A row as luthier's head method sees it."""
        tokens, start, label = self.rows[index]
        return Example((Sequence(tuple(tokens), reads=((start, len(tokens)),)),), (label,))


@dataclass(frozen=True)
class Run:
    """What one child measured. features_seconds: of seconds, those before the first step."""

    seconds: float
    features_seconds: float
    losses: list[float]
    accuracy: float  # of the trained head on its training rows
    computed_tokens: int
    peak_memory_bytes: int


# --- the parent ----------------------------------------------------------------------------------------


def main() -> int:
    """Run the pairs, print the comparison; 1 where the two sides did not train alike."""
    arguments = parse_arguments()
    settings = Settings(
        str(arguments.rows), arguments.limit, arguments.epochs, arguments.repeats, arguments.threads, arguments.prompt
    )
    if arguments.child:
        CHILDREN[arguments.child](arguments.folder, settings)
        return 0
    if importlib.util.find_spec("accelerate") is None:
        print(INSTALL, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as name:
        runs = run_pairs(Run, SIDES, Path(name), settings, lambda run: f"{run.seconds:.1f} s")
        facts = json.loads((Path(name) / "facts.json").read_text(encoding="utf-8"))
    found = compare(settings, runs, facts)
    print(json.dumps(found) if arguments.json else table(found))
    if found["max_loss_difference"] <= LARGEST_LOSS_DIFFERENCE:
        return 0
    print(
        f"The two sides did not train alike: losses differ by {found['max_loss_difference']:.2e} "
        f"({LARGEST_LOSS_DIFFERENCE:g} is allowed), so their times say nothing.",
        file=sys.stderr,
    )
    return 1


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="A linear probe: luthier against the Hugging Face Trainer.")
    add = parser.add_argument
    add("--rows", type=Path, default=workload.NEWSROOM, help=".jsonl or .csv, or .txt of text|LABEL lines")
    add("--limit", type=int, default=0, help="only so many rows, evenly spaced in the file (default all)")
    add("--epochs", type=int, default=10, help="epochs of both (default 10)")
    add("--repeats", type=int, default=1, help="pairs of children (default 1)")
    add("--threads", type=int, default=num_threads(), help="OpenMP threads of each child")
    add("--prompt", choices=("instruction", "text"), default="instruction", help="what stands around each row")
    add("--json", action="store_true", help="one line of JSON instead of the table")
    add("--child", choices=tuple(CHILDREN), help=argparse.SUPPRESS)
    add("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def compare(settings: Settings, runs: dict[str, list[Run]], facts: dict[str, Any]) -> dict[str, Any]:
    """All figures; the ratio is above 1 where luthier is faster."""
    seconds = {side: statistics.median(run.seconds for run in runs[side]) for side in SIDES}
    pairs = [
        abs(ours - theirs)
        for a, b in itertools.product(runs["luthier"], runs["trainer"])
        for ours, theirs in zip(a.losses, b.losses, strict=True)
    ]
    return {
        "speed_ratio": seconds["trainer"] / seconds["luthier"],
        "max_loss_difference": max(pairs) if all(map(math.isfinite, pairs)) else math.inf,
        "sides": {
            side: {
                "seconds": seconds[side],
                "features_seconds": statistics.median(run.features_seconds for run in runs[side]),
                "last_loss": runs[side][0].losses[-1],
                "accuracy": runs[side][0].accuracy,
                "computed_tokens": runs[side][0].computed_tokens,
                "peak_memory_bytes": statistics.median(run.peak_memory_bytes for run in runs[side]),
            }
            for side in SIDES
        },
        "settings": asdict(settings) | {"model": workload.MODEL, "batch_size": BATCH_SIZE, "rate": LEARNING_RATE},
        "workload": facts,
        "versions": workload.versions(*PACKAGES),
        "machine": workload.machine(),
    }


def table(found: dict[str, Any]) -> str:
    """The comparison for a terminal."""

    def line(name: str, key: str, unit: float, digits: int) -> str:
        ours, theirs = (found["sides"][side][key] / unit for side in SIDES)
        return f"{name:34}{ours:14.{digits}f}{theirs:14.{digits}f}"

    facts, settings = found["workload"], found["settings"]
    return "\n".join(
        [
            f"{'':34}{SIDES[0]:>14}{SIDES[1]:>14}",
            line("seconds", "seconds", 1, 1),
            line("  of these before the first step", "features_seconds", 1, 1),
            line("thousand tokens through the body", "computed_tokens", 1e3, 1),
            line("loss of the last step", "last_loss", 1, 6),
            line("accuracy on the training rows", "accuracy", 1, 4),
            line("peak memory, GB", "peak_memory_bytes", 1e9, 2),
            f"luthier is {found['speed_ratio']:.1f} times as fast over {settings['epochs']} epochs of {facts['rows']} "
            f"rows of {facts['tokens_per_row']:.0f} tokens; losses differ by {found['max_loss_difference']:.1e}.",
        ]
    )


# --- the children --------------------------------------------------------------------------------------


def prepare(folder: Path, settings: Settings) -> None:
    """Tokenise the rows, group each epoch's batches by length, and draw the head that both sides start from."""
    rows = workload.read_labelled(Path(settings.rows))
    if settings.limit:
        rows = rows[:: max(1, len(rows) // settings.limit)][: settings.limit]
    model = load_model(workload.MODEL)
    labels = sorted({row.label for row in rows})
    sequences = tokenised(rows, model.tokenizer, settings.prompt)
    lengths = [len(sequence.tokens) for sequence in sequences]
    order = [
        get_length_grouped_indices(lengths, BATCH_SIZE, generator=torch.Generator().manual_seed(epoch))
        for epoch in range(settings.epochs)
    ]
    listed = [(list(s.tokens), s.reads[0][0], labels.index(row.label)) for s, row in zip(sequences, rows, strict=True)]
    work = {"rows": listed, "num_labels": len(labels), "order": order}
    (folder / "work.json").write_text(json.dumps(work), encoding="utf-8")
    torch.manual_seed(0)
    torch.save(nn.Linear(model.hidden_size, len(labels)).state_dict(), folder / "head.pt")
    facts = {"rows": len(rows), "labels": len(labels), "tokens_per_row": statistics.mean(lengths)}
    (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


def tokenised(rows: list[Labelled], tokenizer: Any, prompt: str) -> list[Sequence]:
    """Tokens of each row up to the end of what the head reads."""
    if prompt == "instruction":
        made = HeadMethod().view(workload.make_prompt(rows, tokenizer, lists_labels=True), rows)
        sequences = [example.sequences[0] for example in made]
    else:
        method = ClassifyHead().fitted(rows)
        sequences = [example.sequences[0] for example in method.view(Dialogue(Layout(tokenizer)), rows)]
    return [Sequence(s.tokens[: s.reads[-1][1]], reads=s.reads) for s in sequences]


def read_work(folder: Path) -> Work:
    """What `prepare` wrote."""
    return Work(**json.loads((folder / "work.json").read_text(encoding="utf-8")))


def make_head(folder: Path, work: Work) -> nn.Linear:
    """The head at its start."""
    state = torch.load(folder / "head.pt")
    head = nn.Linear(state["weight"].shape[1], work.num_labels)
    head.load_state_dict(state)
    return head


def train_luthier(folder: Path, settings: Settings) -> None:
    """`tune.adapter.kind: none`, as a stage trains it: features, then the loop with its checkpoint at the end."""
    keep_big_blocks()
    work = read_work(folder)
    examples = [work.example(index) for index in range(len(work.rows))]
    model, head = load_model(workload.MODEL, precision="float32"), make_head(folder, work)
    training = Training(
        epochs=float(settings.epochs), batch_size=BATCH_SIZE, head_learning_rate=LEARNING_RATE, warmup_share=0.0,
        schedule=Constant(), weight_decay=0.0, adapter=Probe(), checkpoints=Checkpoints(every=0, minutes=0.0),
    )  # fmt: skip
    order = [np.asarray(epoch, np.int64) for epoch in work.order]
    with tempfile.TemporaryDirectory() as out:
        started = time.perf_counter()
        learner = ProbeLearner(model, {MAIN: head}, "auto", Path(out) / "features", 16.0)
        learner.prepare(examples, training.pass_tokens)
        ready = time.perf_counter()
        history = train(
            learner, HeadMethod(), examples, [], training, 0, Path(out) / "training", lambda progress: None,
            course=Course(order=order.__getitem__),
        )  # fmt: skip
        seconds = time.perf_counter() - started
    logits = torch.cat([learner(learner.batch([example])).logits_PL for example in examples])
    losses = [entry["loss"] for entry in history.train]
    micros = split_by_tokens(examples, FORWARD_ONLY * training.pass_tokens)  # those that the features were computed in
    computed = sum(learner.batch(micro).forest.num_tokens for micro in micros)
    finish(folder, "luthier", Run(seconds, ready - started, losses, hits(logits, work), computed, peak_memory_bytes()))


class FrozenBody(nn.Module):
    """The model's body, frozen, and the head on the mean of its last hidden states from each row's start on."""

    def __init__(self, body: nn.Module, head: nn.Linear):
        super().__init__()
        self.body = body.requires_grad_(False)
        self.head = head
        self.computed_tokens = 0

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, read_mask: torch.Tensor, labels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Loss and logits, as Trainer wants them. All but labels [B] are [B, T]."""
        self.computed_tokens += input_ids.numel()
        hidden_BTD = self.body(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        weights_BT = read_mask / read_mask.sum(1, keepdim=True)
        logits_BL = self.head(torch.einsum("btd,bt->bd", hidden_BTD, weights_BT))
        return {"loss": nn.functional.cross_entropy(logits_BL, labels), "logits": logits_BL}


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A padded batch."""
    longest = max(len(row["tokens"]) for row in rows)
    ids, mask, read = (torch.zeros(len(rows), longest, dtype=torch.long) for _ in range(3))
    for place, row in enumerate(rows):
        size = len(row["tokens"])
        ids[place, :size] = torch.tensor(row["tokens"])
        mask[place, :size] = 1
        read[place, row["start"] : size] = 1
    labels = torch.tensor([row["label"] for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "read_mask": read.float(), "labels": labels}


def train_trainer(folder: Path, settings: Settings) -> None:
    """The Hugging Face Trainer at its best CPU settings; what is not set here is its own default."""
    keep_big_blocks()
    work = read_work(folder)
    loaded = load_model(workload.MODEL, precision="float32")
    family: Any = type(loaded.model)
    plain = family.from_pretrained(loaded.folder, dtype=torch.float32, attn_implementation="sdpa")
    model = FrozenBody(backbone(plain), make_head(folder, work))
    model.body.eval()
    rows = [dict(zip(("tokens", "start", "label"), row, strict=True)) for row in work.rows]
    losses: list[torch.Tensor] = []
    clock = Clock()

    class Recorder(Trainer):
        """Takes the rows in their order, and keeps each step's loss; logging every step would cost it time."""

        def _get_train_sampler(self, *_: Any, **__: Any) -> torch.utils.data.Sampler[int]:
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def training_step(self, *inputs: Any, **named: Any) -> Any:
            loss = super().training_step(*inputs, **named)
            losses.append(loss.detach())
            return loss

    trainer = Recorder(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder / "trainer"),
            num_train_epochs=1,  # the rows of all epochs stand one after the other
            per_device_train_batch_size=BATCH_SIZE,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            use_cpu=True,
            bf16=False,
            remove_unused_columns=False,
            dataloader_num_workers=0,
            dataloader_pin_memory=False,
            eval_strategy="no",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=[rows[index] for epoch in work.order for index in epoch],
        data_collator=collate,
        callbacks=[clock],
    )
    trainer.train()
    computed = model.computed_tokens
    with torch.no_grad():
        parts = [rows[start : start + BATCH_SIZE] for start in range(0, len(rows), BATCH_SIZE)]
        logits = torch.cat([model(**collate(part))["logits"] for part in parts])
    found = [float(loss) for loss in losses]
    finish(
        folder,
        "trainer",
        Run(clock.finished - clock.ends[0], 0.0, found, hits(logits, work), computed, peak_memory_bytes()),
    )


def hits(logits_BL: torch.Tensor, work: Work) -> float:
    """Share of the rows whose label has the largest logit."""
    gold_B = torch.tensor([label for _, _, label in work.rows])
    return float((logits_BL.argmax(1) == gold_B).float().mean())


def finish(folder: Path, side: str, run: Run) -> None:
    """Write what a child measured."""
    (folder / f"{side}.json").write_text(json.dumps(asdict(run)), encoding="utf-8")


CHILDREN = {"prepare": prepare, "luthier": train_luthier, "trainer": train_trainer}


if __name__ == "__main__":
    sys.exit(main())
