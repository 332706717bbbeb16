"""An arena: named variants of one training run, several seeds each, in one table and one figure.

python scripts/arena.py run scripts/arenas/losses.toml --out runs/losses
python scripts/arena.py run scripts/arenas/losses.toml --out runs/losses --jobs 8 --cores-per-job 2
python scripts/arena.py report scripts/arenas/losses.toml --out runs/losses --docs docs

The table of an arena says which settings all runs share and which are an arm's own. A run that is
finished is not repeated and one that was interrupted goes on: the same command ends what an earlier
one began.
"""

from __future__ import annotations

import json
import math
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import numpy as np
import typer
from side_by_side import Job, Machine, run_all

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

COLOR_DIVERSITY = "colour diversity"


@dataclass(frozen=True, slots=True)
class Arm:
    """One variant.

    Attributes:
        preset: the preset that it starts from.
        settings: `section.key=value` texts, after those that all arms share.
        seeds: values of `run.seed`.
    """

    preset: str
    settings: tuple[str, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Arena:
    """A table of arms.

    Attributes:
        title: what the figure is called.
        arms: by name.
    """

    title: str
    arms: Mapping[str, Arm]

    @staticmethod
    def read(path: Path) -> Arena:
        """Read a table.

        Raises:
            KeyError: `title`, `preset`, `seeds` or `arms` is missing.
        """
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        common = tuple(table.get("common", ()))
        arms = {
            name: Arm(
                preset=arm.get("preset", table["preset"]),
                settings=(*common, *arm.get("set", ())),
                seeds=tuple(arm.get("seeds", table["seeds"])),
            )
            for name, arm in table["arms"].items()
        }
        return Arena(table["title"], arms)


def jobs_of(arena: Arena, out: Path, overrides: Sequence[str] = ()) -> list[Job]:
    """Every run, the first seed of all arms before the second of any."""
    numbered = [
        (place, name, arm, seed)
        for name, arm in arena.arms.items()
        for place, seed in enumerate(arm.seeds)
    ]
    numbered.sort(key=lambda item: item[0])
    return [
        Job(
            name=f"{name}, seed {seed}",
            folder=folder_of(out, name, seed),
            preset=arm.preset,
            settings=(*arm.settings, *overrides, f"run.seed={seed}"),
        )
        for _, name, arm, seed in numbered
    ]


def folder_of(out: Path, name: str, seed: int) -> Path:
    """Where a run lives."""
    slug = "".join(c if c.isalnum() or c == "." else "_" for c in name.lower())
    return out / f"{slug}-seed{seed}"


app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)
Table = Annotated[Path, typer.Argument(help="table of the arena, a TOML file")]
Out = Annotated[Path, typer.Option(help="folder of the runs")]
Only = Annotated[list[str] | None, typer.Option(help="arms; all by default")]


@app.command()
def run(
    table: Table,
    out: Out = Path("runs/arena"),
    only: Only = None,
    jobs: Annotated[int, typer.Option(help="runs at a time")] = 1,
    cores_per_job: Annotated[int, typer.Option(help="cores of each run; 0: share all")] = 0,
    processes: Annotated[int, typer.Option(help="trainer processes of each; 0: by cores")] = 0,
    scorers: Annotated[str, typer.Option(help="scorers of each run's service")] = "",
    deadline_minutes: Annotated[float, typer.Option(help="save and end after; 0: never")] = 0.0,
    archive: Annotated[Path | None, typer.Option(help=".tar.gz of the small results")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="for every run")] = None,
) -> None:
    """Do the runs that are not finished."""
    arena = _chosen(Arena.read(table), only)
    # Runs are in sessions of their own: without this they would go on alone.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        unfinished = run_all(
            jobs_of(arena, out, overrides or ()),
            Machine(jobs, cores_per_job, processes, scorers),
            deadline_s=deadline_minutes * 60 or None,
            archive=archive,
            say=lambda text: print(text, flush=True),
        )
    except ValueError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    if unfinished:
        typer.echo(f"not finished: {'; '.join(unfinished)}; the same command goes on")
        raise typer.Exit(1)


def _chosen(arena: Arena, only: Sequence[str] | None) -> Arena:
    unknown = set(only or ()) - set(arena.arms)
    if unknown:
        raise typer.BadParameter(f"no arm {sorted(unknown)}; there are {', '.join(arena.arms)}")
    return Arena(arena.title, {n: a for n, a in arena.arms.items() if not only or n in only})


