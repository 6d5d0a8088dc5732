"""The way back of a labelled row: its text alone must be given its label again."""

from __future__ import annotations

import re
from dataclasses import dataclass

from luthier.corpus.lines import Problem
from luthier.recipe import fold_label
from luthier.synthetic.base import Asking, Classify, Reply, Request

QUESTION = (
    "Which category fits the text? Answer with one of these and nothing else: {labels}.\n\nText: {text}\nCategory:"
)


@dataclass(frozen=True)
class Labelling:
    """Labels texts by a classifier, or by asking the writer without examples."""

    labels: tuple[str, ...]
    classify: Classify | None
    asking: Asking

    def request(self, text: str) -> Request | None:
        """The question to the writer; None where a classifier labels."""
        if self.classify is not None:
            return None
        return self.asking.question(QUESTION.format(labels=", ".join(self.labels), text=text))

    def read(self, reply: str) -> str | None:
        """The one label that a reply names in its first line, whole words only; None for none or several."""
        line = next((line for line in reply.splitlines() if line.strip()), "")
        folded = fold_label(line)
        spans = [
            (match.start(), match.end(), label)
            for label in self.labels
            for match in re.finditer(rf"(?<!\S){re.escape(fold_label(label))}(?!\S)", folded)
        ]
        named = {label for a, b, label in spans if not any(c <= a and b <= d and (c, d) != (a, b) for c, d, _ in spans)}
        return named.pop() if len(named) == 1 else None

    def judge(self, text: str, label: str, reply: Reply | None) -> Problem | None:
        """What the way back says against a text and its label."""
        if self.classify is not None:
            found: str | None = next(iter(self.classify([text])))
        else:
            assert reply is not None, "without a classifier the writer is asked"
            if reply.error:
                return Problem("check_failed", f"the text could not be labelled again: {reply.error}")
            found = self.read(reply.text)
        if found == label:
            return None
        said = f'"{found}"' if found else "no label"
        return Problem("label_not_confirmed", f'asked for "{label}", but the text alone is given {said}.')
