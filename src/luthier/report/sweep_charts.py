"""Drawings of a sweep: trial after trial with the best so far, and every trial's values on parallel axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from luthier.report.charts import (
    STACKED_BELOW,
    Scale,
    clip,
    drawing,
    edge_anchored,
    element,
    line,
    nice_ticks,
    polyline,
    text,
    text_width,
    tick_words,
)
from luthier.report.numbers import alike

FAINTEST, STRONGEST = 0.18, 0.75  # opacity of the worst trial's line and of the second best's
ROW = 58.0  # height of one of the parallel axes


@dataclass(frozen=True)
class Point:
    """One trial: its number, its figure, how that is printed, and what became of it."""

    number: int
    value: float
    text: str
    pruned: bool = False
    best: bool = False


@dataclass(frozen=True)
class Track:
    """One of the parallel axes: places from 0 to 1 of its ticks, and of each trial in the order of the drawing."""

    name: str
    ticks: tuple[tuple[float, str], ...]
    places: tuple[float, ...]


def trials_plot(points: Sequence[Point], higher: bool, label: str, width: float, alt: str) -> str:
    """Each trial's figure by its number, and the best so far as steps. Arrows at the edge are far outliers."""
    height, left, top, floor = (250.0 if width < STACKED_BELOW else 300.0), 52.0, 34.0, 40.0
    low, high = bounds([point.value for point in points], higher)
    ticks_y = nice_ticks(low, high, 5)
    most = max(point.number for point in points)
    across = Scale(-0.5, most + 0.5, left, width - 14)
    up = Scale(ticks_y[0], ticks_y[-1], height - floor, top)
    parts: list[str] = []
    for value, label_y in zip(ticks_y, tick_words(ticks_y), strict=True):
        parts += [
            line(left, up(value), width - 14, up(value), "grid"),
            text(left - 6, up(value) + 4, label_y, "tick", "end"),
        ]
    numbers = [tick for tick in nice_ticks(0, max(most, 1), 4 if width < STACKED_BELOW else 10) if tick <= most]
    parts += [text(across(value), height - floor + 16, f"{value:g}", "tick", "middle")
              for value in numbers if value % 1 == 0]  # fmt: skip
    parts.append(text((left + width) / 2, height - 6, "trial", "axis", "middle"))
    parts.append(text(0, 14, f"{label} ({'higher' if higher else 'lower'} is better)", "axis"))
    parts.append(best_so_far(points, higher, across, up))
    parts += [trial_dot(point, across, up) for point in points]
    return drawing(width, height, alt, parts)


