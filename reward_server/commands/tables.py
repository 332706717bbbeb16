"""The tables that the command line prints."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from reward_client.errors import RewardError
from reward_client.types import Item, ScoreResponse, ScorerInfo
from reward_server.commands.explain import reasons
from reward_server.commands.scoring import findings

# Of output that goes into a file or a pipe; a terminal knows its own.
_WIDTH_COLUMNS = 160
_REFRESH_S = 1.0


def show_scores(items: Sequence[Item], response: ScoreResponse) -> None:
    """Print one table per scorer, score and components per image, and below it what went wrong."""
    console = output_console()
    by_image = [findings(response, index) for index in range(len(items))]
    names_of = [item.id.partition(":")[2] for item in items]
    for position, result in enumerate(response.results.values()):
        names = list(result.components)
        title = f"{result.name}  (version {result.version or '?'})"
        # As wide as its title, which would be wrapped otherwise.
        table = Table(title=title, title_justify="left", min_width=len(title))
        table.add_column("image", overflow="fold")
        for name in ("score", *names):
            table.add_column(name, justify="right", no_wrap=True)
        notes: list[Text] = []
        for label, found in zip(names_of, by_image, strict=True):
            finding = found[position]
            if finding.score is None:
                table.add_row(Text(label), Text("failed", "red"), *(Text("-") for _ in names))
                notes.append(Text(f"{label}: {finding.error}", "red"))
                continue
            values = [finding.score, *(finding.components[name] for name in names)]
            table.add_row(Text(label), *(Text(f"{value:.6g}") for value in values))
            notes += [Text(f"{label}: {reason}") for reason in reasons(finding.details or {})]
        console.print(table)
        for note in notes:
            console.print(note, soft_wrap=True)


def show_categories(items: Sequence[Item], response: ScoreResponse) -> None:
    """Print the mean of every column by the tag of GenEval rows; nothing without two of them.

    The last row is the mean of the categories, as the benchmark states it; failed images count in
    no mean.
    """
    tags: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        if item.spec_kind == "geneval" and item.spec and (tag := item.spec.get("tag")):
            tags.setdefault(str(tag), []).append(index)
    if len({json.dumps(item.spec, sort_keys=True) for item in items}) < 2 or not tags:
        return
    for result in response.results.values():
        columns = {"score": result.scores, **result.components}
        table = Table(title=f"{result.name} by category", title_justify="left")
        table.add_column("category")
        for name in ("images", "failed", *columns):
            table.add_column(name, justify="right", no_wrap=True)
        means: dict[str, list[float]] = {name: [] for name in columns}
        for tag, rows in sorted(tags.items()):
            found = {n: [v for i in rows if (v := c[i]) is not None] for n, c in columns.items()}
            failed = len(rows) - len(found["score"])
            shown = []
            for name, values in found.items():
                if values:
                    means[name].append(sum(values) / len(values))
                shown.append(f"{means[name][-1]:.4f}" if values else "-")
            table.add_row(tag, str(len(rows)), str(failed), *shown)
        over = [f"{sum(values) / len(values):.4f}" if values else "-" for values in means.values()]
        table.add_row("mean of categories", str(len(items)), "", *over)
        # A narrow terminal wraps lines; cut categories and numbers would be lost.
        needed = Console(width=_WIDTH_COLUMNS).measure(table).maximum
        output_console(at_least_columns=needed).print(table)


def show_scorers(infos: Sequence[ScorerInfo]) -> None:
    output_console().print(_scorer_table(infos))


def watch_scorers(list_infos: Callable[[], Sequence[ScorerInfo]]) -> None:
    """Redraw the table every second until Ctrl-C; raises RewardError if the first request fails."""
    table: RenderableType = _scorer_table(list_infos())
    with contextlib.suppress(KeyboardInterrupt), Live(table, console=output_console()) as live:
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


def output_console(*, at_least_columns: int = 0) -> Console:
    """The terminal, or a wide page for a file or a pipe."""
    fits = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = Console(width=None if fits else _WIDTH_COLUMNS)
    return console if console.width >= at_least_columns else Console(width=at_least_columns)
