"""Line charts as inline SVG: no fonts, no assets; colours come from the page.

Colours are CSS variables (`--s1` to `--s6`, `--grid`, `--ink`), so that a chart follows the page's
light or dark theme. `data-chart` holds the numbers that a page's script shows under the pointer.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 30, 34
MOST_POINTS = 400


@dataclass(frozen=True, slots=True)
class Series:
    """A line."""

    name: str  # for the legend
    x: Sequence[float]  # ascending
    y: Sequence[float | None]  # None leaves a gap
    low: Sequence[float | None] = ()  # lower ends of an interval around y, or empty
    high: Sequence[float | None] = ()
    faint: bool = False  # thin in the background, without a legend entry
    color: int = 1  # number of the colour, 1 to 6


@dataclass(frozen=True, slots=True)
class Axes:
    """What surrounds the lines."""

    x_label: str = "epoch"
    y_min: float | None = None  # smallest end of the vertical axis; None: to fit
    y_max: float | None = None  # largest end
    band: tuple[float, float] | None = None  # low and high of a shaded horizontal band
    unit: str = ""  # appended to the numbers of the vertical axis
    y_label: str = ""
    cut: bool = False  # end the axis at three times the 98th percentile; draw what is above there


def moving_average(values: Sequence[float | None], width: int) -> list[float | None]:
    """Mean of the last `width` values that are there."""
    out: list[float | None] = []
    for end in range(1, len(values) + 1):
        window = [value for value in values[max(0, end - width) : end] if value is not None]
        out.append(sum(window) / len(window) if window else None)
    return out


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that cover [low, high]."""
    span = high - low or 1.0
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999), 10 * power)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    # Rounding far from zero can step over an end by a few units in the last place.
    return [min(max(round(index * step, 12), low), high) for index in range(first, last + 1)]


def line_chart(
    series: Sequence[Series],
    axes: Axes | None = None,
    marks: Sequence[tuple[float, str]] = (),
) -> str:
    """Draw lines, of long ones evenly chosen points; an empty text when there is nothing to draw.

    `marks` are positions of dashed vertical lines, with what happened there.
    """
    axes = axes or Axes()
    kept = [_thin(line) for line in series if any(value is not None for value in line.y)]
    if not kept:
        return ""
    scale = _Scale.fit(kept, axes)
    parts = [_frame(scale, axes), *(_mark(scale, x, text) for x, text in marks)]
    for line in sorted(kept, key=lambda item: not item.faint):
        parts.append(_interval(line, scale))
        parts.append(_path(line, scale))
    return _svg(parts, kept, scale, axes)


def _thin(line: Series) -> Series:
    count = len(line.x)
    if count <= MOST_POINTS:
        return line
    rows = sorted({round(k * (count - 1) / (MOST_POINTS - 1)) for k in range(MOST_POINTS)})
    parts = {name: [getattr(line, name)[row] for row in rows] for name in ("x", "y")}
    ends = {n: [getattr(line, n)[row] for row in rows] for n in ("low", "high") if line.low}
    return replace(line, **parts, **ends)


# The colours of a page, for a drawing that stands alone.
_ALONE = (
    ":root{--s1:#2f5bea;--s2:#e07a1f;--s3:#14804a;--s4:#a83fb5;--s5:#c22f3d;--s6:#0f8b9e;"
    "--good:#14804a}text{font:11px sans-serif;fill:#5b6472}.grid{stroke:#e3e6eb}"
)


def line_document(series: Sequence[Series], axes: Axes | None = None) -> str:
    """A line chart as an SVG file: with its own colours and legend, on white."""
    drawn = line_chart(series, axes)
    inner = drawn[drawn.index(">") + 1 : drawn.index("</svg>")]
    names = [(line.name, line.color) for line in series if line.name and not line.faint]
    legend = "".join(
        f'<rect x="{LEFT + index % 3 * 135}" y="{HEIGHT + 4 + index // 3 * 18}" width="10" '
        f'height="10" rx="2" fill="var(--s{color})"/>'
        f'<text x="{LEFT + 15 + index % 3 * 135}" y="{HEIGHT + 13 + index // 3 * 18}">'
        f"{escape(name)}</text>"
        for index, (name, color) in enumerate(names)
    )
    height = HEIGHT + 8 + 18 * -(-len(names) // 3)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}"><style>{_ALONE}</style><rect width="100%" height="100%" fill="#fff"/>'
        f"{inner}{legend}</svg>\n"
    )


