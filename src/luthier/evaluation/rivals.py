"""What a trained head has to beat: plain models on counted words, scored by the head's own figures.

A rival answers in the form of the head's outputs, so that one piece of code counts both. It learns from training rows;
its strength is chosen on validation rows, and it is then fitted again on both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from collections.abc import Sequence as ManyOf
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline, make_pipeline

from luthier.evaluation.arms.anchors import countable, counter
from luthier.evaluation.held_out import Figures, Floats, ratio
from luthier.evaluation.word_rivals import Answers, crf_tags, has_crf, lexicon_tags, usual_tags
from luthier.methods.base import Example, Outputs, make_batch
from luthier.methods.heads import ClassifyHead, MultiLabelHead, OrdinalHead, RegressHead, TagHead
from luthier.records import Labelled, Sequence

CHUNK_ROWS = 512
FAR = 50.0  # log-odds of what is sure


@dataclass(frozen=True)
class Rival:
    """`fit(method, rows, strength)` gives what answers rows: outputs [P, L] of each."""

    name: str
    about: str
    fit: Callable[[Any, ManyOf[Any], float], Answers]
    strengths: tuple[float, ...] = (0.0,)


@dataclass(frozen=True)
class Beside:
    """A rival's figures, row by row, on the rows that the trained model is tested on."""

    name: str
    about: str
    figures: Figures


class LeftOut(Exception):
    """Why a rival cannot be fitted on some rows."""


def rivals_beside(
    method: Any,
    rows: Mapping[str, ManyOf[Any]],
    examples: Mapping[str, ManyOf[Example]],
    say: Callable[[str], None] = lambda text: None,
) -> list[Beside]:
    """The rivals of a head, the strongest last; none for other methods. `say` is told of one that is left out.

    `rows` and `examples` of validation and test stand in one order, which the figures follow; of training, the rows
    are enough.
    """
    found = []
    for rival in rivals_of(method):
        try:
            about, answers = fitted_rival(rival, method, rows, examples["validation"])
        except LeftOut as error:
            say(f"the rival {rival.name} is left out: {error}")
            continue
        found.append(Beside(rival.name, about, figures_of(method, answers, rows["test"], examples["test"])))
    return found


def rivals_of(method: Any) -> list[Rival]:
    """What a head is compared with, the strongest last."""
    counted = "TF-IDF of words and word pairs"
    match method:
        case ClassifyHead():
            linear = Rival("tfidf", f"{counted}, logistic regression", tfidf_classes, (1.0, 4.0, 16.0, 64.0))
            return [Rival("majority", "always the commonest label", majority), linear]
        case MultiLabelHead():
            return [Rival("tfidf", f"{counted}, logistic regression a label", tfidf_sets, (1.0, 4.0, 16.0, 64.0))]
        case OrdinalHead():
            ridge = Rival("tfidf", f"{counted}, ridge regression", tfidf_grades, (0.1, 0.3, 1.0, 3.0, 10.0))
            return [Rival("median", "always the middle label", median_grade), ridge]
        case RegressHead():
            return [Rival("tfidf", f"{counted}, ridge regression", tfidf_numbers, (0.1, 0.3, 1.0, 3.0, 10.0))]
        case TagHead():
            usual = Rival("usual", "each word's commonest tag in the training rows", usual_tags)
            lexicon = Rival("lexicon", "the training rows' entities, longest match", lexicon_tags)
            crf = [Rival("crf", "a linear-chain CRF on words, shapes, affixes", crf_tags, (0.03, 0.3, 1.0))]
            return [lexicon if method.settings.scheme == "bio" else usual, *(crf if has_crf() else [])]
    return []


def fitted_rival(
    rival: Rival, method: Any, rows: Mapping[str, ManyOf[Any]], validation: ManyOf[Example]
) -> tuple[str, Answers]:
    """What was fitted, in words, and what answers."""
    if len(rival.strengths) == 1 or not validation:
        strength = rival.strengths[0]
    else:
        sign = 1 if method.higher_is_better else -1
        strength = max(
            rival.strengths,
            key=lambda one: sign * primary_of(method, rival.fit(method, rows["train"], one), rows, validation),
        )
    chosen = f" (strength {strength:g}, chosen on validation rows)" if len(rival.strengths) > 1 and validation else ""
    return f"{rival.about}{chosen}", rival.fit(method, [*rows["train"], *rows["validation"]], strength)


def primary_of(method: Any, answers: Answers, rows: Mapping[str, ManyOf[Any]], validation: ManyOf[Example]) -> float:
    """The deciding figure on validation rows; the worst where it cannot be told."""
    value = ratio(*figures_of(method, answers, rows["validation"], validation)[method.primary])
    return value if np.isfinite(value) else (-np.inf if method.higher_is_better else np.inf)


def figures_of(method: Any, answers: Answers, rows: ManyOf[Any], examples: ManyOf[Example]) -> Figures:
    """The method's figures of a rival's answers, for each example in its order."""
    found: dict[str, list[tuple[Floats, Floats]]] = {}
    for start in range(0, len(examples), CHUNK_ROWS):
        part = examples[start : start + CHUNK_ROWS]
        logits = torch.from_numpy(np.concatenate(answers(rows[start : start + CHUNK_ROWS])))
        batch = make_batch([without_text(example) for example in part])
        for name, pair in method.scores(Outputs(logits_PL=logits), batch).items():
            found.setdefault(name, []).append((pair[0].double().numpy(), pair[1].double().numpy()))
    return {
        name: (np.concatenate([above for above, _ in parts]), np.concatenate([below for _, below in parts]))
        for name, parts in found.items()
    }


