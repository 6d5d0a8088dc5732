"""Hand-worked numbers and parity with scikit-learn."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from luthier.evaluation.metrics import (
    ClassScores,
    ReliabilityBin,
    accuracy,
    accuracy_on_covered,
    apply_temperature,
    balanced_accuracy,
    brier_score,
    confusion_matrix,
    coverage,
    expected_calibration_error,
    fit_temperature,
    log_loss,
    macro_f1,
    per_class,
    reliability_table,
)

# three labels; row 3 is confused, row 5 has no answer
GOLD = np.array([0, 0, 0, 0, 1, 1, 2])
PREDICTED = np.array([0, 0, 0, 1, 1, -1, 2])


def random_rows(seed: int, n: int = 300, num_labels: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gold labels, predictions with some unanswered, and probabilities."""
    rng = np.random.default_rng(seed)
    gold = rng.integers(num_labels, size=n)
    predicted = np.where(rng.random(n) < 0.6, gold, rng.integers(-1, num_labels, size=n))
    return gold, predicted, rng.dirichlet(np.ones(num_labels), size=n)


# --- right and wrong


def test_scores_by_hand() -> None:
    assert confusion_matrix(GOLD, PREDICTED, 3).tolist() == [[3, 1, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0]]
    assert accuracy(GOLD, PREDICTED) == 5 / 7
    assert coverage(PREDICTED) == 6 / 7
    assert accuracy_on_covered(GOLD, PREDICTED) == 5 / 6
    assert balanced_accuracy(GOLD, PREDICTED, 3) == pytest.approx((3 / 4 + 1 / 2 + 1) / 3)
    assert per_class(GOLD, PREDICTED, 3) == [
        ClassScores(precision=1.0, recall=3 / 4, f1=6 / 7, support=4),
        ClassScores(precision=1 / 2, recall=1 / 2, f1=1 / 2, support=2),
        ClassScores(precision=1.0, recall=1.0, f1=1.0, support=1),
    ]
    assert macro_f1(GOLD, PREDICTED, 3) == pytest.approx((6 / 7 + 1 / 2 + 1) / 3)


def test_a_label_without_gold_rows_is_outside_the_means() -> None:
    gold, predicted = np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1])
    assert per_class(gold, predicted, 3)[2] == ClassScores(precision=0.0, recall=0.0, f1=0.0, support=0)
    assert balanced_accuracy(gold, predicted, 3) == 3 / 4
    assert macro_f1(gold, predicted, 3) == pytest.approx((2 / 3 + 1) / 2)


def test_all_right_all_wrong_and_no_answer_at_all() -> None:
    gold = np.array([0, 1, 2, 0, 1])
    for predicted, expected in [(gold, 1.0), ((gold + 1) % 3, 0.0), (np.full(5, -1), 0.0)]:
        assert accuracy(gold, predicted) == expected
        assert balanced_accuracy(gold, predicted, 3) == expected
        assert macro_f1(gold, predicted, 3) == expected
    assert coverage(np.full(5, -1)) == 0.0
    assert accuracy_on_covered(gold, np.full(5, -1)) is None


@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_scikit_learn(seed: int) -> None:
    gold, predicted, _ = random_rows(seed)
    labels = list(range(5))
    precision, recall, f1, support = sk.precision_recall_fscore_support(gold, predicted, labels=labels, zero_division=0)
    ours = per_class(gold, predicted, 5)
    assert [score.precision for score in ours] == pytest.approx(precision)
    assert [score.recall for score in ours] == pytest.approx(recall)
    assert [score.f1 for score in ours] == pytest.approx(f1)
    assert [score.support for score in ours] == support.tolist()
    assert macro_f1(gold, predicted, 5) == pytest.approx(
        sk.f1_score(gold, predicted, labels=labels, average="macro", zero_division=0)
    )
    assert balanced_accuracy(gold, predicted, 5) == pytest.approx(
        sk.recall_score(gold, predicted, labels=labels, average="macro")
    )
    answered = np.where(predicted < 0, (gold + 1) % 5, predicted)
    assert balanced_accuracy(gold, answered, 5) == pytest.approx(sk.balanced_accuracy_score(gold, answered))
    assert (
        confusion_matrix(gold, predicted, 5).tolist()
        == sk.confusion_matrix(gold, np.where(predicted < 0, 5, predicted), labels=range(6))[:5].tolist()
    )


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 3)), min_size=1, max_size=40))
def test_confusion_counts_every_row_once(rows: list[tuple[int, int]]) -> None:
    gold, predicted = (np.array(column) for column in zip(*rows, strict=True))
    counts = confusion_matrix(gold, predicted, 4)
    assert counts.sum() == len(rows)
    assert counts.trace() / len(rows) == pytest.approx(accuracy(gold, predicted))
    assert 1 - counts[:, 4].sum() / len(rows) == pytest.approx(coverage(predicted))


# --- calibration

