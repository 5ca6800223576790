"""The report's figures: inline SVG that takes its colours from the page, so light and dark are one drawing.

Sizes are in units that a phone shows as about a pixel each: letters of 12 stay readable there, and a wider page lays
figures beside each other instead of stretching them. A series is told by its mark or its place as well as its colour.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup, escape

LETTER = 7.2
"""Width of a letter of the figures' font, about."""
LINE = 17
"""Height of a row of a bar or dot chart."""
POINTS = 400
"""A curve is drawn with at most so many points."""


def short(value: float) -> str:
    """A number for an axis: 12,000 is 12k, 0.0003 is 3e-4."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e15):
        digits, _, power = f"{value:.1e}".partition("e")
        return f"{digits.removesuffix('.0')}e{int(power)}"
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.4g}{letter}"
    return f"{value:,.5g}" if abs(value) < 1e3 else f"{value:,.0f}"


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high`, laid out from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return round(self.start + (value - low) / (high - low) * (self.end - self.start), 1)

    def ticks(self, few: int = 4) -> list[float]:
        """Round values on the axis: `few` or somewhat more."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for digits in ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10))):
                found = [d * 10.0**p for p in powers for d in digits if self.low <= d * 10.0**p <= self.high]
                if len(found) >= 3:
                    return found
        power = 10.0 ** math.floor(math.log10(self.high - self.low))
        for step in (power * 5, power * 2, power, power / 2, power / 5):
            first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
            if last - first + 1 >= few:
                break
        return [round(i * step, 12) for i in range(first, last + 1)]


@dataclass(frozen=True)
class Curve:
    """One line of a chart."""

    x: np.ndarray
    y: np.ndarray
    style: str
    name: str = ""


@dataclass(frozen=True)
class Bar:
    """A bar from `start` to `end` with a text behind it."""

    end: float
    text: str
    style: str
    start: float = 0.0


@dataclass(frozen=True)
class Dot:
    """A value with its interval."""

    value: float
    text: str
    style: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Row:
    """The bars or dots of one label, below each other."""

    label: str
    items: Sequence[Bar | Dot] = field(default_factory=tuple)


@dataclass(frozen=True)
class Place:
    """A mark on a chart of two logarithmic or linear axes."""

    x: float
    y: float
    style: str


@dataclass(frozen=True)
class Band:
    """What lies between two curves."""

    x: np.ndarray
    low: np.ndarray
    high: np.ndarray
    style: str


def line_chart(
    title: str,
    curves: Sequence[Curve],
    x_label: str,
    y_label: str,
    size: tuple[int, int] = (420, 230),
    log_scale: bool = False,
    level: tuple[float, str] | None = None,
) -> Markup:
    """Curves over steps, with a dashed level where one is given; a curve's name stands at its right end. A logarithmic
    axis needs values above 0."""
    width, height = size
    values = np.concatenate([curve.y for curve in curves] + ([np.array([level[0]])] if level else []))
    low, high = _padded(float(values.min()), float(values.max()), log_scale)
    y = Axis(low, high, height - 38, 22, log_scale)
    ticks = y.ticks()
    left = 12 + LETTER * max(len(short(tick)) for tick in ticks)
    room = LETTER * max(len(curve.name) for curve in curves)
    x = Axis(0, max(float(curve.x[-1]) for curve in curves), left, width - 14 - room)
    parts = [_text(0, 11, y_label + (" (log scale)" if log_scale else ""))]
    for tick in ticks:
        parts += [_line(left, y(tick), width - room, y(tick), "grid"), _text(left - 5, y(tick) + 4, short(tick), "end")]
    for tick in x.ticks():
        parts.append(_text(x(tick), height - 22, short(tick), "middle"))
    parts.append(_line(left, height - 38, width, height - 38, "axis"))
    parts.append(_text((left + width) / 2, height - 5, x_label, "middle"))
    if level:
        parts += [_line(left, y(level[0]), width, y(level[0]), "level")]
        parts += [_text(width, y(level[0]) - 4, level[1], "end")]
    for curve in curves:
        line = Markup('<polyline class="curve {}" points="{}"/>')
        parts.append(line.format(curve.style, _points(zip(curve.x, curve.y), x, y)))
    named = [curve for curve in curves if curve.name]
    for curve, place in zip(named, apart([y(float(curve.y[-1])) for curve in named], 13)):
        parts.append(_text(width - room - 9, place + 4, curve.name, style=curve.style))
    return _svg(title, width, height, parts)


