"""Let the model write its answer, and say what became of each reply."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence as ManyOf
from typing import Any

from torch import nn

from luthier.generation.engine import end_tokens, generate
from luthier.prompts import ClassifyPrompt
from luthier.records import Labelled, Outcome, Prediction

MAX_TOKENS = 24
BATCH_ROWS = 16


def write_answers(
    model: nn.Module,
    backend: str,
    prompt: ClassifyPrompt,
    rows: ManyOf[Labelled],
    report: Callable[[int, int], None],
) -> dict[str, Any]:
    """Greedy replies to the prompts of rows, parsed by the task: counts by outcome, accuracy, examples."""
    stop = stop_tokens(model, prompt)
    predictions: list[Prediction] = []
    for start in range(0, len(rows), BATCH_ROWS):
        texts = [row.text for row in rows[start : start + BATCH_ROWS]]
        predictions += [
            parsed(prompt, prompt.layout.decode(reply))
            for reply in generate(model, prompt.encode(texts), MAX_TOKENS, stop, backend)
        ]
        report(len(predictions), len(rows))
    right = sum(p.label == row.label for p, row in zip(predictions, rows, strict=True))
    examples = [
        {"text": row.text, "reply": p.reply, "outcome": p.outcome.value, "label": p.label, "gold": row.label}
        for p, row in list(zip(predictions, rows, strict=True))[:12]
    ]
    outcomes = Counter(p.outcome.value for p in predictions)
    return {"n": len(rows), "outcomes": dict(outcomes), "accuracy": right / len(rows), "examples": examples}


def parsed(prompt: ClassifyPrompt, reply: str) -> Prediction:
    """A reply as a prediction."""
    label, outcome = prompt.parse(reply)
    assert (label is not None) == (outcome is Outcome.ANSWERED)
    return Prediction(label, outcome, None, reply)


def stop_tokens(model: nn.Module, prompt: ClassifyPrompt) -> set[int]:
    """Tokens that end an answer: the model's and the tokenizer's end-of-text, and what ends the template's turn."""
    tokenizer = prompt.layout.tokenizer
    answered = prompt.encode_answered(["x"], [prompt.task.labels[0]])[0]
    stops = {tokenizer.eos_token_id} if tokenizer.eos_token_id is not None else set()
    return end_tokens(model) | stops | ({answered.tokens[-1]} if answered.ends_turn else set())
