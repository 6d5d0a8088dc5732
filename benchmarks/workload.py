"""What the benchmarks train on: labelled rows under luthier's own prompt, for the starter model."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from luthier.corpus.formats import read_rows
from luthier.prompts import ClassifyPrompt, Layout
from luthier.recipe import Task
from luthier.records import Labelled
from luthier.runtime import num_cores, processor_name

MODEL = "smollm2-135m-instruct"
NEWSROOM = Path(__file__).resolve().parent.parent / "examples" / "newsroom" / "train.jsonl"


def read_labelled(path: Path) -> list[Labelled]:
    """Every usable row of a data file: JSONL, CSV or `text|LABEL` lines."""
    rows = [
        Labelled(raw.text, raw.label, raw.source, key=str(raw.source))
        for raw in read_rows(path)
        if raw.problem is None and raw.text and raw.label
    ]
    if not rows:
        raise SystemExit(f"{path}: no usable row. Give text|LABEL lines, or JSONL with text and label.")
    return rows


def make_prompt(rows: Sequence[Labelled], tokenizer: Any, lists_labels: bool) -> ClassifyPrompt:
    """A classification prompt with the labels of these rows; their list is much of what rows share."""
    labels = sorted({row.label for row in rows})
    task = Task(instruction="Classify the news item by its topic.", labels=labels, text_name="News")
    return ClassifyPrompt(task, Layout(tokenizer), lists_labels=lists_labels)


def versions(*packages: str) -> dict[str, str]:
    """Installed versions, and the Python that runs them."""
    return {"python": platform.python_version()} | {package: version(package) for package in packages}


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    return {"processor": processor_name(), "cores": num_cores(), "system": platform.platform()}
