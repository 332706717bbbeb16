"""How every command ends that a user's mistake has stopped."""

from __future__ import annotations

from typing import NoReturn

import typer

# What wrong options and arguments raise: typer exports only this subclass of it.
UsageError: type[typer.BadParameter] = typer.BadParameter.__mro__[1]


def fail(message: str, *, status: int = 2) -> NoReturn:
    """Print one line on standard error and exit."""
    typer.echo(f"reward-server: {message}", err=True)
    raise typer.Exit(status)


def fail_usage(error: typer.BadParameter) -> NoReturn:
    """Say what is wrong with the command line, and where it is explained."""
    text = error.format_message().rstrip(".")
    if not text:  # no arguments at all: the help has been printed
        raise SystemExit(2)
    where = error.ctx.command_path if error.ctx else "reward-server"
    typer.echo(f"reward-server: {text} (see {where} --help)", err=True)
    raise SystemExit(2)
