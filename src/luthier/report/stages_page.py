"""The page of a run of stages: one self-contained HTML file, from the plain values of its result.

One section a stage. What a stage trains decides which figures it has, so nothing here knows a figure by its name: each
is a number before, a number after, and the change, all with their intervals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from luthier.report import charts
from luthier.report.numbers import (
    NOTHING,
    capital,
    count,
    duration,
    in_page_style,
    known,
    level_words,
    size,
    with_cost,
    words,
)
from luthier.report.page import SPLITS, TRAINING_FIELDS, VERDICTS, ledger_view, training_view
from luthier.report.rendering import NARROW, WIDE, Values, filled, rendered, save_page

METHOD_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "clm": "continued pre-training",
        "mlm": "masked language modelling",
        "plm": "permutation language modelling",
        "sft": "supervised fine-tuning",
        "distil": "distillation",
        "classify": "classification head",
        "multilabel": "multi-label head",
        "ordinal": "ordinal head",
        "regress": "regression head",
        "tag": "tagging head",
        "reward": "reward model",
        "dpo": "direct preference optimisation (DPO)",
        "kto": "Kahneman-Tversky optimisation (KTO)",
        "orpo": "odds-ratio preference optimisation (ORPO)",
        "simpo": "simple preference optimisation (SimPO)",
    }
)
STARTS: Mapping[str, str] = MappingProxyType(
    {
        "stack": "a fresh adapter over the earlier stages; the saved one holds them all",
        "continue": "the last stage's adapter, trained on",
        "merge": "a fresh adapter over a model with the earlier stages in its weights",
    }
)
TOP_FIELDS = (
    "adapter", "adapter_format", "asked", "matrix", "environment", "recipe", "seed", "confidence", "model", "currency",
    "machine_per_hour",
)  # fmt: skip
MODEL_FIELDS = ("family", "parameters", "sha256")
STAGE_FIELDS = (
    "rows", "examples", "ledger", "training", "adapter", "start", "shown", "rivals", "tasks", "labels", "numbers",
    "samples",
)  # fmt: skip
FIGURE_FIELDS = ("rivals", "rival", "gain", "gain_p", "p", "n")
MOST_ASKED, MOST_SAID = 600, 600  # characters of a sample's prompt and of the answer of its row
# How a verdict's sentence begins, and what stands on its badge.
OPENINGS: Mapping[str, str] = MappingProxyType(
    {
        "better": "better",
        "worse": "worse",
        "no difference": "no_difference",
        "too few": "too_few_rows",
        "mixed": "mixed",
    }
)
BADGES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {**VERDICTS, "mixed": ("±", "Mixed"), "nothing_to_compare": ("·", "Not measured")}
)


def write_stages_page(path: str | Path, result: Values) -> None:
    """Write the page of `result`. What UTF-8 cannot hold (half of a surrogate pair in a text) becomes `?`."""
    save_page(Path(path), render_stages_page(result))


def render_stages_page(result: Values) -> str:
    """The HTML text of a result of `luthier train`. Fields that may be missing may be absent or None."""
    return rendered("stages_page.html", stages_view(result))


# --- what the page shows --------------------------------------------------------------------------------------------


def stages_view(result: Values) -> Values:
    """Everything the template prints."""
    run = filled(result, TOP_FIELDS)
    run["model"] = filled(run["model"] or {"name": NOTHING}, MODEL_FIELDS)
    stages = [stage_view(stage, number) for number, stage in enumerate(run["stages"], start=1)]
    view = {
        "run": run,
        "stages": stages,
        "verdict": verdict_view(run["verdict"]),
        "level": level_words(run["confidence"]),
        "figures": key_figures(stages, run["currency"]),
        "matrix": run["matrix"] and matrix_view(run["matrix"]),
        "number": number_words,
        "change": signed,
        "spread": spread,
        "time_of": time_of,
    }
    view["sections"] = sections(view)
    return view


def sections(view: Values) -> dict[str, str]:
    """Anchor and title of the sections there are, in order."""
    stages, run = view["stages"], view["run"]
    entries = [
        ("stages", "Every stage at a glance", len(stages) > 1),
        *((stage["anchor"], stage["title"], True) for stage in stages),
        ("matrix", "Every task after every stage", bool(view["matrix"])),
        ("recipe", "Resolved recipe", bool(run["recipe"])),
        ("environment", "Model and environment", True),
        ("use", "Using the adapter", bool(run["adapter"])),
    ]
    return {anchor: title for anchor, title, present in entries if present}


def verdict_view(verdict: str) -> dict[str, str]:
    """A verdict as a badge (its code for the colour, a sign, the words on it) and the sentence beside that."""
    code = verdict_code(verdict)
    icon, name = BADGES[code]
    return {"code": code, "icon": icon, "name": name, "sentence": sentence(verdict)}


def verdict_code(sentence: str) -> str:
    """What the badge says: the first words of a stage's verdict."""
    return next((code for opening, code in OPENINGS.items() if sentence.startswith(opening)), "nothing_to_compare")


