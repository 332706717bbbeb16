"""The curves of a report."""

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.report.data import RunData
from trainer.report.svg import Axes, Series, area_chart, line_chart, moving_average


def charts(run: RunData) -> list[dict[str, str]]:
    """All curves: title, note and SVG."""
    rows, evals = run.epochs, run.evaluations
    x = [row["epoch"] for row in rows]
    at = [row["epoch"] for row in evals]
    out: list[tuple[str, str, str]] = []
    whole = [row["metrics"][run.headline] for row in evals]
    note = "Held-out prompts, fixed seeds, EMA weights; the band is the 95 % interval."
    out.append((f"{run.headline} on held-out prompts", note, line_chart(headline_series(run))))
    names = list(whole[0]["categories"])
    if len(names) > 1:
        lines = [
            Series(
                name,
                at,
                [v["categories"].get(name, {}).get("mean") for v in whole],
                color=index % 6 + 1,
            )
            for index, name in enumerate(names)
        ]
        out.append(
            (
                f"{run.headline} by category",
                "Between the ends with fewer images (eval.curve_*).",
                line_chart(lines),
            )
        )
    if rows:
        for name in rows[0]["reward"]:
            values = [row["reward"][name] for row in rows]
            out.append(
                (
                    f"Training reward: {name}",
                    "Mean of each epoch and of the last ten.",
                    line_chart(
                        [
                            Series(name, x, values, faint=True),
                            Series("mean of ten epochs", x, moving_average(values, 10)),
                        ]
                    ),
                )
            )
    relative, band = _relative_watch(run, at), 100 * run.tolerance
    if relative:
        out.append(
            (
                "Watched rewards, change against the base",
                f"Never trained on. The band is ±{run.tolerance:.0%}.",
                line_chart(relative, Axes(band=(-band, band), unit="%")),
            )
        )
    distance = [row.get("kl", {}).get("mean") for row in evals]
    if any(distance):
        note = "Mean squared distance of the velocities along the sampling of held-out images."
        out.append(("KL to the base, held-out", note, line_chart([Series("KL", at, distance)])))
    if rows:
        out += _training_categories(rows, x)
        out += _policy_charts(rows, x)
    return [{"title": t, "note": n, "svg": s} for t, n, s in out if s]


def headline_series(run: RunData) -> list[Series]:
    """The headline on held-out prompts with its interval."""
    found = [row["metrics"][run.headline] for row in run.evaluations]
    return [
        Series(
            run.headline,
            [row["epoch"] for row in run.evaluations],
            [row["mean"] for row in found],
            [row["low"] for row in found],
            [row["high"] for row in found],
        )
    ]


def _training_categories(
    rows: Sequence[Mapping[str, Any]], x: Sequence[float]
) -> list[tuple[str, str, str]]:
    names = list(rows[0]["categories"])
    names += [name for row in rows for name in row["categories"] if name not in names]
    names = list(dict.fromkeys(names))
    if len(names) < 2:
        return []
    lines = [
        Series(
            name,
            x,
            moving_average([row["categories"].get(name) for row in rows], 10),
            color=index % 6 + 1,
        )
        for index, name in enumerate(names)
    ]
    title = f"Training reward by category: {next(iter(rows[0]['reward']))}"
    return [(title, "Mean of the last ten epochs.", line_chart(lines))]


def _relative_watch(run: RunData, at: Sequence[float]) -> list[Series]:
    lines = []
    for index, (name, first) in enumerate(run.base["watch"].items()):
        base = first["mean"]
        if base is None or abs(base) < 1e-9:
            continue
        means = [row["watch"].get(name, {}).get("mean") for row in run.evaluations]
        change = [None if m is None else 100 * (m - base) / abs(base) for m in means]
        lines.append(Series(name, at, change, color=index % 6 + 1))
    return lines


def _policy_charts(
    rows: Sequence[Mapping[str, Any]], x: Sequence[float]
) -> list[tuple[str, str, str]]:
    def of(name: str) -> list[float | None]:
        return [row["policy"].get(name) for row in rows]

    def smooth(name: str, label: str, color: int = 1) -> list[Series]:
        values = of(name)
        return [
            Series(label, x, values, faint=True, color=color),
            Series(label, x, moving_average(values, 10), color=color),
        ]

    times = [
        Series(label, x, [row["seconds"][key] for row in rows], color=color)
        for label, key, color in (
            ("rollout", "rollout", 1),
            ("waiting for scores", "score_wait", 2),
            ("update", "train", 3),
        )
    ]
    groups = [row["advantage"]["zero_std_groups"] for row in rows]
    return [
        (
            "KL in training",
            "In the form that the loss uses.",
            line_chart(smooth("kl", "KL"), Axes(y_min=0)),
        ),
        (
            "Clipped ratios",
            "Share of samples outside the clip range.",
            line_chart(
                [*smooth("clip_frac_low", "below", 1), *smooth("clip_frac_high", "above", 2)],
                Axes(y_min=0),
            ),
        ),
        (
            "Gradient norm",
            "Before clipping.",
            line_chart(smooth("grad_norm", "norm"), Axes(y_min=0)),
        ),
        (
            "Groups without a signal",
            "Share of prompts whose images all scored alike.",
            line_chart(
                [
                    Series("", x, groups, faint=True),
                    Series("share of groups", x, moving_average(groups, 10)),
                ],
                Axes(y_min=0, y_max=1),
            ),
        ),
        ("Seconds per epoch", "Where the time goes.", area_chart(times)),
    ]
