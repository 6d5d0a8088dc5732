"""The report page of a run: one self-contained HTML file, from the plain values of its result.

`view` turns the result into what the template prints: rows in reading order, sentences and drawings.
The template holds the words and the order of the sections, `page.css` the looks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from luthier.records import NOT_TAKEN
from luthier.report import charts
from luthier.report.numbers import (
    NOTHING,
    arm_name,
    count,
    decimal,
    duration,
    in_page_style,
    in_sentence,
    known,
    level_words,
    percent,
    points,
    price,
    with_arm_names,
    words,
)
from luthier.report.rendering import NARROW, WIDE, Values, filled, rendered, save_page

MOST_POINTS = 240  # a longer training curve is drawn as means of neighbouring steps
MOST_CLASSES = 24  # further labels of the per-class table are folded away

VERDICTS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "better": ("▲", "Better"),
        "worse": ("▼", "Worse"),
        "no_difference": ("=", "No difference shown"),
        "too_few_rows": ("?", "Too few rows"),
        "nothing_to_compare": ("·", "Nothing to compare"),
    }
)
METHODS: Mapping[str, str] = MappingProxyType(
    {
        "head": "classification head",
        "candidates": "label candidates",
        "sft": "supervised fine-tuning",
    }
)
TOP_FIELDS = ("training", "break_even", "generated", "mistakes", "ledger", "prompt", "recipe", "comparisons", "shares")
MODEL_FIELDS = ("source", "family", "parameters", "sha256")
ARM_FIELDS = (
    "low", "high", "macro_f1", "balanced_accuracy", "coverage", "accuracy_on_covered", "seconds_per_row",
    "p50_seconds", "p95_seconds", "single_rows", "cost_per_1000", "chosen", "ece", "brier", "log_loss", "reliability",
    "outcomes", "per_class", "confusion", "tokens_per_row", "as_scored",
)  # fmt: skip
TRAINING_FIELDS = (
    "method", "seconds", "steps", "best_step", "rows", "epochs", "trained_tokens", "computed_tokens",
    "padded_tokens", "peak_rss_bytes", "memory", "trainable_parameters", "total_parameters", "cost", "adapter", "curve",
    "refit", "planned_steps", "fit", "validation_seconds", "total_seconds",
)  # fmt: skip
LEDGER_FIELDS = ("reasons", "notes", "examples")
SPLITS = ("train", "validation", "test")
MISTAKE_FIELDS = ("predicted", "outcome", "probability", "source")


def write_page(path: str | Path, result: Values) -> None:
    """Write the page of `result`."""
    save_page(Path(path), render_page(result))


def render_page(result: Values) -> str:
    """The HTML text of a run's report. Fields that may be missing may be absent or None."""
    return rendered("page.html", view(result))


def view(result: Values) -> Values:
    """Everything the template prints."""
    run = filled(result, (*TOP_FIELDS, "seed", "chance", "machine_per_hour"))
    run["model"] = filled(result["model"], MODEL_FIELDS)
    run["arms"] = {name: filled(arm, ARM_FIELDS) for name, arm in result["arms"].items()}
    run["verdict"] = in_page_style(with_arm_names(run["verdict"], run["arms"]))
    run["break_even"] = [
        {**row, "sentence": in_page_style(with_arm_names(row["sentence"], run["arms"]))}
        for row in run["break_even"] or []
    ]
    if run["training"]:
        run["training"] = filled(run["training"], TRAINING_FIELDS)
    ranked = sorted(run["arms"], key=lambda name: -run["arms"][name]["accuracy"])
    focus = "tuned" if "tuned" in ranked else ranked[0]
    rival = next((name for name in ranked if name != focus), None)
    compared = [oriented(comparison, focus) for comparison in run["comparisons"] or []]
    compared = [{**row, "plain": plain_words(row, 1 - run["confidence"])} for row in compared]
    icon, verdict_name = VERDICTS.get(run["verdict_code"], ("?", words(run["verdict_code"])))
    page = {
        "run": run,
        "ranked": ranked,
        "focus": focus,
        "rival": rival,
        "verdict": {"icon": icon, "name": verdict_name, "code": run["verdict_code"]},
        "level": level_words(run["confidence"]),
        "rows": run["arms"][focus]["n"],
        "compared": compared,
        "one_subject": all(comparison["subject"] == focus for comparison in compared),
        "accuracy_chart": accuracy_chart(run, ranked, focus),
        "difference_chart": difference_chart(compared, focus),
        "training": training_view(run["training"]),
        "weighed": any(arm["as_scored"] for arm in run["arms"].values()),
        "shares": share_rows(run["shares"]),
        "classes": class_rows(run, focus, rival),
        "most_classes": MOST_CLASSES,
        "confusion": confusion_view(run, focus),
        "calibrated": [name for name in ranked if run["arms"][name]["ece"] is not None],
        "reliability_chart": reliability_chart(run["arms"][focus]),
        "outcomes": outcome_table(run, ranked),
        "mistakes": [filled(mistake, MISTAKE_FIELDS) for mistake in run["mistakes"] or []],
        "ledger": ledger_view(run["ledger"]),
    }
    page["figures"] = key_figures(page)
    page["sections"] = sections(page)
    return page