def apart(places: Sequence[float], least: float) -> list[float]:
    """The places, pushed up where two were nearer than `least`."""
    found = list(places)
    lowest = float("inf")
    for number in sorted(range(len(found)), key=lambda number: -found[number]):
        lowest = found[number] = min(found[number], lowest - least)
    return found


def log_chart(
    title: str,
    curves: Sequence[Curve],
    places: Sequence[Place],
    x_label: str,
    y_label: str,
    bands: Sequence[Band] = (),
    log_y: bool = True,
    x_number: Callable[[float], str] = short,
    size: tuple[int, int] = (420, 270),
) -> Markup:
    """Marks, curves and bands over a logarithmic axis; a curve's name stands at its right end."""
    width, height = size
    xs = np.concatenate([*(c.x for c in (*curves, *bands)), [p.x for p in places]])
    ys = np.concatenate(
        [*(c.y for c in curves), *(b.low for b in bands), *(b.high for b in bands), [p.y for p in places]]
    )
    y = Axis(*_padded(float(ys.min()), float(ys.max()), log_y), height - 38, 22, log_y)
    y_ticks = y.ticks()
    left = 12 + LETTER * max(len(short(tick)) for tick in y_ticks)
    room = LETTER * max((len(curve.name) for curve in curves), default=0) + 8
    x = Axis(float(xs.min()) / 1.15, float(xs.max()) * 1.15, left, width - room, True)
    parts = [_text(0, 11, y_label)]
    for tick in y_ticks:
        parts += [_line(left, y(tick), width - room, y(tick), "grid")]
        parts += [_text(left - 5, y(tick) + 4, short(tick), "end")]
    for tick in x.ticks():
        parts += [_line(x(tick), height - 38, x(tick), height - 34, "axis")]
        parts += [_text(x(tick), height - 22, x_number(tick), "middle")]
    parts.append(_line(left, height - 38, width - room, height - 38, "axis"))
    parts.append(_text((left + width - room) / 2, height - 5, x_label, "middle"))
    for band in bands:
        around = [*zip(band.x, band.low), *zip(band.x[::-1], band.high[::-1])]
        parts.append(Markup('<polygon class="band {}" points="{}"/>').format(band.style, _points(around, x, y)))
    for curve in curves:
        line = Markup('<polyline class="curve {}" points="{}"/>')
        parts.append(line.format(curve.style, _points(zip(curve.x, curve.y), x, y)))
        if curve.name:
            parts.append(_text(x(float(curve.x[-1])) + 5, y(float(curve.y[-1])) + 4, curve.name))
    for place in places:
        dot = Markup('<path class="dot {}" transform="translate({} {})" d="{}"/>')
        parts.append(dot.format(place.style, x(place.x), y(place.y), MARKS[place.style.split()[0]]))
    return _svg(title, width, height, parts)


def bar_chart(title: str, rows: Sequence[Row], x_label: str, high: float, width: int = 420) -> Markup:
    """Bars beside their labels; `high` is the value at the right edge."""
    left = 12 + LETTER * max(len(row.label) for row in rows)
    room = LETTER * max(len(item.text) for row in rows for item in row.items) + 8
    axis = Axis(0, high or 1, left, width - room)
    parts, top = [], 4.0
    for row in rows:
        parts.append(_text(left - 6, top + LINE * len(row.items) / 2 + 3, row.label, "end"))
        for item in row.items:
            assert isinstance(item, Bar)
            start, end = axis(item.start), axis(item.end)
            box = 'class="bar {}" x="{}" y="{}" width="{}" height="{}" rx="2"'
            parts.append(Markup(f"<rect {box}/>").format(item.style, start, top + 1, max(1, end - start), LINE - 4))
            parts.append(_text(end + 5, top + 12, item.text))
            top += LINE
        top += 5
    parts.append(_text(left, top + 12, x_label))
    return _svg(title, width, round(top + 18), parts)


def dot_chart(
    title: str,
    rows: Sequence[Row],
    x_label: str,
    low: float,
    high: float,
    levels: dict[str, float] | None = None,
    width: int = 420,
) -> Markup:
    """Values with their intervals. A row's label stands above it, so that it may be long; `levels` has the value
    that a dashed line marks in a row, by the row's label."""
    room = LETTER * max(len(item.text) for row in rows for item in row.items) + 8
    axis = Axis(low, high, 8, width - room)
    ticks = axis.ticks()
    parts, top = [], 0.0
    for row in rows:
        parts.append(_text(0, top + 14, row.label, style="strong"))
        top += 20
        bottom = top + LINE * len(row.items)
        parts += [_line(axis(tick), top, axis(tick), bottom, "grid") for tick in ticks]
        if levels and row.label in levels:
            parts.append(_line(axis(levels[row.label]), top, axis(levels[row.label]), bottom, "level"))
        for item in row.items:
            assert isinstance(item, Dot)
            parts += _dot(item, axis, top + LINE / 2)
            parts.append(_text(width, top + LINE / 2 + 4, item.text, "end"))
            top += LINE
        top += 8
    parts += [_text(axis(tick), top + 8, short(tick), "middle") for tick in ticks]
    parts.append(_text(8, top + 25, x_label))
    return _svg(title, width, round(top + 31), parts)