def bounds(values: Sequence[float], higher: bool) -> tuple[float, float]:
    """The stretch that is drawn: all values, but for the worst ones that would press the others together."""
    ordered = sorted(values, reverse=higher)
    best, middle, worst = ordered[0], ordered[len(ordered) // 2], ordered[-1]
    reach = 3 * abs(middle - best)
    if reach and abs(worst - best) > 2 * reach:
        worst = best - reach if higher else best + reach
    return (min(best, worst), max(best, worst)) if best != worst else (best - 0.5 * abs(best or 1), best)


def best_so_far(points: Sequence[Point], higher: bool, across: Scale, up: Scale) -> Markup:
    """Steps: the best figure of the finished trials up to each number."""
    corners: list[tuple[float, float]] = []
    best: float | None = None
    for point in sorted(points, key=lambda one: one.number):
        if point.pruned:
            continue
        value = inside(point.value, up)
        if best is not None:
            corners.append((point.number, best))
        if best is None or (value > best if higher else value < best):
            best = value
        corners.append((point.number, best))
    if best is not None:
        corners.append((across.high, best))
    return polyline(corners, across, up, "curve marked")


def trial_dot(point: Point, across: Scale, up: Scale) -> Markup:
    """A dot: open for a trial that was ended early, ringed for the best one; an arrow for one that lies beyond."""
    shown = inside(point.value, up)
    x, y = across(point.number), up(shown)
    kind = "open" if point.pruned else "marked" if point.best else "plain"
    told = f"trial {point.number}: {point.text}{', ended early' if point.pruned else ''}"
    if shown != point.value:
        tip = 11.0 if point.value < up.low else -11.0  # pixels count downward
        corners = f"{x - 7:.1f},{y - tip:.1f} {x + 7:.1f},{y - tip:.1f} {x:.1f},{y:.1f}"
        arrow = element("polygon", points=corners, class_=f"dot {kind}")
        return element("g", element("title", f"{told}, beyond the edge"), arrow)
    ring = [element("circle", cx=x, cy=y, r=8.5, class_="ring")] if point.best else []
    return element("g", element("title", told), *ring, element("circle", cx=x, cy=y, r=4.5, class_=f"dot {kind}"))


def inside(value: float, scale: Scale) -> float:
    """The value, or the edge of the drawing it lies beyond."""
    return min(max(value, scale.low), scale.high)


def parallel_plot(tracks: Sequence[Track], best: int, width: float, alt: str) -> str:
    """A line for each trial through its values, one axis below the other, the figure last.

    Trials stand from the worst to the best, so that good ones lie on top and are darker; `best` is drawn apart.
    """
    across = Scale(0, 1, 14, width - 14)
    num_trials = len(tracks[0].places)
    levels = [26 + ROW * index for index in range(len(tracks))]
    parts: list[str] = []
    for index in range(num_trials):
        if index == best:
            continue
        strength = FAINTEST + (STRONGEST - FAINTEST) * index / max(1, num_trials - 1)
        parts.append(trial_line(tracks, levels, index, across, "trial", strength))
    parts.append(trial_line(tracks, levels, best, across, "trial best", 1.0))
    parts += [track_lines(track, level, across) for track, level in zip(tracks, levels, strict=True)]
    parts += [
        element("circle", cx=across(track.places[best]), cy=level, r=4.5, class_="dot marked")
        for track, level in zip(tracks, levels, strict=True)
    ]
    return drawing(width, levels[-1] + 30, alt, parts)


def trial_line(
    tracks: Sequence[Track], levels: Sequence[float], index: int, across: Scale, class_: str, strength: float
) -> Markup:
    """One trial through all axes."""
    corners = " ".join(
        f"{across(track.places[index]):.1f},{level:.1f}" for track, level in zip(tracks, levels, strict=True)
    )
    return element("polyline", points=corners, class_=class_, stroke_opacity=strength)


def track_lines(track: Track, level: float, across: Scale) -> Markup:
    """An axis with its name above and its ticks below; ticks that would run into another are left out."""
    parts: list[str] = [
        line(across(0), level, across(1), level, "track"),
        text(0, level - 10, clip(track.name, across.stop), "label"),
    ]
    filled = -math.inf
    for place, label in track.ticks:
        x = across(place)
        half = text_width(label) / 2
        parts.append(line(x, level - 4, x, level + 4, "track"))
        if x - half < filled:
            continue
        parts.append(text(*edge_anchored(x, level + 18, label, across.stop)))
        filled = x + half + 8
    return element("g", *parts)


def track_of_numbers(name: str, values: Sequence[float], ends: tuple[float, float], log: bool = False) -> Track:
    """An axis of numbers between its two ends."""
    low, high = ends
    scale = Scale(*((math.log(low), math.log(high)) if log else (low, high)), 0, 1) if low < high else None

    def place(value: float) -> float:
        if scale is None:
            return 0.5
        return min(max(scale(math.log(value) if log else value), 0.0), 1.0)

    middle = math.sqrt(low * high) if log else (low + high) / 2
    marks = list(dict.fromkeys((low, middle, high)))
    labels = zip(map(place, marks), mark_words(marks, log), strict=True)
    return Track(name, tuple(labels), tuple(place(value) for value in values))


def mark_words(marks: Sequence[float], log: bool) -> list[str]:
    """Three significant digits; more, and all with the same decimals, where they would not tell the marks apart."""
    short = [f"{mark:.3g}" for mark in marks]
    if len(set(short)) == len(marks) and (log or max(map(abs, marks)) > 1.05 * min(map(abs, marks))):
        return short
    write = alike(marks)
    return [write(mark) for mark in marks]


def track_of_words(name: str, values: Sequence[str], options: Sequence[str]) -> Track:
    """An axis of words, evenly apart."""
    gap = 1 / max(1, len(options) - 1)
    places = {option: (index * gap if len(options) > 1 else 0.5) for index, option in enumerate(options)}
    return Track(name, tuple((place, option) for option, place in places.items()), tuple(places[one] for one in values))
