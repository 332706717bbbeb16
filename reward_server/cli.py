"""The command `reward-server`. A user's mistake is one line on standard error and exit status 2."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import typer

from reward_client.errors import RewardError
from reward_server import config as configuration
from reward_server.api import json_mirror
from reward_server.commands.examples import examples
from reward_server.commands.fail import UsageError, fail, fail_usage
from reward_server.commands.keys import app as keys_app
from reward_server.commands.models import app as models_app
from reward_server.config import Config, ConfigError

app = typer.Typer(
    help="Rewards for generated images, over gRPC and HTTP.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="Check and print configurations.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(models_app, name="models")
app.add_typer(keys_app, name="keys")

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="TOML file; default: the built-in config.")
]
UrlOption = Annotated[str, typer.Option(help="The server: grpc://HOST:PORT or http://HOST:PORT.")]
NO_OVERRIDES: Mapping[str, str] = MappingProxyType({})
DEFAULT_URL = "grpc://127.0.0.1:50051"


def _scorer_names(incomplete: str) -> list[str]:
    from reward_server.scorers import SCORERS

    return [name for name in SCORERS if name.startswith(incomplete)]


def main() -> None:
    """Entry point of `reward-server` and of `python -m reward_server`."""
    try:
        sys.exit(app(standalone_mode=False))
    except UsageError as error:
        fail_usage(error)


def _print_version(asked: bool) -> None:
    if asked:
        from reward_server.observability.build_info import UNKNOWN, build_info

        found = build_info()
        revision = f" {found.revision}" if found.revision != UNKNOWN else ""
        typer.echo(f"reward-server {found.version}{revision}")
        raise typer.Exit


@app.callback(
    epilog=examples(
        "reward-server serve",
        "reward-server score a.png --scorers jpeg,ocr --prompt 'a sign \"STOP\"'",
        "reward-server --install-completion",
    )
)
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Rewards for generated images, over gRPC and HTTP."""


@app.command(
    epilog=examples(
        "reward-server serve",
        "reward-server serve jpeg ocr --port 8001 --grpc 127.0.0.1:50052",
        "reward-server serve pickscore --device cuda:0",
        "reward-server serve --config lab.toml",
    )
)
def serve(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SCORER]...",
            help="Only these; default: all of the config.",
            autocompletion=_scorer_names,
        ),
    ] = None,
    config: ConfigOption = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Short for --http 127.0.0.1:PORT; 0: any free one."),
    ] = None,
    device: Annotated[
        str, typer.Option(help="'cpu' or 'cuda:N' for all scorers, instead of the config's.")
    ] = "",
    http: Annotated[str, typer.Option(help="HOST:PORT of the HTTP API, or 'off'.")] = "",
    grpc: Annotated[str, typer.Option(help="HOST:PORT of the gRPC API, or 'off'.")] = "",
    scorers: Annotated[str, typer.Option(help="Only these, separated by commas.")] = "",
    legacy: Annotated[
        bool, typer.Option("--legacy", help="Also serve the clients of flow_grpo and others.")
    ] = False,
    port_file: Annotated[
        Path | None, typer.Option(help="Write the ports to this JSON file once listening.")
    ] = None,
    allow_unauthenticated: Annotated[
        bool,
        typer.Option(
            "--allow-unauthenticated", help="Serve beyond loopback without API keys or mTLS."
        ),
    ] = False,
) -> None:
    """Serve scorers until SIGTERM, then finish the requests in flight and exit with 0.

    SIGHUP reloads the config. SIGUSR1 makes the log one level more verbose, SIGUSR2 one less.
    """
    from reward_server.api.listening import AddressInUse
    from reward_server.app import serve as serve_async
    from reward_server.observability import logs
    from reward_server.observability.telemetry import TelemetryError

    if port is not None and http:
        fail("--port and --http name the same address: leave one out")
    http = f"127.0.0.1:{port}" if port is not None else http
    scorers = ",".join([*(names or ()), *_names(scorers)])
    overrides = {"HTTP": f"'{http}'" if http else "", "GRPC": f"'{grpc}'" if grpc else ""}
    overrides["LEGACY"] = "true" if legacy else ""
    overrides["ALLOW_UNAUTHENTICATED"] = "true" if allow_unauthenticated else ""
    loaded = _load(config, scorers, overrides, device)
    level = logs.configure(loaded.server.log_level, loaded.server.log_format)
    again = partial(_read_config, config, scorers, overrides, device)
    try:
        greet = partial(_greet, loaded) if config is None and port_file is None else None
        asyncio.run(serve_async(loaded, port_file, again, level, greet))
    except (AddressInUse, ConfigError, TelemetryError, OSError) as error:
        fail(str(error))


