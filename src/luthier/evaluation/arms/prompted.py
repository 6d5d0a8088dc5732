"""Ways of asking the untrained model: zero-shot, best wording, worked examples, retrieved examples.

Each is a list of variants; variant and normalisation are chosen together on validation rows, in which each label
has its own share, then the chosen one answers the test rows. All are scored by the labels' log-probabilities.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as ManyOf
from dataclasses import dataclass

import bm25s
import numpy as np
from torch import nn

from luthier.errors import DataError
from luthier.evaluation.arms.base import (
    ArmResult,
    Floats,
    Report,
    Rows,
    gold_indices,
    predictions_from,
    time_single_rows,
)
from luthier.evaluation.scoring import (
    CONTENT_FREE,
    NORMALISATIONS,
    Beginning,
    Scores,
    label_logprobs,
    room_of,
    score_labels,
)
from luthier.prompts import ClassifyPrompt, Shot
from luthier.recipe import Ask
from luthier.records import Labelled

LONGEST_TEXTS = 8  # by characters, among which the longest by tokens is looked for
Shots = Callable[[ManyOf[str]], list[list[Shot]]]

WORDINGS = (
    "Read the text and say which category fits it best.",
    "You sort texts for an archive. Name the one category under which a reader would look for this text.",
    "What is this text mainly about? Answer with one category.",
)


@dataclass(frozen=True)
class Variant:
    """One way of asking: a prompt, and examples that may differ from text to text.

    Its examples are training rows, since it is chosen on validation rows; `refitted` is the same with examples of both.
    """

    name: str
    prompt: ClassifyPrompt
    shots: Shots | None = None
    refitted: Variant | None = None


@dataclass(frozen=True)
class PromptArm:
    """Variants are made from the training rows; the rest is the same for all four arms.

    With `refit` the test rows are answered with examples from the validation rows too, where a variant looks for some.
    """

    name: str
    model: nn.Module
    backend: str
    variants: Callable[[Rows, ClassifyPrompt, Ask, int], list[Variant]]
    refit: bool = False

    def run(self, rows: Rows, prompt: ClassifyPrompt, ask: Ask, seed: int, report: Report) -> ArmResult:
        """Choose variant and normalisation on validation rows, then answer the test rows once."""
        made = self.variants(rows, prompt, ask, seed)
        variants = self.fitting(made, rows)
        validation = in_shares(rows.validation, ask.validation_rows, seed)
        total = len(validation) * len(variants) + len(rows.test)
        tried = []
        for i, variant in enumerate(variants):
            scorer = Scorer(self.model, self.backend, variant, ask.batch_tokens)
            scorer.measure(validation, lambda done, _, i=i: report(i * len(validation) + done, total))  # type: ignore[misc]
            tried.append(scorer)
        best = max(tried, key=lambda scorer: scorer.validation_accuracy)
        best.variant = self.answering(best.variant)
        texts = [row.text for row in rows.test]
        started = time.perf_counter()
        scores = best.score(texts, lambda done, _: report(total - len(texts) + done, total))
        seconds = (time.perf_counter() - started) / len(texts)
        left_out = len(made) - len(variants)
        return ArmResult(
            predictions_from(best.logprobs(scores), prompt.task.labels),
            f"{best.variant.name}; scores by {best.normalisation} ({best.validation_accuracy:.1%} on "
            f"{len(validation)} validation rows, {len(variants)} x {len(best.kinds)} tried"
            + (f"; {left_out} left out, longer than the model reads)" if left_out else ")"),
            seconds,
            time_single_rows(lambda text: best.logprobs(best.score([text])), texts),
            scores.num_tokens / len(texts),
        )

    def answering(self, variant: Variant) -> Variant:
        """The variant as it answers the test rows."""
        return variant.refitted or variant if self.refit else variant

    def fitting(self, variants: list[Variant], rows: Rows) -> list[Variant]:
        """The variants in which every text fits what the model reads. DataError where none is left."""
        room = room_of(self.model)
        asked, answered = ([row.text for row in part] for part in (rows.validation, rows.test))
        sizes = [
            max(longest_prompt(variant, asked), longest_prompt(self.answering(variant), answered))
            for variant in variants
        ]
        if not any(size <= room for size in sizes):
            raise DataError(
                f"{self.name}: its shortest way of asking takes {min(sizes):,} tokens, the model reads {room:,}. Lower "
                "data.max_tokens (such rows are dropped and counted), ask.shots or ask.neighbours, or leave "
                f"{self.name} out of arms."
            )
        return [variant for variant, size in zip(variants, sizes, strict=True) if size <= room]


def longest_prompt(variant: Variant, texts: ManyOf[str]) -> int:
    """Tokens of the longest prompt with its longest answer.

    Where the examples are the same for every text, only its longest texts can make it: a few are tried.
    """
    prompt, labels = variant.prompt, variant.prompt.task.labels
    if variant.shots is None:
        texts = sorted(texts, key=len)[-LONGEST_TEXTS:]
    shots = None if variant.shots is None else variant.shots(texts)
    sizes = [len(tokens) for tokens in prompt.encode(texts, shots)]
    longest = int(np.argmax(sizes))
    answered = prompt.encode_answered(
        [texts[longest]] * len(labels), labels, None if shots is None else [shots[longest]] * len(labels)
    )
    return max(len(encoded.tokens) for encoded in answered)


class Scorer:
    """One variant, measured on validation; keeps the shared beginning and the calibration constants."""

    def __init__(self, model: nn.Module, backend: str, variant: Variant, batch_tokens: int):
        self.model, self.backend, self.variant, self.batch_tokens = model, backend, variant, batch_tokens
        self.beginning: Beginning | None = None
        self.normalisation = NORMALISATIONS[0]
        self.validation_accuracy = 0.0
        self.constants: dict[str, Floats] = {}
        # calibration by content-free texts needs one context for all rows
        self.kinds = [kind for kind in NORMALISATIONS if variant.shots is None or kind != "contextual calibration"]

    def score(self, texts: ManyOf[str], report: Report | None = None) -> Scores:
        """Label scores of texts."""
        shots = None if self.variant.shots is None else self.variant.shots(texts)
        scores = score_labels(
            self.model,
            self.backend,
            self.variant.prompt,
            texts,
            self.batch_tokens,
            shots,
            report,
            self.beginning,
        )
        self.beginning = scores.beginning or self.beginning
        return scores

    def logprobs(self, scores: Scores) -> Floats:
        """log p(label | text) under the chosen normalisation."""
        return label_logprobs(scores, self.normalisation, self.constants.get(self.normalisation))

    def measure(self, validation: ManyOf[Labelled], report: Report) -> None:
        """Choose the normalisation; the earliest of equals wins."""
        gold = gold_indices(validation, self.variant.prompt.task.labels)
        scores = self.score([row.text for row in validation], report)
        if "contextual calibration" in self.kinds:
            self.constants["contextual calibration"] = log_mean(label_logprobs(self.score(CONTENT_FREE), "sum"))
        self.constants["batch calibration"] = log_mean(label_logprobs(scores, "sum"))
        accuracies = []
        for kind in self.kinds:
            chosen = label_logprobs(scores, kind, self.constants.get(kind)).argmax(1)
            accuracies.append(float(np.mean(chosen == gold)))
        best = int(np.argmax(accuracies))
        self.normalisation, self.validation_accuracy = self.kinds[best], accuracies[best]


def log_mean(logprobs_BL: Floats) -> Floats:
    """Log of each label's mean probability [L] over the rows."""
    return np.logaddexp.reduce(logprobs_BL, axis=0) - np.log(len(logprobs_BL))


