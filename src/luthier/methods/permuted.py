"""Permutation language modelling (Yang et al. 2019, section 2): predict the last tokens of a random order."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as ManyOf
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from torch import nn

from luthier.corpus.lines import Problem
from luthier.methods.base import Batch, Example, Outputs, Scores
from luthier.methods.likelihood import Likelihood
from luthier.methods.windows import NO_WORDS, SPECIAL, Window, accept_text, as_window, bits_per_token, windows
from luthier.prompts import Dialogue
from luthier.recipe.methods import Plm
from luthier.records import Document, Record, Sequence


@dataclass(frozen=True)
class PermutedLm(Likelihood):
    """Cross-entropy of the last tokens of a permutation, each given all tokens before it there.

    The order of a sequence's targets is the permutation; tokens that are no targets come before all of them. A
    training row has another permutation at each step; a row that is only scored has one, which depends on its text
    alone.
    """

    name: str = "plm"
    settings: Plm = field(default_factory=Plm)
    primary: str = "bits_per_token"
    higher_is_better: bool = False
    needs_reference: bool = False

    def accept(self, record: Record) -> list[Document] | Problem:
        """Documents, and the texts of labelled rows."""
        return accept_text(record, self.name)

    @property
    def passed(self) -> Problem:
        """Why a document gives no window."""
        return NO_WORDS

    def fitted(self, rows: ManyOf[Document]) -> PermutedLm:
        """Nothing to learn from the rows beforehand."""
        return self

    def heads(self, width: int) -> Mapping[str, nn.Module]:
        """None: the model's own head predicts."""
        return {}

    def view(self, prompt: Dialogue, rows: ManyOf[Document]) -> list[Example]:
        """The windows of each document, each with a permutation."""
        found = windows(prompt.tokenizer, rows, self.settings.window_tokens)
        return [self.permuted(window, window.random()) for window in found]

    def varied(self, rows: ManyOf[Example], seed: int, step: int) -> list[Example]:
        """The same windows in other orders."""
        return [self.permuted(row, row.random(seed, step)) for row in map(as_window, rows)]

    def permuted(self, window: Window, draw: np.random.Generator) -> Example:
        """The window with a permutation drawn by `draw`."""
        settings = self.settings
        places = predicted_tokens(np.array(window.words), settings.predicted_share, settings.span_tokens, draw)
        order = tuple(draw.permutation(places).tolist())
        return replace(window, sequences=(Sequence(window.original, order, (1.0,) * len(order)),))

    def scores(self, outputs: Outputs, batch: Batch) -> Scores:
        """Bits of each predicted token."""
        return bits_per_token(outputs, batch)


def predicted_tokens(
    words_T: NDArray[np.int64], share: float, span_tokens: int, draw: np.random.Generator
) -> NDArray[np.int64]:
    """Places of the tokens to be predicted, in order: spans of 1 to `span_tokens`, each somewhere in a stretch of
    span / share tokens (Yang et al. 2019, appendix A.6). One token at least, and never all of several.
    """
    (ordinary,) = np.nonzero(words_T != SPECIAL)
    chosen: list[int] = []
    begin = 0
    while begin < len(ordinary):
        span = int(draw.integers(1, span_tokens + 1))
        stretch = max(span, round(span / share))
        start = begin + int(draw.integers(stretch - span + 1))
        chosen += range(start, min(start + span, len(ordinary)))
        begin += stretch
    if len(chosen) == len(ordinary) > 1:
        chosen.pop(int(draw.integers(len(chosen))))
    return ordinary[np.array(chosen or [int(draw.integers(len(ordinary)))])]
