"""How every command ends that a user's mistake has stopped."""

from __future__ import annotations

from typing import NoReturn

import typer


def fail(message: str, *, status: int = 2) -> NoReturn:
    """Print one line on standard error and exit."""
    typer.echo(f"reward-server: {message}", err=True)
    raise typer.Exit(status)