def in_shares(rows: ManyOf[Labelled], count: int, seed: int) -> list[Labelled]:
    """At most `count` rows, with each label's share of them as near as whole rows can: what a test would say of them.

    Row i of the n of a label stands at (i + u) / n of an order, u drawn for each label, and the first are taken.
    """
    by_label = shuffled_by_label(rows, seed)
    offsets = np.random.default_rng([seed, 31]).random(len(by_label))
    placed = [
        ((i + offset) / len(by_label[label]), row)
        for label, offset in zip(sorted(by_label), offsets, strict=True)
        for i, row in enumerate(by_label[label])
    ]
    return [row for _, row in sorted(placed, key=lambda pair: pair[0])][:count]


def spread(rows: ManyOf[Labelled], count: int, seed: int) -> list[Labelled]:
    """At most `count` rows, labels taken in turn: worked examples that show every label."""
    return list(take_in_turn(shuffled_by_label(rows, seed)))[:count]


def shuffled_by_label(rows: ManyOf[Labelled], seed: int) -> dict[str, list[Labelled]]:
    """The rows of each label, in a seeded order."""
    by_label: dict[str, list[Labelled]] = {}
    for i in np.random.default_rng([seed, 17]).permutation(len(rows)):
        by_label.setdefault(rows[int(i)].label, []).append(rows[int(i)])
    return by_label


