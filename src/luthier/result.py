"""result.json: everything the report shows, from the stored stages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from luthier.corpus.prepare import Prepared, data_hash
from luthier.evaluation import metrics
from luthier.evaluation.arms.base import gold_indices
from luthier.evaluation.prior import answered_shares, drift_note, label_shares, prior_shares
from luthier.evaluation.statistics import wilson
from luthier.evaluation.verdict import Comparison, compare_arms, verdict
from luthier.peek import ledger_values, marked_parts
from luthier.prompts import ClassifyPrompt
from luthier.recipe import Recipe, dump_recipe
from luthier.records import Labelled, Outcome
from luthier.report.numbers import money
from luthier.runtime import machine_values

if TYPE_CHECKING:
    from luthier.models import LoadedModel

Floats = NDArray[np.float64]
MISTAKES = 20
FINEST = 12  # most decimals of an amount in a sentence, so that its division can be checked


def build_result(
    recipe: Recipe,
    model: LoadedModel,
    backend: str,
    prompt: ClassifyPrompt,
    prepared: Prepared,
    arms: dict[str, Any],
    training: dict[str, Any] | None,
    generated: dict[str, Any] | None,
    out: Path,
) -> dict[str, Any]:
    """Figures of every arm on the same test rows, the comparisons and the verdict, as JSON values."""
    labels, test = recipe.task.labels, prepared.test
    gold_B = gold_indices(test, labels)
    correct = {name: correct_rows(value, test) for name, value in arms.items()}
    judge = recipe.judge
    comparisons = compare_arms(correct, judge.confidence) if len(correct) > 1 else []
    found = verdict(correct, comparisons, judge.confidence, judge.minimum_gain)
    hourly = recipe.cost.machine_per_hour
    if training is not None:
        training = {**recipe.cost.priced(training), "adapter": str(out / "adapter")}
    summaries = {name: summarise(recipe, value, gold_B) for name, value in arms.items()}
    return {
        "name": recipe.name,
        "seed": recipe.seed,
        "verdict": found.sentence,
        "verdict_code": found.code.value,
        "primary_metric": "accuracy",
        "confidence": judge.confidence,
        "chance": 1 / len(labels),
        "labels": list(labels),
        "model": {
            "name": model.name,
            "source": str(model.folder),
            "family": model.family,
            "parameters": model.num_parameters,
            "sha256": model.sha256,
        },
        "arms": summaries,
        "shares": shares(recipe, prepared, arms),
        "comparisons": [comparison_values(item) for item in comparisons],
        "training": training,
        "break_even": break_even(summaries, training, recipe.cost.currency),
        "generated": generated,
        "mistakes": mistakes(arms[reference_arm(summaries)], test, labels),
        "ledger": ledger_values(prepared.ledger),
        "prompt": {
            "parts": marked_parts(prompt, prepared.train[0], recipe.tune),
            "template": prompt.layout.template,
        },
        "recipe": dump_recipe(recipe),
        "currency": recipe.cost.currency,
        "machine_per_hour": hourly,
        "environment": environment(prepared, backend, model.precision),
    }


def reference_arm(arms: dict[str, Any]) -> str:
    """`tuned`, or the most accurate arm where nothing was tuned."""
    return "tuned" if "tuned" in arms else max(arms, key=lambda name: arms[name]["accuracy"])


def correct_rows(value: dict[str, Any], test: tuple[Labelled, ...]) -> NDArray[np.bool_]:
    """Which rows an arm got right; no answer is wrong."""
    return np.array([p["label"] == row.label for p, row in zip(value["predictions"], test, strict=True)])


def summarise(recipe: Recipe, value: dict[str, Any], gold_B: NDArray[np.int64]) -> dict[str, Any]:
    """All figures of one arm."""
    labels, confidence = recipe.task.labels, recipe.judge.confidence
    predicted_B = predicted_indices(value["predictions"], labels)
    outcomes = {outcome.value: 0 for outcome in Outcome}
    for p in value["predictions"]:
        outcomes[p["outcome"]] += 1
    scores = metrics.per_class(gold_B, predicted_B, len(labels))
    latencies = np.array(value["latencies_seconds"])
    return {
        **accuracy_figures(predicted_B, gold_B, confidence),
        "macro_f1": metrics.macro_f1(gold_B, predicted_B, len(labels)),
        "balanced_accuracy": metrics.balanced_accuracy(gold_B, predicted_B, len(labels)),
        "n": len(gold_B),
        "coverage": metrics.coverage(predicted_B),
        "accuracy_on_covered": metrics.accuracy_on_covered(gold_B, predicted_B),
        "seconds_per_row": value["seconds_per_row"],
        "single_rows": len(latencies),
        "p50_seconds": float(np.percentile(latencies, 50)),
        "p95_seconds": float(np.percentile(latencies, 95)),
        "cost_per_1000": value["seconds_per_row"] * 1000 / 3600 * recipe.cost.machine_per_hour,
        "tokens_per_row": value["tokens_per_row"],
        "chosen": value["chosen"],
        "outcomes": outcomes,
        "per_class": {
            label: {"precision": s.precision, "recall": s.recall, "f1": s.f1, "support": s.support}
            for label, s in zip(labels, scores, strict=True)
        },
        "confusion": metrics.confusion_matrix(gold_B, predicted_B, len(labels)).tolist(),
        **weight_figures(value, gold_B, labels, confidence),
        **probability_figures(value, gold_B, predicted_B, confidence),
    }


def predicted_indices(predictions: list[dict[str, Any]], labels: list[str]) -> NDArray[np.int64]:
    """Index of each row's label [B]; -1 where there is no answer."""
    index = {label: i for i, label in enumerate(labels)}
    return np.array([index.get(p["label"], metrics.NO_ANSWER) for p in predictions])


