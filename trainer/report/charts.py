"""The curves of a report."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from trainer.report.data import RunData, actions
from trainer.report.svg import Axes, Series, line_chart, moving_average

Chart = tuple[str, str, str]
"""Title, note and SVG."""
FROM_0 = Axes(y_min=0)
Draw = Callable[..., str]
"""`line_chart` with the marks of a run."""


def charts(run: RunData) -> list[dict[str, str]]:
    """All curves: title, note and SVG, with a mark where alarms led to an action."""
    marks = [(row["epoch"], row["change"]) for row in actions(run) if row["kind"] != "none"]
    draw = partial(line_chart, marks=marks)
    out = [*_held_out(run, draw), *(_training(run.epochs, draw) if run.epochs else ())]
    return [{"title": title, "note": note, "svg": svg} for title, note, svg in out if svg]


def headline_series(run: RunData) -> list[Series]:
    """The headline on held-out prompts with its interval."""
    found = [row["metrics"][run.headline] for row in run.evaluations]
    at = [row["epoch"] for row in run.evaluations]
    mean, low, high = ([row[key] for row in found] for key in ("mean", "low", "high"))
    return [Series(run.headline, at, mean, low, high)]


def _held_out(run: RunData, draw: Draw) -> list[Chart]:
    at = [row["epoch"] for row in run.evaluations]
    note = "Held-out prompts, fixed seeds, EMA weights; the band is the 95 % interval."
    out = [(f"{run.headline} on held-out prompts", note, draw(headline_series(run)))]
    found = [row["metrics"][run.headline]["categories"] for row in run.evaluations]
    if len(found[0]) > 1:
        lines = _colored(at, {n: [c.get(n, {}).get("mean") for c in found] for n in found[0]})
        note = "Between the ends with fewer images (eval.curve_*)."
        out.append((f"{run.headline} by category", note, draw(lines)))
    band = 100 * run.tolerance
    watched = draw(_colored(at, _relative_watch(run)), Axes(band=(-band, band), unit="%"))
    note = f"Never trained on. The band is ±{run.tolerance:.0%}."
    out.append(("Watched rewards, change against the base", note, watched))
    distance = [row.get("kl", {}).get("mean") for row in run.evaluations]
    if any(distance):
        note = "Mean squared distance of the velocities along the sampling of held-out images."
        out.append(("KL to the base, held-out", note, draw([Series("KL", at, distance)])))
    return out


def _training(rows: Sequence[Mapping[str, Any]], draw: Draw) -> list[Chart]:
    x = [row["epoch"] for row in rows]
    policy = {
        name: [row["policy"].get(name) for row in rows]
        for name in ("kl", "clip_frac_low", "clip_frac_high", "grad_norm")
    }
    categories = list(dict.fromkeys(name for row in rows for name in row["categories"]))
    smooth = {
        name: moving_average([row["categories"].get(name) for row in rows], 10)
        for name in categories
    }
    clipped = [
        *_smoothed("below", x, policy["clip_frac_low"], 1),
        *_smoothed("above", x, policy["clip_frac_high"], 2),
    ]
    flat = [row["advantage"]["zero_std_groups"] for row in rows]
    parts = {"rollout": "rollout", "waiting for scores": "score_wait", "update": "train"}
    seconds = {label: [row["seconds"][key] for row in rows] for label, key in parts.items()}
    rewards = {name: [row["reward"][name] for row in rows] for name in rows[0]["reward"]}
    return [
        *(
            (
                f"Training reward: {name}",
                "Each epoch, and the mean of the last ten.",
                draw(_smoothed(name, x, values)),
            )
            for name, values in rewards.items()
        ),
        (
            f"Training reward by category: {next(iter(rewards))}",
            "Mean of the last ten epochs.",
            draw(_colored(x, smooth)) if len(categories) > 1 else "",
        ),
        (
            "KL in training",
            "In the form that the loss uses.",
            draw(_smoothed("KL", x, policy["kl"]), FROM_0),
        ),
        ("Clipped ratios", "Share outside the clip range.", draw(clipped, FROM_0)),
        (
            "Gradient norm",
            "Before clipping.",
            draw(_smoothed("norm", x, policy["grad_norm"]), FROM_0),
        ),
        (
            "Groups without a signal",
            "Share of prompts whose images all scored alike.",
            draw(_smoothed("share of groups", x, flat), Axes(y_min=0, y_max=1)),
        ),
        ("Seconds per epoch", "Where the time goes.", draw(_colored(x, seconds), FROM_0)),
    ]


def _colored(x: Sequence[float], lines: Mapping[str, Sequence[float | None]]) -> list[Series]:
    return [
        Series(name, x, values, color=place % 6 + 1)
        for place, (name, values) in enumerate(lines.items())
    ]


def _smoothed(
    name: str, x: Sequence[float], values: Sequence[float | None], color: int = 1
) -> list[Series]:
    """Faint values and the mean of the last ten."""
    smooth = moving_average(values, 10)
    return [Series("", x, values, faint=True, color=color), Series(name, x, smooth, color=color)]


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
