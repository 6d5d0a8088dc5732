"""The page of a sweep: one self-contained HTML file, from the plain values of its result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.report.charts import Bar, bar_chart
from luthier.report.numbers import NOTHING, alike, count, duration, percent, words
from luthier.report.rendering import NARROW, WIDE, Values, rendered, save_page
from luthier.report.sweep_charts import Point, Track, parallel_plot, track_of_numbers, track_of_words, trials_plot

STATES: Mapping[str, str] = {"complete": "done", "pruned": "ended early", "failed": "failed", "running": "running"}


def write_sweep_page(path: str | Path, result: Values) -> None:
    """Write the page of `result`. What UTF-8 cannot hold becomes `?`."""
    save_page(Path(path), render_sweep_page(result))


def render_sweep_page(result: Values) -> str:
    """The HTML text of a result of `luthier sweep`, at any time of the sweep."""
    return rendered("sweep_page.html", sweep_view(result))


def sweep_view(result: Values) -> Values:
    """Everything the template prints."""
    names = short_names(list(result["space"]))
    done = ranked(result, "complete")
    view = {
        "sweep": result,
        "names": names,
        "metric": words(result["metric"]["name"]),
        "verdict": verdict(result),
        "figures": key_figures(result),
        "trials": [trial_row(trial, result) for trial in result["trials"]],
        "failed": [trial for trial in result["trials"] if trial["state"] == "failed"],
        "space": [
            (
                path,
                search_words(search),
                value_words(result["own"][path]),
                value_words(result["best"]["values"][path]) if result["best"] else NOTHING,
            )
            for path, search in result["space"].items()
        ],
        "write": writer(result),
        "progress_chart": progress_chart(result),
        "importance_chart": importance_chart(result, names),
        "parallel_chart": parallel_chart(result, done, names) if len(done) > 1 else None,
    }
    view["sections"] = sections(view)
    return view


def sections(view: Values) -> dict[str, str]:
    """Anchor and title of the sections there are, in order."""
    sweep = view["sweep"]
    entries = [
        ("progress", "Trial after trial", view["progress_chart"] is not None),
        ("importance", "What matters", len(view["trials"]) > 0),
        ("values", "Which values do well", view["parallel_chart"] is not None),
        ("trials", "All trials", len(view["trials"]) > 0),
        ("failed", "Failed trials", bool(view["failed"])),
        ("final", "Held-out rows", sweep["best"] is not None),
        ("space", "What was searched", True),
        ("best", "The best recipe", sweep["best_recipe"] is not None),
        ("environment", "How it was searched", True),
    ]
    return {anchor: title for anchor, title, present in entries if present}


def writer(result: Values) -> Callable[[float | None], str]:
    """How the figure of this sweep is written everywhere on the page."""
    return alike(trial["value"] for trial in result["trials"])


def verdict(result: Values) -> dict[str, str]:
    """The sentence on top, and what stands on its badge.

    No badge says that values are better: rows are not kept one by one, so there is no interval of the difference, and
    the best of many trials is lucky as well.
    """
    best, own, metric, write = result["best"], result["baseline"], words(result["metric"]["name"]), writer(result)
    if best is None:
        return {"code": "open", "icon": "·", "name": "No trial is done", "sentence": "There is no best recipe yet."}
    found = f"validation {metric} {write(best['value'])}"
    if own is None:
        told = (
            f"Trial {best['number']} is the best of {result['counts']['complete']} that were trained in full: {found}."
        )
        return {"code": "open", "icon": "·", "name": "Best found", "sentence": told}
    if best["number"] == own["number"]:
        told = f"Nothing better than the recipe as it stands was found: {found}."
        return {"code": "no_difference", "icon": "=", "name": "Keep the recipe", "sentence": told}
    which = f"{'Highest' if result['metric']['higher_is_better'] else 'Lowest'} validation {metric}"
    told = f"Trial {best['number']} is the best: {found}, {write(own['value'])} with the recipe as it stands."
    if result["final"] is None:
        told += " Whether that is more than luck, only held-out rows can say."
    return {"code": "open", "icon": "·", "name": which, "sentence": told}


def key_figures(result: Values) -> list[tuple[str, str, str]]:
    """Label, value and small print of the strip under the verdict."""
    best, own, counts = result["best"], result["baseline"], result["counts"]
    title, write = words(result["metric"]["name"]), writer(result)
    rows = result["metric"].get("rows")
    on = f"on {count(rows)} validation rows" if rows else "on validation rows"
    figures = [
        (f"Best {title}", write(best["value"]) if best else NOTHING, on),
        ("Recipe as it stands", write(own["value"]) if own else NOTHING, "trial 0" if own else "not tried"),
        ("Trials", f"{sum(counts.values())} of {result['wanted']}", states_words(counts)),
        ("Training", duration(result["seconds"]), "of all trials together"),
    ]
    if result["seconds_left"]:
        figures.append(("Time left", duration(result["seconds_left"]), "about, with these workers"))
    return figures


def states_words(counts: Mapping[str, int]) -> str:
    """`12 done, 5 ended early`."""
    return ", ".join(f"{number} {STATES[state]}" for state, number in counts.items() if number) or "none yet"


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """Each path by as few of its last words as tell it apart from the others."""
    names: dict[str, str] = {}
    for path in paths:
        parts = path.split(".")
        ends = (".".join(parts[-length:]) for length in range(1, len(parts) + 1))
        names[path] = next(
            end for end in ends if sum(other == end or other.endswith(f".{end}") for other in paths) == 1
        )
    return names


def ranked(result: Values, state: str) -> list[Values]:
    """Trials of a state from the worst to the best."""
    found = [trial for trial in result["trials"] if trial["state"] == state and trial["value"] is not None]
    return sorted(found, key=lambda trial: trial["value"], reverse=not result["metric"]["higher_is_better"])


def trial_row(trial: Values, result: Values) -> Values:
    """A row of the table; `focus` is the best one."""
    best = result["best"]
    return {
        **trial,
        "focus": best is not None and trial["number"] == best["number"],
        "told": STATES[trial["state"]],
        "shown": {path: value_words(trial["values"].get(path)) for path in result["space"]},
    }


def value_words(value: Any) -> str:
    """A value of a key in a table."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def search_words(search: Values) -> str:
    """Where a key was searched, in words."""
    if search["choices"]:
        return " or ".join(value_words(choice) for choice in search["choices"])
    told = f"{search['low']:g} to {search['high']:g}"
    if search["step"]:
        return f"{told} in steps of {search['step']:g}"
    return f"{told}, by the logarithm" if search["log"] else told


