"""Metrics of a classifier from label indices and probabilities: what is right, where, and how sure.

Labels are indices 0..L-1 of the task's labels; a predicted -1 is "no answer" (abstained, not parsed, outside
the labels, backend error) and counts as wrong everywhere but in `accuracy_on_covered`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

Indices = npt.NDArray[np.int64]
Correct = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Binning = Literal["equal_mass", "equal_width"]

NO_ANSWER = -1
ROUNDING = 1e-4  # how far float32 probabilities may miss 1
SMALLEST_PROBABILITY = float(np.finfo(np.float64).eps)  # a row costs at most 36.04 nats of log loss
NUM_BINS = 10
BINNING: Binning = "equal_mass"
TEMPERATURES = (0.05, 20.0)  # the range fit_temperature searches


@dataclass(frozen=True)
class ClassScores:
    """One label's scores. `support` is its number of gold rows; a ratio without a denominator is 0."""

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class ReliabilityBin:
    """The rows whose confidence lies in low..high: their mean confidence, accuracy and count."""

    low: float
    high: float
    confidence: float
    accuracy: float
    count: int


def confusion_matrix(gold_B: Indices, predicted_B: Indices, num_labels: int) -> Indices:
    """Counts of (gold, predicted), shape (L, L + 1); the last column is "no answer"."""
    gold_B, predicted_B = check_labels(gold_B, predicted_B)
    check_range("gold", gold_B, 0, num_labels)
    check_range("predicted", predicted_B, NO_ANSWER, num_labels)
    columns_B = np.where(predicted_B == NO_ANSWER, num_labels, predicted_B)
    cells = num_labels * (num_labels + 1)
    counts = np.bincount(gold_B * (num_labels + 1) + columns_B, minlength=cells)
    return counts.reshape(num_labels, num_labels + 1)


def accuracy(gold_B: Indices, predicted_B: Indices) -> float:
    """Share of all rows that are right."""
    gold_B, predicted_B = check_labels(gold_B, predicted_B)
    return float(np.mean(gold_B == predicted_B))


def coverage(predicted_B: Indices) -> float:
    """Share of all rows that got an answer."""
    predicted_B, _ = check_labels(predicted_B, predicted_B)
    return float(np.mean(predicted_B != NO_ANSWER))


def accuracy_on_covered(gold_B: Indices, predicted_B: Indices) -> float | None:
    """Share of the answered rows that are right; None where no row was answered. Read it with `coverage`."""
    gold_B, predicted_B = check_labels(gold_B, predicted_B)
    covered_B = predicted_B != NO_ANSWER
    if not covered_B.any():
        return None
    return float(np.mean(gold_B[covered_B] == predicted_B[covered_B]))


def per_class(gold_B: Indices, predicted_B: Indices, num_labels: int) -> list[ClassScores]:
    """Scores of each label, in label order.

    precision = right / times predicted, recall = right / support, f1 = 2 right / (times predicted + support).
    """
    counts = confusion_matrix(gold_B, predicted_B, num_labels)
    right_L = counts.diagonal()
    predicted_L = counts[:, :num_labels].sum(axis=0)
    support_L = counts.sum(axis=1)
    return [
        ClassScores(
            precision=ratio(right, predicted),
            recall=ratio(right, support),
            f1=ratio(2 * right, predicted + support),
            support=support,
        )
        for right, predicted, support in zip(right_L.tolist(), predicted_L.tolist(), support_L.tolist(), strict=True)
    ]


def balanced_accuracy(gold_B: Indices, predicted_B: Indices, num_labels: int) -> float:
    """Mean recall over the labels that have gold rows (Brodersen et al. 2010)."""
    scores = per_class(gold_B, predicted_B, num_labels)
    return float(np.mean([score.recall for score in scores if score.support]))


def macro_f1(gold_B: Indices, predicted_B: Indices, num_labels: int) -> float:
    """Mean F1 over the labels that have gold rows.

    A label without gold rows has no part in the mean, even when predicted: so the mean runs over the same
    labels for every arm, and the wrong prediction already costs the recall of the row's own label.
    """
    scores = per_class(gold_B, predicted_B, num_labels)
    return float(np.mean([score.f1 for score in scores if score.support]))