@dataclass(frozen=True, slots=True)
class _Scale:
    x_low: float
    x_high: float
    y_low: float
    y_high: float

    @staticmethod
    def fit(series: Sequence[Series], axes: Axes) -> "_Scale":
        xs = [x for line in series for x in line.x]
        values = [v for line in series for v in (*line.y, *line.low, *line.high) if v is not None]
        low, high = min(values), max(values)
        if axes.cut:
            high = min(high, 3 * sorted(values)[int(0.98 * (len(values) - 1))] or high)
        if axes.band is not None:
            low, high = min(low, axes.band[0]), max(high, axes.band[1])
        margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
        return _Scale(
            min(xs),
            max(xs) if max(xs) > min(xs) else min(xs) + 1,
            low - margin if axes.y_min is None else min(axes.y_min, low),
            high + margin if axes.y_max is None else max(axes.y_max, high),
        )

    def x(self, value: float) -> float:
        share = (value - self.x_low) / (self.x_high - self.x_low)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = min((value - self.y_low) / (self.y_high - self.y_low or 1.0), 1.0)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _frame(scale: _Scale, axes: Axes) -> str:
    out = []
    if axes.band is not None:
        top, bottom = scale.y(axes.band[1]), scale.y(axes.band[0])
        out.append(
            f'<rect x="{LEFT}" y="{top:.1f}" width="{WIDTH - LEFT - RIGHT}" '
            f'height="{bottom - top:.1f}" fill="var(--good)" opacity=".13"/>'
        )
    for value in ticks(scale.y_low, scale.y_high):
        y = scale.y(value)
        out.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
            f'<text x="{LEFT - 7}" y="{y + 4:.1f}" class="tick" text-anchor="end">'
            f"{_short(value)}{axes.unit}</text>"
        )
    out += [
        f'<text x="{scale.x(value):.1f}" y="{HEIGHT - BOTTOM + 16}" class="tick" '
        f'text-anchor="middle">{_short(value)}</text>'
        for value in ticks(scale.x_low, scale.x_high, 6)
        if value.is_integer()
    ]
    out.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 2}" class="tick" '
        f'text-anchor="middle">{escape(axes.x_label)}</text>'
        f'<text x="2" y="12" class="tick">{escape(axes.y_label)}</text>'
    )
    return "".join(out)


def _mark(scale: _Scale, at: float, text: str) -> str:
    x = f"{scale.x(at):.1f}"
    return (
        f'<line x1="{x}" x2="{x}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="var(--warn)" '
        f'stroke-width="1.5" stroke-dasharray="4 3"><title>{escape(text)}</title></line>'
    )


def _path(line: Series, scale: _Scale) -> str:
    rows = zip(line.x, line.y, strict=True)
    points = [(scale.x(x), scale.y(y)) for x, y in rows if y is not None]
    drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    style = 'stroke-width="1" opacity=".4"' if line.faint else 'stroke-width="2"'
    out = [
        f'<polyline points="{drawn}" fill="none" stroke="var(--s{line.color})" {style} '
        'stroke-linejoin="round"/>'
    ]
    if not line.faint and len(points) <= 60:
        out += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="var(--s{line.color})"/>'
            for x, y in points
        ]
    return "".join(out)


def _interval(line: Series, scale: _Scale) -> str:
    if not line.low or not line.high:
        return ""
    rows = [
        (x, low, high)
        for x, low, high in zip(line.x, line.low, line.high, strict=True)
        if low is not None and high is not None
    ]
    forth = [f"{scale.x(x):.1f},{scale.y(high):.1f}" for x, _, high in rows]
    back = [f"{scale.x(x):.1f},{scale.y(low):.1f}" for x, low, _ in reversed(rows)]
    points = " ".join(forth + back)
    return f'<polygon points="{points}" fill="var(--s{line.color})" opacity=".15"/>'


def _svg(parts: Sequence[str], series: Sequence[Series], scale: _Scale, axes: Axes) -> str:
    named = [line for line in series if not line.faint and line.name]
    legend = "".join(
        f'<span><i style="background:var(--s{line.color})"></i>{escape(line.name)}</span>'
        for line in (named if len(named) > 1 else ())
    )
    shown = {
        "frame": [LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM],
        "scale": [scale.x_low, scale.x_high, scale.y_low, scale.y_high],
        "unit": axes.unit,
        "x": axes.x_label,
        "lines": [
            {
                "name": line.name or "this epoch",
                "color": line.color,
                **{
                    name: [v if v is None else float(f"{v:.5g}") for v in getattr(line, name)]
                    for name in ("x", "y", "low", "high")
                },
            }
            for line in sorted(series, key=lambda item: item.faint)
        ],
    }
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0" '
        f'data-chart="{escape(json.dumps(shown, separators=(",", ":")))}">{"".join(parts)}</svg>'
        f'<div class="legend">{legend}</div>'
    )


def _short(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 10000 or abs(value) < 0.001:
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.4g}"