def _greet(config: Config, ports: Mapping[str, int]) -> None:
    """Print the two addresses, and a line to copy for each way to use them."""
    hosts = {"http": config.server.http, "grpc": config.server.grpc}
    urls = {
        name: f"{name}://{hosts[name].rpartition(':')[0]}:{ports[name]}"
        for name in hosts
        if name in ports
    }
    scorer = "jpeg" if "jpeg" in config.scorers else next(iter(config.scorers), "")
    url = urls.get("grpc") or urls.get("http", "")
    lines = [f"{name}  {url}" for name, url in urls.items()]
    lines += [
        f"{name}  http://{address.rpartition(':')[0]}:{ports[f'legacy_{name}']}  (pickle clients)"
        for name, address in config.server.legacy_ports.items()
        if f"legacy_{name}" in ports
    ]
    if "http" in urls:
        lines[0] += "  (playground; HTTP API: /docs)"
        lines += ["", f"  curl -F images=@a.png -F scorers={scorer} {urls['http']}/v1/score"]
    lines += [
        f"  reward-server score a.png --scorers {scorer} --url {url}",
        f"""  python -c 'import reward_client as r; from PIL import Image; print(r.score("""
        f"""[Image.open("a.png")], "", ["{scorer}"], url="{url}")["{scorer}"])'""",
        "",
    ]
    typer.echo("\n".join(lines))


@app.command(
    epilog=examples(
        "reward-server score a.png b.png --scorers jpeg,ocr --prompt 'a sign \"STOP\"'",
        "reward-server score a.png --scorers ocr --prompt '\"STOP\"' --explain out",
        "reward-server score outputs/ --scorers geneval --url grpc://10.0.0.4:50051",
        "reward-server score edit.png --reference source.png --scorers dino_similarity",
    )
)
def score(
    images: Annotated[
        list[Path],
        typer.Argument(help="PNG, JPEG, WebP or QOI files, or folders in GenEval's layout."),
    ],
    scorers: Annotated[str, typer.Option(help="Names, separated by commas.")],
    prompt: Annotated[str, typer.Option(help="The text the images were made from.")] = "",
    spec: Annotated[
        str,
        typer.Option(
            help='JSON: a GenEval row {"include": [...]}, {"target": "STOP"} or other metadata.'
        ),
    ] = "",
    reference: Annotated[
        list[Path] | None,
        typer.Option(help="Image to compare with, such as an edit's source; repeat for more."),
    ] = None,
    url: Annotated[
        str, typer.Option(help=f"The server; default: {DEFAULT_URL} if one runs there.")
    ] = "",
    local: Annotated[
        bool, typer.Option("--local", help="Score in this process even if a server runs.")
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="TOML file; implies --local."),
    ] = None,
    explain: Annotated[
        Path | None,
        typer.Option(help="Folder for copies of the images that show what the scorers saw."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the response as JSON.")] = False,
) -> None:
    """Score image files with a running server, or in this process if there is none.

    Exit status 1 if an image has no score.

    A folder as GenEval's generation writes it (NNNNN/samples/*.png beside
    NNNNN/metadata.jsonl) is scored row by row, with the means of its categories.
    """
    from reward_server.commands import scoring, tables

    names = _names(scorers)
    if url and (local or config):
        fail("--url asks a server; leave it out, or leave out --local and --config")
    try:
        files = scoring.files_of(images)
        items = scoring.items_of(files, prompt, spec, reference or ())
        if explain is not None:
            explain.mkdir(parents=True, exist_ok=True)
        if local or config or not (url or scoring.is_listening(DEFAULT_URL)):
            chosen = _load(config, scorers)
            if not (local or config):
                scoring.note(f"no server at {DEFAULT_URL}: scoring here")
            response = scoring.ask_here(items, chosen)
        else:
            response = scoring.ask_server(items, names, url or DEFAULT_URL)
        if as_json:
            typer.echo(json.dumps(json_mirror.response_to_json(response), indent=2))
        else:
            tables.show_scores(items, response)
            tables.show_categories(items, response)
        for file in scoring.write_explanations(explain, files, items, response) if explain else ():
            scoring.note(f"wrote {file}")
    except RewardError as error:
        fail(error.message)
    except OSError as error:
        fail(f"cannot read or write {error.filename}: {error.strerror}")
    if any(result.errors for result in response.results.values()):
        raise typer.Exit(1)


@app.command(
    name="audit",
    epilog=examples(
        "reward-server audit geneval --output strict --out audits/strict",
        "reward-server audit pickscore --images samples --prompts prompts.jsonl",
        "reward-server audit geneval --run runs/mini --url grpc://10.0.0.4:50051",
        "reward-server audit --compare audits/a/audit.json audits/b/audit.json",
    ),
)
def audit_scorer(
    scorer: Annotated[
        str,
        typer.Argument(help="Its name, or module:Class of your own.", autocompletion=_scorer_names),
    ] = "",
    images: Annotated[
        Path | None, typer.Option(help="Folder of pictures; default: drawings made here.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="JSONL, a row per picture: file_name, prompt; default: metadata.jsonl."),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Folder of a run of flow-train: images it has kept.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for audit.json and audit.html.")] = Path(
        "audit"
    ),
    output: Annotated[
        str, typer.Option(help="A transform or component; default: the scorer's own.")
    ] = "",
    checks: Annotated[
        str,
        typer.Option(
            help="Batteries (invariance, degradation, exploit, size, mismatch, search) or single"
            " checks, separated by commas; default: all."
        ),
    ] = "",
    max_images: Annotated[int, typer.Option(min=2, help="Most pictures that are used.")] = 64,
    search_budget: Annotated[
        int, typer.Option(min=25, help="Most pictures that the search scores.")
    ] = 400,
    seed: Annotated[int, typer.Option(min=0, help="Of the search.")] = 0,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A threshold, such as lift_sd=0.5.")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Two audit.json; nothing is scored.")
    ] = None,
    url: Annotated[str, typer.Option(help="A running server; default: score here.")] = "",
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="TOML file; default: the built-in.")
    ] = None,
    device: Annotated[str, typer.Option(help="'cpu' or 'cuda:N', instead of the config's.")] = "",
) -> None:
    """Find out what a scorer can be fooled by, before a policy does.

    Changes pictures in ways that should not matter, that should cost and that should gain nothing,
    and compares their scores within prompts. Writes a result and a page; exit status 1 if a check
    fails or the scores have no signal.
    """
    from reward_server.commands import audit as auditing

    try:
        if compare is not None:
            raise typer.Exit(auditing.compare(*compare))
        if not scorer:
            fail("name a scorer, such as: reward-server audit geneval")
        if url and (config or device):
            fail("--url asks a server; leave it out, or leave out --config and --device")
        plan = auditing.plan_of(_names(checks), settings or (), search_budget, seed)
        if images is not None and run is not None:
            fail("--images and --run both say which pictures: leave one out")
        found = auditing.pictures_of(images, prompts, run)
        with (
            auditing.source_at(url, scorer, output)
            if url
            else auditing.source_here(_of_scorer(config, scorer, device), output)
        ) as source:
            chosen = auditing.chosen_of(found, source, max_images)
            result = auditing.run_audit(source, chosen, plan, out)
    except RewardError as error:
        fail(error.message)
    except OSError as error:
        fail(f"cannot read or write {error.filename}: {error.strerror}")
    if result["verdict"] == "fail":
        raise typer.Exit(1)


