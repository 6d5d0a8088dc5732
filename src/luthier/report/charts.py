"""Charts as inline SVG: pure functions from numbers to text, without any library.

Colours come from CSS classes, so one drawing serves light, dark and print. Lengths are CSS pixels at the
drawing's natural size; the page draws each chart twice, for a column and for a phone, so that text keeps
its size. Every text goes through `element`, which escapes it.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

FONT_SIZE = 12.0
STACKED_BELOW = 480  # narrower drawings put a row's name above its mark instead of beside it
EDGE = 18.0  # room at both ends of a stacked axis for half a tick label


@dataclass(frozen=True)
class Interval:
    """One row of an interval plot: a value with its bounds and how to print them."""

    name: str
    value: float
    low: float | None
    high: float | None
    text: str
    marked: bool = False
    bold: bool = False


@dataclass(frozen=True)
class Axis:
    """The horizontal axis of an interval plot: its domain, its ticks, and one dashed reference line."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    label: str
    reference: float | None = None
    reference_label: str = ""


@dataclass(frozen=True)
class Bar:
    """One bar: a length from zero and how to print it."""

    name: str
    value: float
    text: str
    marked: bool = False


@dataclass(frozen=True)
class Bin:
    """One bin of a reliability plot, all shares from 0 to 1."""

    confidence: float
    accuracy: float
    count: int
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Scale:
    """A straight map: `low` to `start`, `high` to `stop`."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """The pixel at which `value` stands."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)


Attribute = str | int | float


def element(tag: str, *children: str, **attributes: Attribute) -> Markup:
    """An SVG element. Plain strings among children and attributes are escaped; `class_` means `class`."""
    written = Markup("").join(
        Markup(' {}="{}"').format(name.rstrip("_").replace("_", "-"), tidy(value)) for name, value in attributes.items()
    )
    if not children:
        return Markup("<{}{}/>").format(tag, written)
    return Markup("<{}{}>{}</{}>").format(tag, written, Markup("").join(children), tag)


def tidy(value: Attribute) -> str:
    """A number with at most two decimals, other values as they are."""
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return str(value)


def drawing(width: float, height: float, alt: str, children: Sequence[str]) -> str:
    """The outer `svg`; `alt` is what a screen reader says in its place."""
    return element(
        "svg",
        *children,
        class_="chart",
        role="img",
        aria_label=alt,
        width=round(width),
        height=round(height),
        viewBox=f"0 0 {round(width)} {round(height)}",
    )


