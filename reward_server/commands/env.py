"""The commands `reward-server env`: environments of their own for families of scorers."""

from __future__ import annotations

import difflib
import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from reward_server import config as configuration
from reward_server.commands import environments

app = typer.Typer(
    help="Environments for scorers whose dependencies do not go together.", no_args_is_help=True
)


@app.command()
def create(
    family: Annotated[str, typer.Argument(help=f"One of {', '.join(environments.FAMILIES)}.")],
    path: Annotated[
        Path | None, typer.Option(help="Folder; default: FAMILY below `REWARD_ENVS_DIR`.")
    ] = None,
    python: Annotated[str, typer.Option(help="Interpreter to build it with.")] = sys.executable,
) -> None:
    """Build a virtual environment for a family of scorers and print what to put into the config."""
    wanted = _family(family)
    # Not resolved: the interpreter of a venv is a link, and following it leaves the venv.
    folder = (path or environments.envs_dir() / family).expanduser().absolute()
    typer.echo(f"building {folder} (downloads may take minutes)", err=True)
    try:
        inside = environments.create(wanted, folder, python)
    except environments.EnvError as error:
        _fail(str(error), status=1)
    if problems := environments.probe(str(inside), wanted.scorers, wanted.modules):
        _fail(f"{folder} is built, but: {'; '.join(problems.values())}", status=1)
    typer.echo("ready; in the config (keep the tables you want):\n", err=True)
    typer.echo(environments.config_lines(wanted, inside))


@app.command(name="list")
def list_envs() -> None:
    """List the families, their scorers and the environments that are built."""
    table = Table("family", "scorers", "environment")
    for name, family in environments.FAMILIES.items():
        folder = environments.envs_dir() / name
        shown = str(folder) if environments.python_of(folder).exists() else "-"
        table.add_row(name, ", ".join(family.scorers), shown)
    console = Console(soft_wrap=True)
    console.print(table)
    console.print(
        f"in {environments.envs_dir()} (set {environments.ENV_ENVS_DIR} for another folder)"
    )


@app.command()
def check(
    what: Annotated[str, typer.Argument(metavar="[FAMILY]", help="Check one environment.")] = "",
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Check all interpreters of a config.")
    ] = None,
) -> None:
    """Say whether interpreters can import what their scorers need; exit 1 and say what is wrong."""
    if what and config:
        _fail("name a family or a --config, not both")
    results: dict[str, tuple[str, str]] = {}
    if what:
        family, python = _family(what), str(environments.python_of(environments.envs_dir() / what))
        if not Path(python).exists():
            _fail(f"there is no {python}: `reward-server env create {what}` builds it", status=1)
        problems = environments.probe(python, family.scorers, family.modules)
        results[what] = (python, "; ".join(problems.values()))
    else:
        try:
            results = environments.check_config(configuration.load(config, os.environ))
        except configuration.ConfigError as error:
            _fail(str(error))
    for name, (python, problem) in results.items():
        typer.echo(f"{name}: {problem or 'ok'}  [{python}]")
    if any(problem for _, problem in results.values()):
        raise typer.Exit(1)


def _family(name: str) -> environments.Family:
    family = environments.FAMILIES.get(name)
    if family is None:
        near = difflib.get_close_matches(name, environments.FAMILIES, n=1, cutoff=0.5)
        hint = f": did you mean {near[0]!r}?" if near else ""
        _fail(f"no family is called {name!r}{hint} (known: {', '.join(environments.FAMILIES)})")
    return family


def _fail(message: str, *, status: int = 2) -> NoReturn:
    typer.echo(f"reward-server: {message}", err=True)
    raise typer.Exit(status)
