"""Which weights to train: one classification task by every kind of adapter, with what each costs and forgets.

Each way is a run of its own (`luthier run`, in a fresh process, so its peak memory is its own) on the same rows: the
tuned arm alone, validated, without a refit. What it forgets is the change of bits per byte on general texts, and of
the accuracy on multiple-choice questions (the choice with the highest log-probability per byte), with the trained
adapter in place of none. Ways that are done are kept in --out and not done again.

    python benchmarks/ways.py --recipe examples/newsroom/recipe.yaml
    python benchmarks/ways.py --recipe R.yaml --train A.txt --test B.txt --general docs.jsonl --questions q.jsonl
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

import workload
from luthier.adapters import WEIGHTS, Plain
from luthier.evaluation.held_out import Figure, change, figure, score_rows
from luthier.files import write_json
from luthier.forest.forward import choose_backend
from luthier.methods.base import Example, split_by_tokens
from luthier.methods.documents import DocumentClm, encode_text, windows
from luthier.models import LoadedModel, load_model
from luthier.recipe.methods import Clm
from luthier.records import Sequence
from luthier.runtime import set_up_torch
from luthier.training.learner import Learner, load_learner

WAYS: dict[str, str] = {
    "linear probe": "adapter: {kind: none}",
    "last 2 layers": "adapter: {kind: full, last: 2}",
    "full": "adapter: full",
    "gradual unfreezing": "adapter: full, unfreeze: share",
    "lora": "adapter: lora",
    "rslora": "adapter: {kind: lora, scaling: rslora, rank: 64, alpha: 16}",
    "dora": "adapter: {kind: lora, dora: true}",
    "qlora": "adapter: qlora",
    "bottleneck": "adapter: bottleneck",
    "sparse": "adapter: sparse",
    "ia3": "adapter: ia3",
    "prompt": "adapter: prompt",
    "prefix": "adapter: prefix",
}
MOST_TOKENS = 4096  # of one scoring pass
RESAMPLES, CONFIDENCE = 10_000, 0.95

Sums = tuple[np.ndarray, np.ndarray]  # numerator and denominator of each row


def main() -> int:
    """Run the ways that are not done, then print the table of all."""
    arguments = parse_arguments()
    if arguments.forget:
        write_json(
            arguments.forget / "forgets.json", {k: [c.tolist() for c in v] for k, v in scored(arguments).items()}
        )
        return 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    found = {"untrained": {"sums": forgets(arguments, arguments.out / "untrained")}}
    for way in arguments.ways:
        print(f"{way}: {WAYS[way]}", file=sys.stderr)
        if (run := train_way(way, arguments)) is not None:
            found[way] = run
    values = {"ways": judged(found, arguments.seed), "versions": workload.versions("luthier", "torch", "transformers")}
    values |= {"machine": workload.machine(), "settings": {k: str(v) for k, v in vars(arguments).items()}}
    write_json(arguments.out / "ways.json", values)
    print(json.dumps(values) if arguments.json else table(values["ways"]))
    return 0


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="One task by every kind of adapter.")
    add = parser.add_argument
    add("--recipe", type=Path, required=True, help="a recipe of `luthier run`")
    add("--train", type=Path, help="training rows in place of the recipe's")
    add("--test", type=Path, help="test rows in place of the recipe's")
    add("--ways", nargs="+", choices=tuple(WAYS), default=list(WAYS), help="which ways (default all)")
    add("--epochs", type=float, default=2.0, help="passes over the training rows (default 2)")
    add("--seed", type=int, default=0)
    add("--general", type=Path, help="JSON lines with `text`: what the model should not forget")
    add("--questions", type=Path, nargs="+", default=[], help="JSON lines with `query`, `choices` and `gold`")
    add("--most", type=int, default=200, help="texts, and questions of each file (default 200)")
    add("--out", type=Path, default=Path("runs/ways"), help="folder of the runs (default runs/ways)")
    add("--json", action="store_true", help="one line of JSON instead of the table")
    add("--forget", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


# --- one way -------------------------------------------------------------------------------------------


def train_way(way: str, arguments: argparse.Namespace) -> dict[str, Any] | None:
    """A run and its figures; None, with its message, where luthier refuses or fails."""
    folder = arguments.out / way.replace(" ", "-")
    command = [sys.executable, "-m", "luthier", "run", str(arguments.recipe), "--out", str(folder), "--json"]
    settings = ["arms=[tuned]", f"seed={arguments.seed}", f"tune.epochs={arguments.epochs}", "tune.refit=false"]
    settings.append("data.class_prior=null")  # ways are judged as they score
    settings += [f"data.{part}={path}" for part in ("train", "test") if (path := getattr(arguments, part))]
    settings += [f"tune.{key}={value}" for key, value in way_settings(WAYS[way])]
    command += [word for setting in settings for word in ("--set", setting)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{way}: {done.stderr.strip()[-600:]}", file=sys.stderr)
        return None
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return {"arm": result["arms"]["tuned"], "training": result["training"], "sums": forgets(arguments, folder)}


def way_settings(words: str) -> list[tuple[str, str]]:
    """`adapter: full, unfreeze: share` as two keys with their values; a comma inside braces is the value's."""
    parts = words.split(", unfreeze: ")
    return [("adapter", parts[0].removeprefix("adapter: ")), *(("unfreeze", value) for value in parts[1:])]


