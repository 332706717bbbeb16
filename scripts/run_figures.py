"""Draw the figures of README and docs/explain/miniature.md from run folders.

python scripts/run_figures.py --run 'seed 0=runs/s0' --run 'KL off=runs/k0' \
    --control 'more pretraining=0.75' --grid runs/s0 --out docs/images

Writes miniature_curve.svg (left: the mean of every run; right: the categories of the first) and
miniature_samples.png (the same prompts and seeds in every evaluation of `--grid`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Annotated, Any

import typer
from contact_sheet import labelled
from PIL import Image

COLORS = ("#2b59e0", "#1f9d63", "#8a63d2", "#c98a00", "#d6336c", "#0c8599", "#868e96")
HEIGHT_PX, TOP_PX, BOTTOM_PX = 370, 34, 320
LOWEST = 0.0


@dataclass(frozen=True, slots=True)
class Panel:
    """One diagram: where it lies and how many epochs its x axis has."""

    left_px: int
    right_px: int
    epochs: int

    def x(self, epoch: float) -> float:
        """Pixels from the left of `epoch`."""
        return self.left_px + (self.right_px - self.left_px) * epoch / self.epochs

    def y(self, value: float) -> float:
        """Pixels from the top of an accuracy."""
        return BOTTOM_PX - (BOTTOM_PX - TOP_PX) * (value - LOWEST) / (1 - LOWEST)


def evaluations(folder: Path) -> list[dict[str, Any]]:
    """The evaluation rows of a run, in order."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == "eval"]


def headline(row: dict[str, Any]) -> dict[str, Any]:
    """The first metric of an evaluation."""
    return next(iter(row["metrics"].values()))


def axes(panel: Panel, title: str) -> list[str]:
    """Grid, ticks and title."""
    out = [f'<text x="{panel.left_px}" y="18" fill="#222" font-weight="bold">{title}</text>']
    for tick in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        y = panel.y(tick)
        out.append(
            f'<line x1="{panel.left_px}" x2="{panel.right_px}" y1="{y:.0f}" y2="{y:.0f}" '
            f'stroke="#ddd"/><text x="{panel.left_px - 30}" y="{y + 4:.0f}" fill="#555">'
            f"{tick:.1f}</text>"
        )
    out += [
        f'<text x="{panel.x(epoch):.0f}" y="{BOTTOM_PX + 20}" text-anchor="middle" '
        f'fill="#555">{epoch}</text>'
        for epoch in range(0, panel.epochs + 1, 10)
    ]
    middle = (panel.left_px + panel.right_px) / 2
    out.append(
        f'<text x="{middle:.0f}" y="{BOTTOM_PX + 42}" text-anchor="middle" fill="#555">'
        "epochs</text>"
    )
    return out


def labels(panel: Panel, ends: list[tuple[str, float, str]]) -> list[str]:
    """Names at the right, moved apart where they would overlap."""
    out, lowest = [], -99.0
    for name, value, color in sorted(ends, key=lambda end: -end[1]):
        lowest = max(panel.y(value) + 4, lowest + 15)
        out.append(
            f'<text x="{panel.right_px + 8}" y="{lowest:.0f}" fill="{color}">'
            f"{escape(name)} {value:.2f}</text>"
        )
    return out


def line(panel: Panel, points: list[tuple[float, float]], color: str, style: str = "") -> str:
    """A polyline through (epoch, value)."""
    places = " ".join(f"{panel.x(x):.0f},{panel.y(y):.0f}" for x, y in points)
    return f'<polyline fill="none" stroke="{color}" stroke-width="1.8" {style} points="{places}"/>'


def curve(runs: dict[str, Path], controls: dict[str, float]) -> str:
    """The SVG: means of all runs at the left, categories of the first at the right."""
    rows = {name: evaluations(folder) for name, folder in runs.items()}
    longest = max(row["epoch"] for found in rows.values() for row in found)
    panel, ends, out = Panel(50, 420, longest), [], []
    out += axes(panel, "Held-out GenEval accuracy")
    for (name, found), color in zip(rows.items(), COLORS, strict=False):
        points = [(row["epoch"], headline(row)["mean"]) for row in found]
        out.append(line(panel, points, color))
        last = headline(found[-1])
        x = panel.x(points[-1][0])
        out.append(
            f'<line x1="{x:.0f}" x2="{x:.0f}" y1="{panel.y(last["low"]):.0f}" '
            f'y2="{panel.y(last["high"]):.0f}" stroke="{color}" stroke-width="3" opacity="0.35"/>'
        )
        ends.append((name, last["mean"], color))
    base = headline(next(iter(rows.values()))[0])["mean"]
    for name, value in controls.items():
        ends_at = (longest, value)
        out.append(line(panel, [(0, base), ends_at], COLORS[-1], 'stroke-dasharray="5 4"'))
        ends.append((name, value, COLORS[-1]))
    out += labels(panel, ends)
    first, found = next(iter(rows.items()))
    panel, ends = Panel(660, 960, found[-1]["epoch"]), []
    out += axes(panel, f"By category ({escape(first)})")
    for category, color in zip(headline(found[0])["categories"], COLORS, strict=False):
        values = [(row["epoch"], headline(row)["categories"][category]["mean"]) for row in found]
        out.append(line(panel, [(x, max(LOWEST, y)) for x, y in values], color))
        ends.append((category, values[-1][1], color))
    out += labels(panel, ends)
    body = "\n".join(out)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1110 {HEIGHT_PX}" '
        f'font-family="sans-serif" font-size="13"><rect width="1110" height="{HEIGHT_PX}" '
        f'fill="white"/>\n{body}\n</svg>\n'
    )


def grid(folder: Path) -> Image.Image:
    """The sample sheets of a run's evaluations, with epochs at the left and prompts on top."""
    found = evaluations(folder)
    rows = [
        ("base" if row["phase"] == "base" else f"epoch {row['epoch']}", folder / row["samples"])
        for row in found
    ]
    return labelled(rows, found[0]["shown"])


def named(pairs: list[str]) -> dict[str, str]:
    """`name=value` pairs."""
    return dict(pair.split("=", 1) for pair in pairs)


def main(
    run: Annotated[list[str], typer.Option(help="name=folder of a run")],
    sheet: Annotated[Path, typer.Option("--grid", help="run whose samples are shown")],
    out: Annotated[Path, typer.Option(help="folder of the figures")],
    control: Annotated[list[str] | None, typer.Option(help="name=accuracy at the end")] = None,
) -> None:
    """Draw both figures."""
    runs = {name: Path(folder) for name, folder in named(run).items()}
    controls = {name: float(value) for name, value in named(control or []).items()}
    (out / "miniature_curve.svg").write_text(curve(runs, controls), encoding="utf-8")
    grid(sheet).save(out / "miniature_samples.png", optimize=True)


if __name__ == "__main__":
    typer.run(main)
