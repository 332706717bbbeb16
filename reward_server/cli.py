"""The command `reward-server`. A user's mistake is one line on standard error and exit status 2."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from reward_client.errors import RewardError
from reward_server import config as configuration
from reward_server.config import Config, ConfigError
from reward_server.models_cli import app as models_app

app = typer.Typer(
    help="Rewards for generated images, over gRPC and HTTP.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="Look at configurations.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(models_app, name="models")

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="TOML file; default: the built-in config.")
]
UrlOption = Annotated[str, typer.Option(help="The server: grpc://HOST:PORT or http://HOST:PORT.")]
DEFAULT_URL = "grpc://127.0.0.1:50051"


def main() -> None:
    """Entry point of `reward-server` and of `python -m reward_server`."""
    app()


@app.command()
def serve(
    config: ConfigOption = None,
    http: Annotated[str, typer.Option(help="HOST:PORT of the HTTP API, or 'off'.")] = "",
    grpc: Annotated[str, typer.Option(help="HOST:PORT of the gRPC API, or 'off'.")] = "",
    scorers: Annotated[str, typer.Option(help="Only these, separated by commas.")] = "",
    port_file: Annotated[
        Path | None, typer.Option(help="Write the ports in use here, as JSON, once listening.")
    ] = None,
) -> None:
    """Serve until SIGTERM; then finish what is in flight and exit 0."""
    from reward_server import logs
    from reward_server.app import AddressInUse
    from reward_server.app import serve as serve_async

    loaded = _load(config, scorers, http, grpc)
    logs.configure(loaded.server.log_level, loaded.server.log_format)
    try:
        asyncio.run(serve_async(loaded, port_file))
    except (AddressInUse, OSError) as error:
        _fail(str(error))


@app.command()
def score(
    images: Annotated[list[Path], typer.Argument(help="PNG, JPEG, WebP or QOI files.")],
    scorers: Annotated[str, typer.Option(help="Names, separated by commas.")],
    prompt: Annotated[str, typer.Option(help="The text the images were made from.")] = "",
    spec: Annotated[
        str, typer.Option(help='JSON: a GenEval row {"include": [...]} or {"target": "STOP"}.')
    ] = "",
    url: UrlOption = DEFAULT_URL,
    as_json: Annotated[bool, typer.Option("--json", help="The whole response as JSON.")] = False,
) -> None:
    """Score image files with a running server."""
    from reward_server.ask import score_files

    try:
        score_files(images, _names(scorers), prompt, spec, url, as_json=as_json)
    except RewardError as error:
        _fail(error.message)
    except OSError as error:
        _fail(f"cannot read {error.filename}: {error.strerror}")


@app.command(name="scorers")
def list_scorers(url: UrlOption = DEFAULT_URL) -> None:
    """List the scorers of a running server and their state."""
    from reward_server.ask import show_scorers

    try:
        show_scorers(url)
    except RewardError as error:
        _fail(error.message)


@config_app.command()
def check(file: Annotated[Path, typer.Argument(help="The TOML file.")]) -> None:
    """Say whether a config file can be used, the environment included."""
    loaded = _load(file)
    typer.echo(f"{file}: ok, {len(loaded.scorers)} scorers: {', '.join(loaded.scorers)}")


@config_app.command()
def show(config: ConfigOption = None) -> None:
    """Print the configuration in force, defaults included, as JSON."""
    typer.echo(_load(config).model_dump_json(indent=2))


def _load(path: Path | None, scorers: str = "", http: str = "", grpc: str = "") -> Config:
    environment = dict(os.environ)
    for key, value in (("HTTP", http), ("GRPC", grpc)):
        if value:
            # As TOML text, so that nothing in it can be taken for a number.
            environment[f"{configuration.ENV_PREFIX}SERVER__{key}"] = f"'{value}'"
    try:
        loaded = configuration.load(path, environment)
        return configuration.select(loaded, _names(scorers)) if scorers else loaded
    except ConfigError as error:
        _fail(str(error))


def _names(text: str) -> list[str]:
    return [name for name in re.split(r"[,\s]+", text) if name]


def _fail(message: str) -> NoReturn:
    typer.echo(f"reward-server: {message}", err=True)
    raise typer.Exit(2)
