"""Runs side by side: one self-contained page and a table for the console.

Runs of one task and headline are compared, whatever their length; the first is the reference. Where
prompts and seeds are the same, differences are paired, prompt by prompt.
"""

from collections.abc import Mapping, Sequence
from math import hypot
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.box import HORIZONTALS
from rich.markup import escape
from rich.table import Table

from trainer.errors import ConfigError
from trainer.report import data
from trainer.report.charts import overlaid
from trainer.report.data import NOTHING, RunData, load_run
from trainer.report.page import Column, slides
from trainer.run.storage import replace_file, storing

# Settings without which two evaluations measure different things.
DECIDES = [
    "task.test",
    *(f"eval.{name}" for name in ("seed", "num_prompts")),
    *(f"sampling.{name}" for name in ("eval_num_steps", "eval_guidance_scale", "guidance_scale")),
    *(f"sampling.{name}" for name in ("resolution_px", "height_px", "width_px", "num_frames")),
]
ELSEWHERE = ("run.out_dir", "rewards.url", "logging.", "record.")
Rows = list[tuple[str, list[str]]]


def compare(run_dirs: Sequence[Path], page: Path) -> Table:
    """Write the page, and return the table.

    Raises:
        ConfigError: fewer than two runs, a folder without one, or runs of different tasks.
        StorageError: the page cannot be written.
    """
    runs = _runs(run_dirs)
    first, *others = runs.values()
    notes = [note for name in list(runs)[1:] for note in _notes(runs, name)]
    tables = {"Result": _result(first, others), "Watched (change against the base)": _watched(runs)}
    tables["Run"] = _cost(runs)
    columns = [Column("base", "", first, first.base)]
    columns += [
        Column(name, f"epoch {run.after['epoch']}", run, run.after)
        for name, run in runs.items()
        if run.after["shown"] == first.base["shown"] and "eval.seed" not in _unlike(first, run)
    ]
    html = data.environment(html=True).get_template("compare.html")
    text = html.render(
        runs=list(runs),
        title=" · ".join(runs),
        headline=first.headline,
        notes=notes,
        changed=_changed(runs),
        tables=tables,
        slides=slides(columns),
        charts=overlaid(runs),
        num=data.number,
        video=first.settings["sampling"].get("num_frames", 1) > 1,
    )
    with storing(str(page)):
        page.parent.mkdir(parents=True, exist_ok=True)
        replace_file(page, text)
    table = Table(box=HORIZONTALS, padding=0, caption="\n".join(map(escape, notes)) or None)
    for name in ("", *runs):
        table.add_column(escape(name), justify="right" if name else "left", overflow="fold")
    for rows in tables.values():
        for label, cells in rows:
            table.add_row(escape(label), *map(escape, cells))
        table.add_section()
    return table


def _runs(run_dirs: Sequence[Path]) -> dict[str, RunData]:
    places = list(dict.fromkeys(place.resolve() for place in run_dirs))
    if len(places) < 2:
        raise ConfigError("name two or more runs, e.g. flow-train compare runs/a runs/b")
    alone = len({place.name for place in places}) == len(places)
    runs = {p.name if alone else f"{p.parent.name}/{p.name}": load_run(p) for p in places}
    measured = {n: f"task {r.settings['task']['name']}, {r.headline}" for n, r in runs.items()}
    if len(set(measured.values())) > 1:
        raise ConfigError(
            "these runs measure different things ("
            + "; ".join(f"{name}: {what}" for name, what in measured.items())
            + "): `flow-train evaluate` measures each with the same --task and --scorer"
        )
    return runs


def _flat(run: RunData) -> dict[str, Any]:
    table = run.settings.items()
    return {f"{name}.{key}": value for name, values in table for key, value in values.items()}


def _changed(runs: Mapping[str, RunData]) -> Rows:
    """The settings that differ, as TOML."""
    tables = [_flat(run) for run in runs.values()]
    names = list(dict.fromkeys(name for table in tables for name in table))
    values = {name: [data.shown(table.get(name)) for table in tables] for name in names}
    differ = {name: row for name, row in values.items() if len(set(row)) > 1}
    return [(name, row) for name, row in differ.items() if not name.startswith(ELSEWHERE)]