def without_text(example: Example) -> Example:
    """The example's gold and spans alone: what scoring reads."""
    spans = sum(len(sequence.reads) for sequence in example.sequences)
    return Example((Sequence((0,), reads=((0, 1),) * spans),), example.gold, key=example.key)


# --- texts ---------------------------------------------------------------------------------------------


def texts_of(rows: ManyOf[Labelled]) -> list[str]:
    """The texts of some rows."""
    return [row.text for row in rows]


def counted(model: Any, rows: ManyOf[Labelled], gold: Any) -> Pipeline:
    """A model on TF-IDF of words and word pairs, fitted. LeftOut where the texts have none."""
    texts = texts_of(rows)
    return make_pipeline(word_vectorizer(texts), model).fit(texts, gold)


def word_vectorizer(texts: ManyOf[str]) -> TfidfVectorizer:
    """TF-IDF of words and word pairs, to be fitted on these texts.

    Raises:
        LeftOut: none of them has a word that scikit-learn counts (two letters or digits at least).
    """
    if countable(texts) != "word":
        raise LeftOut(f"none of {len(texts):,} training texts has a word of two letters or more.")
    return counter("word")


def constant(values_L: ManyOf[float]) -> Answers:
    """The same outputs for every row."""
    return lambda rows: [np.array([values_L], dtype=np.float64)] * len(rows)


def one_row_each(values_BL: Floats) -> list[Floats]:
    """Outputs [1, L] of each row."""
    return [row[None].astype(np.float64) for row in values_BL]


def known_rows(method: Any, rows: ManyOf[Labelled]) -> list[Labelled]:
    """Rows whose label the method has."""
    return [row for row in rows if row.label in method.labels]


def majority(method: ClassifyHead, rows: ManyOf[Labelled], strength: float) -> Answers:
    """Label frequencies as scores."""
    counts = Counter(row.label for row in rows)
    return constant([float(counts[label]) for label in method.labels])


def tfidf_classes(method: ClassifyHead, rows: ManyOf[Labelled], strength: float) -> Answers:
    """Log-probabilities of a logistic regression; next to nothing for a label without rows. LeftOut: one label."""
    rows = known_rows(method, rows)
    if len({row.label for row in rows}) < 2:
        raise LeftOut(f"its {len(rows):,} training rows have no two labels.")
    model = counted(LogisticRegression(C=strength, max_iter=2000), rows, [method.labels.index(r.label) for r in rows])

    def answers(asked: ManyOf[Labelled]) -> list[Floats]:
        values_BL = np.full((len(asked), len(method.labels)), -FAR)
        values_BL[:, model.classes_] = model.predict_log_proba(texts_of(asked))
        return one_row_each(values_BL)

    return answers


def tfidf_sets(method: MultiLabelHead, rows: ManyOf[Labelled], strength: float) -> Answers:
    """Log-odds of one logistic regression a label; sure where all rows agree."""
    gold_BL = np.array([method.gold(row)[:-1] for row in rows])
    vectorizer = word_vectorizer(texts_of(rows))
    features = vectorizer.fit_transform(texts_of(rows))
    models: list[Any] = [
        LogisticRegression(C=strength, max_iter=2000).fit(features, column) if np.ptp(column) else None
        for column in gold_BL.T
    ]

    def answers(asked: ManyOf[Labelled]) -> list[Floats]:
        asked_features = vectorizer.transform(texts_of(asked))
        columns = [
            np.full(len(asked), FAR if gold_BL[0, label] else -FAR)
            if model is None
            else model.decision_function(asked_features)
            for label, model in enumerate(models)
        ]
        return one_row_each(np.stack(columns, axis=1))

    return answers


def grades(method: OrdinalHead, values_B: Floats) -> Floats:
    """The outputs [B, K] that say these labels (rounded): above the thresholds below, and not above the others."""
    nearest_B = np.clip(np.rint(values_B), 0, len(method.labels) - 1)
    return np.where(nearest_B[:, None] > np.arange(len(method.labels) - 1), 1.0, -1.0)


def median_grade(method: OrdinalHead, rows: ManyOf[Labelled], strength: float) -> Answers:
    """The median label of the rows."""
    middle = np.median([method.labels.index(row.label) for row in rows])
    return constant(grades(method, np.array([middle]))[0].tolist())


def tfidf_grades(method: OrdinalHead, rows: ManyOf[Labelled], strength: float) -> Answers:
    """A ridge regression on the labels' places, rounded."""
    model = counted(Ridge(alpha=strength), rows, [float(method.labels.index(row.label)) for row in rows])
    return lambda asked: one_row_each(grades(method, model.predict(texts_of(asked))))


def tfidf_numbers(method: RegressHead, rows: ManyOf[Labelled], strength: float) -> Answers:
    """A ridge regression on the numbers, in deviations."""
    gold = [(float(row.label) - method.mean) / method.deviation for row in rows]
    model = counted(Ridge(alpha=strength), rows, gold)
    return lambda asked: one_row_each(model.predict(texts_of(asked))[:, None])
