"""Class prior: answers weighted so that the labels come in the shares that are expected of the rows to be sorted.

A model that meets rows of another kind than it was trained on (another year, another desk) answers some labels too
often. Where it is known how often each label should come, texts without labels are enough to put that right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from collections.abc import Sequence as ManyOf
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from luthier.errors import DataError
from luthier.evaluation.arms.base import Floats, predictions_from
from luthier.recipe.prior import ClassPrior
from luthier.records import Labelled

ROWS_A_LABEL = 10  # of the rows that weights are fitted on, on average
FOLDS = 10
FARTHEST = 20.0  # no label is weighted by more than e to this power
SMALLEST = 1e-30
FAR, SURE = 0.05, 4.0  # what is told of: shares this far from the training rows', and this many standard errors


def label_shares(rows: ManyOf[Labelled], labels: ManyOf[str]) -> Floats:
    """Share of the rows that has each label [L]."""
    counts = Counter(row.label for row in rows)
    return np.array([counts[label] for label in labels]) / len(rows)


def prior_shares(prior: ClassPrior, labels: ManyOf[str], train_L: Floats) -> Floats:
    """The shares [L] that a setting stands for; they add up to one."""
    if isinstance(prior, dict):
        shares_L = np.array([prior[label] for label in labels])
    else:
        shares_L = train_L if prior == "train" else np.ones(len(labels))
    return shares_L / shares_L.sum()


def check_enough(num_rows: int, num_labels: int, what: str) -> None:
    """DataError where there are too few rows to tell how often a model answers each label."""
    needed = ROWS_A_LABEL * num_labels
    if num_rows < needed:
        raise DataError(
            f"class_prior: {num_rows} {what} are too few to weigh {num_labels} labels by; it takes {needed}. Give "
            "more, or leave class_prior out."
        )


def prior_weights(logprobs_NL: Floats, prior_L: Floats) -> Floats:
    """Log weights w [L] with mean_n softmax_l(log p_nl + w_l) = prior_l, and sum_l prior_l w_l = 0.

    Of all answers with these shares on average, those that differ least from the model's: sum_n KL(q_n || p_n) is
    smallest (expectation regularisation, Mann and McCallum 2007; distribution alignment, Berthelot et al. 2020). The
    minimum of the convex function mean_n logsumexp_l(log p_nl + w_l) - sum_l prior_l w_l.
    """

    def objective(weights_L: Floats) -> tuple[float, Floats]:
        scores_NL = logprobs_NL + weights_L
        value = special.logsumexp(scores_NL, axis=1).mean() - prior_L @ weights_L
        return float(value), special.softmax(scores_NL, axis=1).mean(0) - prior_L

    bounds = [(-FARTHEST, FARTHEST)] * len(prior_L)
    start_L = np.zeros(len(prior_L))
    found = optimize.minimize(
        objective, start_L, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 0.0, "gtol": 1e-9}
    )
    weights_L: Floats = found.x
    return weights_L - prior_L @ weights_L


def weighted(logprobs_NL: Floats, weights_L: Floats) -> Floats:
    """Log-probabilities after the weights, normalised again."""
    result: Floats = special.log_softmax(logprobs_NL + weights_L, axis=1)
    return result


def weighted_across(logprobs_NL: Floats, prior_L: Floats, seed: int) -> Floats:
    """Each row with weights fitted on the rows of the other folds: no text takes part in its own weights."""
    order_N = np.random.default_rng(seed).permutation(len(logprobs_NL))
    result_NL = np.empty_like(logprobs_NL)
    for fold in range(FOLDS):
        mine: NDArray[np.int64] = order_N[fold::FOLDS]
        others_NL = np.delete(logprobs_NL, mine, axis=0)
        result_NL[mine] = weighted(logprobs_NL[mine], prior_weights(others_NL, prior_L))
    return result_NL


def stored_logprobs(predictions: ManyOf[Mapping[str, Any]]) -> Floats | None:
    """Log-probabilities [N, L] of stored predictions; None where there are none, or the same for every text."""
    rows = [prediction["probabilities"] for prediction in predictions]
    if any(row is None for row in rows):
        return None
    probabilities_NL = np.array(rows)
    if (probabilities_NL == probabilities_NL[0]).all():
        return None
    return np.log(np.maximum(probabilities_NL, SMALLEST))


def with_prior(arm: dict[str, Any], labels: ManyOf[str], prior_L: Floats, seed: int) -> dict[str, Any]:
    """A stored arm with its answers weighted; `as_scored` keeps the answers without, `weights` is fitted on all rows.

    An arm that looks at no text stays as it is.
    """
    logprobs_NL = stored_logprobs(arm["predictions"])
    if logprobs_NL is None:
        return arm
    answers = predictions_from(weighted_across(logprobs_NL, prior_L, seed), labels)
    predictions = [
        {**prediction, "label": answer.label, "probabilities": list(answer.probabilities or ())}
        for prediction, answer in zip(arm["predictions"], answers, strict=True)
    ]
    weights_L = prior_weights(logprobs_NL, prior_L)
    return {**arm, "predictions": predictions, "as_scored": arm["predictions"], "weights": weights_L.tolist()}


def answered_shares(predictions: ManyOf[Mapping[str, Any]]) -> Floats | None:
    """How often stored predictions expect each label: the mean of their probabilities [L]."""
    logprobs_NL = stored_logprobs(predictions)
    return None if logprobs_NL is None else np.exp(logprobs_NL).mean(0)


def drift_note(train_L: Floats, answered_L: Floats, num_rows: int, labels: ManyOf[str]) -> str | None:
    """A sentence where an arm answers labels much more or less often than the training rows have them.

    No test label is looked at: it is all that could be seen in use as well.
    """
    away_L = answered_L - train_L
    errors_L = np.sqrt(np.maximum(train_L * (1 - train_L), 1e-12) / num_rows)
    if not ((np.abs(away_L) > FAR) & (np.abs(away_L) > SURE * errors_L)).any():
        return None
    most, least = int(away_L.argmax()), int(away_L.argmin())
    return (
        f"the tuned arm expects {labels[most]} in {answered_L[most]:.1%} of the test rows, where the training rows "
        f"have {train_L[most]:.1%}, and {labels[least]} in {answered_L[least]:.1%}, where they have "
        f"{train_L[least]:.1%}. If the rows to be sorted have the shares of the training rows, say "
        "data.class_prior: train."
    )
