"""An evaluation as people and programs read it: the table of the paper, all outputs, JSON."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from trainer.config.settings import Settings
from trainer.run.log import figure, versions
from trainer.tools.offline import Measured

Row = Mapping[str, Any]

# How the paper names them.
SHORT = {"single_object": "single", "two_object": "two", "color_attr": "attr"}
ORDER = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


SD35M = "stabilityai/stable-diffusion-3.5-medium"
# Rows of the paper (arXiv:2505.05470, tables 1 and 2) by task: overall first, then `ORDER`.
# Measured by its authors on their machines, not here.
PUBLISHED: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "geneval": {
        "SD3.5-M": (0.63, 0.98, 0.78, 0.50, 0.81, 0.24, 0.52),
        "SD3.5-M + Flow-GRPO": (0.95, 1.00, 0.99, 0.95, 0.92, 0.99, 0.86),
    },
    "ocr": {"SD3.5-M": (0.59,), "SD3.5-M + Flow-GRPO": (0.92,)},
}


def tables(measured: Measured) -> list[Table]:
    """The measured term by category, and everything else that was measured."""
    return [_headline(measured), _outputs(measured)]


def as_json(measured: Measured) -> dict[str, Any]:
    """Everything, for programs; means are null where nothing has a score."""
    found, target = measured.found, measured.target
    return {
        "model": target.title,
        "epoch": target.epoch,
        "preset": target.preset or None,
        "task": target.settings.task.name,
        "prompts": measured.prompts,
        "kl": None,
        **found.row(),
        "settings": target.settings.model_dump(mode="json"),
        "versions": versions(),
    }


def _headline(measured: Measured) -> Table:
    """A line per category, a column per model: eleven columns would not fit in a terminal."""
    found, target = measured.found, measured.target
    name, row = next(iter(found.metrics.items()))
    names = [n for n in ORDER if n in row["categories"]]
    names += [n for n in row["categories"] if n not in names]
    shown = names if len(names) > 1 else []
    published = _published(target.settings, names)
    table = Table(title=f"{escape(name)}: {measured.prompts} prompts, {found.images} images")
    table.add_column("")
    table.add_column(escape(target.title), justify="right", overflow="fold", min_width=22)
    for title in published:
        table.add_column(f"{title}\nas published", justify="right", style="dim")
    rows = {"overall": row} | {SHORT.get(n, n): row["categories"][n] for n in shown}
    for place, (heading, value) in enumerate(rows.items()):
        others = (f"{values[place]:.2f}" for values in published.values())
        table.add_row(escape(heading), _cell(value), *others, end_section=not place)
    table.add_section()
    table.add_row("images", str(found.images))
    table.add_row("failed", str(found.images - row["n"]))
    if names:
        table.caption = "In brackets: the 95 % interval, bootstrapped over prompts."
    return table


def _published(settings: Settings, names: Sequence[str]) -> Mapping[str, tuple[float, ...]]:
    """The paper's rows, where model, task and measure are the paper's."""
    term = settings.measured[0]
    same = {
        "geneval": term.component == "official" and list(names) == list(ORDER),
        "ocr": term.scorer == "ocr" and not term.component,
    }
    wanted = settings.model.path == SD35M and same.get(settings.task.name, False)
    return PUBLISHED[settings.task.name] if wanted else {}


def _outputs(measured: Measured) -> Table:
    found = measured.found
    table = Table(title="everything that was measured", box=None)
    for heading in ("", "mean", "95 % interval", "images"):
        table.add_column(heading, justify="right" if heading else "left")
    rows: dict[str, Row] = {**found.outputs}
    rows |= {name: row for name, row in found.watch.items() if name not in rows}
    if found.kl is not None:
        rows["KL to the base (velocity)"] = found.kl
    for name, row in rows.items():
        table.add_row(escape(name), *_line(row))
    return table


def _cell(row: Row) -> str:
    if row["mean"] is None:
        return "-"
    return f"[bold]{figure(row['mean'])}[/] ({figure(row['low'])} to {figure(row['high'])})"


def _line(row: Row) -> tuple[str, str, str]:
    if row["mean"] is None:
        return "-", "-", "0"
    return f"{row['mean']:.4g}", f"{row['low']:.4g} to {row['high']:.4g}", str(row["n"])
