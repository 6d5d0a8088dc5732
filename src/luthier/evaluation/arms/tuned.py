"""The fine-tuned arm, and the object that serves it: the adapter with its own prompt."""

from __future__ import annotations

import time
from collections.abc import Sequence as ManyOf
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from luthier.evaluation.arms.base import (
    ArmResult,
    Floats,
    Report,
    Rows,
    predictions_from,
    time_single_rows,
)
from luthier.evaluation.scoring import (
    Beginning,
    cut,
    label_logprobs,
    remember_beginning,
    require_room,
    score_labels,
    shared_beginning,
    without_room,
)
from luthier.forest.forward import hidden_states, readout
from luthier.methods.base import MAIN, Example, make_batch, split_by_tokens
from luthier.methods.candidates import candidate_sequences
from luthier.methods.head import readable_sequences
from luthier.prompts import ClassifyPrompt
from luthier.recipe import Ask
from luthier.training.learner import Learner

TEXTS_AT_ONCE = 256  # tokenised and held together, to be measured


@dataclass
class Classifier:
    """A trained learner with the prompt it was trained with. `temperature` was fitted on validation rows."""

    learner: Learner
    prompt: ClassifyPrompt
    batch_tokens: int = 2048
    temperature: float = 1.0
    beginning: Beginning | None = None

    @torch.no_grad()
    def logprobs(self, texts: ManyOf[str], report: Report | None = None) -> Floats:
        """Calibrated log p(label | text) [B, L]."""
        self.learner.eval()
        raw = self._head_logprobs(texts, report) if self.learner.heads else self._label_logprobs(texts, report)
        scaled = raw / self.temperature
        return scaled - np.logaddexp.reduce(scaled, axis=1, keepdims=True)

    def problems(self, texts: ManyOf[str]) -> dict[int, str]:
        """What is wrong with each text that cannot be answered, by its place."""
        found: dict[int, str] = {}
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            some = texts[start : start + TEXTS_AT_ONCE]
            heads = self.learner.heads
            rows = [(one,) for one in readable_sequences(self.prompt, some)] if heads else None
            told = without_room(self.learner.lm, rows or candidate_sequences(self.prompt, some))
            found |= {start + place: problem for place, problem in told.items()}
        return found

    def _label_logprobs(self, texts: ManyOf[str], report: Report | None) -> Floats:
        """Through the labels' own tokens."""
        learner = self.learner
        scores = score_labels(
            learner.lm, learner.backend, self.prompt, texts, self.batch_tokens, None, report, self.beginning
        )
        self.beginning = scores.beginning or self.beginning
        return label_logprobs(scores, "sum")

    def _head_logprobs(self, texts: ManyOf[str], report: Report | None) -> Floats:
        """Through the head: only the prompt is computed."""
        learner = self.learner
        head = learner.heads[MAIN]
        assert isinstance(head, nn.Linear)
        rows = [(sequence,) for sequence in readable_sequences(self.prompt, texts)]
        require_room(learner.lm, rows)
        if learner.backend != "padded" and (self.beginning is None or not self.beginning.fits(rows)):
            size = shared_beginning(rows)
            self.beginning = remember_beginning(learner.lm, rows[0][0].tokens[:size]) if size else None
        start = 0 if self.beginning is None else self.beginning.size
        examples = [Example(cut(row, start)) for row in rows]
        order = {id(example): i for i, example in enumerate(examples)}
        values = np.zeros((len(texts), head.out_features))
        done = 0
        for micro in split_by_tokens(examples, self.batch_tokens):
            batch = make_batch(micro)
            past = None if self.beginning is None else self.beginning.past
            hidden_ND = hidden_states(learner.lm, batch.forest, learner.backend, past)
            logits_BL = head(readout(batch.forest, hidden_ND).float())
            values[[order[id(example)] for example in micro]] = torch.log_softmax(logits_BL.double(), 1).cpu().numpy()
            done += len(micro)
            if report is not None:
                report(done, len(texts))
        return values


class Tuned:
    """Answers with the adapter that training left."""

    name = "tuned"

    def __init__(self, classifier: Classifier, chosen: str):
        self.classifier = classifier
        self.chosen = chosen

    def run(self, rows: Rows, prompt: ClassifyPrompt, ask: Ask, seed: int, report: Report) -> ArmResult:
        """Answer the test rows."""
        classifier = self.classifier
        labels = prompt.task.labels
        texts = [row.text for row in rows.test]
        started = time.perf_counter()
        logprobs = classifier.logprobs(texts, report)
        seconds = (time.perf_counter() - started) / len(texts)
        chosen = f"{self.chosen}; probabilities at temperature {classifier.temperature:.2f}, fitted on validation"
        latencies = time_single_rows(lambda text: classifier.logprobs([text]), texts)
        return ArmResult(predictions_from(logprobs, labels), chosen, seconds, latencies)
