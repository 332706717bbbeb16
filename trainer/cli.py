"""`flow-train`, also as `python -m trainer`: train, sample, evaluate, report, compare, ..."""

import os
import sys
from importlib import metadata
from typing import Annotated

import typer
from rich.markup import escape

from prompt_sets.cli import data_app
from trainer.commands import benchmark, models, presets, runs, train
from trainer.commands.common import is_main, open_console
from trainer.errors import ConfigError, TrainerError

# What wrong options and arguments raise: typer exports only this subclass of it.
UsageError: type[typer.BadParameter] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for commands in (train, models, benchmark, runs):
    app.add_typer(commands.app)
app.add_typer(presets.app, name="presets")
app.add_typer(data_app, name="data")


def main() -> None:
    """Entry point: errors that a user can mend are one line; the exit code tells which kind."""
    try:
        sys.exit(app(standalone_mode=False))
    except UsageError as error:
        # Without arguments there is no message: the help has been printed.
        if is_main() and (text := error.format_message().rstrip(".")):
            where = error.ctx.command_path if error.ctx else "flow-train"
            _print_error(f"{text} (see {where} --help)")
        sys.exit(ConfigError.exit_code)
    except TrainerError as error:
        if is_main() or not error.shared:
            where = "" if is_main() else f"process {os.environ['RANK']}: "
            _print_error(where + str(error))
        sys.exit(error.exit_code)


def _print_error(text: str) -> None:
    open_console(stderr=True).print(f"[bold red]error:[/] {escape(text)}")


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"flow-train {metadata.version('flow-reward')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Train flow-matching image models with Flow-GRPO (arXiv:2505.05470)."""
