"""`report.html` of a run: one file without external assets, made from what the run wrote down.

Works on unfinished runs too: the newest evaluation then stands for the result.
"""

import base64
import io
import shlex
from pathlib import Path
from typing import Any

from PIL import Image as PilImage
from rich.box import HORIZONTALS
from rich.table import Table

from trainer.evaluation.alarms import text
from trainer.report import data
from trainer.report.charts import charts
from trainer.report.data import RunData, load_run
from trainer.report.render import render
from trainer.report.snippets import snippet
from trainer.run.storage import replace_file

SHOWN_EVALUATIONS = 7
LARGEST_PX = 160


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run's folder and return its path.

    Raises:
        ConfigError: see `load_run`.
    """
    run = load_run(run_dir)
    folder = shlex.quote(str(run_dir))
    html = render(
        "report.html",
        run,
        finished=run.result is not None,
        verdict=data.verdict(run),
        facts=data.facts(run),
        samples=samples(run),
        charts=charts(run),
        sections=run.settings,
        banner=data.banner(run),
        past=[text(alarm) for alarm in data.found_alarms(run) if alarm.until is not None],
        actions=data.actions(run),
        outputs=data.outputs(run),
        loading=snippet(data.settings_of(run), str(run_dir / "model"), data.shown_prompt(run)),
        command=f"flow-train report {folder}",
        pct=data.percent,
        num=data.number,
    )
    path = run_dir / "report.html"
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


def samples(run: RunData) -> dict[str, Any]:
    """The shown prompts through training: `heads` and one row of images per prompt."""
    rows = [row for row in run.evaluations if row.get("samples")]
    rows = [row for row in rows if (run.run_dir / row["samples"]).is_file()]
    if len(rows) > SHOWN_EVALUATIONS:
        last = len(rows) - 1
        picked = {round(i * last / (SHOWN_EVALUATIONS - 1)) for i in range(SHOWN_EVALUATIONS)}
        rows = [rows[index] for index in sorted(picked)]
    if not rows:
        return {"heads": [], "rows": []}
    columns = [data.shown_pictures(run, row) for row in rows]
    heads = [
        {
            "title": "base" if row["epoch"] == 0 else f"epoch {row['epoch']}",
            "minutes": f"{row['train_minutes']:.1f} min",
        }
        for row in rows
    ]
    pictures = [
        {"prompt": prompt, "images": [_data_url(column[index]) for column in columns]}
        for index, prompt in enumerate(rows[0]["shown"])
    ]
    return {"heads": heads, "rows": pictures}


def _data_url(pixels: Any) -> str:
    image = PilImage.fromarray(pixels)
    kind, options = "PNG", {"optimize": True}
    if image.height > LARGEST_PX:
        image.thumbnail((image.width, LARGEST_PX))
        kind, options = "JPEG", {"quality": 88}
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    text = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{text}"