# --- drawings ---------------------------------------------------------------------------------------------------


def progress_chart(result: Values) -> Values | None:
    """Figure by trial, with the best so far; None before any trial has a figure."""
    best, write = result["best"], writer(result)
    points = [
        Point(
            trial["number"],
            trial["value"],
            write(trial["value"]),
            pruned=trial["state"] == "pruned",
            best=best is not None and trial["number"] == best["number"],
        )
        for trial in result["trials"]
        if trial["state"] in ("complete", "pruned") and trial["value"] is not None
    ]
    if not points:
        return None
    label = f"validation {words(result['metric']['name'])}"
    alt = f"{label} of {len(points)} trials, and the best so far."
    higher = result["metric"]["higher_is_better"]
    return {
        "wide": trials_plot(points, higher, label, WIDE, alt),
        "narrow": trials_plot(points, higher, label, NARROW, alt),
    }


def importance_chart(result: Values, names: Mapping[str, str]) -> Values | None:
    """Share of the spread between trials that each key explains."""
    shares = result["importance"]
    if not shares:
        return None
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    bars = [Bar(names[path], share, percent(share, 0), marked=i == 0) for i, (path, share) in enumerate(ordered)]
    alt = "Importance: " + ", ".join(f"{bar.name} {bar.text}" for bar in bars)
    return {"wide": bar_chart(bars, WIDE, alt), "narrow": bar_chart(bars, NARROW, alt)}


def parallel_chart(result: Values, done: Sequence[Values], names: Mapping[str, str]) -> Values:
    """Every finished trial as a line through its values, the figure last. The last of `done` is the best."""
    tracks = [track_of(names[path], search, [trial["values"][path] for trial in done])
              for path, search in result["space"].items()]  # fmt: skip
    figures = [trial["value"] for trial in done]
    title = f"validation {words(result['metric']['name'])}"
    title += " (higher is better)" if result["metric"]["higher_is_better"] else " (lower is better)"
    tracks.append(track_of_numbers(title, figures, (min(figures), max(figures))))
    alt = f"The values of {len(done)} trials, each a line; the best one is trial {done[-1]['number']}."
    last = len(done) - 1
    return {"wide": parallel_plot(tracks, last, WIDE, alt), "narrow": parallel_plot(tracks, last, NARROW, alt)}


def track_of(name: str, search: Values, values: Sequence[Any]) -> Track:
    """The axis of one key."""
    if search["choices"]:
        options = [value_words(choice) for choice in search["choices"]]
        return track_of_words(name, [value_words(value) for value in values], options)
    return track_of_numbers(name, values, (search["low"], search["high"]), search["log"])


__all__ = ["render_sweep_page", "write_sweep_page"]
