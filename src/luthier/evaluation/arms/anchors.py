"""Cheap anchors: what any model has to beat to be worth its cost."""

from __future__ import annotations

import time
from collections import Counter

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
    """TF-IDF of words and word pairs with logistic regression; strength chosen on validation, then refitted on both."""

    name = "tfidf"

    def run(self, rows: Rows, prompt: ClassifyPrompt, ask: Ask, seed: int, report: Report) -> ArmResult:
        """Fit, choose, refit, answer."""
        labels = prompt.task.labels
        gold = gold_indices(rows.validation, labels)
        scored = [
            (
                float(np.mean(self.fit(rows.train, labels, c).predict([r.text for r in rows.validation]) == gold)),
                -c,
            )
            for c in STRENGTHS
        ]
        accuracy, negative = max(scored)
        model = self.fit(rows.train + rows.validation, labels, -negative)
        texts = [row.text for row in rows.test]
        started = time.perf_counter()
        logprobs = self.logprobs(model, texts, len(labels))
        seconds = (time.perf_counter() - started) / len(texts)
        report(len(texts), len(texts))
        chosen = f"C = {-negative:g} ({accuracy:.1%} on validation), refitted on training and validation rows"
        latencies = time_single_rows(lambda text: self.logprobs(model, [text], len(labels)), texts)
        return ArmResult(predictions_from(logprobs, labels), chosen, seconds, latencies)

    def fit(self, rows: tuple, labels: list[str], strength: float) -> Pipeline:
        """A fitted pipeline."""
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, strip_accents="unicode")
        model = make_pipeline(vectorizer, LogisticRegression(C=strength, max_iter=2000))
        return model.fit([row.text for row in rows], gold_indices(rows, labels))

    def logprobs(self, model: Pipeline, texts: list[str], num_labels: int) -> np.ndarray:
        """log p [B, L]; a label without training rows gets next to nothing."""
        values = np.full((len(texts), num_labels), -50.0)
        values[:, model.classes_] = model.predict_log_proba(texts)
        return values
