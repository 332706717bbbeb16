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
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer
from side_by_side import Job, Machine, run_all

from trainer.report.svg import Axes, Series, line_document

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
        typer.echo(f"![{arena.title}](images/{path.name})\n")
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
    """A Markdown table: the last evaluation of each run within the CPU time of the cheapest one.

    The learning rates fall with the epochs, so what a run had in the middle is not what a shorter
    schedule would have reached.
    """
    budget_s = min(sum(_spent(rows)) for seeds in runs.values() for rows in seeds)
    out = [
        f"| arm | held-out after {budget_s / 60:.1f} CPU minutes of training, per seed | epochs |",
        "|---|---|---|",
    ]
    for name, seeds in runs.items():
        found = [_within(rows, budget_s) for rows in seeds]
        means = ", ".join(f"{_headline(row)['mean']:.3f}" for row in found)
        out.append(f"| {name} | {means} | {', '.join(str(row['epoch']) for row in found)} |")
    return "\n".join(out)


def _spent(rows: Rows) -> list[float]:
    return [_cpu_s(row) for row in rows if row["kind"] == "train"]


def _within(rows: Rows, budget_s: float) -> Mapping[str, Any]:
    """The last evaluation before a budget is spent."""
    total_s, last = 0.0, _evaluations(rows)[0]
    for row in rows:
        if row["kind"] == "train":
            total_s += _cpu_s(row)
        elif total_s <= budget_s:
            last = row
    return last


def _changes(base: Mapping[str, Any], last: Mapping[str, Any]) -> dict[str, float]:
    """By how much of the base's value each watched value has changed."""
    out = {}
    for name, row in last["watch"].items():
        before = base["watch"].get(name, {}).get("mean")
        if before and row["mean"] is not None:
            out[name] = row["mean"] / before - 1
    return out


def _figure(runs: Mapping[str, Sequence[Rows]]) -> str:
    """An SVG file of held-out accuracy by epoch; one colour per arm."""
    series = []
    for number, (name, seeds) in enumerate(runs.items()):
        for place, rows in enumerate(seeds):
            points = _evaluations(rows)
            series.append(
                Series(
                    name,
                    [row["epoch"] for row in points],
                    [_headline(row)["mean"] for row in points],
                    faint=place > 0,
                    color=number % 6 + 1,
                )
            )
    return line_document(series, Axes(x_label="epoch", y_max=1.0))


if __name__ == "__main__":
    app()