def forgets(arguments: argparse.Namespace, folder: Path) -> dict[str, Sums]:
    """What general texts and questions give with the adapter of a run folder, computed in a process of its own."""
    path = folder / "forgets.json"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, __file__, *sys.argv[1:], "--forget", str(folder)]
        subprocess.run(command, check=True, env=dict(os.environ))
    stored = json.loads(path.read_text(encoding="utf-8"))
    return {name: (np.asarray(above), np.asarray(below)) for name, (above, below) in stored.items()}


# --- what is forgotten ---------------------------------------------------------------------------------


def scored(arguments: argparse.Namespace) -> dict[str, Sums]:
    """Numerators and denominators by row: `bits_per_byte` of the texts, `accuracy` of the questions."""
    set_up_torch()
    model = load_model(workload.MODEL, precision="float32")
    adapter = arguments.forget / "adapter"
    learner = load_learner(model, adapter, "auto") if (adapter / WEIGHTS).is_file() else untrained(model)
    found: dict[str, Sums] = {}
    if arguments.general:
        texts = [row["text"] for row in read_lines(arguments.general)[: arguments.most]]
        sums = score_rows(learner, DocumentClm(), text_examples(texts, model.tokenizer), MOST_TOKENS)["bits_per_byte"]
        found["bits_per_byte"] = sums
    if arguments.questions:
        rows = [row for path in arguments.questions for row in read_lines(path)[: arguments.most]]
        right = np.asarray([float(answer(learner, model.tokenizer, row) == row["gold"]) for row in rows])
        found["accuracy"] = (right, np.ones(len(right)))
    return found


def untrained(model: LoadedModel) -> Learner:
    """The model as it came."""
    return Learner(Plain(model.model), {}, choose_backend(model.model, "auto")[0]).eval()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def text_examples(texts: list[str], tokenizer: Any) -> list[Example]:
    """The first window of each text, as continued pre-training would read it."""
    found = []
    for number, text in enumerate(texts):
        tokens, ends = encode_text(tokenizer, text)
        if len(tokens) > 1:
            found.append(next(windows(tuple(tokens), ends, Clm().window_tokens, str(number))))
    return found


@torch.no_grad()
def answer(learner: Learner, tokenizer: Any, row: dict[str, Any]) -> int:
    """The choice with the highest log-probability per byte after the question."""
    query = encode_text(tokenizer, row["query"])[0]
    choices = [encode_text(tokenizer, f" {choice}")[0] for choice in row["choices"]]
    sequences = tuple(
        Sequence((*query, *tokens), tuple(range(len(query), len(query) + len(tokens))), (1.0,) * len(tokens), 0, role)
        for role, tokens in enumerate(choices)
    )
    (micro,) = split_by_tokens([Example(sequences)], 1 << 30)
    batch = learner.batch(micro)
    logprobs_M = learner(batch).logprobs_M
    assert logprobs_M is not None
    totals_S = torch.zeros(len(choices)).index_add_(0, batch.role_M.cpu(), logprobs_M.float().cpu())
    return int((totals_S / torch.tensor([len(choice.encode()) for choice in row["choices"]])).argmax())


# --- the comparison ------------------------------------------------------------------------------------


def judged(found: dict[str, dict[str, Any]], seed: int) -> dict[str, Any]:
    """Every way's figures as JSON values; the changes are against the untrained model, on the same rows."""
    before = found["untrained"]["sums"]
    return {way: one_way(run, before, seed) for way, run in found.items()}


def one_way(run: dict[str, Any], before: dict[str, Sums], seed: int) -> dict[str, Any]:
    """Accuracy on the task, cost, and what changed elsewhere."""
    values: dict[str, Any] = {}
    for name, sums in run["sums"].items():
        values[name] = asdict(figure(sums, RESAMPLES, seed, CONFIDENCE))
        values[f"{name}_change"] = asdict(change(before[name], sums, RESAMPLES, seed, CONFIDENCE))
    if "arm" in run:
        arm, training = run["arm"], run["training"]
        values["task_accuracy"] = asdict(Figure(arm["accuracy"], arm["low"], arm["high"]))
        values["trained_parameters"] = training["trainable_parameters"]
        values |= {key: training[key] for key in ("seconds", "validation_seconds", "peak_rss_bytes", "steps")}
    return values


def table(ways: dict[str, Any]) -> str:
    """Markdown, one line a way."""
    lines = ["| way | accuracy | trained parameters | peak memory | training | bits per byte | questions right |"]
    lines.append("|---|---|---:|---:|---:|---|---|")
    for way, values in ways.items():
        task = values.get("task_accuracy")
        cells = [way, with_interval(task, 100, 1, " %") if task else ""]
        cells.append(f"{values['trained_parameters']:,}" if task else "")
        cells.append(f"{values['peak_rss_bytes'] / 1e9:.1f} GB" if task else "")
        cells.append(f"{values['seconds']:.0f} s" if task else "")
        for name, unit, digits in (("bits_per_byte", 1, 3), ("accuracy", 100, 1)):
            key = f"{name}_change" if task else name
            cells.append(with_interval(values[key], unit, digits, "", signed=bool(task)) if key in values else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def with_interval(found: dict[str, float], unit: float, digits: int, after: str, signed: bool = False) -> str:
    """`79.4 % [76.4, 82.0]`."""
    sign = "+" if signed else ""
    value, low, high = (f"{found[key] * unit:{sign}.{digits}f}" for key in ("value", "low", "high"))
    return f"{value}{after} [{low}, {high}]"


if __name__ == "__main__":
    sys.exit(main())
