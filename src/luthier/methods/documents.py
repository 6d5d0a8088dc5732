"""Continued pre-training: next-token cross-entropy on plain documents, cut into windows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Sequence as ManyOf
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

from torch import nn

from luthier.corpus.lines import Problem
from luthier.corpus.wire import key_of, kind_of
from luthier.errors import ModelError
from luthier.methods.base import Example
from luthier.methods.likelihood import Likelihood
from luthier.prompts import Dialogue, opening_tokens
from luthier.recipe.methods import Clm
from luthier.records import Document, Labelled, Record, Sequence

# how families spell the end of a text; an instruct model's eos token ends a turn, which a document is not
END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "<|end▁of▁sentence|>", "<eos>", "</s>")


@dataclass(frozen=True)
class DocumentClm(Likelihood):
    """Next-token cross-entropy on every token of a document but the first.

    A document's windows overlap by one token, so that each token is predicted exactly once; no window holds two
    documents, and sequences of a forest do not see each other.
    """

    name: str = "clm"
    settings: Clm = field(default_factory=Clm)
    primary: str = "bits_per_byte"
    higher_is_better: bool = False
    needs_reference: bool = False

    def accept(self, record: Record) -> list[Document] | Problem:
        """Documents, and the texts of labelled rows."""
        if isinstance(record, Document):
            return [record]
        if isinstance(record, Labelled):
            return [Document(record.text, record.source)]
        detail = f"a {kind_of(record)} is no plain text. clm takes documents; for turns and answers use sft."
        return Problem("wrong_kind", detail)

    @property
    def passed(self) -> Problem:
        """Why a document gives no window."""
        detail = "it has one token, and nothing stands before it. Leave the row out, or set method.end_documents: true."
        return Problem("nothing_to_predict", detail)

    def fitted(self, rows: ManyOf[Document]) -> DocumentClm:
        """Nothing to learn from the rows beforehand."""
        return self

    def heads(self, width: int) -> Mapping[str, nn.Module]:
        """None."""
        return {}

    def view(self, prompt: Dialogue, rows: ManyOf[Document]) -> list[Example]:
        """The windows of each document; one of a single token has none."""
        tokenizer = prompt.tokenizer
        before = opening_tokens(tokenizer)
        after = (end_of_text(tokenizer),) if self.settings.end_documents else ()
        examples: list[Example] = []
        for row in rows:
            tokens, ends = encode_text(tokenizer, row.text)
            whole = (*before, *tokens, *after)
            read_bytes = [*(0 for _ in before), *ends, *(len(row.text.encode()) for _ in after)]
            cut = windows(whole, read_bytes, self.settings.window_tokens, key_of(row))
            examples += [replace(window, group=row.source.group or "") for window in cut]
        return examples


def windows(tokens: tuple[int, ...], read_bytes: ManyOf[int], size: int, key: str) -> Iterator[Example]:
    """Windows of at most `size` tokens, each starting with the last token of the one before.

    `read_bytes` is the size of the text up to and with each token; what a window's targets spell is a difference.
    """
    for start in range(0, len(tokens) - 1, size - 1):
        part = tokens[start : start + size]
        num_bytes = read_bytes[start + len(part) - 1] - read_bytes[start]
        yield Example(
            (Sequence(part, tuple(range(1, len(part))), (1.0,) * (len(part) - 1)),), num_bytes=num_bytes, key=key
        )


def encode_text(tokenizer: Any, text: str) -> tuple[list[int], list[int]]:
    """Tokens of a plain text, and the UTF-8 bytes of it that have been read with each.

    What is spelled like a special token is text. A character of several tokens counts with the first of them.
    """
    found = tokenizer(
        text,
        add_special_tokens=False,
        split_special_tokens=True,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,
    )
    stops = accumulate((stop for _, stop in found["offset_mapping"]), max)
    bytes_before = [0, *accumulate(len(character.encode()) for character in text)]
    return found["input_ids"], [bytes_before[stop] for stop in stops]


def end_of_text(tokenizer: Any) -> int:
    """The token that ends a text: by its usual names, else the tokenizer's eos token."""
    known = {str(token): number for number, token in tokenizer.added_tokens_decoder.items()}
    named = next((known[name] for name in END_OF_TEXT if name in known), tokenizer.eos_token_id)
    if named is None:
        raise ModelError(
            "the tokenizer has no end-of-text token, so the end of a document cannot be learnt. "
            "Set method.end_documents: false, or give the tokenizer an eos_token."
        )
    return int(named)
