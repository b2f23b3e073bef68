"""Charts as inline SVG: no script, no font of their own, colors from the page's style sheet.

Series differ by dash as well as by color, so that a print in grey can be read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT = 460, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 14, 50
_BINS = 40
_LOG_SPREAD = 30  # a range this many times its smallest value is drawn on a logarithmic axis


@dataclass(frozen=True)
class Series:
    """A line; `style` 0 to 3 chooses color and dash."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: int = 0


@dataclass(frozen=True)
class Point:
    """A place with the interval of its height, if any; `style` as of a line, `hollow`: drawn as a ring."""

    name: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    style: int = 0
    hollow: bool = False


class _Axis:
    """Values to positions in the picture."""

    def __init__(self, low: float, high: float, start: float, end: float, *, log: bool = False) -> None:
        if not high > low:
            low, high = (low / 2, low * 2) if log else (low - 0.5 * (abs(low) or 1), low + 0.5 * (abs(low) or 1))
        self.low, self.high, self.start, self.end, self.log = low, high, start, end, log

    def __call__(self, value: float) -> float:
        low, high, value = self._line(self.low), self._line(self.high), self._line(value)
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def _line(self, value: float) -> float:
        return math.log10(value) if self.log else value

    @property
    def ticks(self) -> list[float]:
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            factors = (1, 2, 5) if len(decades) <= 3 else (1,)
            found = [factor * 10.0**decade for decade in decades for factor in factors]
            found = [value for value in found if self.low <= value <= self.high]
            return found or [self.low, self.high]
        step = 10.0 ** math.floor(math.log10((self.high - self.low) / 4))
        step *= next(factor for factor in (1, 2, 5, 10) if (self.high - self.low) / (factor * step) <= 6)
        first = math.ceil(self.low / step - 1e-9)
        return [index * step for index in range(first, math.floor(self.high / step + 1e-9) + 1)]


def lines(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    log_y: bool = False,
    diagonal: bool = False,
) -> str:
    """Lines over a common range; x rises, and what lies beyond its range is cut.

    Values that are not finite, or not positive on a logarithmic axis, are left out.
    """
    cleaned = []
    for each in series:
        pairs = [(float(x), float(y)) for x, y in zip(each.x, each.y, strict=True)]
        pairs = [(x, y) for x, y in pairs if math.isfinite(x) and math.isfinite(y) and (y > 0 or not log_y)]
        cleaned.append((each, pairs))
    every = [pair for _, pairs in cleaned for pair in pairs]
    if not every:
        return ""
    x_low, x_high = x_range or (min(x for x, _ in every), max(x for x, _ in every))
    y_low, y_high = y_range or (min(y for _, y in every), max(y for _, y in every))
    x, y = _axes((x_low, x_high), (y_low, y_high), log_y=log_y)
    parts = _frame(x, y, x_label, y_label)
    if diagonal:
        parts.append(f'<line class="guide" x1="{x(0):.1f}" y1="{y(0):.1f}" x2="{x(1):.1f}" y2="{y(1):.1f}"/>')
    for each, pairs in cleaned:
        points = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in _until(pairs, x_high))
        parts.append(f'<polyline class="line s{each.style}" points="{points}"/>')
    legend = [(each.name, f"line s{each.style}") for each, _ in cleaned]
    return _svg(title, parts, legend)


def _until(pairs: list[tuple[float, float]], end: float) -> list[tuple[float, float]]:
    """The part of a line with x up to `end`, its last point between two where it goes on."""
    inside = [pair for pair in pairs if pair[0] <= end]
    if inside and len(inside) < len(pairs):
        (x0, y0), (x1, y1) = inside[-1], pairs[len(inside)]
        inside.append((end, y0 + (y1 - y0) * (end - x0) / (x1 - x0)))
    return inside


def scatter(
    title: str,
    points: Sequence[Point],
    *,
    x_label: str,
    y_label: str,
    joined: Sequence[Point] = (),
    mark: tuple[float, str] | None = None,
) -> str:
    """Numbered points, whose names the legend tells, on a logarithmic x axis; "" where there are none.

    Args:
        joined: points that a line joins, in order.
        mark: x of a vertical line, and what it is.
    """
    places = [each for each in points if math.isfinite(each.x) and math.isfinite(each.y) and each.x > 0]
    if not places:
        return ""
    ends = [end for each in places for end in (each.y, each.low, each.high) if end is not None]
    xs = [each.x for each in places] + ([mark[0]] if mark and mark[0] > 0 else [])
    # Room for a number beside the outermost points.
    x, y = _axes((min(xs) / 1.15, max(xs) * 1.15), (min(ends) - 0.01, max(ends) + 0.01), log_x=True)
    parts = _frame(x, y, x_label, y_label)
    legend = []
    if mark and mark[0] > 0:
        at = x(mark[0])
        parts.append(f'<line class="mark" x1="{at:.1f}" y1="{_TOP}" x2="{at:.1f}" y2="{HEIGHT - _BOTTOM}"/>')
    if len(joined) > 1:
        way = " ".join(f"{x(each.x):.1f},{y(each.y):.1f}" for each in joined)
        parts.append(f'<polyline class="guide" fill="none" points="{way}"/>')
    for number, each in enumerate(places, start=1):
        at, height = x(each.x), y(each.y)
        if each.low is not None and each.high is not None:
            parts.append(
                f'<line class="line s{each.style}" x1="{at:.1f}" y1="{y(each.low):.1f}" '
                f'x2="{at:.1f}" y2="{y(each.high):.1f}"/>'
            )
        kind = "ring" if each.hollow else "dot"
        parts.append(f'<circle class="{kind} s{each.style}" cx="{at:.1f}" cy="{height:.1f}" r="5"/>')
        parts.append(f'<text x="{at + 8:.1f}" y="{height + 4:.1f}">{number}</text>')
        legend.append((f"{number} {each.name}", f"{kind} s{each.style}"))
    return _svg(title, parts, [*legend, *([(mark[1], "mark")] if mark and mark[0] > 0 else [])])


