"""Histograms of one quantity for several parts of the data, one above the other on a common axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from luthier.report.charts import STACKED_BELOW, Scale, drawing, element, line, nice_ticks, text

LEFT, RIGHT, HEAD, FLOOR = 4.0, 14.0, 22.0, 6.0
TALL, TALL_NARROW = 96.0, 76.0


@dataclass(frozen=True)
class Histogram:
    """Rows of one part in each bin; `summary` is printed beside its name."""

    name: str
    counts: tuple[int, ...]
    summary: str


def histogram_plot(parts: Sequence[Histogram], edges: Sequence[float], unit: str, width: float, alt: str) -> str:
    """Bars of each part, tall as the part's own fullest bin: parts of different sizes can be compared."""
    height = TALL_NARROW if width < STACKED_BELOW else TALL
    ticks = nice_ticks(edges[0], edges[-1], 4 if width < STACKED_BELOW else 8)
    across = Scale(ticks[0], ticks[-1], LEFT, width - RIGHT)
    bottom = len(parts) * (HEAD + height + FLOOR)
    marks = [line(across(tick), HEAD, across(tick), bottom, "grid") for tick in ticks]
    for index, part in enumerate(parts):
        marks.append(bars(part, edges, across, index * (HEAD + height + FLOOR) + HEAD, height))
    marks += [text(across(tick), bottom + 16, f"{tick:,g}", "tick", anchor(tick, ticks)) for tick in ticks]
    marks.append(text((LEFT + width - RIGHT) / 2, bottom + 36, f"{unit} of a row", "axis", "middle"))
    return drawing(width, bottom + 42, alt, marks)


def anchor(tick: float, ticks: Sequence[float]) -> str:
    """The outermost labels stay inside the drawing."""
    return {ticks[0]: "start", ticks[-1]: "end"}.get(tick, "middle")


def bars(part: Histogram, edges: Sequence[float], across: Scale, top: float, height: float) -> Markup:
    """One part: its name, its bars and their base line; `top` is where the fullest bin would end."""
    most = max(part.counts, default=0) or 1
    shapes: list[str] = [text(LEFT, top - 8, f"{part.name}: {part.summary}")]
    for count, low, high in zip(part.counts, edges[:-1], edges[1:], strict=True):
        if not count:
            continue
        tall = max(height * count / most, 1.0)
        start, stop = across(low), across(high)
        bar = element(
            "rect", x=start, y=top + height - tall, width=max(stop - start - 1, 1.0), height=tall, class_="bar marked"
        )
        shapes.append(element("g", element("title", f"{low:,.0f} to {high:,.0f}: {count:,} rows"), bar))
    shapes.append(line(across.start, top + height, across.stop, top + height, "grid"))
    return element("g", *shapes)
