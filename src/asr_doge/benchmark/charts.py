"""Draw charts as SVG, for self-contained pages.

Promises: charts are sharp at any size, follow the page's colours in light and dark, and contain their numbers as text
for tooltips and screen readers. All labels are escaped.
It does not know what the numbers mean.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH = 460
_LABEL_WIDTH = 84
_ROW_HEIGHT = 30
_PLOT_HEIGHT = 170
_TOP, _BOTTOM, _LEFT = 24, 44, 44
_TICKS = 4


@dataclass(frozen=True)
class Column:
    """A column of a chart: its height, its interval, and the text below its label."""

    label: str
    value: float
    low: float
    high: float
    note: str


@dataclass(frozen=True)
class Bar:
    """A bar of a chart: its start, its length, and the text beside it."""

    label: str
    start: float
    length: float
    text: str


def column_chart(columns: Sequence[Column], unit: str, title: str) -> Markup:
    """Columns with intervals, on an axis from 0."""
    step = _tick_step(max(column.high for column in columns))
    top = step * max(1, math.ceil(max(column.high for column in columns) / step))
    height = _TOP + _PLOT_HEIGHT + _BOTTOM

    def y(value: float) -> float:
        return round(_TOP + _PLOT_HEIGHT * (1 - value / top), 1)

    parts = []
    for index in range(round(top / step) + 1):
        at = y(index * step)
        parts.append(Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(_LEFT, WIDTH, at, at))
        parts.append(_text(_LEFT - 8, at + 4, f"{index * step:g}", "end"))
    parts.append(_text(_LEFT - 8, 12, unit, "end"))
    spacing = (WIDTH - _LEFT) / len(columns)
    breadth = min(56.0, 0.6 * spacing)
    for index, column in enumerate(columns):
        middle = round(_LEFT + (index + 0.5) * spacing, 1)
        parts.append(
            Markup('<rect class="bar" x="{}" y="{}" width="{}" height="{}" rx="2"><title>{}</title></rect>').format(
                round(middle - breadth / 2, 1),
                y(column.value),
                round(breadth, 1),
                round(y(0) - y(column.value), 1),
                f"{column.label}: {column.value:.2f} {unit} ({column.low:.2f} to {column.high:.2f}), {column.note}",
            )
        )
        whisker = f"M{middle} {y(column.low)}V{y(column.high)}"
        caps = "".join(f"M{middle - 6} {y(value)}h12" for value in (column.low, column.high))
        parts.append(Markup('<path class="whisker" d="{}"/>').format(whisker + caps))
        parts.append(_text(middle, height - 26, column.label, "middle"))
        parts.append(_text(middle, height - 8, column.note, "middle", "note"))
    return _drawing(height, title, parts)


def bar_chart(bars: Sequence[Bar], title: str) -> Markup:
    """Horizontal bars, each with its text; bars that start where the previous one ends form a waterfall."""
    longest = max((bar.start + bar.length for bar in bars), default=0.0) or 1.0
    room = WIDTH - _LABEL_WIDTH - 84  # for the text after the longest bar
    parts = []
    for index, bar in enumerate(bars):
        middle = index * _ROW_HEIGHT + _ROW_HEIGHT / 2
        left = round(_LABEL_WIDTH + room * bar.start / longest, 1)
        breadth = round(max(1.5, room * bar.length / longest), 1)  # keep the shortest visible
        parts.append(_text(_LABEL_WIDTH - 10, middle + 4, bar.label, "end"))
        parts.append(
            Markup('<rect class="bar" x="{}" y="{}" width="{}" height="18" rx="2"><title>{}</title></rect>').format(
                left, middle - 9, breadth, f"{bar.label}: {bar.text}"
            )
        )
        parts.append(_text(left + breadth + 8, middle + 4, bar.text, "start", "note"))
    return _drawing(len(bars) * _ROW_HEIGHT, title, parts)


def _drawing(height: float, title: str, parts: Sequence[Markup]) -> Markup:
    opening = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, height, title)
    return opening + Markup("").join(parts) + Markup("</svg>")


def _text(x: float, y: float, text: str, anchor: str, kind: str = "label") -> Markup:
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(
        kind, round(x, 1), round(y, 1), anchor, escape(text)
    )


def _tick_step(highest: float) -> float:
    """A round number (1, 2 or 5 times a power of ten) that divides `highest` into about `_TICKS` steps."""
    if highest <= 0:
        return 1.0
    rough = highest / _TICKS
    magnitude = 10.0 ** math.floor(math.log10(rough))
    return next(magnitude * factor for factor in (1, 2, 5, 10) if magnitude * factor >= rough)