@app.command(
    name="scorers",
    epilog=examples(
        "reward-server scorers --watch", "reward-server scorers --url grpc://10.0.0.4:50051"
    ),
)
def list_scorers(
    url: UrlOption = DEFAULT_URL,
    watch: Annotated[
        bool, typer.Option("--watch", help="Refresh every second until Ctrl-C.")
    ] = False,
) -> None:
    """List the scorers of a running server: state, queue and workers."""
    from reward_server.commands import scoring, tables

    try:
        if watch:
            tables.watch_scorers(lambda: scoring.list_infos(url))
        else:
            tables.show_scorers(scoring.list_infos(url))
    except RewardError as error:
        fail(error.message)


@config_app.command(epilog=examples("reward-server config check lab.toml"))
def check(file: Annotated[Path, typer.Argument(help="The TOML file.")]) -> None:
    """Check a config file together with the environment; exit status 2 if it cannot be used."""
    from reward_server.security.guard import open_guard
    from reward_server.workers.devices import device_problem

    loaded = _load(file)
    try:
        open_guard(loaded.server)
    except ConfigError as error:
        fail(f"{file}: {error}")
    for name, section in loaded.scorers.items():
        # A warning only: the file may be meant for another host.
        for device in dict.fromkeys(() if section.targets else section.devices):
            if problem := device_problem(device, os.environ):
                typer.echo(f"reward-server: warning: scorers.{name}: {problem}", err=True)
    typer.echo(f"{file}: ok, {len(loaded.scorers)} scorers: {', '.join(loaded.scorers)}")


@config_app.command(
    epilog=examples("reward-server config show", "reward-server config show --config lab.toml")
)
def show(config: ConfigOption = None) -> None:
    """Print the configuration as JSON: file, environment and defaults together."""
    typer.echo(_load(config).model_dump_json(indent=2))


def _load(
    path: Path | None,
    scorers: str = "",
    overrides: Mapping[str, str] = NO_OVERRIDES,
    device: str = "",
) -> Config:
    try:
        return _read_config(path, scorers, overrides, device)
    except ConfigError as error:
        fail(str(error))


def _of_scorer(path: Path | None, scorer: str, device: str) -> Config:
    """The config with this scorer alone, which may be a class that no table names."""
    if ":" not in scorer:
        return _load(path, scorer, device=device)
    loaded = _load(path)
    section = loaded.defaults.model_copy(update={"scorer": scorer})
    loaded = loaded.model_copy(update={"scorers": {scorer.rpartition(":")[2]: section}})
    return configuration.on_device(loaded, device) if device else loaded


def _read_config(
    path: Path | None, scorers: str, overrides: Mapping[str, str], device: str
) -> Config:
    """Read a config; `overrides` are keys of [server] as TOML text, empty for none."""
    environment = dict(os.environ)
    for key, value in overrides.items():
        if value:
            environment[f"{configuration.ENV_PREFIX}SERVER__{key}"] = value
    loaded = configuration.load(path, environment)
    chosen = configuration.select(loaded, _names(scorers)) if scorers else loaded
    return configuration.on_device(chosen, device) if device else chosen


def _names(text: str) -> list[str]:
    return [name for name in re.split(r"[,\s]+", text) if name]
