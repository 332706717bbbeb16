"""What a run shows while it goes on: bars and the last values in a terminal, plain lines elsewhere.

A log file gets a line where something takes long, so that no minute is silent; a terminal gets one
bar for the run and one for what is being done, below the lines that are worth keeping.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class Show(Protocol):
    """Told how far something has come."""

    def __call__(self, what: str, done: int, total: int, value: float | None = None) -> None:
        """`total` is 0 where it is not known; `value` is drawn as a sparkline over the calls."""


STYLES = {"alarm:": "bold red", "action:": "bold magenta", "warning:": "yellow"}
EPOCHS = "epochs"
PLAIN_EVERY_S = 30.0
SPARK = "▁▂▃▄▅▆▇█"
SPARK_WIDTH = 24


def silent(what: str, done: int, total: int, value: float | None = None) -> None:
    """Show nothing."""


def sparkline(values: list[float]) -> str:
    """The latest values as bars between their least and greatest."""
    shown = values[-SPARK_WIDTH:]
    low, high = min(shown), max(shown)
    span = (high - low) or 1.0
    return "".join(SPARK[round((value - low) / span * (len(SPARK) - 1))] for value in shown)


def examples(*lines: str) -> str:
    """What `--help` ends with."""
    return "\n\n".join(["Examples:", *lines])


def rate(per_s: float) -> str:
    """Per second, or seconds for each where that is less than one."""
    return f"{per_s:.1f}/s" if per_s >= 1 else f"{1 / per_s:.1f} s each"


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(rate(task.speed) if task.speed else "")


class _Count(MofNCompleteColumn):
    def render(self, task: Task) -> Text:
        return super().render(task) if task.total is not None else Text("")


class Terminal:
    """Prints the lines of a run, and how far it is; if `quiet`, only alarms, actions and warnings.

    `clock` gives seconds, for the time between plain lines.
    """

    def __init__(
        self, console: Console, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console, self._quiet, self._clock = console, quiet, clock
        self._bars, self._stack = None, ExitStack()
        if console.is_terminal and not quiet:
            self._bars = Progress(
                TextColumn("{task.description:<18}"),
                BarColumn(bar_width=24),
                _Count(),
                _Rate(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=console,
                transient=True,
                # Twice a second: drawing takes time from training.
                refresh_per_second=2,
            )
        self._tasks: dict[str, TaskID] = {}
        self._values: list[float] = []
        self._started = False
        self._doing, self._since, self._printed = "", clock(), clock()

    def __enter__(self) -> "Terminal":
        if self._bars is not None:
            self._stack.enter_context(self._bars)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def say(self, text: str) -> None:
        """Print a line; alarms, actions and warnings so that they are not overlooked."""
        style = STYLES.get(text.split(" ", 1)[0])
        if style is None and self._quiet:
            return
        if self._bars is not None and text.startswith("epoch "):
            # The bar of the run holds its values.
            return
        self._console.print(escape(text), style=style, soft_wrap=True, highlight=False)

    def show(self, what: str, done: int, total: int, value: float | None = None) -> None:
        """See `Show`; of what is neither EPOCHS nor the latest nothing is left to see."""
        if self._bars is not None:
            for other in [name for name in self._tasks if name not in (what, EPOCHS)]:
                self._bars.remove_task(self._tasks.pop(other))
            if value is not None:
                self._values.append(value)
            note = f"reward {value:.3f} {sparkline(self._values)}" if value is not None else ""
            if what not in self._tasks:
                self._tasks[what] = self._bars.add_task(what, total=None, note=note)
            self._bars.update(self._tasks[what], completed=done, total=total or None, note=note)
            return
        now = self._clock()
        if what == EPOCHS:
            # Each has a line of its own.
            self._doing = ""
        elif what != self._doing:
            self._doing, self._since, self._printed = what, now, now
            self._started = self._started or total > 0
            if not self._started:
                # Before the first images: there is nothing else to see yet.
                self.say(f"{what} ...")
        elif now - self._printed >= PLAIN_EVERY_S and done:
            self._printed = now
            per_s = done / (now - self._since)
            left_s = (total - done) / per_s
            self.say(f"{what}: {done}/{total} images, {rate(per_s)}, {left_s:.0f} s left")
