"""Draw the figures of README and docs/explain/miniature.md from run folders.

python scripts/run_figures.py --run 'seed 0=runs/s0' --run 'KL off=runs/k0' \
    --control 'more pretraining=0.75' --grid runs/s0 --out docs/images --name miniature

Writes NAME_curve.svg (left: the mean of every run; right: the categories of the first) and
NAME_samples.png (the same prompts and seeds in every evaluation of `--grid`, and what they edit).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from contact_sheet import labelled
from PIL import Image

from trainer.images import cut, load_png
from trainer.report.svg import WIDTH, Axes, Series, line_document

COLORS = 6  # that a drawing has


def evaluations(folder: Path) -> list[dict[str, Any]]:
    """The evaluation rows of a run, in order."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == "eval"]


def headline(row: dict[str, Any]) -> dict[str, Any]:
    """The first metric of an evaluation."""
    return next(iter(row["metrics"].values()))


def curve(runs: dict[str, Path], controls: dict[str, float]) -> str:
    """The SVG: means of all runs at the left, categories of the first at the right."""
    rows = {name: evaluations(folder) for name, folder in runs.items()}
    longest = max(row["epoch"] for found in rows.values() for row in found)
    means = [
        lines(name, found, [headline(row) for row in found], color)
        for color, (name, found) in enumerate(rows.items())
    ]
    base = means[0].y[0]
    measure = next(iter(next(iter(rows.values()))[0]["metrics"]))
    means += [
        Series(f"{name} {value:.2f}", [0, longest], [base, value], color=color % COLORS + 1)
        for color, (name, value) in enumerate(controls.items(), start=len(means))
    ]
    first, found = next(iter(rows.items()))
    categories = [
        lines(name, found, [headline(row)["categories"][name] for row in found], color)
        for color, name in enumerate(headline(found[0])["categories"])
    ]
    return beside(
        line_document(means, Axes(f"epoch (held-out {measure})", 0.0, 1.0)),
        line_document(categories, Axes(f"epoch (by category, {first})", 0.0, 1.0)),
    )


def lines(
    name: str, rows: list[dict[str, Any]], values: list[dict[str, Any]], color: int
) -> Series:
    """Means by epoch with their intervals; the name says where they end."""
    mean, low, high = ([value[key] for value in values] for key in ("mean", "low", "high"))
    epochs = [row["epoch"] for row in rows]
    return Series(f"{name} {mean[-1]:.2f}", epochs, mean, low, high, color=color % COLORS + 1)


def beside(*drawings: str) -> str:
    """Whole SVG files of one width in one file, from left to right."""
    inner = [f'<svg x="{place * WIDTH}" ' + text[5:] for place, text in enumerate(drawings)]
    height = max(int(text.split('height="', 1)[1].split('"', 1)[0]) for text in drawings)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH * len(inner)} {height}">'
        f"{''.join(inner)}</svg>\n"
    )


def grid(folder: Path) -> Image.Image:
    """The samples of a run's evaluations, with epochs at the left and prompts on top."""
    found = evaluations(folder)
    prompts, rows = found[0]["shown"], []
    sources = len(next(iter(found[0].get("references", [])), []))
    for row in found:
        cells = cut(load_png(folder / row["samples"]), len(prompts), 1 + sources)
        if not rows:
            rows = [
                ("source", cells[place * len(prompts) :][: len(prompts)])
                for place in range(sources)
            ]
        name = "base" if row["phase"] == "base" else f"epoch {row['epoch']}"
        rows.append((name, cells[-len(prompts) :]))
    return labelled(rows, prompts)


def named(pairs: list[str]) -> dict[str, str]:
    """`name=value` pairs."""
    return dict(pair.split("=", 1) for pair in pairs)


def main(
    run: Annotated[list[str], typer.Option(help="name=folder of a run")],
    sheet: Annotated[Path, typer.Option("--grid", help="run whose samples are shown")],
    out: Annotated[Path, typer.Option(help="folder of the figures")],
    control: Annotated[list[str] | None, typer.Option(help="name=accuracy at the end")] = None,
    name: Annotated[str, typer.Option(help="what the files' names begin with")] = "miniature",
) -> None:
    """Draw both figures."""
    runs = {name: Path(folder) for name, folder in named(run).items()}
    controls = {name: float(value) for name, value in named(control or []).items()}
    (out / f"{name}_curve.svg").write_text(curve(runs, controls), encoding="utf-8")
    grid(sheet).save(out / f"{name}_samples.png", optimize=True)


if __name__ == "__main__":
    typer.run(main)