def accuracy_figures(predicted_B: NDArray[np.int64], gold_B: NDArray[np.int64], confidence: float) -> dict[str, float]:
    """Share of the rows that are right, and its interval."""
    right = int((predicted_B == gold_B).sum())
    interval = wilson(right, len(gold_B), confidence)
    return {"accuracy": right / len(gold_B), "low": interval.low, "high": interval.high}


def weight_figures(
    value: dict[str, Any], gold_B: NDArray[np.int64], labels: list[str], confidence: float
) -> dict[str, Any]:
    """Accuracy of a weighted arm without its weights, and each label's weight; None where there are none."""
    if "weights" not in value:
        return {"as_scored": None, "weights": None}
    return {
        "as_scored": accuracy_figures(predicted_indices(value["as_scored"], labels), gold_B, confidence),
        "weights": dict(zip(labels, np.exp(value["weights"]).tolist(), strict=True)),
    }


def shares(recipe: Recipe, prepared: Prepared, arms: dict[str, Any]) -> dict[str, Any]:
    """How often each label comes: in the training rows, in the test rows, as the tuned arm scored it, as expected."""
    labels, prior = recipe.task.labels, recipe.data.class_prior
    train_L = label_shares(prepared.train + prepared.validation, labels)
    tuned = arms.get("tuned")
    answered_L = None if tuned is None else answered_shares(tuned.get("as_scored", tuned["predictions"]))
    note = None
    if prior is None and answered_L is not None:
        note = drift_note(train_L, answered_L, len(prepared.test), labels)
    columns = {
        "train": train_L,
        "test": label_shares(prepared.test, labels),
        "answered": answered_L,
        "expected": None if prior is None else prior_shares(prior, labels, train_L),
    }
    by_label = {
        label: {name: None if column is None else float(column[i]) for name, column in columns.items()}
        for i, label in enumerate(labels)
    }
    return {"class_prior": prior, "labels": by_label, "note": note}


def probability_figures(
    value: dict[str, Any], gold_B: NDArray[np.int64], predicted_B: NDArray[np.int64], confidence: float
) -> dict[str, Any]:
    """Calibration figures, None where the arm has no probabilities."""
    rows = [p["probabilities"] for p in value["predictions"]]
    if any(row is None for row in rows):
        return {"ece": None, "brier": None, "log_loss": None, "reliability": None}
    probabilities_BL = np.array(rows)
    top_B = probabilities_BL.max(1)
    correct_B = predicted_B == gold_B
    bins = []
    for item in metrics.reliability_table(top_B, correct_B):
        if not item.count:
            continue
        interval = wilson(round(item.accuracy * item.count), item.count, confidence)
        bins.append(
            {
                "confidence": item.confidence,
                "accuracy": item.accuracy,
                "count": item.count,
                "low": interval.low,
                "high": interval.high,
            }
        )
    return {
        "ece": metrics.expected_calibration_error(top_B, correct_B),
        "brier": metrics.brier_score(probabilities_BL, gold_B),
        "log_loss": metrics.log_loss(probabilities_BL, gold_B),
        "reliability": bins,
    }


def comparison_values(item: Comparison) -> dict[str, Any]:
    """One paired comparison: `arm` minus `reference`, positive where `arm` (the tuned one) is better."""
    return {
        "arm": item.arm,
        "reference": item.reference,
        "difference": item.difference,
        "low": item.interval.low,
        "high": item.interval.high,
        "p": item.p,
        "p_holm": item.p_holm,
        "only_arm": item.only_arm,
        "only_reference": item.only_reference,
        "n": item.n,
    }


def break_even(arms: dict[str, Any], training: dict[str, Any] | None, currency: str) -> list[dict[str, Any]]:
    """After how many rows the training has paid for itself against each arm, by cost alone."""
    if training is None or "tuned" not in arms:
        return []
    tuned = arms["tuned"]["cost_per_1000"] / 1000
    found: list[dict[str, Any]] = []
    for name, arm in arms.items():
        if name == "tuned":
            continue
        saved = arm["cost_per_1000"] / 1000 - tuned
        if saved <= 0:
            sentence = f"never by cost: {name} is as cheap a row or cheaper; only its accuracy can speak for training."
            found.append({"arm": name, "rows": None, "sentence": sentence})
            continue
        rows = int(np.ceil(training["cost"] / saved))
        sentence = (
            f"after {rows:,} rows: 1,000 rows cost {currency} {money(saved * 1000, FINEST)} less than with {name}, "
            f"training cost {currency} {money(training['cost'], FINEST)}."
        )
        found.append({"arm": name, "rows": rows, "sentence": sentence})
    return found


def mistakes(value: dict[str, Any], test: tuple[Labelled, ...], labels: list[str]) -> list[dict[str, Any]]:
    """The most confident wrong answers."""
    wrong = []
    for prediction, row in zip(value["predictions"], test, strict=True):
        if prediction["label"] == row.label:
            continue
        shares = prediction["probabilities"]
        wrong.append(
            {
                "text": row.text,
                "gold": row.label,
                "predicted": prediction["label"],
                "outcome": prediction["outcome"],
                "probability": None if shares is None else max(shares),
                "gold_probability": None if shares is None else shares[labels.index(row.label)],
                "source": f"{Path(row.source.file).name} line {row.source.line}",
            }
        )
    return sorted(wrong, key=lambda item: -(item["probability"] or 1.0))[:MISTAKES]


def environment(prepared: Prepared, backend: str, precision: str) -> dict[str, str]:
    """Versions, hardware and hashes that the figures depend on."""
    return {
        **machine_values(),
        "attention": backend,
        "precision": precision,
        "data hash": data_hash(prepared)[:16],
    }
