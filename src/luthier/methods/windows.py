"""Documents cut into windows for encoders, which are learnt from in another form at each step."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from collections.abc import Sequence as ManyOf
from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.corpus.lines import Problem
from luthier.corpus.wire import key_of, kind_of
from luthier.methods.base import Batch, Example, Outputs, Scores, per_row
from luthier.prompts.dialogue import special_tokens
from luthier.records import Document, Labelled, Record

SPECIAL = -1  # the word number of tokens that are never guessed
NO_WORDS = Problem("nothing_to_predict", "the tokenizer leaves no token of it. Leave the row out.")


@dataclass(frozen=True)
class Vocabulary:
    """What a method has to know of a tokenizer.

    before, after: the special tokens around every text; mask: what stands for a token to be guessed (None: there is
    none); ordinary: all tokens that are no special ones.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    mask: int | None
    ordinary: tuple[int, ...]


@dataclass(frozen=True)
class Window(Example):
    """An example that knows its text: `original` tokens, and for each the number of its word, or SPECIAL."""

    original: tuple[int, ...] = ()
    words: tuple[int, ...] = ()
    vocabulary: Vocabulary | None = None

    def random(self, *numbers: int) -> np.random.Generator:
        """Chance that depends on the window's tokens and some numbers only."""
        digest = hashlib.sha256(np.array(self.original, np.int64).tobytes()).digest()
        return np.random.default_rng([*numbers, int.from_bytes(digest[:8], "little")])


def as_window(row: Example) -> Window:
    """A row that `view` has made here, seen as what it is."""
    assert isinstance(row, Window), "made by this method's view"
    return row


def accept_text(record: Record, method: str) -> list[Document] | Problem:
    """Documents, and the texts of labelled rows."""
    if isinstance(record, Document):
        return [record]
    if isinstance(record, Labelled):
        return [Document(record.text, record.source)]
    return Problem("wrong_kind", f"a {kind_of(record)} is no plain text. {method} takes documents.")


def vocabulary_of(tokenizer: Any) -> Vocabulary:
    """Read off a tokenizer what it puts around a text, and which of its tokens are words."""
    whole, bare = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False))
    at = next(i for i in range(len(whole) + 1) if whole[i : i + len(bare)] == bare)
    special = special_tokens(tokenizer)
    ordinary = tuple(token for token in sorted(tokenizer.get_vocab().values()) if token not in special)
    return Vocabulary(tuple(whole[:at]), tuple(whole[at + len(bare) :]), tokenizer.mask_token_id, ordinary)


def windows(tokenizer: Any, rows: ManyOf[Document], window_tokens: int) -> list[Window]:
    """The windows of each document, special tokens around each; none crosses a document.

    What is spelled like a special token is text. Windows of one document share their key.
    """
    if not rows:
        return []
    vocabulary = vocabulary_of(tokenizer)
    before, after = vocabulary.before, vocabulary.after
    encoded = tokenizer(
        [row.text for row in rows],
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        verbose=False,
    )
    found = []
    for number, row in enumerate(rows):
        tokens = encoded["input_ids"][number]
        words = [SPECIAL if word is None else word for word in encoded.word_ids(number)]
        key, group = key_of(row), row.source.group or ""
        for start, stop in cuts(words, window_tokens - len(before) - len(after)):
            original = (*before, *tokens[start:stop], *after)
            marks = (SPECIAL,) * len(before) + tuple(words[start:stop]) + (SPECIAL,) * len(after)
            found.append(Window((), key=key, group=group, original=original, words=marks, vocabulary=vocabulary))
    return found


def cuts(words: ManyOf[int], room: int) -> Iterator[tuple[int, int]]:
    """Spans of at most `room` tokens from front to back, between words unless a word fills a whole span."""
    start = 0
    while start < len(words):
        stop = min(start + room, len(words))
        back = stop
        while stop < len(words) and back > start and words[back] == words[back - 1]:
            back -= 1
        stop = back if back > start else stop
        yield start, stop
        start = stop


def bits_per_token(outputs: Outputs, batch: Batch) -> Scores:
    """Bits of the guessed tokens over their number, of each row."""
    assert outputs.logprobs_M is not None
    bits_B = per_row(-outputs.logprobs_M * batch.weight_M, batch.row_M, batch.num_rows) / np.log(2.0)
    return {"bits_per_token": (bits_B, per_row(batch.weight_M, batch.row_M, batch.num_rows))}
