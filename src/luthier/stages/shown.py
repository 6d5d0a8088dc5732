"""Some training examples as texts in trained and untrained parts: what the page of a run shows."""

from __future__ import annotations

from collections.abc import Sequence as ManyOf
from itertools import groupby
from typing import Any

from luthier.methods.base import Example
from luthier.prompts import Layout
from luthier.records import Sequence

MOST_TOKENS = 400  # of one sequence; what comes after is cut
MOST_SEQUENCES = 4  # of one example
CUT = " [...]"


def shown_rows(examples: ManyOf[Example], layout: Layout, number: int = 2) -> list[dict[str, Any]]:
    """The first examples as JSON values: each sequence's runs of text, and whether a loss or a head is on them."""
    return [
        {
            "reads": any(sequence.reads for sequence in example.sequences),
            "sequences": [marked_runs(sequence, layout) for sequence in example.sequences[:MOST_SEQUENCES]],
        }
        for example in examples[:number]
    ]


def marked_runs(sequence: Sequence, layout: Layout) -> list[dict[str, Any]]:
    """Neighbouring tokens that are alike in being marked or not, as one text. Special tokens are shown."""
    marked = {index for index, weight in zip(sequence.targets, sequence.weights, strict=True) if weight}
    marked |= {index for start, stop in sequence.reads for index in range(start, stop)}
    shown = range(min(len(sequence.tokens), MOST_TOKENS))
    runs = [
        {"text": layout.tokenizer.decode([sequence.tokens[index] for index in run]), "trained": trained}
        for trained, run in groupby(shown, key=marked.__contains__)
    ]
    return runs if len(sequence.tokens) <= MOST_TOKENS else [*runs, {"text": CUT, "trained": False}]
