"""`reward-server keys`: make, list and revoke API keys."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from reward_client.types import Priority
from reward_server.commands.examples import examples
from reward_server.commands.fail import fail
from reward_server.config import ConfigError
from reward_server.security import keys
from reward_server.security.keys import KeyEntry, KeyRing

app = typer.Typer(help="API keys; the key file holds only their hashes.", no_args_is_help=True)

FileOption = Annotated[
    Path, typer.Option("--file", "-f", help="The key file (keys_file of the server's config).")
]
NameArgument = Annotated[str, typer.Argument(help="Who the key is for; appears in logs.")]


@app.command(
    epilog=examples(
        "reward-server keys create trainer --file keys.toml",
        "reward-server keys create eval -f keys.toml --priority eval --scorers jpeg,ocr",
    )
)
def create(
    name: NameArgument,
    file: FileOption,
    priority: Annotated[
        Priority, typer.Option(help="The highest priority it may use.", case_sensitive=False)
    ] = Priority.TRAIN,
    items_per_s: Annotated[
        float, typer.Option(min=0, help="Items × scorers per second; 0: no limit.")
    ] = 0.0,
    burst_items: Annotated[
        int, typer.Option(min=0, help="Items at once after a pause; 0: two seconds' worth.")
    ] = 0,
    scorers: Annotated[str, typer.Option(help="Only these, separated by commas.")] = "",
) -> None:
    """Create a key and print it once; the file gets only its hash."""
    try:
        ring = keys.read(file) if file.exists() else KeyRing({})
    except ConfigError as error:
        fail(str(error))
    if (problem := keys.name_problem(name)) is not None:
        fail(problem)
    if name in ring.entries:
        fail(f"{file} has a key {name!r} already: choose another name, or revoke it first")
    key = keys.new_key()
    only = tuple(part for part in re.split(r"[,\s]+", scorers) if part)
    for scorer in only:
        if keys.name_problem(scorer) is not None:
            fail(f"--scorers: {scorer!r} is not a scorer's name")
    entry = KeyEntry(
        sha256=keys.digest(key),
        priority=priority,
        items_per_s=items_per_s,
        burst_items=burst_items,
        scorers=only,
    )
    _write(file, KeyRing({**ring.entries, name: entry}))
    typer.echo(key)
    typer.echo(f"reward-server: wrote {file}; keep the key, it is not shown again", err=True)


@app.command(name="list", epilog=examples("reward-server keys list --file keys.toml"))
def list_keys(file: FileOption) -> None:
    """Show names and limits."""
    from rich.console import Console
    from rich.table import Table

    ring = _read(file)
    table = Table(box=None, header_style="bold")
    for column in ("name", "up to", "items/s", "burst", "scorers", "hash"):
        table.add_column(column)
    for name, entry in ring.entries.items():
        rate = f"{entry.items_per_s:g}" if entry.items_per_s else "no limit"
        burst = f"{entry.burst:g}" if entry.items_per_s else "-"
        scorers = ", ".join(entry.scorers) or "all"
        start = entry.sha256[:8] + "…"
        table.add_row(name, entry.priority.value, rate, burst, scorers, start)
    Console().print(table if ring.entries else f"{file} holds no key")
    if (problem := keys.permission_problem(file)) is not None:
        typer.echo(f"reward-server: warning: {problem}", err=True)


@app.command(epilog=examples("reward-server keys revoke eval --file keys.toml"))
def revoke(name: NameArgument, file: FileOption) -> None:
    """Remove a key; a running server refuses it within two seconds."""
    ring = _read(file)
    if name not in ring.entries:
        known = ", ".join(ring.entries) or "none"
        fail(f"{file} has no key {name!r} (it has: {known})")
    _write(file, KeyRing({n: entry for n, entry in ring.entries.items() if n != name}))
    typer.echo(f"revoked {name}")


def _read(file: Path) -> KeyRing:
    try:
        return keys.read(file)
    except ConfigError as error:
        fail(str(error))


def _write(file: Path, ring: KeyRing) -> None:
    try:
        keys.write(file, ring)
    except OSError as error:
        fail(f"cannot write {file}: {error.strerror}")
