"""Personal data and secrets: counted, masked, replaced by pseudonyms, or the record dropped. Never shown."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from luthier.corpus.lines import Problem
from luthier.corpus.personal.pseudonyms import Pseudonyms
from luthier.corpus.personal.registry import find_personal, placeholder, replaced, wanted
from luthier.corpus.personal.spans import Span
from luthier.corpus.steps.base import Finding, Passed
from luthier.corpus.wire import texts_of, with_texts
from luthier.errors import DataError
from luthier.recipe.corpus import Personal
from luthier.records import Document, Record, Tagged


class PersonalStep:
    """What `steps.personal` of a recipe asks for. A document's title counts as one more text after its others."""

    name = "personal"

    def __init__(self, settings: Personal, key: bytes | None):
        """`key`: the secret of the pseudonyms; only they need it.

        Raises:
            DataError: an unknown type or region, a model that is not there, pseudonyms without a good key.
        """
        self.action = settings.action
        names_model = settings.names_model if settings.names == "presidio" else None
        self.wanted = wanted(settings.types, settings.regions, names_model)
        self.pseudonyms: Pseudonyms | None = None
        if settings.action == "pseudonym":
            if key is None:
                raise DataError(
                    f"steps.personal: pseudonyms need a secret key. Set the environment variable "
                    f"{settings.key_variable} to 32 random characters, and keep it: another key gives other pseudonyms."
                )
            self.pseudonyms = Pseudonyms(key)

    def __call__(self, record: Record) -> Passed:
        """Look through all texts of a record and do what the action says."""
        if self.action == "off":
            return Passed(record)
        if isinstance(record, Tagged):
            return self.tagged(record)
        texts = all_texts(record)
        spans_by_text = [find_personal(text, self.wanted) for text in texts]
        findings = tuple(
            Finding(span.type, index, span.start, span.end)
            for index, spans in enumerate(spans_by_text)
            for span in spans
        )
        if self.action == "drop" and findings:
            return dropped(findings)
        if self.action in ("report", "drop") or not findings:
            return Passed(record, findings=findings)
        written = [replaced(text, spans, self.write) for text, spans in zip(texts, spans_by_text, strict=True)]
        return Passed(with_all_texts(record, written), findings=findings)

    def write(self, span: Span, value: str) -> str:
        """What stands in the value's stead: a pseudonym, or the type's placeholder."""
        return placeholder(span.type) if self.pseudonyms is None else self.pseudonyms(span.type, value)

    def tagged(self, record: Tagged) -> Passed:
        """Words are looked at in their sentence, since a value may go over several; there stay as many of them."""
        spans = find_personal(" ".join(record.words), self.wanted)
        findings = tuple(Finding(span.type, *place_in_words(span, record.words)) for span in spans)
        if self.action == "drop" and findings:
            return dropped(findings)
        if self.action in ("report", "drop"):
            return Passed(record, findings=findings)
        words = record.words
        while spans:
            words = self.rewritten(words, spans)
            # one placeholder a word moves the words around: mask what only that brings to light, too
            spans = find_personal(" ".join(words), self.wanted) if self.pseudonyms is None else []
        return Passed(replace(record, words=words), findings=findings)

    def rewritten(self, words: Sequence[str], spans: Sequence[Span]) -> tuple[str, ...]:
        """The words with each span written anew, its pieces shared out over the words it goes over."""
        text = " ".join(words)
        starts = starts_of(words)
        pieces: list[list[tuple[Span, str]]] = [[] for _ in words]
        for span in spans:
            touched = [
                index
                for index, start in enumerate(starts)
                if start < span.end and span.start < start + len(words[index])
            ]
            parts = self.parts(span, text[span.start : span.end], len(touched))
            for index, part in zip(touched, parts, strict=True):
                start = max(span.start - starts[index], 0)
                end = min(span.end - starts[index], len(words[index]))
                pieces[index].append((Span(span.type, start, end), part))
        return tuple(rewrite_word(word, wanted_pieces) for word, wanted_pieces in zip(words, pieces, strict=True))

    def parts(self, span: Span, value: str, count: int) -> list[str]:
        """What is written, in as many pieces as there are words: the placeholder in each, or a cut pseudonym."""
        if self.pseudonyms is None:
            return [placeholder(span.type)] * count
        written = self.pseudonyms(span.type, value)
        by_words = written.split()
        if len(by_words) == count:
            return by_words
        joined = "".join(by_words)
        borders = [len(joined) * index // count for index in range(count + 1)]
        return [joined[start:end] or joined[-1] for start, end in itertools.pairwise(borders)]


def dropped(findings: tuple[Finding, ...]) -> Passed:
    """The record goes; what was found is said by type and number."""
    counts = Counter(finding.kind for finding in findings)
    found = ", ".join(f"{kind} ({count})" for kind, count in sorted(counts.items()))
    detail = f"holds {found}. To keep such records, set steps.personal.action to mask or pseudonym."
    return Passed(None, Problem("personal_data", detail), findings)


def all_texts(record: Record) -> tuple[str, ...]:
    """The record's texts, and a document's title after them."""
    title = (record.title,) if isinstance(record, Document) and record.title else ()
    return (*texts_of(record), *title)


def with_all_texts(record: Record, texts: Sequence[str]) -> Record:
    """The record with other texts, in the order of `all_texts`."""
    if isinstance(record, Document) and record.title:
        return replace(record, text=texts[0], title=texts[1])
    return with_texts(record, texts)


def starts_of(words: Sequence[str]) -> list[int]:
    """Where each word begins in the words joined by a space."""
    starts, position = [], 0
    for word in words:
        starts.append(position)
        position += len(word) + 1
    return starts


def place_in_words(span: Span, words: Sequence[str]) -> tuple[int, int, int]:
    """Index of the first word of a span, and where the span begins and ends in that word."""
    for index, start in enumerate(starts_of(words)):
        if span.start < start + len(words[index]):
            return index, span.start - start, min(span.end - start, len(words[index]))
    raise AssertionError("a span lies within its words")


def rewrite_word(word: str, pieces: Sequence[tuple[Span, str]]) -> str:
    """One word with its parts written anew."""
    parts, end = [], 0
    for span, written in pieces:
        parts += [word[end : span.start], written]
        end = span.end
    return "".join([*parts, word[end:]])
