"""Fill a template with what the report and the model card both show."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from trainer.evaluation.alarms import ADVICE, text
from trainer.report import data
from trainer.report.data import RunData


def environment(*, html: bool) -> Environment:
    """The templates; what is put into HTML is escaped, into Markdown it is not."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=not html,
        lstrip_blocks=not html,
    )


def render(template: str, run: RunData, **values: Any) -> str:
    """A page about a run.

    Args:
        template: a file in `templates/`.
        run: what the page is about.
        values: what this page shows besides.
    """
    headline, *others = data.measured(run)
    return (
        environment(html=template.endswith(".html"))
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