def histogram(
    title: str,
    groups: dict[str, Sequence[float]],
    *,
    x_label: str,
    marks: Sequence[tuple[float, str]] = (),
) -> str:
    """Shares of each group by value, one outline per group, with vertical marks; infinite values count as the largest.

    Each group is scaled by its own size, so that a small one can be seen.
    """
    finite = np.array([v for values in groups.values() for v in values if math.isfinite(v)])
    if not len(finite):
        return ""
    places = np.array([*finite, *(value for value, _ in marks if math.isfinite(value))])
    low, high = float(places.min()), float(places.max())
    log = low > 0 and high > _LOG_SPREAD * float(np.median(finite))
    if low == high:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
        log = False
    edges = np.geomspace(low, high, _BINS + 1) if log else np.linspace(low, high, _BINS + 1)
    edges[0], edges[-1] = low, high
    shares = {}
    for name, values in groups.items():
        if len(values):
            counted = np.histogram(np.clip(np.array(values, np.float64), low, high), bins=edges)[0]
            shares[name] = counted / len(values)
    x, y = _axes((low, high), (0.0, 1.05 * max(float(share.max()) for share in shares.values())), log_x=log)
    parts = _frame(x, y, x_label, "share of its images")
    legend = []
    for style, (name, share) in enumerate(shares.items()):
        corners = [(edges[0], 0.0)]
        for index, height in enumerate(share):
            corners += [(edges[index], height), (edges[index + 1], height)]
        points = " ".join(f"{x(float(a)):.1f},{y(float(b)):.1f}" for a, b in [*corners, (edges[-1], 0.0)])
        parts.append(f'<polygon class="bars s{style}" points="{points}"/>')
        legend.append((f"{name} ({len(groups[name])})", f"bars s{style}"))
    for value, name in marks:
        if math.isfinite(value):
            parts.append(f'<line class="mark" x1="{x(value):.1f}" y1="{_TOP}" x2="{x(value):.1f}" y2="{y(0):.1f}"/>')
            legend.append((name, "mark"))
    return _svg(title, parts, legend)


def _axes(x_range, y_range, *, log_x: bool = False, log_y: bool = False) -> tuple[_Axis, _Axis]:
    return (
        _Axis(*x_range, _LEFT, WIDTH - _RIGHT, log=log_x),
        _Axis(*y_range, HEIGHT - _BOTTOM, _TOP, log=log_y),
    )


def _frame(x: _Axis, y: _Axis, x_label: str, y_label: str) -> list[str]:
    """Axes with ticks and labels."""
    bottom = HEIGHT - _BOTTOM
    parts = []
    for tick in x.ticks:
        at = x(tick)
        parts.append(f'<line class="grid" x1="{at:.1f}" y1="{_TOP}" x2="{at:.1f}" y2="{bottom}"/>')
        parts.append(f'<text x="{at:.1f}" y="{bottom + 17}" text-anchor="middle">{tick:.6g}</text>')
    for tick in y.ticks:
        at = y(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{at:.1f}" x2="{WIDTH - _RIGHT}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{tick:.6g}</text>')
    parts.append(f'<path class="axis" d="M{_LEFT},{_TOP}V{bottom}H{WIDTH - _RIGHT}"/>')
    middle_x, middle_y = (_LEFT + WIDTH - _RIGHT) / 2, (_TOP + bottom) / 2
    parts.append(f'<text x="{middle_x:.0f}" y="{HEIGHT - 10}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(
        f'<text x="15" y="{middle_y:.0f}" text-anchor="middle" '
        f'transform="rotate(-90 15 {middle_y:.0f})">{escape(y_label)}</text>'
    )
    return parts


def _svg(title: str, parts: Sequence[str], legend: Sequence[tuple[str, str]]) -> str:
    """The picture, with its legend as lines of text below, which wrap where the page is narrow."""
    keys = "".join(
        f'<li><svg class="key" viewBox="0 0 26 10" aria-hidden="true">{_key(style)}</svg> {escape(name)}</li>'
        for name, style in legend
    )
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f'<title>{escape(title)}</title>{"".join(parts)}</svg><ul class="legend">{keys}</ul>'
    )


def _key(style: str) -> str:
    if style.startswith("bars"):
        return f'<rect class="{style}" x="1" y="1" width="24" height="8"/>'
    if style.startswith(("dot", "ring")):
        return f'<circle class="{style}" cx="13" cy="5" r="4"/>'
    return f'<line class="{style}" x1="0" y1="5" x2="26" y2="5"/>'
