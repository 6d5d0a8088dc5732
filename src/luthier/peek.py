"""Looking at the data exactly as training sees it, and refusing what could not be learnt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from luthier.corpus.prepare import Prepared
from luthier.errors import DataError
from luthier.prompts import ClassifyPrompt
from luthier.recipe import Recipe, Tune
from luthier.records import Labelled, Ledger

READS_HERE = "[the head answers, from the mean over the text]"


def peek(
    recipe: Recipe, prompt: ClassifyPrompt, prepared: Prepared, num_rows: int, context_tokens: int
) -> dict[str, Any]:
    """Ledger, label counts, token lengths and some rows in trained and untrained parts, as JSON values.

    Raises DataError where nothing, or not the end of the turn, would be trained (`check_trainable`).
    """
    check_trainable(prompt, prepared.train, recipe.tune, context_tokens)
    splits = {"train": prepared.train, "validation": prepared.validation, "test": prepared.test}
    for rows in (prepared.validation, prepared.test):
        check_room(prompt, rows, context_tokens)
    lengths = [len(tokens) for tokens in prompt.encode([row.text for row in prepared.train])]
    return {
        "ledger": ledger_values(prepared.ledger),
        "labels": {name: dict(Counter(row.label for row in rows).most_common()) for name, rows in splits.items()},
        "prompt_tokens": {f"p{q}": int(np.percentile(lengths, q)) for q in (0, 50, 95, 100)},
        "method": recipe.tune.method,
        "rows": [
            {"source": str(row.source), "label": row.label, "parts": marked_parts(prompt, row, recipe.tune)}
            for row in prepared.train[:num_rows]
        ],
    }


def ledger_values(ledger: Ledger, num_examples: int = 12) -> dict[str, Any]:
    """A ledger as JSON values: counts by split and reason, notes, some dropped rows of each reason."""
    seen: Counter[str] = Counter()
    examples: list[dict[str, Any]] = []
    for row in ledger.dropped:
        seen[row.reason] += 1
        if seen[row.reason] <= 3 and len(examples) < num_examples:
            examples.append({**asdict(row), "source": str(row.source)})
    return {
        "rows_in": ledger.rows_in,
        "kept": ledger.kept,
        "reasons": {split: ledger.reasons(split) for split in ledger.rows_in},
        "notes": ledger.notes,
        "examples": examples,
    }


def marked_parts(prompt: ClassifyPrompt, row: Labelled, tune: Tune) -> list[dict[str, Any]]:
    """The conversation of a row as runs of text that are trained on or not."""
    if tune.method == "head":
        asked = prompt.layout.render(prompt.messages(row.text), ask=True)
        return [{"text": asked, "trained": False}, {"text": READS_HERE, "trained": True}]
    encoded = prompt.encode_answered([row.text], [row.label])[0]
    decode = prompt.layout.tokenizer.decode
    head, tail = encoded.tokens[: encoded.answer_start], encoded.tokens[encoded.answer_start :]
    return [{"text": decode(list(head)), "trained": False}, {"text": decode(list(tail)), "trained": True}]


def check_room(prompt: ClassifyPrompt, rows: Sequence[Labelled], context_tokens: int) -> None:
    """DataError where a row's prompt is longer than what the model reads."""
    sizes = map(len, prompt.encode([row.text for row in rows]))
    size, row = max(zip(sizes, rows, strict=True), key=lambda item: item[0])
    if size > context_tokens:
        raise DataError(
            f"{row.source}: its prompt has {size} tokens, the model reads {context_tokens}. Nothing is "
            "cut in silence: lower data.max_tokens, so that such rows are dropped and counted."
        )


def check_trainable(
    prompt: ClassifyPrompt, rows: Sequence[Labelled], tune: Tune, context_tokens: int = 1 << 30
) -> None:
    """Refuse a run in which nothing, or not the end of the turn, would be trained, naming the measured cause."""
    if not rows:
        raise DataError("data.train: no row is left to train on; see the ledger for the reasons.")
    check_room(prompt, rows, context_tokens)
    texts, labels = [row.text for row in rows], [row.label for row in rows]
    if tune.method == "head":
        return
    encoded = prompt.encode_answered(texts, labels)
    empty = [row for row, e in zip(rows, encoded, strict=True) if len(e.tokens) <= e.answer_start]
    if empty:
        raise DataError(
            f"{len(empty)} of {len(rows)} rows have no trained token (first: {empty[0].source}): the chat template "
            "writes nothing for the assistant's turn. Use another model, or tune.method: head."
        )
    endless = [row for row, e in zip(rows, encoded, strict=True) if not e.ends_turn]
    if endless:
        tail = prompt.layout.tokenizer.decode(list(encoded[rows.index(endless[0])].tokens[-8:]))
        raise DataError(
            f"{len(endless)} of {len(rows)} rows would not train the end of the turn (first: {endless[0].source}): the "
            f"chat template puts no special token behind the answer, it ends in {tail!r}. A model trained so never "
            "learns to stop. Use another model, or tune.method: head."
        )