def sections(page: Values) -> dict[str, str]:
    """Anchor and title of the sections this run has, in order."""
    run = page["run"]
    entries = [
        ("accuracy", "Accuracy of every arm", True),
        ("comparisons", f"Compared with {in_sentence(page['focus'])}", True),
        ("cost", "Speed and cost", True),
        ("training", "Training", page["training"] is not None),
        ("classes", "Label by label", bool(page["classes"])),
        ("shares", "How often each label comes", bool(page["shares"])),
        ("confusion", "What is taken for what", page["confusion"] is not None),
        (
            "calibration",
            "Can its confidence be trusted?",
            bool(page["calibrated"] or page["reliability_chart"]),
        ),
        ("outcomes", "Outcomes and coverage", bool(page["outcomes"]["rows"]) or bool(run["generated"])),
        ("mistakes", "Worst mistakes", run["mistakes"] is not None),
        ("chosen", "Chosen on validation rows", any(arm["chosen"] for arm in run["arms"].values())),
        ("ledger", "Data ledger", page["ledger"] is not None),
        ("prompt", "The prompt, as the model saw it", bool(run["prompt"])),
        ("recipe", "Resolved recipe", bool(run["recipe"])),
        ("environment", "Model and environment", True),
        ("use", "Using the adapter", page["training"] is not None and bool(run["training"]["adapter"])),
    ]
    return {anchor: title for anchor, title, present in entries if present}


def key_figures(page: Values) -> list[tuple[str, str, str]]:
    """Label, value and small print of the strip under the verdict."""
    run, focus, rival = page["run"], page["focus"], page["rival"]
    arm = run["arms"][focus]
    spread = f"{percent(arm['low'])} to {percent(arm['high'])}, {count(arm['n'])} test rows"
    first, second = "Accuracy, fine-tuned", "Best other arm"
    if focus != "tuned":
        first, second, spread = "Best arm", "Second best arm", arm_name(focus)
    figures = [(first, percent(arm["accuracy"]), spread)]
    if rival:
        figures.append((second, percent(run["arms"][rival]["accuracy"]), arm_name(rival)))
    gains = [row for row in page["compared"] if (row["subject"], row["other"]) == (focus, rival)]
    for row in gains:
        spread = f"points, {points(row['low'])} to {points(row['high'])}"
        figures.append(("Difference of the two", points(row["difference"]), spread))
    figures.append(
        ("One row asked alone", duration(arm["p50_seconds"]), f"median; 95% within {duration(arm['p95_seconds'])}")
    )
    hourly = price(run["machine_per_hour"], run["currency"]) or NOTHING
    paid = price(arm["cost_per_1000"], run["currency"]) or NOTHING
    figures.append(("Cost of 1,000 rows", paid, f"in batches, at {hourly} an hour"))
    if run["training"]:
        paid = f"{price(run['training']['cost'], run['currency'])}, {count(run['training']['rows'])} rows"
        figures.append(("Training", duration(run["training"]["total_seconds"]), paid))
    return figures