def _unlike(one: RunData, other: RunData) -> list[str]:
    return [key for key in DECIDES if _flat(one).get(key) != _flat(other).get(key)]


def _paired(one: RunData, other: RunData) -> Any:
    same = one.after.get("prompts") == other.after.get("prompts") and not _unlike(one, other)
    return data.difference(one.headline, one.after if same else {}, other.after)


def _notes(runs: Mapping[str, RunData], name: str) -> list[str]:
    """What a reader has to know before believing the difference of a run and the first."""
    reference, first, run = next(iter(runs)), next(iter(runs.values())), runs[name]
    notes = []
    if unlike := _unlike(first, run):
        notes.append(
            f"{reference} and {name} were evaluated differently ({', '.join(unlike)}), so their "
            "scores do not compare: flow-train evaluate measures both alike."
        )
    elif _paired(first, run)["mean"] is None:
        notes.append(
            f"{reference} and {name}: the difference is not paired, because their prompts differ "
            "or an older version wrote one of them; the interval is the wider one."
        )
    known = {row["name"]: row["fingerprint"] for row in data.scorers(first)}
    return notes + [
        f"{name} was scored by another version of {row['name']} than {reference}."
        for row in data.scorers(run)
        if known.get(row["name"], row["fingerprint"]) != row["fingerprint"]
    ]


def unpaired(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The difference of two means with the interval that follows from theirs (MOVER, Zou 2008)."""
    if one["mean"] is None or other["mean"] is None:
        return NOTHING
    change = other["mean"] - one["mean"]
    low = change - hypot(other["mean"] - other["low"], one["high"] - one["mean"])
    high = change + hypot(other["high"] - other["mean"], one["mean"] - one["low"])
    return {"mean": change, "low": low, "high": high}


def _difference(one: RunData, other: RunData) -> str:
    if _unlike(one, other):
        return "not comparable"
    kind, row = "paired", _paired(one, other)
    if row["mean"] is None:
        means = (run.after["metrics"][one.headline] for run in (one, other))
        kind, row = "unpaired", unpaired(*means)
    if row["mean"] is None:
        return "-"
    return f"{row['mean']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f}) {kind}"


def _result(first: RunData, others: Sequence[RunData]) -> Rows:
    found = [run.after["metrics"][first.headline] for run in (first, *others)]
    categories = {
        name: [row["categories"].get(name, NOTHING) for row in found]
        for name in found[0]["categories"]
    }
    return [
        (f"{first.headline}, mean of categories", [data.interval(row) for row in found]),
        ("difference to the first", ["", *(_difference(first, run) for run in others)]),
        *((name, [data.interval(row) for row in rows]) for name, rows in categories.items()),
    ]


def _watched(runs: Mapping[str, RunData]) -> Rows:
    tables = [{row["name"]: row for row in data.watched(run)} for run in runs.values()]

    def cell(row: Mapping[str, Any] | None) -> str:
        return (
            f"{data.number(row['after']['mean'])} ({data.percent(row['relative'])})" if row else "-"
        )

    names = dict.fromkeys(name for table in tables for name in table)
    return [(name, [cell(table.get(name)) for table in tables]) for name in names]


def _cost(runs: Mapping[str, RunData]) -> Rows:
    def seconds(run: RunData) -> str:
        return data.number(fmean(r["seconds"]["total"] for r in run.epochs) if run.epochs else None)

    values = {
        "KL to the base": lambda run: data.number(data.kl_after(run)),
        "epochs": lambda run: len(run.epochs),
        "evaluated at epoch": lambda run: run.after["epoch"],
        "training time": lambda run: f"{run.after['train_minutes']:.1f} min",
        "seconds per epoch": seconds,
        "images without a score": lambda run: sum(row["failed"] for row in run.epochs),
        "alarms": lambda run: len(data.found_alarms(run)),
    }
    return [(name, [str(value(run)) for run in runs.values()]) for name, value in values.items()]