def sentence(verdict: str) -> str:
    """A verdict without the word that stands on its badge."""
    opening, colon, rest = verdict.partition(": ")
    told = rest if colon and verdict_code(opening) != "nothing_to_compare" else verdict
    return capital(in_page_style(told))


def compared(found: Values) -> Values:
    """What a figure's verdict goes by: the strongest plain model where one was measured, else the figure before.

    `name` of it, its `figure`, what the trained one is `moved` from it, and the `p` of that.
    """
    rival, gain = found["rival"], found["gain"]
    if not (rival and gain and known(rival["value"])):
        return {"name": "before", "figure": found["before"], "moved": found["change"], "p": found["p"]}
    name = list(found["rivals"])[-1] if found["rivals"] else "rival"
    return {"name": name, "figure": rival, "moved": gain, "p": found["gain_p"]}


def key_figures(stages: Sequence[Values], currency: str | None) -> list[tuple[str, str, str]]:
    """Label, value and small print of the strip under the verdict."""
    last = stages[-1]
    title, found, beside = capital(words(last["primary_metric"])), last["primary"], last["primary"]["compared"]
    figures = [
        (f"{title}, {beside['name']}", number_words(beside["figure"]["value"]), spread(beside["figure"])),
        (f"{title}, after", number_words(found["after"]["value"]), spread(found["after"])),
        (f"After minus {beside['name']}", signed(beside["moved"]["value"]), spread(beside["moved"], signed)),
    ]
    made = [stage["training"] for stage in stages if stage["training"]]
    if made:
        seconds = sum(time_of(training) for training in made)
        paid = with_cost(f"{count(sum(t['steps'] or 0 for t in made))} steps", [t["cost"] for t in made], currency)
        figures.append(("Training", duration(seconds), paid))
        peak = max(training["peak_rss_bytes"] or 0 for training in made)
        figures.append(("Peak memory", size(peak) if peak else NOTHING, "of the process"))
        computed, padded = (sum(t[name] or 0 for t in made) for name in ("computed_tokens", "padded_tokens"))
        if computed and padded:
            saved = f"{padded / computed:.1f} times fewer than padded"
            figures.append(("Tokens computed", count(computed), saved))
    return figures


def time_of(training: Values) -> float:
    """Seconds of a training with all its validations."""
    return float(training["total_seconds"] or training["seconds"] or 0.0)


def stage_view(stage: Values, number: int) -> Values:
    """One stage: its figures in reading order, its drawings, its training, its ledger."""
    stage = filled(stage, STAGE_FIELDS)
    primary = stage["primary_metric"]
    names = [primary, *(name for name in stage["figures"] if name != primary)]
    figures = {name: filled(stage["figures"][name], FIGURE_FIELDS) for name in names}
    figures = {name: {**found, "compared": compared(found)} for name, found in figures.items()}
    besides = {found["compared"]["name"] for found in figures.values()}
    training = stage["training"] and filled(stage["training"], TRAINING_FIELDS)
    drawn = training and training_view({**training, "method": stage["method"]})
    method = METHOD_NAMES.get(stage["method"], words(stage["method"]))
    return {
        **stage,
        "anchor": f"stage-{number}",
        "title": f"{stage['name']}: {method}" if stage["name"] != stage["method"] else capital(method),
        "method": method,
        "start": STARTS.get(stage["start"] or "", NOTHING) if number > 1 else "a fresh adapter over the model",
        "told": verdict_view(stage["verdict"]),
        "primary": figures[primary],
        "figures": figures,
        "charts": {name: figure_chart(name, found) for name, found in figures.items()},
        "rivals": stage["rivals"] or [],
        "beside": besides.pop() if len(besides) == 1 else "",
        "headed": any(found["compared"]["name"] != "before" for found in figures.values()),
        "training": training,
        "drawn": drawn and {**drawn, "columns": validation_columns(drawn["validation"])},
        "ledger": ledger_view(stage["ledger"]),
        "shown": stage["shown"] or [],
        "label_tables": label_tables(stage),
        "samples": [sample_view(sample) for sample in stage["samples"] or []],
    }


