"""Draws what `ways.py` found: accuracy against what was forgotten, and against peak memory.

python benchmarks/ways_plot.py runs/ways/ways.json docs/results/ways.svg
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.report.charts import Scale, drawing, element, line, nice_ticks, text, text_width
from luthier.report.rate_chart import STYLE

WIDTH, HEIGHT, GAP, LEFT, RIGHT, TOP, FLOOR = 980.0, 460.0, 56.0, 48.0, 10.0, 30.0, 46.0
LABEL_HEIGHT, AWAY = 14.0, 8.0  # of a name, and its distance from its dot
OWN_STYLE = """
circle { fill: var(--accent); }
.whisker { stroke: var(--bar); stroke-width: 1.5; }
.lead { stroke: var(--bar); stroke-width: 0.75; }
text.label { paint-order: stroke; stroke: var(--paper); stroke-width: 3px; stroke-linejoin: round; }
"""


@dataclass(frozen=True)
class Dot:
    """A way: where it stands, its interval upwards and, where it has one, across."""

    name: str
    x: float
    x_bounds: tuple[float, float] | None
    y: float
    y_bounds: tuple[float, float]


def main() -> int:
    """Read the figures, write the drawing."""
    parser = argparse.ArgumentParser(description="Draw the figures of ways.py.")
    parser.add_argument("figures", type=Path, help="ways.json")
    parser.add_argument("drawing", type=Path, help="the SVG file to write")
    arguments = parser.parse_args()
    ways = json.loads(arguments.figures.read_text(encoding="utf-8"))["ways"]
    arguments.drawing.write_text(ways_drawing(ways), encoding="utf-8")
    return 0


def ways_drawing(ways: dict[str, dict[str, Any]]) -> str:
    """The SVG of two panels that share their upward axis."""
    trained = {way: values for way, values in ways.items() if "task_accuracy" in values}
    forgot = [dot(way, values, change_of(values)) for way, values in trained.items() if "bits_per_byte" in values]
    memory = [dot(way, values, (values["peak_rss_bytes"] / 1e9, None)) for way, values in trained.items()]
    ticks = nice_ticks(min(d.y_bounds[0] for d in memory), max(d.y_bounds[1] for d in memory), 7)
    panels = [(forgot, "bits per byte on general texts, change (right: forgotten)"), (memory, "peak memory, GB")]
    panels = [panel for panel in panels if panel[0]]
    span = (WIDTH - GAP * (len(panels) - 1)) / len(panels)
    parts: list[str] = [element("style", STYLE + OWN_STYLE)]
    for number, (dots, label) in enumerate(panels):
        start = number * (span + GAP)
        parts += panel_marks(dots, label, ticks, start + LEFT, start + span - RIGHT)
    parts.append(text(LEFT, 16, "accuracy on the test rows, %, with 95 % intervals", "axis"))
    alt = "Accuracy of each way of training against what it forgot and against its peak memory."
    plain = str(drawing(WIDTH, HEIGHT, alt, parts))
    return plain.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"


def change_of(values: dict[str, Any]) -> tuple[float, tuple[float, float]]:
    """The change of bits per byte with its interval."""
    change = values["bits_per_byte_change"]
    return change["value"], (change["low"], change["high"])


def dot(way: str, values: dict[str, Any], x: tuple[float, tuple[float, float] | None]) -> Dot:
    """A way's dot; accuracy in percent."""
    task = values["task_accuracy"]
    return Dot(way, x[0], x[1], 100 * task["value"], (100 * task["low"], 100 * task["high"]))


def panel_marks(dots: Sequence[Dot], label: str, ticks_y: Sequence[float], left: float, right: float) -> list[str]:
    """Axes, intervals, dots and names of one panel."""
    ends = [end for d in dots for end in (d.x_bounds or (d.x, d.x))]
    ticks_x = nice_ticks(min(0.0, *ends), max(ends), 6)
    across = Scale(ticks_x[0], ticks_x[-1], left, right)
    up = Scale(ticks_y[0], ticks_y[-1], HEIGHT - FLOOR, TOP)
    parts: list[str] = []
    for value in ticks_y:
        parts.append(line(left, up(value), right, up(value), "grid"))
        parts.append(text(left - 6, up(value) + 4, f"{value:g}", "tick", "end"))
    parts += [text(across(value), HEIGHT - FLOOR + 17, f"{value:g}", "tick", "middle") for value in ticks_x]
    if ticks_x[0] < 0:
        parts.append(line(across(0), TOP, across(0), HEIGHT - FLOOR, "reference"))
    parts.append(text((left + right) / 2, HEIGHT - 8, label, "axis", "middle"))
    for d in dots:
        parts.append(line(across(d.x), up(d.y_bounds[0]), across(d.x), up(d.y_bounds[1]), "whisker"))
        if d.x_bounds:
            parts.append(line(across(d.x_bounds[0]), up(d.y), across(d.x_bounds[1]), up(d.y), "whisker"))
    parts += [element("circle", cx=across(d.x), cy=up(d.y), r=4) for d in dots]
    return parts + names(dots, across, up, right)


def names(dots: Sequence[Dot], across: Scale, up: Scale, right: float) -> list[str]:
    """Each name beside its dot, moved up or down until it covers neither another name nor a dot."""
    taken = [(across(d.x) - 5, up(d.y) - 5, across(d.x) + 5, up(d.y) + 5) for d in dots]
    parts: list[str] = []
    for d in sorted(dots, key=lambda one: -one.y):
        x, y, wide = across(d.x), up(d.y), text_width(d.name)
        places = [
            (side, y + LABEL_HEIGHT * steps / 2 * way)
            for steps in range(60)
            for way in (-1, 1)
            for side in (x + AWAY, x - AWAY - wide)
        ]
        side, middle = next(p for p in places if fits(p, wide, right, taken)) if dots else (x, y)
        taken.append((side, middle - LABEL_HEIGHT / 2, side + wide, middle + LABEL_HEIGHT / 2))
        if abs(middle - y) > LABEL_HEIGHT:
            parts.append(line(x, y, side if side > x else side + wide, middle, "lead"))
        parts.append(text(side, middle + 4, d.name))
    return parts


def fits(place: tuple[float, float], wide: float, right: float, taken: Sequence[tuple[float, ...]]) -> bool:
    """Whether a name may stand there."""
    side, middle = place
    top, bottom = middle - LABEL_HEIGHT / 2, middle + LABEL_HEIGHT / 2
    if side < 0 or side + wide > right or top < TOP - LABEL_HEIGHT or bottom > HEIGHT - FLOOR:
        return False
    return not any(side < r and left < side + wide and top < b and t < bottom for left, t, r, b in taken)


if __name__ == "__main__":
    sys.exit(main())