def heat_map(
    title: str, columns: Sequence[str], rows: Sequence[str], shares: np.ndarray, x_label: str, y_label: str
) -> Markup:
    """Shares [rows, columns] from 0 to 1 as cells that are the fuller the darker, in per cent; NaN is not known."""
    width, top = 420, 20.0
    left = 12 + LETTER * max(len(row) for row in rows)
    room = (width - left) / len(columns)
    parts = [_text(0, 11, y_label)]
    for place, row in enumerate(rows):
        y = top + place * (LINE + 1)
        parts.append(_text(left - 6, y + 13, row, "end"))
        for number, share in enumerate(shares[place].tolist()):
            x, known = left + number * room, not math.isnan(share)
            box = '<rect class="cell series1" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{}" fill-opacity="{:.2f}"/>'
            parts.append(Markup(box).format(x, y, room - 1, LINE, 0.04 + 0.76 * share if known else 0))
            parts.append(_text(x + room / 2, y + 13, f"{100 * share:.0f}" if known else "–", "middle", "strong"))
    bottom = top + len(rows) * (LINE + 1)
    parts += [_text(left + (n + 0.5) * room, bottom + 14, column, "middle") for n, column in enumerate(columns)]
    parts.append(_text((left + width) / 2, bottom + 30, x_label, "middle"))
    return _svg(title, width, round(bottom + 36), parts)


MARKS = {  # paths around 0, 0; a style is told by its shape where its colour is not
    "series1": "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0",
    "series2": "M-4 -4h8v8h-8z",
    "series3": "M0 -5.5L5.5 0L0 5.5L-5.5 0z",
    "series4": "M-5 -3.5H5L0 5z",
    "plain": "M-4.5 4L0 -4.5L4.5 4z",
}


def _points(places: Iterable[tuple[float, float]], x: Axis, y: Axis) -> str:
    return " ".join(f"{x(float(a))},{y(float(b))}" for a, b in places)


def _dot(dot: Dot, axis: Axis, y: float) -> list[Markup]:
    parts = []
    if dot.low is not None and dot.high is not None:
        parts.append(_line(axis(dot.low), y, axis(dot.high), y, f"whisker {dot.style}"))
    mark = '<path class="dot {}" transform="translate({} {})" d="{}"/>'
    return [*parts, Markup(mark).format(dot.style, axis(dot.value), y, MARKS[dot.style])]


def mark(style: str) -> Markup:
    """A mark alone, for a legend."""
    inner = Markup('<path class="dot {}" d="{}"/>').format(style, MARKS[style])
    return Markup('<svg class="mark" viewBox="-7 -7 14 14" aria-hidden="true">{}</svg>').format(inner)


# -- curves ------------------------------------------------------------------------------------------------------------


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """The mean over `window` values around each, fewer at the ends."""
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    places = np.arange(len(values))
    first = np.maximum(0, places - window // 2)
    last = np.minimum(len(values), places + window - window // 2)
    return (sums[last] - sums[first]) / (last - first)


def thin(values: np.ndarray) -> np.ndarray:
    """The places of at most POINTS values, evenly, the last one among them."""
    step = max(1, math.ceil(len(values) / POINTS))
    return np.arange(len(values) - 1, -1, -step)[::-1]


def _padded(low: float, high: float, log: bool) -> tuple[float, float]:
    if log:
        return low / 1.1, high * 1.1
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return (0.0 if 0 <= low < (high - low) / 4 else low - margin), high + margin


# -- SVG ---------------------------------------------------------------------------------------------------------------


def _svg(title: str, width: int, height: int, parts: Sequence[Markup]) -> Markup:
    head = '<svg viewBox="0 0 {w} {h}" role="img" aria-label="{t}"><title>{t}</title>{inner}</svg>'
    return Markup(head).format(w=width, h=height, t=title, inner=Markup("\n").join(parts))


def _text(x: float, y: float, text: str, anchor: str = "start", style: str = "") -> Markup:
    element = '<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}">{}</text>'
    return Markup(element).format(x, y, anchor, style, escape(text))


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(style, x1, y1, x2, y2)