def text(x: float, y: float, words: str, class_: str = "", anchor: str = "start") -> Markup:
    """A line of text with its baseline at y."""
    return element("text", words, x=x, y=y, class_=class_ or "label", text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def text_width(words: str, size: float = FONT_SIZE) -> float:
    """About how wide `words` are in a sans-serif face, erring on the wide side."""
    return sum(character_width(char) for char in words) * size


def character_width(char: str) -> float:
    """Width of a character in ems."""
    if unicodedata.combining(char):
        return 0.0
    if unicodedata.east_asian_width(char) in "WF":
        return 1.0
    if char in "MWmw@%&—":
        return 0.88
    if char in "iljtfrI.,:;'|!()[] ":
        return 0.38
    return 0.72 if char.isupper() else 0.61


def clip(words: str, width: float, size: float = FONT_SIZE) -> str:
    """`words`, shortened with an ellipsis where they are wider than `width`."""
    if text_width(words, size) <= width:
        return words
    kept = words
    while kept and text_width(kept + "…", size) > width:
        kept = kept[:-1]
    return kept.rstrip() + "…"


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers that cover low to high, 1, 2, 2.5 or 5 times a power of ten apart."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power * most >= span * (1 - 1e-9))
    first = math.floor(low / step + 1e-9)
    last = max(first + 1, math.ceil(high / step - 1e-9))
    return [round(index * step, 12) for index in range(first, last + 1)]


def tick_words(ticks: Sequence[float]) -> list[str]:
    """Ticks that are evenly apart, all with the decimals that the finest of them needs."""
    step = abs(ticks[1] - ticks[0]) if len(ticks) > 1 else 1.0
    exact = (n for n in range(9) if all(abs(round(tick, n) - tick) < 1e-6 * step for tick in ticks))
    decimals = next(exact, None)
    return [f"{tick:g}" if decimals is None else f"{tick:.{decimals}f}" for tick in ticks]


def interval_plot(rows: Sequence[Interval], axis: Axis, width: float, alt: str) -> str:
    """Dots with their intervals, one row each, in the order given."""
    stacked = width < STACKED_BELOW
    row_height, top = (42.0, 26.0) if stacked else (28.0, 26.0)
    names = 0.0 if stacked else side_column([row.name for row in rows], width) + 8
    values = 0.0 if stacked else max((text_width(row.text) for row in rows), default=0) + 24
    scale = Scale(axis.low, axis.high, names + EDGE, width - max(EDGE, values))
    bottom = top + row_height * len(rows)
    marks = [axis_lines(axis, scale, top - 6, bottom)]
    for index, row in enumerate(rows):
        y = top + row_height * index
        marks.append(interval_row(row, scale, y, width, stacked))
    marks.append(text((scale.start + scale.stop) / 2, bottom + 36, axis.label, "axis", "middle"))
    return drawing(width, bottom + 44, alt, marks)


def side_column(names: Sequence[str], width: float) -> float:
    """Width of the column of row names: as wide as they are, at most 36 % of the drawing."""
    return min(max((text_width(name) for name in names), default=0) + 4, 0.36 * width)


def interval_row(row: Interval, scale: Scale, y: float, width: float, stacked: bool) -> Markup:
    """One name, interval, dot and printed value; y is the upper edge of the row."""
    kind = "marked" if row.marked else "plain"
    baseline, middle = (y + 14, y + 28) if stacked else (y + 18, y + 14)
    weight = 1.12 if row.bold else 1.0  # bold letters are wider
    written = f"{kind} bold" if row.bold else kind
    room = width - weight * text_width(row.text) - 12 if stacked else scale.start - EDGE
    low = row.value if row.low is None else row.low
    high = row.value if row.high is None else row.high
    name = clip(row.name, room / weight)
    grounds = [backing(weight * text_width(name), y, 0), backing(weight * text_width(row.text), y, width)]
    return element(
        "g",
        element("title", f"{row.name}: {row.text}"),
        *(grounds if stacked else []),
        text(0, baseline, name, f"label {written}"),
        line(scale(low), middle, scale(high), middle, f"interval {kind}"),
        element("circle", cx=scale(row.value), cy=middle, r=6.0 if row.marked else 4.5, class_=f"dot {kind}"),
        text(width, baseline, row.text, f"value {written}", "end"),
    )


def backing(length: float, y: float, edge: float) -> Markup:
    """Blank ground behind a row's text, so that no grid line runs through it; `edge` 0 is the left one."""
    start = max(edge - length, 0) if edge else 0
    return element("rect", x=start - 2, y=y + 2, width=length + 4, height=16, class_="backing")


def axis_lines(axis: Axis, scale: Scale, top: float, bottom: float) -> Markup:
    """Grid, tick labels below, and the reference line with its label above."""
    parts: list[str] = []
    for value, label in axis.ticks:
        parts += [
            line(scale(value), top, scale(value), bottom, "grid"),
            text(scale(value), bottom + 16, label, "tick", "middle"),
        ]
    if axis.reference is not None:
        x = scale(axis.reference)
        parts += [
            line(x, top, x, bottom, "reference"),
            text(*edge_anchored(x, top - 6, axis.reference_label, scale.stop)),
        ]
    return element("g", *parts)


def edge_anchored(x: float, y: float, words: str, right: float) -> tuple[float, float, str, str, str]:
    """Arguments of `text` for a label centred at x, pushed inward where it would leave the drawing."""
    half = text_width(words) / 2
    if x - half < 0:
        return 0.0, y, words, "axis", "start"
    if x + half > right + EDGE:
        return right + EDGE, y, words, "axis", "end"
    return x, y, words, "axis", "middle"


def bar_chart(bars: Sequence[Bar], width: float, alt: str) -> str:
    """Horizontal bars from zero, each with its printed value at its end."""
    stacked = width < STACKED_BELOW
    row_height = 44.0 if stacked else 30.0
    names = 0.0 if stacked else side_column([bar.name for bar in bars], width) + 8
    values = max((text_width(bar.text) for bar in bars), default=0) + 10
    longest = max((bar.value for bar in bars), default=0) or 1.0
    scale = Scale(0, longest, names, width - values)
    parts: list[str] = []
    for index, bar in enumerate(bars):
        kind = "marked" if bar.marked else "plain"
        y = row_height * index + (20 if stacked else 6)
        end = scale(bar.value)
        parts += [
            text(0, y - 5 if stacked else y + 13, clip(bar.name, width if stacked else names - 8)),
            element("rect", x=names, y=y, width=max(end - names, 1.0), height=18.0, class_=f"bar {kind}"),
            text(end + 6, y + 13, bar.text, f"value {kind}"),
        ]
    return drawing(width, row_height * len(bars), alt, parts)


def share_bar(share: float, other: float | None) -> str:
    """A thumb-sized bar for a table cell; a tick marks the other value. The numbers stand beside it."""
    parts = [
        element("rect", x=0, y=3, width=60, height=8, class_="trough"),
        element("rect", x=0, y=3, width=60 * share, height=8, class_="bar marked"),
    ]
    if other is not None:
        parts.append(line(60 * other, 0, 60 * other, 14, "tickmark"))
    return element("svg", *parts, class_="spark", width=62, height=14, viewBox="-1 0 62 14", aria_hidden="true")


@dataclass(frozen=True)
class Curves:
    """Loss by step, (step, loss) pairs; `train_label` and `validation_label` go into the legend."""

    train: tuple[tuple[float, float], ...]
    validation: tuple[tuple[float, float], ...]
    best_step: int | None
    train_label: str = "training"
    validation_label: str = "validation"


def loss_plot(curves: Curves, width: float, alt: str) -> str:
    """Training and validation loss, with the best step marked."""
    points = [*curves.train, *curves.validation]
    height, left, top, floor = (250.0 if width < STACKED_BELOW else 300.0), 40.0, 48.0, 40.0
    ticks_y = nice_ticks(min(0.0, *(y for _, y in points)), max(y for _, y in points), 5)
    ticks_x = nice_ticks(0, max(x for x, _ in points), 4 if width < STACKED_BELOW else 8)
    across = Scale(ticks_x[0], ticks_x[-1], left, width - 14)
    up = Scale(ticks_y[0], ticks_y[-1], height - floor, top)
    parts: list[str] = []
    for value in ticks_y:
        parts += [
            line(left, up(value), width - 14, up(value), "grid"),
            text(left - 6, up(value) + 4, f"{value:g}", "tick", "end"),
        ]
    parts += [text(across(value), height - floor + 16, f"{value:,g}", "tick", "middle") for value in ticks_x]
    parts.append(text((left + width) / 2, height - 6, "step", "axis", "middle"))
    if curves.best_step is not None:
        parts.append(best_marker(curves, across, up))
    parts.append(polyline(curves.train, across, up, "curve plain"))
    parts.append(polyline(curves.validation, across, up, "curve marked"))
    parts += [element("circle", cx=across(x), cy=up(y), r=3.5, class_="dot marked") for x, y in curves.validation]
    parts.append(legend(curves, width))
    return drawing(width, height, alt, parts)


def polyline(points: Sequence[tuple[float, float]], across: Scale, up: Scale, class_: str) -> Markup:
    """A line through the points."""
    path = " ".join(f"{tidy(across(x))},{tidy(up(y))}" for x, y in points)
    return element("polyline", points=path, class_=class_)


def best_marker(curves: Curves, across: Scale, up: Scale) -> Markup:
    """A dashed line at the best step, a ring on its validation loss, and the words above."""
    assert curves.best_step is not None, "only called with a best step"
    x = across(curves.best_step)
    label = f"best: step {curves.best_step:,}"
    rings = [
        element("circle", cx=x, cy=up(loss), r=8.0, class_="ring")
        for step, loss in curves.validation
        if step == curves.best_step
    ]
    return element(
        "g",
        line(x, up.stop, x, up.start, "reference"),
        *rings,
        text(*edge_anchored(x, up.stop - 8, label, across.stop)),
    )


def legend(curves: Curves, width: float) -> Markup:
    """Line samples with their names, on the drawing's first line."""
    second = min(40 + 34 + text_width(curves.train_label) + 14, width / 2 + 20)
    parts: list[str] = [
        line(40, 10, 64, 10, "curve plain"),
        text(70, 14, curves.train_label),
    ]
    if curves.validation:
        parts += [
            line(second, 10, second + 24, 10, "curve marked"),
            element("circle", cx=second + 12, cy=10, r=3.5, class_="dot marked"),
            text(second + 30, 14, curves.validation_label),
        ]
    return element("g", *parts)


def heat_map(counts: Sequence[Sequence[int]], labels: Sequence[str], width: float, alt: str) -> str:
    """A confusion matrix: gold in rows, predicted in columns, shaded by the root of the share of the row.

    A column beyond the labels holds rows without an answer. Columns carry the numbers of the rows. Where
    the cells would become too small to read, the drawing grows wider than `width`, for a scrolling box.
    Beyond 24 columns the cells carry no counts, only their tooltips do.
    """
    num_columns = max((len(row) for row in counts), default=len(labels))
    digits = len(str(max((count for row in counts for count in row), default=0)))
    dense = num_columns > 24
    smallest = 6.0 if dense else max(22.0, 7.0 * digits + 6)
    size = 9.0 if dense else FONT_SIZE
    numbers = text_width(str(len(labels)), size) + 8
    names = min(side_column([*labels, "gold ↓"], width), 0.25 * width if dense else width) + numbers
    cell = min(max((width - names - 10) / num_columns, smallest), 56.0)
    tall = 12.0 if dense else min(cell, 30.0)
    left, top = names + 8, 40.0
    parts: list[str] = [
        text(names, 32, "gold ↓", "axis", "end"),
        text(left, 12, "predicted →", "axis"),
    ]
    for column in range(4, num_columns, 5) if dense else range(num_columns):
        head = str(column + 1) if column < len(labels) else "–"
        parts.append(sized(left + cell * (column + 0.5), 32, head, "tick", "middle", size))
    for index, (label, row) in enumerate(zip(labels, counts, strict=True)):
        y = top + tall * index
        baseline = y + tall / 2 + size / 3
        name = clip(label, names - numbers - 4, size)
        parts.append(sized(names - numbers, baseline, name, "label", "end", size))
        parts.append(sized(names, baseline, str(index + 1), "tick", "end", size))
        parts += heat_row(index, row, labels, (left, y, cell, tall))
    parts.append(element("rect", x=left, y=top, width=cell * num_columns, height=tall * len(labels), class_="frame"))
    return drawing(left + cell * num_columns + 1, top + tall * len(labels) + 1, alt, parts)


def sized(x: float, y: float, words: str, class_: str, anchor: str, size: float) -> Markup:
    """Text in a size of its own."""
    return element("text", words, x=x, y=y, class_=class_, text_anchor=anchor, style=f"font-size:{size:g}px")


def heat_row(
    index: int, row: Sequence[int], labels: Sequence[str], box: tuple[float, float, float, float]
) -> list[str]:
    """The cells of one gold label; `box` is left, top, cell width, cell height. Empty cells stay blank."""
    left, top, width, height = box
    total = sum(row) or 1
    faintest = 0.1 if width >= 20 else 0.3
    parts: list[str] = []
    for column, count in enumerate(row):
        if not count:
            continue
        predicted = labels[column] if column < len(labels) else "no answer"
        kind = "right" if column == index else "wrong"
        cell: list[str] = [
            element("title", f"gold {labels[index]}, predicted {predicted}: {count}"),
            element(
                "rect",
                x=left + width * column,
                y=top,
                width=width,
                height=height,
                class_=f"cell {kind}",
                fill_opacity=faintest + (1 - faintest) * math.sqrt(count / total),
            ),
        ]
        if width >= 20:
            cell.append(text(left + width * (column + 0.5), top + height / 2 + 4, str(count), "count", "middle"))
        parts.append(element("g", *cell))
    return parts


def reliability_plot(bins: Sequence[Bin], width: float, alt: str) -> str:
    """Accuracy against confidence; on the diagonal they agree. The area of a dot grows with its rows."""
    left, top, floor, right = 56.0, 10.0, 46.0, 18.0
    side = width - left - right
    across = Scale(0, 1, left, left + side)
    up = Scale(0, 1, top + side, top)
    parts: list[str] = []
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts += [
            line(left, up(value), left + side, up(value), "grid"),
            line(across(value), top, across(value), top + side, "grid"),
            text(left - 6, up(value) + 4, f"{value:.0%}", "tick", "end"),
            text(across(value), top + side + 20, f"{value:.0%}", "tick", "middle"),
        ]
    parts += [
        line(across(0), up(0), across(1), up(1), "reference"),
        text(left + 8, top + 18, "under-confident", "axis"),
        text(left + side - 8, top + side - 10, "over-confident", "axis", "end"),
        text(left + side / 2, top + side + floor - 8, "confidence", "axis", "middle"),
        element(
            "text", "accuracy", class_="axis", text_anchor="middle", x=0, y=0,
            transform=f"translate(13 {tidy(top + side / 2)}) rotate(-90)",
        ),
    ]  # fmt: skip
    most = max((item.count for item in bins), default=1) or 1
    for item in bins:
        x = across(item.confidence)
        note = f"confidence {item.confidence:.1%}, accuracy {item.accuracy:.1%}, {item.count} rows"
        dot = element("circle", cx=x, cy=up(item.accuracy), r=6.5 * math.sqrt(item.count / most), class_="dot marked")
        bounds = [] if item.low is None or item.high is None else [line(x, up(item.low), x, up(item.high), "error")]
        parts.append(element("g", element("title", note), *bounds, dot))
    return drawing(width, top + side + floor, alt, parts)