@app.command()
def report(
    table: Table,
    out: Out = Path("runs/arena"),
    only: Only = None,
    docs: Annotated[Path | None, typer.Option(help="folder with images/ for the figure")] = None,
) -> None:
    """Print the table, and draw the curves if `--docs` is given."""
    arena = _chosen(Arena.read(table), only)
    runs = {
        name: [
            rows
            for seed in arm.seeds
            if len(_evaluations(rows := _rows(folder_of(out, name, seed)))) > 1
        ]
        for name, arm in arena.arms.items()
    }
    runs = {name: seeds for name, seeds in runs.items() if seeds}
    if docs is not None:
        path = docs / "images" / f"arena_{table.stem}.svg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_figure(runs), encoding="utf-8")
        typer.echo(f"![{arena.title}](../images/{path.name})\n")
    typer.echo(summary(runs))
    if runs:
        typer.echo(f"\n{at_equal_time(runs)}")


Rows = list[dict[str, Any]]


def _rows(folder: Path) -> Rows:
    """The metrics of a run; a line that is not whole is left out."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _evaluations(rows: Rows) -> Rows:
    return [row for row in rows if row["kind"] == "eval"]


def _headline(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return next(iter(row["metrics"].values()))


def summary(runs: Mapping[str, Sequence[Rows]]) -> str:
    """A Markdown table with a line per arm; bold are differences that exceed those of the seeds.

    A run that has not finished shows its last evaluation, marked with `*`.
    """
    first = next(iter(runs), "")
    out = [
        "| arm | held-out, mean (each seed) | 95 % interval of one run "
        f"| difference from {first} | largest change watched | colour diversity | KL "
        "| CPU s per epoch |",
        "|---|---|---|---|---|---|---|---|",
    ]
    base = [_last_mean(rows) for rows in runs.get(first, ())]
    out += [f"| {name} | {_line(seeds, base)} |" for name, seeds in runs.items()]
    return "\n".join(out)


def _last_mean(rows: Rows) -> float:
    return _headline(_evaluations(rows)[-1])["mean"]


def _line(seeds: Sequence[Rows], base: Sequence[float]) -> str:
    means = [_last_mean(rows) for rows in seeds]
    lasts = [_evaluations(rows)[-1] for rows in seeds]
    marks = ["" if row["phase"] == "final" else "*" for row in lasts]
    each = ", ".join(f"{mean:.3f}{mark}" for mean, mark in zip(means, marks, strict=True))
    half = fmean((_headline(row)["high"] - _headline(row)["low"]) / 2 for row in lasts)
    difference = f"{fmean(means) - fmean(base):+.3f}"
    if min(means) > max(base) or max(means) < min(base):
        difference = f"**{difference}**"
    changes = [_changes(_evaluations(rows)[0], row) for rows, row in zip(seeds, lasts, strict=True)]
    diversity = [change.pop(COLOR_DIVERSITY) for change in changes if COLOR_DIVERSITY in change]
    common = [name for name in changes[0] if all(name in change for change in changes)]
    watched = {name: fmean(change[name] for change in changes) for name in common}
    worst = max(watched, key=lambda name: abs(watched[name])) if watched else ""
    kls = [row["kl"]["mean"] for row in lasts if row.get("kl")]
    cpu_s = [_cpu_s(row) for rows in seeds for row in rows if row["kind"] == "train"]
    cells = [
        f"{fmean(means):.3f} ({each})",
        f"±{half:.3f}",
        "" if means == base else difference,
        f"{worst} {watched[worst]:+.0%}" if worst else "",
        f"{fmean(diversity):+.0%}" if diversity else "",
        f"{fmean(kls):.3f}" if kls else "–",
        f"{fmean(cpu_s):.1f}" if cpu_s else "",
    ]
    return " | ".join(cells)


def _cpu_s(row: Mapping[str, Any]) -> float:
    """CPU seconds of the trainer in an epoch, which other work on the machine does not change."""
    return row["seconds"]["cpu"]


def at_equal_time(runs: Mapping[str, Sequence[Rows]]) -> str:
    """A Markdown table: each run after the CPU time of the cheapest one, between two evaluations.

    The learning rates fall with the epochs, so what a run had in the middle is not what a shorter
    schedule would have reached.
    """
    budget_s = _budget_s(runs)
    out = [
        f"| arm | held-out after {budget_s / 60:.1f} CPU minutes of training, mean (each seed) "
        "| epochs |",
        "|---|---|---|",
    ]
    for name, seeds in runs.items():
        found = [_at(_spent(rows), budget_s) for rows in seeds]
        each = ", ".join(f"{mean:.3f}" for mean, _ in found)
        epochs = fmean(epoch for _, epoch in found)
        out.append(f"| {name} | {fmean(m for m, _ in found):.3f} ({each}) | {epochs:.0f} |")
    return "\n".join(out)


def _budget_s(runs: Mapping[str, Sequence[Rows]]) -> float:
    """CPU seconds of training of the cheapest run."""
    return min(
        sum(_cpu_s(row) for row in rows if row["kind"] == "train")
        for seeds in runs.values()
        for rows in seeds
    )


def _spent(rows: Rows) -> list[tuple[float, float, float]]:
    """CPU seconds of training before each evaluation, its mean and its epoch."""
    trained = [(row["epoch"], _cpu_s(row)) for row in rows if row["kind"] == "train"]
    return [
        (sum(cpu_s for epoch, cpu_s in trained if epoch <= at), _headline(row)["mean"], at)
        for row in _evaluations(rows)
        for at in [row["epoch"]]
    ]


def _at(points: Sequence[tuple[float, float, float]], budget_s: float) -> tuple[float, float]:
    """Mean and epoch after so much time, on the straight line between evaluations."""
    times, means, epochs = zip(*points, strict=True)
    return float(np.interp(budget_s, times, means)), float(np.interp(budget_s, times, epochs))


def _changes(base: Mapping[str, Any], last: Mapping[str, Any]) -> dict[str, float]:
    """By how much of the base's value each watched value has changed."""
    out = {}
    for name, row in last["watch"].items():
        before = base["watch"].get(name, {}).get("mean")
        if before and row["mean"] is not None:
            out[name] = row["mean"] / before - 1
    return out


