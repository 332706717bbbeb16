"""The tables that the command line prints."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from reward_client.errors import RewardError
from reward_client.types import ScoreResponse, ScorerInfo
from reward_server.commands.explain import reasons
from reward_server.commands.scoring import findings

# Of output that goes into a file or a pipe; a terminal knows its own.
_WIDTH_COLUMNS = 160
_REFRESH_S = 1.0


def show_scores(paths: Sequence[Path], response: ScoreResponse) -> None:
    """Print one table per scorer, score and components per image, and below it what went wrong."""
    console = _console()
    by_image = [findings(response, index) for index in range(len(paths))]
    for position, result in enumerate(response.results.values()):
        names = list(result.components)
        table = Table(
            title=f"{result.name}  (version {result.version or '?'})", title_justify="left"
        )
        table.add_column("image", overflow="fold")
        for name in ("score", *names):
            table.add_column(name, justify="right", no_wrap=True)
        notes: list[Text] = []
        for path, found in zip(paths, by_image, strict=True):
            finding = found[position]
            if finding.score is None:
                table.add_row(Text(path.name), Text("failed", "red"), *(Text("-") for _ in names))
                notes.append(Text(f"{path.name}: {finding.error}", "red"))
                continue
            values = [finding.score, *(finding.components[name] for name in names)]
            table.add_row(Text(path.name), *(Text(f"{value:.6g}") for value in values))
            notes += [Text(f"{path.name}: {reason}") for reason in reasons(finding.details or {})]
        console.print(table)
        for note in notes:
            console.print(note, soft_wrap=True)


def show_scorers(infos: Sequence[ScorerInfo]) -> None:
    """Print a table of the scorers of a server."""
    _console().print(_scorer_table(infos))


def watch_scorers(list_infos: Callable[[], Sequence[ScorerInfo]]) -> None:
    """Redraw the table of scorers every second until Ctrl-C; an unreachable server is retried.

    Raises:
        RewardError: the first request fails.
    """
    table: RenderableType = _scorer_table(list_infos())
    with contextlib.suppress(KeyboardInterrupt), Live(table, console=_console()) as live:
        while True:
            time.sleep(_REFRESH_S)
            try:
                table = _scorer_table(list_infos())
                live.update(table, refresh=True)
            except RewardError as error:
                live.update(Group(table, Text(error.message, "red")), refresh=True)


def _scorer_table(infos: Sequence[ScorerInfo]) -> Table:
    table = Table(
        *("scorer", "version", "state", "ready", "restarts", "waiting", "needs"),
        *("transforms (* default)", "range"),
    )
    for info in infos:
        transforms = [f"{t}*" if t == info.default_transform else t for t in info.transforms]
        low, high = info.output_range
        state = f"{info.state}: {info.last_error}" if info.last_error else info.state
        ready = sum(replica.state == "READY" for replica in info.replicas)
        restarts = sum(replica.restarts for replica in info.replicas)
        table.add_row(
            info.name,
            info.version,
            Text(state),
            f"{ready}/{len(info.replicas)}",
            str(restarts),
            str(info.waiting_items),
            ", ".join(info.inputs),
            ", ".join(transforms),
            f"{low:g} .. {high:g}" if info.version else "",
        )
    return table


def _console() -> Console:
    fits = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if fits else _WIDTH_COLUMNS)
