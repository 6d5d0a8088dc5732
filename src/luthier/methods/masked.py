"""Masked language modelling (Devlin et al. 2019, section 3.1): guess some tokens from both sides."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as ManyOf
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from torch import nn

from luthier.corpus.lines import Problem
from luthier.errors import ModelError
from luthier.methods.base import Batch, Example, Outputs, Scores
from luthier.methods.likelihood import Likelihood
from luthier.methods.windows import NO_WORDS, SPECIAL, Window, accept_text, as_window, bits_per_token, windows
from luthier.prompts import Dialogue
from luthier.recipe.methods import Mlm
from luthier.records import Document, Record, Sequence

MASKED, REPLACED = 0.8, 0.9  # up to the first a token becomes the mask, up to the second a random one, else it stays


@dataclass(frozen=True)
class MaskedLm(Likelihood):
    """Cross-entropy of the chosen tokens, each predicted from its own place.

    A training row is masked anew at each step (Liu et al. 2019, section 4.1); a row that is only scored has one
    masking, which depends on its text alone.
    """

    name: str = "mlm"
    settings: Mlm = field(default_factory=Mlm)
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

    def fitted(self, rows: ManyOf[Document]) -> MaskedLm:
        """Nothing to learn from the rows beforehand."""
        return self

    def heads(self, width: int) -> Mapping[str, nn.Module]:
        """None: the model's own head guesses."""
        return {}

    def view(self, prompt: Dialogue, rows: ManyOf[Document]) -> list[Example]:
        """The windows of each document, masked."""
        if prompt.tokenizer.mask_token_id is None:
            raise ModelError("the tokenizer has no mask token, which mlm puts in the place of words.")
        found = windows(prompt.tokenizer, rows, self.settings.window_tokens)
        return [self.masked(window, window.random()) for window in found]

    def varied(self, rows: ManyOf[Example], seed: int, step: int) -> list[Example]:
        """The same windows under other masks."""
        return [self.masked(row, row.random(seed, step)) for row in map(as_window, rows)]

    def masked(self, window: Window, draw: np.random.Generator) -> Example:
        """The window with a masking drawn by `draw`."""
        assert window.vocabulary is not None and window.vocabulary.mask is not None
        places = chosen_tokens(np.array(window.words), self.settings.mask_share, self.settings.whole_words, draw)
        tokens = np.array(window.original)
        wanted = tokens[places]
        fate = draw.random(len(places))
        others = draw.integers(len(window.vocabulary.ordinary), size=len(places))
        for place, share, other in zip(places, fate, others, strict=True):
            if share < MASKED:
                tokens[place] = window.vocabulary.mask
            elif share < REPLACED:
                tokens[place] = window.vocabulary.ordinary[other]
        sequence = Sequence(
            tuple(tokens.tolist()), tuple(places.tolist()), (1.0,) * len(places), wanted=tuple(wanted.tolist())
        )
        return replace(window, sequences=(sequence,))

    def scores(self, outputs: Outputs, batch: Batch) -> Scores:
        """Bits of each guessed token."""
        return bits_per_token(outputs, batch)


def chosen_tokens(
    words_T: NDArray[np.int64], share: float, whole_words: bool, draw: np.random.Generator
) -> NDArray[np.int64]:
    """Places of the tokens to be guessed, in order: round(share * ordinary tokens), one at least.

    With whole words, words are taken in a random order, and left out where they would go beyond that number; if none
    fits, the shortest is taken.
    """
    (ordinary,) = np.nonzero(words_T != SPECIAL)
    count = max(1, round(share * len(ordinary)))
    if not whole_words:
        return np.sort(draw.choice(ordinary, count, replace=False))
    parts = np.split(ordinary, np.nonzero(np.diff(words_T[ordinary]))[0] + 1)
    taken: list[NDArray[np.int64]] = []
    for number in draw.permutation(len(parts)):
        if sum(map(len, taken)) + len(parts[number]) <= count:
            taken.append(parts[number])
    return np.sort(np.concatenate(taken or [min(parts, key=len)]))
