"""The curves of a report; how each is to be read stands in `templates/parts.html`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from statistics import fmean, variance
from typing import Any

from trainer.report.data import RunData, actions, number
from trainer.report.svg import Axes, Series, line_chart, moving_average

SMOOTH = 10  # epochs


@dataclass(frozen=True, slots=True)
class Chart:
    """A curve."""

    kind: str  # names the sentence that says how it is to be read
    title: str  # a few words, which fit above it in one line
    series: Sequence[Series]
    axes: Axes

    def drawn(self, marks: Sequence[tuple[float, str]] = ()) -> dict[str, str]:
        """For a page: `kind`, `title`, `now` (the newest value of a single line) and `svg`."""
        lines = [line for line in self.series if not line.faint]
        values = [v for v in lines[0].y if v is not None] if len(lines) == 1 else []
        now = number(values[-1]) + self.axes.unit if values else ""
        svg = line_chart(self.series, self.axes, marks)
        return {"kind": self.kind, "title": self.title, "now": now, "svg": svg}


def all_charts(run: RunData) -> dict[str, list[Chart]]:
    return {
        "On held-out prompts": list(_held_out(run)),
        "On training prompts": list(_rewards(run)),
        "Is the update healthy?": list(_updates(run)),
    }


def charts(run: RunData) -> dict[str, list[dict[str, str]]]:
    """The curves as they are drawn, with a mark where alarms led to an action."""
    marks = [(row["epoch"], row["change"]) for row in actions(run) if row["kind"] != "none"]
    return {k: [c.drawn(marks) for c in found] for k, found in all_charts(run).items()}


def overlaid(runs: Mapping[str, RunData]) -> dict[str, list[dict[str, str]]]:
    """Each line of the curves as a chart of its own that all runs share, by heading."""
    out: dict[str, dict[tuple[str, str], Chart]] = {}
    for place, (name, run) in enumerate(runs.items()):
        for heading, found in all_charts(run).items():
            for chart in found:
                lines = [line for line in chart.series if not line.faint]
                for line in lines:
                    title = chart.title if len(lines) == 1 else f"{chart.title}: {line.name}"
                    own = replace(line, name=name, color=place % 6 + 1)
                    known = out.setdefault(heading, {})
                    before = known.get((chart.kind, title), replace(chart, title=title, series=()))
                    known[chart.kind, title] = replace(before, series=[*before.series, own])
    return {k: [chart.drawn() for chart in found.values()] for k, found in out.items()}


def headline_series(run: RunData) -> list[Series]:
    """The headline on held-out prompts with its interval."""
    found = [row["metrics"][run.headline] for row in run.evaluations]
    at = [row["epoch"] for row in run.evaluations]
    mean, low, high = ([row[key] for row in found] for key in ("mean", "low", "high"))
    return [Series(run.headline, at, mean, low, high)]


def _held_out(run: RunData) -> Iterator[Chart]:
    at = [row["epoch"] for row in run.evaluations]
    axes = Axes(y_label="mean of the categories")
    yield Chart("headline", run.headline, headline_series(run), axes)
    found = [row["metrics"][run.headline]["categories"] for row in run.evaluations]
    if len(found[0]) > 1:
        lines = {name: [c.get(name, {}).get("mean") for c in found] for name in found[0]}
        title = f"{run.headline} by category"
        yield Chart("category", title, _colored(at, lines), Axes(y_label="mean"))
    band = 100 * run.tolerance
    axes = Axes(band=(-band, band), unit=" %", y_label="change against the base")
    yield Chart("watched", "Watched rewards", _colored(at, _relative_watch(run)), axes)
    kl = [row.get("kl", {}).get("mean") for row in run.evaluations]
    axes = Axes(y_min=0, y_label="(v - v_base)², mean")
    yield Chart("kl", "KL to the base, held-out", [Series("KL", at, kl)], axes)


def _rewards(run: RunData) -> Iterator[Chart]:
    x = [row["epoch"] for row in run.epochs]
    names = list(run.epochs[0]["reward"]) if x else []
    axes = Axes(y_label="mean reward")
    columns = {name: [row["reward"][name] for row in run.epochs] for name in names}
    for name, values in columns.items():
        yield Chart("reward", name, _smoothed(name, x, values), axes)
    categories = list(dict.fromkeys(name for row in run.epochs for name in row["categories"]))
    if len(categories) > 1:
        lines = {n: [row["categories"].get(n) for row in run.epochs] for n in categories}
        lines = {name: moving_average(values, SMOOTH) for name, values in lines.items()}
        yield Chart("trained_category", f"{names[0]} by category", _colored(x, lines), axes)
    for name, values in list(columns.items())[:1]:
        line = Series(name, x, signal_to_noise(values, SMOOTH))
        axes = Axes(band=(-2, 2), y_label="standard errors")
        yield Chart("signal", "Signal to noise", [line], axes)


def _updates(run: RunData) -> Iterator[Chart]:
    x = [row["epoch"] for row in run.epochs]
    names = ("kl", "clip_frac_low", "clip_frac_high", "grad_norm")
    kl, below, above, norm = ([row["policy"].get(name) for row in run.epochs] for name in names)
    axes = Axes(y_min=0, y_label="in the form of the loss")
    yield Chart("trained_kl", "KL in training", _smoothed("KL", x, kl), axes)
    lines = [*_smoothed("below", x, below, 1), *_smoothed("above", x, above, 2)]
    yield Chart("clip", "Clip fraction", lines, Axes(y_min=0, y_label="share of ratios"))
    lines = _smoothed("norm", x, norm)
    yield Chart("norm", "Gradient norm", lines, Axes(y_min=0, y_label="before it is cut"))
    lines = _smoothed("share", x, [row["advantage"]["zero_std_groups"] for row in run.epochs])
    axes = Axes(y_min=0, y_max=1, y_label="share of groups")
    yield Chart("flat", "Groups without a signal", lines, axes)
    parts = {"rollout": "rollout", "waiting for scores": "score_wait", "update": "train"}
    seconds = {label: [row["seconds"][key] for row in run.epochs] for label, key in parts.items()}
    # A machine that slept for an hour would flatten all other epochs.
    axes = Axes(y_min=0, y_label="seconds", cut=True)
    yield Chart("seconds", "Seconds per epoch", _colored(x, seconds), axes)


def signal_to_noise(values: Sequence[float | None], width: int) -> list[float | None]:
    """Mean of the last `width` values minus that of the `width` before, in standard errors."""
    out: list[float | None] = []
    for end in range(1, len(values) + 1):
        windows = (values[max(0, end - 2 * width) : end - width], values[end - width : end])
        before, now = ([v for v in part if v is not None] for part in windows)
        error = 0.0
        if end >= 2 * width and min(len(before), len(now)) > 1:
            error = sqrt(variance(before) / len(before) + variance(now) / len(now))
        out.append((fmean(now) - fmean(before)) / error if error else None)
    return out


def _colored(x: Sequence[float], lines: Mapping[str, Any]) -> list[Series]:
    return [
        Series(name, x, values, color=place % 6 + 1)
        for place, (name, values) in enumerate(lines.items())
    ]


def _smoothed(name: str, x: Sequence[float], values: Any, color: int = 1) -> list[Series]:
    """Faint values and the mean of the last epochs."""
    line = Series(name, x, moving_average(values, SMOOTH), color=color)
    return [replace(line, name="", y=values, faint=True), line]


def _relative_watch(run: RunData) -> dict[str, list[float | None]]:
    """Watched rewards as a change against the base in percent."""
    out = {}
    for name, first in run.base["watch"].items():
        base = first["mean"]
        if base is None or abs(base) < 1e-9:
            continue
        means = [row["watch"].get(name, {}).get("mean") for row in run.evaluations]
        out[name] = [None if m is None else 100 * (m - base) / abs(base) for m in means]
    return out
