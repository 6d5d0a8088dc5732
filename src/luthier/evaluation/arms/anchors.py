"""Cheap anchors: what any model has to beat to be worth its cost."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence as ManyOf
from dataclasses import replace
from typing import Literal

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from luthier.evaluation.arms.base import (
    ArmResult,
    Report,
    Rows,
    gold_indices,
    predictions_from,
    time_single_rows,
)
from luthier.prompts import ClassifyPrompt
from luthier.recipe import Ask

Unit = Literal["word", "char"]
STRENGTHS = (1.0, 4.0, 16.0, 64.0)  # inverse regularisation tried on validation


class Majority:
    """Always the commonest label of the training rows; its probabilities are the label shares."""

    name = "majority"

    def run(self, rows: Rows, prompt: ClassifyPrompt, ask: Ask, seed: int, report: Report) -> ArmResult:
        """No model at all."""
        labels = prompt.task.labels
        counts = Counter(row.label for row in rows.train)
        shares = np.array([counts[label] + 1e-9 for label in labels])
        started = time.perf_counter()
        predictions = predictions_from(np.tile(np.log(shares / shares.sum()), (len(rows.test), 1)), labels)
        seconds = (time.perf_counter() - started) / len(rows.test)
        report(len(rows.test), len(rows.test))
        return ArmResult(predictions, f'always "{labels[int(shares.argmax())]}"', seconds, (seconds,))


class Tfidf:
    """TF-IDF of words and word pairs with logistic regression; strength chosen on validation.

    With `refit` it is then fitted anew on training and validation rows.

    Texts without words are counted by characters; where there is nothing to count or to tell apart, it is the majority.
    """

    name = "tfidf"

    def __init__(self, refit: bool = True):
        self.refit = refit

    def run(self, rows: Rows, prompt: ClassifyPrompt, ask: Ask, seed: int, report: Report) -> ArmResult:
        """Fit, choose, refit, answer."""
        labels = prompt.task.labels
        unit = countable([row.text for row in rows.train])
        if unit is None or len({row.label for row in rows.train}) < 2:
            why = "the training texts are empty" if unit is None else "the training rows have one label only"
            result = Majority().run(rows, prompt, ask, seed, report)
            return replace(result, chosen=f"{result.chosen}: {why}")
        gold = gold_indices(rows.validation, labels)
        asked = [row.text for row in rows.validation]
        scored = [(float(np.mean(self.fit(rows.train, labels, c, unit).predict(asked) == gold)), -c) for c in STRENGTHS]
        accuracy, negative = max(scored)
        model = self.fit(rows.train + rows.validation if self.refit else rows.train, labels, -negative, unit)
        texts = [row.text for row in rows.test]
        started = time.perf_counter()
        logprobs = self.logprobs(model, texts, len(labels))
        seconds = (time.perf_counter() - started) / len(texts)
        report(len(texts), len(texts))
        chosen = f"C = {-negative:g} ({accuracy:.1%} on validation)"
        if self.refit:
            chosen += ", refitted on training and validation rows"
        if unit == "char":
            chosen += "; of characters, since no training text has a word of two letters or more"
        latencies = time_single_rows(lambda text: self.logprobs(model, [text], len(labels)), texts)
        return ArmResult(predictions_from(logprobs, labels), chosen, seconds, latencies)

    def fit(self, rows: tuple, labels: list[str], strength: float, unit: Unit) -> Pipeline:
        """A fitted pipeline."""
        model = make_pipeline(counter(unit), LogisticRegression(C=strength, max_iter=2000))
        return model.fit([row.text for row in rows], gold_indices(rows, labels))

    def logprobs(self, model: Pipeline, texts: list[str], num_labels: int) -> np.ndarray:
        """log p [B, L]; a label without training rows gets next to nothing."""
        values = np.full((len(texts), num_labels), -50.0)
        values[:, model.classes_] = model.predict_log_proba(texts)
        return values


def counter(unit: Unit) -> TfidfVectorizer:
    """What counts words, or characters, and pairs of them."""
    return TfidfVectorizer(analyzer=unit, ngram_range=(1, 2), sublinear_tf=True, strip_accents="unicode")


def countable(texts: ManyOf[str]) -> Unit | None:
    """Words where any text has one, else characters; None where there is nothing at all."""
    units: tuple[Unit, ...] = ("word", "char")
    return next((unit for unit in units if any(map(counter(unit).build_analyzer(), texts))), None)