def oriented(comparison: Values, focus: str) -> Values:
    """A comparison as subject minus other; the subject is `focus` where it takes part.

    In the result `difference` is accuracy(arm) - accuracy(reference).
    """
    row = dict(comparison)
    row |= {"subject": row["arm"], "other": row["reference"]}
    row |= {"only_subject": row["only_arm"], "only_other": row["only_reference"]}
    if row["reference"] != focus:
        return row
    row |= {"subject": row["reference"], "other": row["arm"]}
    row |= {"only_subject": row["only_reference"], "only_other": row["only_arm"]}
    low, high = row["low"], row["high"]
    row["difference"] = -row["difference"]
    row["low"] = None if high is None else -high
    row["high"] = None if low is None else -low
    return row


def plain_words(row: Values, alpha: float) -> str:
    """What interval and corrected test say together, per 100 rows."""
    name = arm_name(row["subject"])
    low, high = row["low"], row["high"]
    tested = row["p"] if row["p_holm"] is None else row["p_holm"]
    if low is None or high is None or tested is None:
        return "Not tested."
    excludes_zero, significant = low > 0 or high < 0, tested < alpha
    if excludes_zero and significant:
        verdict, direction = ("is better", "more") if low > 0 else ("is worse", "fewer")
        small, large = (per_hundred(end) for end in sorted((low, high), key=abs))
        return f"{name} {verdict}: {small} to {large} {direction} right in 100 rows."
    if excludes_zero and row["p"] is not None and row["p"] < alpha:
        return "A difference is likely, but does not pass the correction for several comparisons."
    if excludes_zero:
        return "Borderline: the interval leaves out zero, the exact test does not see a difference."
    if significant:
        return "Borderline: the test sees a difference, the interval still includes none."
    fewer, more = per_hundred(low), per_hundred(high)
    return f"No difference shown: {fewer} fewer to {more} more right in 100 rows fit the data."


def per_hundred(share: float) -> str:
    """0.105 as `10.5`."""
    return f"{abs(100 * share):.1f}"


# Drawings, each for the column and for a phone


def accuracy_chart(run: Values, ranked: list[str], focus: str) -> Values:
    """Dot and interval of every arm, best first."""
    rows = [
        charts.Interval(
            name=arm_name(name),
            value=arm["accuracy"],
            low=arm["low"],
            high=arm["high"],
            text=f"{percent(arm['accuracy'])} ({percent(arm['low'])[:-1]} to {percent(arm['high'])[:-1]})",
            marked=name == focus,
            bold=name == focus,
        )
        for name, arm in ((name, run["arms"][name]) for name in ranked)
    ]
    axis = charts.Axis(
        low=0,
        high=1,
        ticks=tuple((step / 4, f"{step / 4:.0%}") for step in range(5)),
        label=f"accuracy, with {level_words(run['confidence'])} interval",
        reference=run["chance"],
        reference_label=f"chance {percent(run['chance'])}",
    )
    alt = "Accuracy with interval. " + " ".join(f"{row.name}: {row.text}." for row in rows)
    alt += f" Chance is {percent(run['chance'])}."
    return {
        "wide": charts.interval_plot(rows, axis, WIDE, alt),
        "narrow": charts.interval_plot(rows, axis, NARROW, alt),
    }


def difference_chart(compared: list[Values], focus: str) -> Values | None:
    """Differences to the focus arm around zero."""
    mine = [row for row in compared if row["subject"] == focus]
    if not mine:
        return None
    rows = [
        charts.Interval(
            name=arm_name(row["other"]),
            value=row["difference"],
            low=row["low"],
            high=row["high"],
            text=f"{points(row['difference'])} ({points(row['low'])} to {points(row['high'])})",
            marked=row["low"] is not None and (row["low"] > 0 or row["high"] < 0),
        )
        for row in mine
    ]
    ends = [end for row in rows for end in (row.value, row.low, row.high) if end is not None]
    ticks = charts.nice_ticks(min(0.0, *ends), max(0.0, *ends), 5)
    axis = charts.Axis(
        low=ticks[0],
        high=ticks[-1],
        ticks=tuple((tick, "0" if tick == 0 else f"{100 * tick:+g}".replace("-", "−")) for tick in ticks),
        label=f"points of accuracy; right of 0: {arm_name(focus)} is better",
        reference=0.0,
        reference_label="equal",
    )
    alt = f"Difference in accuracy, {arm_name(focus)} minus the other arm, in points. "
    alt += " ".join(f"{row.name}: {row.text}." for row in rows)
    return {
        "wide": charts.interval_plot(rows, axis, WIDE, alt),
        "narrow": charts.interval_plot(rows, axis, NARROW, alt),
    }


