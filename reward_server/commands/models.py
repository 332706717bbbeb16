"""`reward-server models`: weight files of the scorers, and their golden scores."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from reward_server import config as configuration
from reward_server.commands.examples import examples
from reward_server.commands.fail import fail
from reward_server.weights import records, store
from reward_server.weights.catalog import CATALOG, HUB, WeightSet
from reward_server.weights.files import WeightsError
from reward_server.weights.records import State

ENV_MIRROR = "REWARD_MODELS_MIRROR"

app = typer.Typer(
    help="Weight files of the scorers, and their golden scores.",
    no_args_is_help=True,
)

Names = Annotated[
    list[str] | None, typer.Argument(metavar="NAME...", help="Weight sets, or scorers.")
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="TOML file; default: the built-in config.")
]


@app.command(
    name="list",
    epilog=examples("reward-server models list", "reward-server models list --json"),
)
def list_sets(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the weight sets and their state on this machine, without network."""
    from reward_server.weights import show

    console = Console(soft_wrap=True)
    root = store.models_dir()
    with _one_line_errors(), Console(stderr=True).status("looking at files"):
        rows = [
            show.SetStatus(s, root / s.name, records.set_states(root / s.name, s))
            for s in CATALOG.values()
        ]
    if as_json:
        typer.echo(json.dumps([row.to_json() for row in rows], indent=2))
        return
    console.print(show.set_table(rows))
    console.print(f"in {root} (set {store.ENV_MODELS_DIR} for another folder)", highlight=False)


@app.command(
    epilog=examples(
        "reward-server models pull pickscore",
        "reward-server models pull --all --mirror /media/stick",
        "reward-server models pull geneval --offline",
    )
)
def pull(
    names: Names = None,
    everything: Annotated[bool, typer.Option("--all", help="All sets.")] = False,
    mirror: Annotated[
        str,
        typer.Option(envvar=ENV_MIRROR, help="Base URL or folder laid out as SET/PATH."),
    ] = "",
    offline: Annotated[
        bool, typer.Option("--offline", help="Use no network; list what is missing.")
    ] = False,
) -> None:
    """Download missing weight files: resumed, verified and put in place atomically."""
    from reward_server.weights.pull import pull as pull_sets
    from reward_server.weights.show import PullReport
    from reward_server.weights.sources import Sources

    sets = _sets(names, everything=everything)
    sources = Sources(
        mirror=mirror,
        token=os.environ.get("HF_TOKEN", "").strip(),
        hub=os.environ.get("HF_ENDPOINT", "").rstrip("/") or HUB,
    )
    with _one_line_errors(), PullReport() as report:
        pull_sets(sets, store.models_dir(), sources, report, offline=offline)


@app.command(
    epilog=examples("reward-server models verify pickscore", "reward-server models verify --all")
)
def verify(
    names: Names = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All sets with files on this machine.")
    ] = False,
) -> None:
    """Hash every file again, without network; exit status 1 names what is wrong."""
    sets, root, wrong = _sets(names, everything=everything), store.models_dir(), 0
    for weights in sets:
        folder = root / weights.name
        with _one_line_errors(), Console(stderr=True).status(f"hashing {weights.name}"):
            states = records.set_states(folder, weights, rehash=True)
        if everything and records.overall(states) is State.ABSENT:
            continue
        bad = {path: state for path, state in states.items() if state is not State.COMPLETE}
        wrong += len(bad)
        if not bad:
            typer.echo(f"{weights.name}: ok, {len(states)} files")
        for path, state in bad.items():
            typer.echo(f"{weights.name}: {folder / path}: {_WRONG[state]}")
    if wrong:
        raise typer.Exit(1)


@app.command(
    epilog=examples(
        "reward-server models bless pickscore",
        "reward-server models bless tint --config brightness.toml --device cuda:0",
        "reward-server models bless --show",
    )
)
def bless(
    scorer: Annotated[str, typer.Argument(help="A scorer of the config, or a built-in one.")] = "",
    config: ConfigOption = None,
    device: Annotated[str, typer.Option(help="'cpu' or 'cuda:N'; default: the config's.")] = "",
    show_only: Annotated[
        bool, typer.Option("--show", help="Print what is recorded; measure nothing.")
    ] = False,
) -> None:
    """Record a scorer's weights and its golden scores as trusted, measured twice.

    A scorer with weights serves only if its weights are blessed and its scores
    are still the recorded ones.
    """
    from reward_server.scorers import golden_file
    from reward_server.weights import bless as blessing
    from reward_server.weights import show

    console = Console(soft_wrap=True, highlight=False)
    if show_only:
        with _one_line_errors():
            recorded = golden_file.load()
        for name in [scorer] if scorer else sorted(recorded):
            for digest, golden in recorded.get(name, {}).items():
                console.print(show.golden_table(f"{name}, weights {digest}", golden))
        if not recorded.get(scorer, {}) if scorer else not recorded:
            console.print(f"nothing is recorded in {golden_file.blessed_file()}")
        return
    if not scorer:
        fail("name a scorer to bless, or use --show")
    with _one_line_errors():
        loaded = configuration.load(config, os.environ)
        path, section = blessing.section_of(loaded, scorer, device)
        found = blessing.measure_twice(path, section)
        known = None
        with suppress(golden_file.DamagedGoldens):  # blessing again repairs an entry
            known = golden_file.expected(found.name, found.digest)
        golden_file.record(found.name, found.digest, found.golden)
    console.print(show.golden_table(f"{found.name} {found.version}", found.golden))
    console.print(f"weights     {found.digest}\nfingerprint {found.golden.fingerprint}")
    console.print(f"{blessing.compared(known, found)}; recorded in {golden_file.blessed_file()}")


_WRONG = {
    State.ABSENT: "missing; `reward-server models pull` fetches it",
    State.CORRUPTED: "not what its checksum says; `reward-server models pull` replaces it",
    State.OUTDATED: "of a version that the catalogue no longer names; `reward-server models pull`"
    " replaces it",
    State.UNRECORDED: (
        "no checksum to compare with; `reward-server models pull` asks its source for one, and"
        " with --offline records what is here"
    ),
}


def _sets(names: Sequence[str] | None, *, everything: bool) -> list[WeightSet]:
    if everything:
        return list(CATALOG.values())
    if not names:
        fail("name weight sets or scorers, or use --all; `reward-server models list` shows them")
    chosen: dict[str, WeightSet] = {}
    for name in names:
        found = [s for s in CATALOG.values() if name == s.name]
        found = found or [s for s in CATALOG.values() if name in s.scorers]
        if not found:
            known = sorted({*CATALOG, *(n for s in CATALOG.values() for n in s.scorers)})
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f": did you mean {near[0]!r}?" if near else ""
            fail(f"no weight set or scorer with weights is called {name!r}{hint}")
        chosen |= {s.name: s for s in found}
    return list(chosen.values())


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """What the user can fix becomes one line: status 2 for a wrong command, 1 for the rest."""
    try:
        yield
    except configuration.ConfigError as error:
        fail(str(error))
    except WeightsError as error:
        fail(str(error), status=1)
    except OSError as error:
        fail(f"{error.filename or store.models_dir()}: {error.strerror}", status=1)
