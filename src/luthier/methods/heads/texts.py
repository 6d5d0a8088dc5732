"""Texts and words as the sequences that a head reads: the text alone, with the special tokens the model expects."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence as ManyOf
from itertools import accumulate
from typing import Any, Literal

from luthier.records import Sequence

Span = tuple[int, int]


def text_sequences(tokenizer: Any, texts: ManyOf[str]) -> list[Sequence | None]:
    """Each text with one span over all its own tokens; None for a text of which no token is left."""
    found: list[Sequence | None] = []
    for tokens, spans in encoded(tokenizer, texts):
        own = [index for index, (start, stop) in enumerate(spans) if stop > start]
        found.append(Sequence(tokens, reads=((own[0], own[-1] + 1),)) if own else None)
    return found


def word_sequences(
    tokenizer: Any, rows: ManyOf[tuple[str, ...]], reads: Literal["last", "first", "mean"], twice: bool
) -> list[Sequence | None]:
    """The words of each row, parted by single spaces, with one span a word; None where a word has no token of its own.

    With `twice` the text stands there two times, a line break between, and is read in its second copy.
    """
    texts = [" ".join(words) for words in rows]
    whole = [f"{text}\n{text}" if twice else text for text in texts]
    found: list[Sequence | None] = []
    for words, text, said, (tokens, spans) in zip(rows, texts, whole, encoded(tokenizer, whole), strict=True):
        begin = len(said) - len(text)
        tokens_of_words = [read_of(span, reads) for span in word_tokens(words, said, spans, begin)]
        found.append(
            None if None in tokens_of_words else Sequence(tokens, reads=tuple(s for s in tokens_of_words if s))
        )
    return found


def word_tokens(words: ManyOf[str], text: str, spans: ManyOf[Span], begin: int) -> list[Span | None]:
    """Tokens (start, stop) of each word; the words stand in `text` from character `begin` on, parted by one space.

    A token is of the word in which its first character other than white space stands; None for a word without one.
    """
    starts = [begin + before for before in accumulate((len(word) + 1 for word in words), initial=0)]
    first: list[int | None] = [None] * len(words)
    last = [0] * len(words)
    for index, (start, stop) in enumerate(spans):
        piece = text[start:stop]
        place = start + len(piece) - len(piece.lstrip())
        if not piece.strip() or place < begin:
            continue
        word = bisect_left(starts, place + 1) - 1
        first[word] = index if first[word] is None else first[word]
        last[word] = index
    return [None if one is None else (one, other + 1) for one, other in zip(first, last, strict=True)]


def read_of(span: Span | None, reads: Literal["last", "first", "mean"]) -> Span | None:
    """What a head reads of a word's tokens."""
    if span is None or reads == "mean":
        return span
    start, stop = span
    return (stop - 1, stop) if reads == "last" else (start, start + 1)


def encoded(tokenizer: Any, texts: ManyOf[str]) -> list[tuple[tuple[int, ...], list[Span]]]:
    """(tokens, their character spans) of each text; special tokens have an empty span."""
    if not texts:
        return []
    batch = tokenizer(
        list(texts), add_special_tokens=True, return_offsets_mapping=True, return_attention_mask=False, verbose=False
    )
    return [(tuple(ids), spans) for ids, spans in zip(batch["input_ids"], batch["offset_mapping"], strict=True)]