def reliability_table(
    confidence_B: Floats, correct_B: Correct, num_bins: int = NUM_BINS, binning: Binning = BINNING
) -> list[ReliabilityBin]:
    """Rows grouped by confidence, lowest first; empty bins are left out.

    `equal_width`: num_bins bins of width 1 / num_bins, low < confidence <= high (Guo et al. 2017).
    `equal_mass`: bins of about B / num_bins rows (Nguyen and O'Connor 2015); low and high are the smallest
    and largest confidence inside. Rows of one confidence share a bin, so the order of rows does not matter;
    with many ties there are fewer bins.
    """
    confidence_B, correct_B = check_confidence(confidence_B, correct_B)
    if num_bins < 1:
        raise ValueError(f"num_bins is {num_bins}; at least one is needed.")
    edges = np.linspace(0, 1, num_bins + 1)
    if binning == "equal_width":
        bin_B = np.maximum(np.searchsorted(edges, confidence_B, side="left") - 1, 0)
    else:
        firsts = np.sort(confidence_B)[np.arange(1, num_bins) * len(confidence_B) // num_bins]
        bin_B = np.searchsorted(np.unique(firsts), confidence_B, side="right")
    table = []
    for index in np.unique(bin_B):
        inside_B = bin_B == index
        inside = confidence_B[inside_B]
        low, high = edges[index : index + 2] if binning == "equal_width" else (inside.min(), inside.max())
        table.append(
            ReliabilityBin(
                low=float(low),
                high=float(high),
                confidence=float(inside.mean()),
                accuracy=float(correct_B[inside_B].mean()),
                count=len(inside),
            )
        )
    return table


def expected_calibration_error(
    confidence_B: Floats, correct_B: Correct, num_bins: int = NUM_BINS, binning: Binning = BINNING
) -> float:
    """Sum over bins of count / B * |accuracy - confidence| (Naeini et al. 2015), 0 = calibrated.

    It is biased upwards on few rows: with 10 rows a bin, even a calibrated model shows about 0.1.
    """
    table = reliability_table(confidence_B, correct_B, num_bins, binning)
    gaps = sum(row.count * abs(row.accuracy - row.confidence) for row in table)
    return gaps / sum(row.count for row in table)


def brier_score(probabilities_BL: Floats, gold_B: Indices) -> float:
    """Mean over rows of sum over labels of (probability - [label is gold])^2 (Brier 1950): 0 to 2."""
    probabilities_BL, gold_B = check_probabilities(probabilities_BL, gold_B)
    one_hot_BL = np.eye(probabilities_BL.shape[1])[gold_B]
    return float(np.mean(((probabilities_BL - one_hot_BL) ** 2).sum(axis=1)))


def log_loss(probabilities_BL: Floats, gold_B: Indices) -> float:
    """Mean over rows of -ln probability of the gold label, in nats.

    Probabilities are clipped from below at SMALLEST_PROBABILITY (2.2e-16), so one sure and wrong row costs
    36.04 nats and not infinity.
    """
    probabilities_BL, gold_B = check_probabilities(probabilities_BL, gold_B)
    of_gold_B = probabilities_BL[np.arange(len(gold_B)), gold_B]
    return float(-np.mean(np.log(np.clip(of_gold_B, SMALLEST_PROBABILITY, 1.0))))


def fit_temperature(log_probs_BL: Floats, gold_B: Indices) -> float:
    """The temperature T that makes the gold labels most likely (Guo et al. 2017, section 4.2), with a doubt.

        T = argmin over T of  -mean_B sum_L t_BL ln softmax(log_probs_BL / T),   t = 1 - e for gold, e / (L - 1) else

    with e = 1 / (B + 2) (Platt 1999, section 2.2): some rows, all of them right, do not prove that the next one is.
    Without the doubt a model that errs on no validation row would answer with probability 1. Fit it on validation
    rows, never on test rows. Logits serve as well as log-probabilities: softmax does not see a constant. The loss
    has one minimum (it is convex in 1 / T), searched over ln T in TEMPERATURES.
    """
    log_probs_BL, gold_B = check_scores(log_probs_BL, gold_B)
    num_rows, num_labels = log_probs_BL.shape
    doubt = 1.0 / (num_rows + 2)
    target_BL = np.full((num_rows, num_labels), doubt / max(1, num_labels - 1))
    target_BL[np.arange(num_rows), gold_B] = 1.0 - doubt

    def loss(log_temperature: float) -> float:
        tempered_BL = apply_temperature(log_probs_BL, float(np.exp(log_temperature)))
        return float(-np.sum(target_BL * tempered_BL) / num_rows)

    found = optimize.minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def apply_temperature(log_probs_BL: Floats, temperature: float) -> Floats:
    """ln softmax(log_probs / temperature): above 1 makes the model less sure, below 1 surer. Shape (B, L)."""
    return np.asarray(special.log_softmax(np.asarray(log_probs_BL) / temperature, axis=1))


def ratio(numerator: int, denominator: int) -> float:
    """numerator / denominator, and 0 where there is nothing to divide by."""
    return numerator / denominator if denominator else 0.0


def check_labels(gold_B: Indices, predicted_B: Indices) -> tuple[Indices, Indices]:
    """Both as flat index arrays of the same rows, at least one."""
    gold_B, predicted_B = np.asarray(gold_B), np.asarray(predicted_B)
    check_rows("gold", gold_B, "predicted", predicted_B)
    return gold_B, predicted_B


def check_confidence(confidence_B: Floats, correct_B: Correct) -> tuple[Floats, Correct]:
    """Confidences between 0 and 1 with right/wrong of the same rows, at least one.

    A float32 softmax may end a few digits above 1: such a confidence is taken as 1.
    """
    confidence_B = np.asarray(confidence_B, dtype=np.float64)
    correct_B = np.asarray(correct_B, dtype=np.bool_)
    check_rows("confidence", confidence_B, "correct", correct_B)
    if not np.all((confidence_B >= 0) & (confidence_B <= 1 + ROUNDING)):
        raise ValueError("a confidence lies outside 0 to 1, or is not a number; it is a probability.")
    return np.minimum(confidence_B, 1.0), correct_B


def check_scores(scores_BL: Floats, gold_B: Indices) -> tuple[Floats, Indices]:
    """Finite scores, one row for each gold index, one column for each label."""
    scores_BL, gold_B = np.asarray(scores_BL, dtype=np.float64), np.asarray(gold_B)
    if scores_BL.ndim != 2:
        raise ValueError(f"scores have shape {scores_BL.shape}; they need one row per text, one column per label.")
    check_rows("scores", scores_BL[:, 0], "gold", gold_B)
    check_range("gold", gold_B, 0, scores_BL.shape[1])
    if not np.all(np.isfinite(scores_BL)):
        raise ValueError("a score is not finite; leave out the rows that have none.")
    return scores_BL, gold_B


def check_probabilities(probabilities_BL: Floats, gold_B: Indices) -> tuple[Floats, Indices]:
    """Like `check_scores`, with rows of probabilities that sum to 1 (to float32 accuracy)."""
    probabilities_BL, gold_B = check_scores(probabilities_BL, gold_B)
    sums_B = probabilities_BL.sum(axis=1)
    bad_B = (np.abs(sums_B - 1) > ROUNDING) | (probabilities_BL < 0).any(axis=1)
    if bad_B.any():
        row = int(np.flatnonzero(bad_B)[0])
        raise ValueError(f"row {row} sums to {sums_B[row]:.6g} or has a negative entry; give probabilities.")
    return probabilities_BL, gold_B


def check_rows(name: str, values_B: npt.NDArray, other: str, others_B: npt.NDArray) -> None:
    """Two flat arrays over the same rows, at least one row."""
    if values_B.shape != others_B.shape or values_B.ndim != 1:
        raise ValueError(f"{name} has shape {values_B.shape}, {other} {others_B.shape}; give one entry per row.")
    if not len(values_B):
        raise ValueError("0 rows: at least one scored row is needed.")


def check_range(name: str, index_B: Indices, lowest: int, num_labels: int) -> None:
    """Label indices within lowest..L-1."""
    outside_B = (index_B < lowest) | (index_B >= num_labels)
    if outside_B.any():
        row = int(np.flatnonzero(outside_B)[0])
        raise ValueError(f"{name} row {row} is {index_B[row]}; label indices run from {lowest} to {num_labels - 1}.")