def training_view(training: Values | None) -> Values | None:
    """Curves, bars of tokens, and derived shares of a training."""
    if not training:
        return None
    shown: Values = {"loss_chart": None, "token_chart": None, "saved": None, "validation": []}
    computed, padded = training["computed_tokens"], training["padded_tokens"]
    if computed and padded:
        shown["saved"] = padded / computed
        bars = [
            charts.Bar("Computed in this run", computed, count(computed), marked=True),
            charts.Bar("In padded batches", padded, count(padded)),
        ]
        alt = f"{count(computed)} tokens were computed; padded batches would have computed {count(padded)}."
        shown["token_chart"] = {
            "wide": charts.bar_chart(bars, WIDE, alt),
            "narrow": charts.bar_chart(bars, NARROW, alt),
        }
    curve = training["curve"] or {}
    shown["validation"] = [filled(row, ("loss", "accuracy")) for row in curve.get("validation") or []]
    train = loss_points(curve.get("train") or [])
    validation = loss_points(shown["validation"])
    if train or validation:
        shown["loss_chart"] = loss_chart(train, validation, training["best_step"])
    shown["kept"] = kept_adapter(training["refit"], bool(shown["validation"]))
    shown["method"] = METHODS.get(training["method"], training["method"] or NOTHING)
    return shown


def kept_adapter(refit: Values | None, validated: bool) -> str:
    """Which weights the training ended with."""
    if refit:
        return (
            "This is the first training, which the validation rows judge. The adapter that is used was then trained "
            f"anew on training and validation rows together: {count(refit['steps'])} steps on "
            f"{count(refit['rows'])} rows."
        )
    return f"The adapter of the {'best step on validation rows' if validated else 'last step'} was kept."


def loss_points(rows: Sequence[Values]) -> list[tuple[float, float]]:
    """(step, loss) of the rows whose loss is a finite number."""
    return [(row["step"], row["loss"]) for row in rows if known(row["loss"])]


def loss_chart(
    train: list[tuple[float, float]], validation: list[tuple[float, float]], best_step: int | None
) -> Values:
    """The curves; a long training curve is thinned to means of neighbouring steps, and says so."""
    block = math.ceil(len(train) / MOST_POINTS) or 1
    label = "training" if block == 1 else f"training (means of {block})"
    curves = charts.Curves(tuple(means(train, block)), tuple(validation), best_step, label)
    parts = [
        f"{name} loss goes from {decimal(rows[0][1])} at step {rows[0][0]} to {decimal(rows[-1][1])} "
        f"at step {rows[-1][0]}."
        for name, rows in (("Training", train), ("Validation", validation))
        if rows
    ]
    if best_step is not None:
        parts.append(f"The best step is {best_step}.")
    alt = " ".join(parts)
    return {"wide": charts.loss_plot(curves, WIDE, alt), "narrow": charts.loss_plot(curves, NARROW, alt)}


def means(rows: list[tuple[float, float]], block: int) -> list[tuple[float, float]]:
    """Neighbouring points, `block` at a time, as their mean."""
    blocks = [rows[start : start + block] for start in range(0, len(rows), block)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in blocks]


def share_rows(shares: Values | None) -> list[Values]:
    """Each label's shares; the labels that the tuned arm answers most unlike the training rows come first."""
    rows = [{"label": label, **found} for label, found in (shares or {"labels": {}})["labels"].items()]
    return sorted(rows, key=lambda row: 0.0 if row["answered"] is None else -abs(row["answered"] - row["train"]))