CONFIDENCE = np.array([0.55, 0.65, 0.75, 0.85, 0.95, 0.95])
RIGHT = np.array([True, False, True, True, True, False])


def test_equal_width_bins_by_hand() -> None:
    # four bins of 0.25: nothing below 0.5; (0.5, 0.75] has 0.55, 0.65, 0.75; (0.75, 1] the rest
    table = reliability_table(CONFIDENCE, RIGHT, 4, "equal_width")
    assert table == [
        ReliabilityBin(0.5, 0.75, pytest.approx(0.65), pytest.approx(2 / 3), 3),
        ReliabilityBin(0.75, 1.0, pytest.approx(2.75 / 3), pytest.approx(2 / 3), 3),
    ]
    expected = (abs(2 / 3 - 0.65) + abs(2 / 3 - 2.75 / 3)) / 2
    assert expected_calibration_error(CONFIDENCE, RIGHT, 4, "equal_width") == pytest.approx(expected)


def test_equal_mass_bins_by_hand() -> None:
    table = reliability_table(CONFIDENCE, RIGHT, 3, "equal_mass")
    assert table == [
        ReliabilityBin(0.55, 0.65, pytest.approx(0.6), 0.5, 2),
        ReliabilityBin(0.75, 0.85, pytest.approx(0.8), 1.0, 2),
        ReliabilityBin(0.95, 0.95, pytest.approx(0.95), 0.5, 2),
    ]
    expected = (0.1 + 0.2 + 0.45) / 3
    assert expected_calibration_error(CONFIDENCE, RIGHT, 3, "equal_mass") == pytest.approx(expected)


def test_equal_mass_bins_of_distinct_confidences_are_equal() -> None:
    confidence = np.random.default_rng(0).permutation(np.linspace(0.2, 1, 103))
    counts = [row.count for row in reliability_table(confidence, confidence > 0.5, 10, "equal_mass")]
    assert sum(counts) == 103
    assert set(counts) == {10, 11}


def test_bins_keep_ties_together_and_ignore_the_order_of_rows() -> None:
    rng = np.random.default_rng(0)
    confidence = np.repeat([0.3, 0.6, 0.9], [15, 15, 20])
    right = rng.random(50) < confidence
    order = rng.permutation(50)
    for binning in ("equal_mass", "equal_width"):
        table = reliability_table(confidence, right, 10, binning)
        assert [row.count for row in table] == [int(np.sum(confidence == c)) for c in (0.3, 0.6, 0.9)]
        shuffled = reliability_table(confidence[order], right[order], 10, binning)
        assert [row.accuracy for row in shuffled] == [row.accuracy for row in table]


@pytest.mark.parametrize("binning", ["equal_mass", "equal_width"])
def test_edges_of_confidence_and_single_rows_have_a_bin(binning) -> None:
    table = reliability_table(np.array([0.0, 1.0]), np.array([False, True]), 5, binning)
    assert [(row.confidence, row.accuracy, row.count) for row in table] == [(0.0, 0.0, 1), (1.0, 1.0, 1)]
    assert expected_calibration_error(np.array([1.0]), np.array([False]), 5, binning) == 1.0


@pytest.mark.parametrize("binning", ["equal_mass", "equal_width"])
def test_a_calibrated_model_has_a_small_error(binning) -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.3, 1, size=50_000)
    right = rng.random(50_000) < confidence
    assert expected_calibration_error(confidence, right, 10, binning) < 0.01
    overconfident = np.minimum(confidence + 0.1, 1)
    assert expected_calibration_error(overconfident, right, 10, binning) == pytest.approx(0.093, abs=0.01)


def test_a_float32_confidence_just_above_one_is_one() -> None:
    confidence, right = np.array([1.0000001, 0.5], np.float32), np.array([True, False])
    assert [row.high for row in reliability_table(confidence, right)] == [0.5, 1.0]
    assert expected_calibration_error(confidence, right) == 0.25


def test_brier_and_log_loss_by_hand() -> None:
    # squared errors of the rows: 9 + 4 + 1 and 81 + 64 + 1 hundredths
    probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]])
    gold = np.array([0, 0])
    assert brier_score(probabilities, gold) == pytest.approx((0.14 + 1.46) / 2)
    assert log_loss(probabilities, gold) == pytest.approx(-(np.log(0.7) + np.log(0.1)) / 2)


def test_brier_and_log_loss_at_their_ends() -> None:
    sure = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert brier_score(sure, np.array([0, 1])) == log_loss(sure, np.array([0, 1])) == 0.0
    assert brier_score(sure, np.array([1, 0])) == 2.0
    assert log_loss(sure, np.array([1, 0])) == pytest.approx(36.04, abs=0.01)