def _figure(runs: Mapping[str, Sequence[Rows]]) -> str:
    """An SVG file: a row per arm, dots at the same images, rings at the same CPU time."""
    budget_s = _budget_s(runs)
    left, right, row, top = 120, 620, 26, 46
    points = {name: [_spent(rows) for rows in seeds] for name, seeds in runs.items()}
    every = [mean for seeds in points.values() for seed in seeds for _, mean, _ in seed]
    low, high = 0.1 * math.floor(10 * min(every)), 0.1 * math.ceil(10 * max(every))
    bottom = top + row * len(runs)

    def x(value: float) -> str:
        return f"{left + (right - left) * (value - low) / (high - low):.1f}"

    parts = []
    for tick in range(round(10 * low), round(10 * high) + 1):
        at = x(tick / 10)
        parts += [f'<path d="M{at} {top - 8}V{bottom}" class="grid"/>']
        parts += [f'<text x="{at}" y="{bottom + 18}" class="tick">{tick / 10:.1f}</text>']
    base = x(next(iter(points.values()))[0][0][1])
    parts += [f'<path d="M{base} {top - 8}V{bottom}" class="base"/>']
    parts += [f'<text x="{base}" y="{top - 14}" class="tick">base</text>']
    for (name, seeds), y in zip(points.items(), range(top + 8, bottom + 8, row), strict=False):
        mean = x(fmean(seed[-1][1] for seed in seeds))
        parts += [f'<text x="{left - 12}" y="{y + 4}" class="name">{escape(name)}</text>']
        parts += [f'<path d="M{mean} {y - 8}v16" class="mean"/>']
        for seed in seeds:
            parts += [f'<circle cx="{x(seed[-1][1])}" cy="{y}" r="4" class="images"/>']
            parts += [f'<circle cx="{x(_at(seed, budget_s)[0])}" cy="{y}" r="4" class="time"/>']
    said = f"dots: after the same images; rings: after the same {budget_s / 60:.1f} CPU minutes"
    parts += [f'<text x="{left}" y="16">{said}</text>']
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 {bottom + 28}" role="img">'
        f"<style>{_STYLE}</style>" + "\n".join(parts) + "</svg>\n"
    )


_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #444 } .name { text-anchor: end }
.tick { text-anchor: middle } .grid { stroke: #8884 }
.base { stroke: #c2410c; stroke-dasharray: 4 3 }
.mean { stroke: #00796b; stroke-width: 2 } .images { fill: #00796b; fill-opacity: .6 }
.time { fill: none; stroke: #b45309; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) { text { fill: #ccc } .mean { stroke: #4db6ac }
  .images { fill: #4db6ac } .time, .base { stroke: #fb923c } }
"""


if __name__ == "__main__":
    app()
