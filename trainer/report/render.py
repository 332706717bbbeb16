"""Fill a template with what the report and the model card both show."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from trainer.report.data import RunData, categories, measured, scorers, watched


def render(template: str, run: RunData, **values: Any) -> str:
    """A page about a run.

    Args:
        template: a file in `templates/`; what ends in .html is escaped, Markdown is not.
        run: what the page is about.
        values: what this page shows besides.
    """
    html = template.endswith(".html")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=not html,
        lstrip_blocks=not html,
    )
    headline, *others = measured(run)
    return environment.get_template(template).render(
        title=run.run_dir.name,
        run=run,
        headline=headline,
        others=others,
        categories=categories(run),
        watch=watched(run),
        scorers=scorers(run),
        **values,
    )