def label_tables(stage: Values) -> list[Values]:
    """Label by label: rows in each part, and what was found of them; one table a task that has labels or numbers."""
    tasks = stage["tasks"] or {"": stage}
    tables = []
    for name, task in tasks.items():
        labels, numbers = task.get("labels") or [], task.get("numbers") or {}
        if labels or numbers:
            parts = [part for part in SPLITS if any(part in row["rows"] for row in labels)]
            judged = any("f1" in row for row in labels)
            tables.append({"task": name, "labels": labels, "numbers": numbers, "parts": parts, "judged": judged})
    return tables


def sample_view(sample: Values) -> Values:
    """A prompt, the answer of its row, and what the model said before and after; what is long is cut."""
    turns = sample["prompt"]
    texts = [turns[-1]["content"]] if len(turns) == 1 else [f"{turn['role']}: {turn['content']}" for turn in turns]
    asked = "\n".join(texts)
    reference = sample["reference"]
    return {
        "task": sample["task"],
        "asked": asked if len(asked) <= MOST_ASKED else f"[...] {asked[-MOST_ASKED:]}",
        "reference": reference and (reference if len(reference) <= MOST_SAID else f"{reference[:MOST_SAID]} [...]"),
        "before": said(sample["before"]),
        "after": said(sample["after"]),
    }


def said(reply: Values) -> str:
    """A reply, with a mark where it was cut off."""
    return (reply["text"] or "(no text)") + ("" if reply["finished"] else " [...]")


def validation_columns(rows: Sequence[Values]) -> list[str]:
    """Names of the figures that were validated beside the loss."""
    return list(dict.fromkeys(name for row in rows for name in row if name not in ("step", "loss", "accuracy"))) + (
        ["accuracy"] if any(known(row["accuracy"]) for row in rows) else []
    )


def figure_chart(name: str, found: Values) -> Values | None:
    """Before, after and the rival as dots with intervals; nothing where nothing could be measured."""
    parts = [("Before", found["before"], False), ("After", found["after"], True)]
    parts += [(rival, part, False) for rival, part in rivals_in(found).items()]
    rows = [
        charts.Interval(title, part["value"], bound(part["low"]), bound(part["high"]),
                        f"{number_words(part['value'])} ({spread(part)})", marked, marked)
        for title, part, marked in parts if known(part["value"])
    ]  # fmt: skip
    if not rows:
        return None
    ends = [end for row in rows for end in (row.value, row.low, row.high) if end is not None]
    ticks = charts.nice_ticks(min(ends), max(ends), 5)
    axis = charts.Axis(ticks[0], ticks[-1], tuple((tick, number_words(tick)) for tick in ticks), words(name))
    alt = f"{words(name)}, with interval. " + " ".join(f"{row.name}: {row.text}." for row in rows)
    return {
        "wide": charts.interval_plot(rows, axis, WIDE, alt),
        "narrow": charts.interval_plot(rows, axis, NARROW, alt),
    }


def rivals_in(found: Values) -> Mapping[str, Values]:
    """The plain models beside a figure, by name."""
    if found["rivals"]:
        return {capital(words(name)): part for name, part in found["rivals"].items()}
    return {"Rival": found["rival"]} if found["rival"] else {}


def matrix_view(matrix: Values) -> Values:
    """Rows: after which stage; columns: the figure of each stage's held-out rows, None where there is none yet."""
    rows = [
        {"stage": row["stage"], "cells": [cell and {**cell, "spread": spread(cell)} for cell in row["scores"]]}
        for row in matrix["rows"]
    ]
    return {"columns": matrix["columns"], "rows": rows, "notes": matrix.get("notes") or []}


# --- how a figure of any size is written ----------------------------------------------------------------------------


def number_words(value: float | None) -> str:
    """Four significant digits, thousands parted: 1.013, 0.0004, 1,204."""
    if value is None or not known(value):
        return NOTHING
    written = f"{value:,.0f}" if abs(value) >= 9999.5 else f"{value:.4g}"
    return written.replace("-", "−")


def signed(value: float | None) -> str:
    """The same with its sign; 0 has none."""
    if value is None or not known(value):
        return NOTHING
    return number_words(value) if value <= 0 else f"+{number_words(value)}"


def spread(found: Values, write: Any = number_words) -> str:
    """`0.98 to 1.04`."""
    if not (known(found["low"]) and known(found["high"])):
        return "no interval"
    return f"{write(found['low'])} to {write(found['high'])}"


def bound(value: float | None) -> float | None:
    """An end of an interval that can be drawn."""
    return value if value is not None and math.isfinite(value) else None


__all__ = ["render_stages_page", "write_stages_page"]
