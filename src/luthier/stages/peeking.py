"""The rows of a recipe of stages as training will see them, before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from luthier.methods.base import Example
from luthier.methods.stage import Telling
from luthier.peek import ledger_values
from luthier.progress import Listener
from luthier.recipe.stages import TrainRecipe
from luthier.stages.beside import rows_of
from luthier.stages.chain import Left
from luthier.stages.labels import label_counts, number_figures
from luthier.stages.one import StageRun
from luthier.stages.run import Stages
from luthier.stages.shown import shown_rows
from luthier.stages.suits import refuse_unsuited


def peek_stages(recipe: TrainRecipe, num_rows: int, listener: Listener) -> list[dict[str, Any]]:
    """Of each stage, or task of one: ledger, lengths in tokens and some training rows, as JSON values.

    Nothing is written, and no teacher is asked: what one would add to the rows is not there yet.

    Raises:
        LuthierError: what would refuse the recipe before its first step.
    """
    whole = Stages(recipe, Path(), listener)
    refuse_unsuited(recipe, whole.model)
    found = []
    for number, stage in enumerate(recipe.stages, start=1):
        room = whole.model.context_tokens - stage.tune.adapter.virtual_tokens
        tasks = whole.stage_run(number, Left(recipe.model), ()).tasks
        found += [peek(run, room, num_rows) for run in tasks.values()]
    return found


def peek(run: StageRun, context_tokens: int, num_rows: int) -> dict[str, Any]:
    """One method's rows."""
    parts = run.viewed(context_tokens)
    sequences = [sequence for example in parts["train"] for sequence in example.sequences]
    lengths = [len(sequence.tokens) for sequence in sequences]
    used = run.used(parts)
    shown = shown_rows(parts["train"], run.prompt.layout, num_rows)
    return {
        "stage": run.stage.name,
        "method": run.method.name,
        "examples": {name: len(examples) for name, examples in parts.items()},
        "ledger": ledger_values(run.rows.ledger),
        "tokens": {f"p{q}": int(np.percentile(lengths, q)) for q in (0, 50, 95, 100)},
        "trained_tokens": sum(weight > 0 for sequence in sequences for weight in sequence.weights),
        "read_by_head": isinstance(run.method, Telling),
        "labels": label_counts(run.method, used),
        "numbers": number_figures(run.method, used),
        "rows": [{**row, **told} for row, told in zip(shown, answers(run, parts["train"][:num_rows]), strict=True)],
    }


def answers(run: StageRun, examples: list[Example]) -> list[dict[str, str]]:
    """Where the row of each example stands and what a head should answer; nothing for methods without a head."""
    if not isinstance(run.method, Telling):
        return [{} for _ in examples]
    rows = rows_of(run.rows.train, examples)
    return [{"source": str(row.source), "answer": run.method.told(row)} for row in rows]
