"""`flow-train presets`: the shipped settings."""

import os
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from trainer.commands.options import Gpus, Overrides, Preset
from trainer.config import load as config
from trainer.config.preset import header, preset_names
from trainer.config.toml import to_toml
from trainer.terminal import examples
from trainer.tools.plan import explain

app = typer.Typer(no_args_is_help=True, help="Shipped settings.")


@app.command("list", epilog=examples("flow-train presets list"))
def list_presets() -> None:
    """Name the presets."""
    table = Table("preset", "what it is", box=None)
    for name in preset_names():
        table.add_row(name, header(name)[0])
    Console().print(table)


@app.command(
    "show",
    epilog=examples(
        "flow-train presets show mini_geneval",
        "flow-train presets show geneval_sd35m --gpus 8",
        "flow-train presets show geneval_sd35m --toml > mine.toml",
    ),
)
def show_preset(
    preset: Preset,
    overrides: Overrides = None,
    gpus: Gpus = 0,
    every: Annotated[
        bool, typer.Option("--all", help="Every setting as it would be used, with its meaning.")
    ] = False,
    toml: Annotated[
        bool, typer.Option("--toml", help="Every setting as a file of your own, nothing else.")
    ] = False,
) -> None:
    """Explain what a preset does in an epoch, and print its settings."""
    chosen = config.load(preset, overrides or (), os.environ, world_size=gpus)
    if toml:
        typer.echo(to_toml(chosen))
        return
    for line in explain(preset, chosen, gpus or chosen.run.gpus or 1):
        typer.echo(line)
    if not every:
        typer.echo(
            "\nEvery setting: --all, or as a file: --toml. Check what a run needs: flow-train train"
        )
        typer.echo(f"{preset} --dry-run")
        return
    for section, values in chosen:
        typer.echo(f"\n[{section}]")
        for name, field in type(values).model_fields.items():
            text = f"  # {' '.join(field.description.split())}" if field.description else ""
            typer.echo(f"{name} = {getattr(values, name)!r}{text}")
