"""Small charts as inline SVG. Colours come from the page's CSS variables, so dark and light are one drawing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 180, 56, 26, 10


def line(points: Sequence[tuple[float, float]], *, x_unit: str, y_unit: str, label: str) -> str:
    """An area under a stepped line: rates over time."""
    if len(points) < 2:
        return ""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    x_axis, y_axis = _Axis(min(xs), max(xs), LEFT, WIDTH - 8), _Axis(0, max(max(ys), 1e-9), HEIGHT - BOTTOM, TOP)
    steps = [f"M{x_axis(xs[0]):.1f},{y_axis(0):.1f}"]
    for i, (x, y) in enumerate(points):
        following = xs[i + 1] if i + 1 < len(xs) else x + (xs[1] - xs[0])
        steps.append(f"L{x_axis(x):.1f},{y_axis(y):.1f}L{min(x_axis(following), WIDTH - 8):.1f},{y_axis(y):.1f}")
    steps.append(f"L{WIDTH - 8:.1f},{y_axis(0):.1f}Z")
    return _frame(f'<path class="area" d="{"".join(steps)}"/>', x_axis, y_axis, x_unit, y_unit, label)


def curves(series: Sequence[tuple[str, Sequence[tuple[float, float]]]], *, x_unit: str, y_unit: str, label: str) -> str:
    """A line with points and its name at the end, for each series; y from 0 to 1."""
    points = [point for _, some in series for point in some]
    if not points:
        return ""
    x_axis = _Axis(min(x for x, _ in points), max(x for x, _ in points), LEFT, WIDTH - 110)
    y_axis = _Axis(0, 1, HEIGHT - BOTTOM, TOP)
    shapes = []
    for i, (name, some) in enumerate(series):
        at = [(x_axis(x), y_axis(y)) for x, y in some]
        dash = "" if not i else f' stroke-dasharray="{2 * i + 2} {i + 1}"'
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        shapes.append(f'<polyline class="curve" points="{path}"{dash}/>')
        shapes += [
            f'<circle class="bar" cx="{x:.1f}" cy="{y:.1f}" r="2.5"><title>{escape(name)}, {_number(a)}: {b:.2f}'
            f"</title></circle>"
            for (x, y), (a, b) in zip(at, some, strict=True)
        ]
        x, y = at[-1]
        shapes.append(f'<text x="{x + 6:.1f}" y="{y + 4:.1f}">{escape(name)}</text>')
    return _frame("".join(shapes), x_axis, y_axis, x_unit, y_unit, label)


def bars(counts: Sequence[tuple[float, float, int]], *, x_unit: str, label: str) -> str:
    """A histogram: (from, to, count)."""
    if not counts or counts[0][0] == counts[-1][1]:
        return ""
    x_axis = _Axis(counts[0][0], counts[-1][1], LEFT, WIDTH - 8)
    y_axis = _Axis(0, max(n for _, _, n in counts), HEIGHT - BOTTOM, TOP)
    shapes = []
    for low, high, n in counts:
        x, top = x_axis(low), y_axis(n)
        tip = f"{_number(low)} to {_number(high)} {x_unit}: {n} rows"
        shapes.append(
            f'<rect class="bar" x="{x:.1f}" y="{top:.1f}" width="{max(x_axis(high) - x - 1, 0.5):.1f}" '
            f'height="{y_axis(0) - top:.1f}"><title>{escape(tip)}</title></rect>'
        )
    return _frame("".join(shapes), x_axis, y_axis, x_unit, "rows", label)


def shares(items: Sequence[tuple[str, float, str]]) -> str:
    """Horizontal bars: (name, amount, what to write beside it)."""
    most = max((amount for _, amount, _ in items), default=0) or 1
    rows = [
        f'<div class="share"><span>{escape(name)}</span><i style="width:{100 * amount / most:.2f}%"></i>'
        f"<b>{escape(text)}</b></div>"
        for name, amount, text in items
    ]
    return f'<div class="shares">{"".join(rows)}</div>'


class _Axis:
    """Value to pixel, and where to put ticks."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high, self.start, self.end = low, high if high > low else low + 1, start, end

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, about: int) -> list[float]:
        """Round numbers: 1, 2 or 5 times a power of ten."""
        raw = (self.high - self.low) / about
        power = 10 ** math.floor(math.log10(raw))
        step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw)
        first = math.ceil(self.low / step - 1e-9)
        return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _frame(shapes: str, x_axis: _Axis, y_axis: _Axis, x_unit: str, y_unit: str, label: str) -> str:
    lines = []
    for tick in y_axis.ticks(4):
        y = y_axis(tick)
        lines.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 8}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    lines += [
        f'<text x="{x_axis(tick):.1f}" y="{HEIGHT - 9}" text-anchor="middle">{_number(tick)}</text>'
        for tick in x_axis.ticks(8)
    ]
    return (
        f"<figure><figcaption>{escape(label)} <small>{escape(y_unit)} by {escape(x_unit)}</small></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
        f"{''.join(lines)}{shapes}</svg></figure>"
    )


def _number(x: float) -> str:
    if x == 0:
        return "0"
    if abs(x) >= 10_000:
        return f"{x / 1000:,.0f}k"
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}"