def class_rows(run: Values, focus: str, rival: str | None) -> list[Values]:
    """Per-class numbers of the focus arm beside the rival's F1, weakest label first."""
    mine = run["arms"][focus]["per_class"] or {}
    theirs = (run["arms"][rival]["per_class"] or {}) if rival else {}
    rows = []
    for label in (label for label in run["labels"] if label in mine):
        other = theirs[label]["f1"] if label in theirs else None
        bar = charts.share_bar(mine[label]["f1"], other)
        rows.append({"label": label, **mine[label], "other_f1": other, "bar": bar})
    return sorted(rows, key=lambda row: row["f1"])


def confusion_view(run: Values, focus: str) -> Values | None:
    """The heat map, and the most frequent confusions in words."""
    counts, labels = run["arms"][focus]["confusion"], run["labels"]
    if not counts:
        return None
    unanswered = sum(sum(row[len(labels) :]) for row in counts)
    shown = [row if unanswered else row[: len(labels)] for row in counts]
    total, right = sum(map(sum, counts)), sum(row[index] for index, row in enumerate(counts))
    pairs = [
        {
            "gold": labels[gold],
            "predicted": labels[column] if column < len(labels) else None,
            "count": number,
            "share": number / sum(row),
        }
        for gold, row in enumerate(counts)
        for column, number in enumerate(row)
        if number and column != gold
    ]
    pairs.sort(key=lambda pair: -pair["count"])
    alt = f"Confusion matrix of {in_sentence(focus)}: {right} of {total} rows lie on the diagonal."
    if pairs:
        first = pairs[0]
        taken_for = first["predicted"] or "no answer"
        alt += f" Most often, {first['gold']} is taken for {taken_for} ({first['count']} rows)."
    return {
        "chart": {
            "wide": charts.heat_map(shown, labels, WIDE, alt),
            "narrow": charts.heat_map(shown, labels, NARROW, alt),
        },
        "pairs": pairs[:10],
        "num_pairs": len(pairs),
        "unanswered": unanswered,
    }


def reliability_chart(arm: Values) -> Values | None:
    """The reliability plot of the bins that hold rows."""
    bins = [
        charts.Bin(row["confidence"], row["accuracy"], row["count"], row.get("low"), row.get("high"))
        for row in arm["reliability"] or []
        if row["count"] and known(row["confidence"]) and known(row["accuracy"])
    ]
    if not bins:
        return None
    alt = "Reliability plot. " + " ".join(
        f"At confidence {percent(row.confidence)} accuracy is {percent(row.accuracy)} ({row.count} rows)."
        for row in bins
    )
    return {
        "wide": charts.reliability_plot(bins, 400.0, alt),
        "narrow": charts.reliability_plot(bins, NARROW, alt),
        "bins": bins,
    }


def outcome_table(run: Values, ranked: list[str]) -> Values:
    """Arms in rows, the outcomes that occurred in columns."""
    rows = [name for name in ranked if run["arms"][name]["outcomes"]]
    columns = list(
        dict.fromkeys(
            outcome
            for name in rows
            for outcome, number in run["arms"][name]["outcomes"].items()
            if number or outcome == "answered"
        )
    )
    return {"rows": rows, "columns": columns}


def ledger_view(ledger: Values | None) -> Values | None:
    """The ledger as an account: reasons in rows, splits in columns."""
    if not ledger:
        return None
    ledger = filled(ledger, LEDGER_FIELDS)
    counted = (ledger["reasons"] or {}).items()
    reasons = {split: {why: n for why, n in counts.items() if why != NOT_TAKEN} for split, counts in counted}
    splits = [split for split in SPLITS if split in ledger["rows_in"] or split in ledger["kept"]]
    splits += [split for split in {**ledger["rows_in"], **ledger["kept"]} if split not in splits]
    return {
        **ledger,
        "splits": splits,
        "dropped": {split: sum(counts.values()) for split, counts in reasons.items()},
        "not_taken": {split: counts[NOT_TAKEN] for split, counts in counted if counts.get(NOT_TAKEN)},
        "by_reason": {
            reason: {split: counts.get(reason, 0) for split, counts in reasons.items()}
            for reason in dict.fromkeys(reason for counts in reasons.values() for reason in counts)
        },
    }