def take_in_turn(by_label: dict[str, list[Labelled]]) -> Iterator[Labelled]:
    """First row of each label, then the second of each, ..."""
    longest = max((len(rows) for rows in by_label.values()), default=0)
    for position in range(longest):
        for label in sorted(by_label):
            if position < len(by_label[label]):
                yield by_label[label][position]


def zero_shot(rows: Rows, prompt: ClassifyPrompt, ask: Ask, seed: int) -> list[Variant]:
    """The task's own prompt as it stands."""
    return [Variant("the task's instruction", prompt)]


def best_prompt(rows: Rows, prompt: ClassifyPrompt, ask: Ask, seed: int) -> list[Variant]:
    """Other wordings, the task's first, and one without the list of labels."""
    wordings = [prompt.task.instruction, *prompt.task.wordings, *WORDINGS]
    variants = [Variant(f'"{wording}"', prompt.with_(instruction=wording)) for wording in wordings]
    bare = Variant("the task's instruction, labels not listed", prompt.with_(lists_labels=False))
    return [*variants, bare]


def few_shot(rows: Rows, prompt: ClassifyPrompt, ask: Ask, seed: int) -> list[Variant]:
    """k worked examples, the same for every text, spread over the labels; several draws of each k."""
    variants = []
    for k in ask.shots:
        for draw in range(ask.shot_draws):
            chosen = spread(rows.train, k, seed * 1000 + draw)
            order = np.random.default_rng([seed, k, draw]).permutation(len(chosen))
            shots = tuple((chosen[int(i)].text, chosen[int(i)].label) for i in order)
            variants.append(Variant(f"{len(shots)} worked examples, draw {draw + 1}", prompt.with_(shots=shots)))
    return variants


def retrieval(rows: Rows, prompt: ClassifyPrompt, ask: Ask, seed: int) -> list[Variant]:
    """The k training rows nearest to the text by BM25 (bm25s), nearest last, as worked examples.

    A text that shares no word with them, but for stop words, gets the first k in a seeded order.
    """
    train, both = Neighbours(rows.train, seed), Neighbours(rows.train + rows.validation, seed)

    def variant(k: int) -> Variant:
        refitted = Variant(both.told(k, "training and validation rows"), prompt, both.nearest(k))
        return Variant(train.told(k, "training rows"), prompt, train.nearest(k), refitted)

    return [variant(min(k, len(rows.train))) for k in ask.neighbours]


class Neighbours:
    """Rows to be found by the words that a text shares with them."""

    def __init__(self, rows: ManyOf[Labelled], seed: int):
        self.rows = rows
        self.index = bm25s.BM25()
        counted = bm25s.tokenize([row.text for row in rows], stopwords="en", show_progress=False)
        self.has_words = any(counted.ids)
        if self.has_words:
            self.index.index(counted, show_progress=False)
        self.any_order = np.random.default_rng([seed, 29]).permutation(len(rows))

    def told(self, k: int, rows: str) -> str:
        """The name of an arm's variant with k of these rows."""
        which = f"nearest {rows}" if self.has_words else f"{rows}, none of which has a word that BM25 counts,"
        return f"{k} {which} as examples"

    def nearest(self, k: int) -> Shots:
        """What finds the k nearest rows of each text."""

        def shots(texts: ManyOf[str]) -> list[list[Shot]]:
            queries = bm25s.tokenize(list(texts), stopwords="en", show_progress=False, return_ids=False)
            return [self.found(query, k) for query in queries]

        return shots

    def found(self, words: ManyOf[str], k: int) -> list[Shot]:
        """The k nearest to a text's words, nearest last."""
        known = [word for word in words if word in self.index.vocab_dict] if self.has_words else []
        nearest_first = np.argsort(-self.index.get_scores(known), kind="stable") if known else self.any_order
        return [(self.rows[int(i)].text, self.rows[int(i)].label) for i in nearest_first[:k][::-1]]


VARIANTS = {"zero_shot": zero_shot, "best_prompt": best_prompt, "few_shot": few_shot, "retrieval": retrieval}
