"""`report.html` of a run: one file without external assets, made from what the run wrote down.

Works on unfinished runs too: the newest evaluation then stands for the result.
"""

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import HORIZONTALS
from rich.table import Table

from trainer.evaluation.alarms import ADVICE, text
from trainer.images import data_url
from trainer.report import data
from trainer.report.charts import charts
from trainer.report.data import RunData, load_run
from trainer.report.snippets import snippet
from trainer.run.storage import replace_file, storing

SHOWN_EVALUATIONS = 12
LARGEST_PX, LARGEST_BYTES, LEAST_BYTES = 192, 8_000, 1_500
PICTURES_BYTES = 1_500_000


def write_report(run_dir: Path, *, reload_s: int = 0) -> Path:
    """Write `report.html` into a run's folder and return its path.

    With `reload_s`, the page loads itself again every so many seconds.

    Raises:
        ConfigError: see `load_run`.
        StorageError: the page cannot be written.
    """
    run = load_run(run_dir)
    settings = data.settings_of(run)
    path = run_dir / "report.html"
    html = render(
        "report.html",
        run,
        state=data.state(run),
        reload_s=reload_s,
        written=time.strftime("%Y-%m-%d %H:%M:%S"),
        verdict=data.verdict(run),
        facts=data.facts(run),
        slides=slides(evaluations(run)),
        groups=data.groups(run),
        recorded=data.recorded(run),
        charts=charts(run),
        sections=settings.model_dump(mode="json"),
        alarms=data.found_alarms(run),
        actions=data.actions(run),
        outputs=data.outputs(run),
        changes=data.changes(settings),
        fingerprints=data.fingerprints(run),
        loading=snippet(
            settings,
            str(run_dir / "model"),
            data.shown_prompt(run),
            data.shown_references(run),
        ),
        command=f"flow-train report {shlex.quote(str(run_dir))}",
    )
    with storing(str(path)):
        replace_file(path, html)
    return path


def before_after(run_dir: Path) -> Table:
    """The before/after table for the console, which fits in 80 columns.

    Raises:
        ConfigError: see `load_run`.
    """
    run = load_run(run_dir)
    title = f"{run_dir.name}: {run.headline} on held-out prompts, {run.after['images']} images"
    table = Table(title=title, box=HORIZONTALS, padding=0)
    for name in ("", "base", "trained", "change"):
        table.add_column(name, justify="left" if not name else "right")
    for row in data.categories(run):
        table.add_row(
            row["name"], data.interval(row["before"]), data.interval(row["after"]), row["text"]
        )
    table.add_section()
    whole = data.measured(run)[0]
    cells = (data.interval(whole["before"]), data.interval(whole["after"]), whole["text"])
    table.add_row("mean of categories", *cells, style="bold")
    table.add_section()
    table.add_row("[dim]watched, not trained on[/]")
    for row in data.watched(run):
        table.add_row(
            row["name"],
            data.number(row["before"]["mean"]),
            data.number(row["after"]["mean"]),
            data.percent(row["relative"]),
        )
    return table


@dataclass(frozen=True, slots=True)
class Column:
    """The shown prompts in one evaluation."""

    title: str
    note: str
    run: RunData
    row: Any


def evaluations(run: RunData) -> list[Column]:
    """The evaluations whose pictures are shown: all, or evenly chosen ones with first and last."""
    rows = [row for row in run.evaluations if row.get("samples")]
    last, count = len(rows) - 1, min(len(rows), SHOWN_EVALUATIONS)
    picked = sorted({round(place * last / max(count - 1, 1)) for place in range(count)})
    return [
        Column(
            "base" if row["epoch"] == 0 else f"epoch {row['epoch']}",
            f"{row['train_minutes']:.1f} min",
            run,
            row,
        )
        for row in (rows[place] for place in picked)
    ]


def slides(columns: Sequence[Column]) -> dict[str, Any]:
    """The shown prompts in several evaluations: `heads`, and per prompt a picture and score each.

    `sources` are the pictures that a prompt asks to change.

    The pictures together are at most PICTURES_BYTES large, unless each has LEAST_BYTES.
    """
    found = [(column, data.shown_pictures(column.run, column.row)) for column in columns]
    found = [(column, pictures) for column, pictures in found if pictures]
    if not found:
        return {"heads": [], "rows": [], "sources": 0}
    prompts = found[0][0].row["shown"]
    first = found[0][0]
    sources = data.shown_sources(first.run, first.row)
    share = PICTURES_BYTES // ((len(found) + len(sources)) * len(prompts))
    limit = max(LEAST_BYTES, min(LARGEST_BYTES, share))
    rows = [
        {
            "prompt": prompt,
            "sources": [
                data_url(pictures[place], limit_px=LARGEST_PX, limit_bytes=limit)
                for pictures in sources
            ],
            "cells": [
                {
                    "url": data_url(pictures[place], limit_px=LARGEST_PX, limit_bytes=limit),
                    "score": (column.row.get("shown_scores") or [None] * len(prompts))[place],
                }
                for column, pictures in found
            ],
        }
        for place, prompt in enumerate(prompts)
    ]
    return {"heads": [column for column, _ in found], "rows": rows, "sources": len(sources)}


def render(template: str, run: RunData, **values: Any) -> str:
    """A page about a run, from a file in `templates/`; `values` are what only this page shows."""
    headline, *others = data.measured(run)
    return (
        data.environment(html=template.endswith(".html"))
        .get_template(template)
        .render(
            title=run.run_dir.name,
            run=run,
            headline=headline,
            others=others,
            categories=data.categories(run),
            watch=data.watched(run),
            scorers=data.scorers(run),
            advice=ADVICE,
            alarm_text=text,
            num=data.number,
            pct=data.percent,
            surely=surely,
            **values,
        )
    )


def surely(row: Mapping[str, Any]) -> int:
    """1 for a rise and -1 for a fall beyond chance, else 0; by the paired difference if known."""
    pairs = row["pairs"]
    if pairs["mean"] is not None:
        return (pairs["low"] > 0) - (pairs["high"] < 0)
    return 0 if not row["apart"] else 1 if row["change"] > 0 else -1