@pytest.mark.parametrize("seed", range(3))
def test_brier_and_log_loss_equal_scikit_learn(seed: int) -> None:
    gold, _, probabilities = random_rows(seed)
    labels = list(range(5))
    assert brier_score(probabilities, gold) == pytest.approx(sk.brier_score_loss(gold, probabilities, labels=labels))
    assert log_loss(probabilities, gold) == pytest.approx(sk.log_loss(gold, probabilities, labels=labels))


# --- temperature


def test_temperature_by_hand() -> None:
    # the model says 0.9 every time and is right in 3 of 4. With a doubt of 1 / 6 the mean target is
    # (3 * 5/6 + 1/6) / 4 = 2/3, odds 2 and not 9: ln 9 / T = ln 2
    log_probs = np.log([[0.9, 0.1]] * 4)
    temperature = fit_temperature(log_probs, np.array([0, 0, 0, 1]))
    assert temperature == pytest.approx(np.log(9) / np.log(2), abs=1e-3)
    assert np.exp(apply_temperature(log_probs, temperature))[0] == pytest.approx([2 / 3, 1 / 3], abs=1e-3)


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 3.0])
def test_temperature_is_found_again(true_temperature: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=2, size=(20_000, 4))
    gold = np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)
    found = fit_temperature(logits * true_temperature + 7.0, gold)
    assert found == pytest.approx(true_temperature, rel=0.03)


def test_temperature_is_the_minimum_of_the_log_loss() -> None:
    _, _, probabilities = random_rows(1)
    log_probs = np.log(probabilities)
    gold = np.argmax(log_probs / 2 + np.random.default_rng(0).gumbel(size=log_probs.shape), axis=1)
    best = fit_temperature(log_probs, gold)
    losses = {t: log_loss(np.exp(apply_temperature(log_probs, t)), gold) for t in (best, best * 0.9, best * 1.1, 1.0)}
    assert losses[best] < min(losses[1.0], losses[best * 0.9], losses[best * 1.1]) + 1e-3


def test_rows_that_are_all_right_leave_a_doubt() -> None:
    # 98 rows, none wrong: a doubt of 1 / 100, whatever the model's own certainty
    log_probs = np.log([[1 - 1e-9, 1e-9]] * 98)
    temperature = fit_temperature(log_probs, np.zeros(98, dtype=np.int64))
    assert np.exp(apply_temperature(log_probs, temperature))[0] == pytest.approx([0.99, 0.01], abs=1e-4)


def test_temperature_stays_in_its_range() -> None:
    log_probs = np.log([[0.6, 0.4], [0.4, 0.6], [0.7, 0.3]])
    assert fit_temperature(log_probs, np.array([1, 0, 1])) == pytest.approx(20.0, rel=0.01)


# --- what is refused

NONE = np.array([], dtype=np.int64)
ROWS_NEEDED = "0 rows: at least one scored row is needed."


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: accuracy(NONE, NONE), ROWS_NEEDED),
        (lambda: coverage(NONE), ROWS_NEEDED),
        (lambda: accuracy_on_covered(NONE, NONE), ROWS_NEEDED),
        (lambda: macro_f1(NONE, NONE, 3), ROWS_NEEDED),
        (lambda: balanced_accuracy(NONE, NONE, 3), ROWS_NEEDED),
        (lambda: expected_calibration_error(NONE, NONE, 10, "equal_mass"), ROWS_NEEDED),
        (lambda: brier_score(np.empty((0, 2)), NONE), ROWS_NEEDED),
        (lambda: fit_temperature(np.empty((0, 2)), NONE), ROWS_NEEDED),
        (
            lambda: accuracy(GOLD, PREDICTED[:-1]),
            "gold has shape (7,), predicted (6,); give one entry per row.",
        ),
        (lambda: per_class(GOLD, PREDICTED, 2), "gold row 6 is 2; label indices run from 0 to 1."),
        (lambda: per_class(GOLD, PREDICTED - 1, 3), "predicted row 5 is -2; label indices run from -1 to 2."),
        (lambda: per_class(PREDICTED, GOLD, 3), "gold row 5 is -1; label indices run from 0 to 2."),
        (
            lambda: reliability_table(CONFIDENCE, RIGHT, 0, "equal_mass"),
            "num_bins is 0; at least one is needed.",
        ),
        (
            lambda: reliability_table(np.array([1.2]), np.array([True])),
            "a confidence lies outside 0 to 1, or is not a number; it is a probability.",
        ),
        (
            lambda: log_loss(np.array([0.5, 0.5]), np.array([0])),
            "scores have shape (2,); they need one row per text, one column per label.",
        ),
        (
            lambda: log_loss(np.array([[0.5, 0.6]]), np.array([0])),
            "row 0 sums to 1.1 or has a negative entry; give probabilities.",
        ),
        (
            lambda: fit_temperature(np.array([[0.0, -np.inf]]), np.array([0])),
            "a score is not finite; leave out the rows that have none.",
        ),
    ],
)
def test_errors_teach(call, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        call()
    assert str(caught.value) == message
