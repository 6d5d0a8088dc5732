"""The plot of a learning-rate range test: an SVG file of its own, light or dark as the reader's screen is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from luthier.report.charts import Scale, drawing, edge_anchored, element, line, nice_ticks, polyline, text

WIDTH, HEIGHT, LEFT, RIGHT, TOP, FLOOR = 720.0, 360.0, 52.0, 14.0, 68.0, 44.0
FIRST_LABEL, LABEL_STEP = 32.0, 14.0  # baselines of the marked rates' words, above the curves
MOST_SHOWN = 1.15  # losses above the highest before the lowest, times this, stand at the edge
STYLE = """
svg { --paper: #fdfcfa; --ink: #1c1c1a; --muted: #5d5a54; --rule: #d9d5cb; --accent: #1d5c9e; --bar: #b9b2a4;
  background: var(--paper); }
@media (prefers-color-scheme: dark) {
  svg { --paper: #17191c; --ink: #e7e4dd; --muted: #aba79e; --rule: #3a3d42; --accent: #84b8f0; --bar: #5b5f66; }
}
text { font: 400 12px/1 system-ui, sans-serif; fill: var(--ink); font-variant-numeric: tabular-nums; }
.tick, .axis { fill: var(--muted); }
.axis { paint-order: stroke; stroke: var(--paper); stroke-width: 4px; stroke-linejoin: round; }
.grid { stroke: var(--rule); }
.reference { stroke: var(--muted); stroke-width: 1.25; stroke-dasharray: 4 3; }
.curve { fill: none; stroke-width: 1.5; stroke: var(--bar); stroke-linejoin: round; }
.curve.marked { stroke: var(--accent); stroke-width: 2.25; }
"""


@dataclass(frozen=True)
class Mark:
    """A rate that is pointed at, with its words."""

    rate: float
    words: str


def rate_chart(
    rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], marks: Sequence[Mark], title: str
) -> str:
    """The SVG: the loss of each step pale, their mean marked, by rate on a logarithmic axis; all of one length."""
    lowest = min(smoothed)
    highest = max(smoothed[: smoothed.index(lowest) + 1]) * MOST_SHOWN
    ticks = nice_ticks(lowest, max(highest, lowest + 1e-9), 5)
    across = Scale(math.log10(rates[0]), max(math.log10(rates[-1]), math.log10(rates[0]) + 1e-9), LEFT, WIDTH - RIGHT)
    up = Scale(ticks[0], ticks[-1], HEIGHT - FLOOR, TOP)
    parts: list[str] = [element("style", STYLE)]
    for value in ticks:
        parts += [
            line(LEFT, up(value), WIDTH - RIGHT, up(value), "grid"),
            text(LEFT - 6, up(value) + 4, f"{value:g}", "tick", "end"),
        ]
    for power in range(math.ceil(across.low - 1e-9), math.floor(across.high + 1e-9) + 1):
        parts.append(text(across(power), HEIGHT - FLOOR + 16, f"{10.0**power:g}", "tick", "middle"))
    parts.append(text((LEFT + WIDTH) / 2, HEIGHT - 8, "learning rate", "axis", "middle"))
    for values, look in ((losses, "curve plain"), (smoothed, "curve marked")):
        points = [(math.log10(rate), held(value, ticks)) for rate, value in zip(rates, values, strict=True)]
        parts.append(polyline(points, across, up, look))
    labels: list[str] = []
    for row, mark in enumerate(marks):
        x = across(math.log10(mark.rate))
        y = FIRST_LABEL + LABEL_STEP * row
        parts.append(line(x, y + 4, x, HEIGHT - FLOOR, "reference"))
        labels.append(text(*edge_anchored(x, y, mark.words, WIDTH - RIGHT)))
    parts += labels
    parts.append(text(LEFT, 14, "loss of a step (pale), and their mean", "axis"))
    alt = f"{title}. " + " ".join(f"{mark.words}." for mark in marks)
    plain = str(drawing(WIDTH, HEIGHT, alt, parts))
    return plain.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)


def held(value: float, ticks: Sequence[float]) -> float:
    """A value at the edge where it lies beyond."""
    return min(max(value, ticks[0]), ticks[-1])
