"""What the `models` commands print: tables, lines and progress bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from reward_server.scorers.golden_file import Golden
from reward_server.weights import records
from reward_server.weights.catalog import WeightSet
from reward_server.weights.records import State

_SHOWN = {State.UNRECORDED: "complete, unverified"}


@dataclass(frozen=True, slots=True)
class SetStatus:
    weights: WeightSet
    folder: Path
    files: Mapping[str, State]

    @property
    def state(self) -> State:
        return records.overall(self.files)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.weights.name,
            "scorers": list(self.weights.scorers),
            "size_gb": self.weights.size_gb,
            "license": self.weights.license,
            "state": self.state.value,
            "folder": str(self.folder),
            "files": {path: state.value for path, state in self.files.items()},
        }


def set_table(rows: Sequence[SetStatus]) -> Table:
    table = Table("set", "scorers", "size", "licence", "state")
    table.columns[2].justify = "right"
    for row in rows:
        weights, state = row.weights, row.state
        table.add_row(
            weights.name,
            ", ".join(weights.scorers),
            f"{weights.size_gb:.1f} GB",
            weights.license,
            _SHOWN.get(state, state.value),
        )
    return table


def golden_table(title: str, golden: Golden) -> Table:
    """Scores of the golden items, one line per item."""
    table = Table("golden item", "raw", *golden.components, title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    columns = (golden.raw, *golden.components.values())
    for index, values in enumerate(zip(*columns, strict=True)):
        table.add_row(str(index), *(f"{value:.6g}" for value in values))
    return table


class PullReport:
    """Lines on standard output; on a terminal, bars below them."""

    def __init__(self) -> None:
        # Lines are printed above the bars, so both share one console.
        self._console = Console(soft_wrap=True, highlight=False, markup=False)
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(compact=True),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> PullReport:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def say(self, line: str) -> None:
        self._console.print(line)

    def progress(self, what: str, done_bytes: int, total_bytes: int | None) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total_bytes)
        self._bars.update(self._tasks[what], completed=done_bytes)
        if done_bytes == total_bytes:
            self._bars.remove_task(self._tasks.pop(what))
