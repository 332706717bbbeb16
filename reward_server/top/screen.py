"""Draws frames on a terminal, drops columns where it is narrow, and waits for a key."""

from __future__ import annotations

import contextlib
import select
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from reward_server.top.frames import Frame, Head, Row, frame
from reward_server.top.reading import Reader, Snapshot, Unreachable

_WINDOW_S = 10.0
_STATE_STYLES = {"READY": "green", "STARTING": "yellow", "DRAINING": "yellow", "FAILED": "bold red"}
# Of output that goes into a file or a pipe.
_PIPE_WIDTH = 120


@dataclass(frozen=True, slots=True)
class Column:
    """One column: how wide with its gap, and how dear; dearer ones stay longer (0 always)."""

    title: str
    width: int
    rank: int
    cell: Callable[[Row], Text]


def watch(reader: Reader, interval_s: float) -> None:
    """Show the server until q or Ctrl-C; a server that is away is asked again and again."""
    console = Console()
    seen: deque[Snapshot] = deque()
    away_since_s: float | None = None
    note = ""
    with (
        _keys() as pressed,
        _interrupts() as interrupted,
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        while not interrupted():
            try:
                seen.append(reader.read())
                away_since_s, note = None, ""
            except Unreachable as error:
                away_since_s = away_since_s or time.monotonic()
                gone_s = time.monotonic() - away_since_s
                note = f"away for {gone_s:.0f} s ({error}): trying again"
            while len(seen) > 2 and seen[1].at_s < seen[-1].at_s - _WINDOW_S:
                seen.popleft()
            shown = frame(seen[0], seen[-1], time.time()) if seen else None
            live.update(picture(shown, reader.url, console.width, note), refresh=True)
            if pressed(interval_s) == "q":
                return


def once(reader: Reader, interval_s: float) -> None:
    """Print one frame about the next `interval_s` seconds.

    Raises:
        Unreachable: the server does not answer.
    """
    old = reader.read()
    time.sleep(interval_s)
    new = reader.read()
    console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    console.print(picture(frame(old, new, time.time()), reader.url, console.width, ""))


def picture(shown: Frame | None, url: str, width: int, note: str) -> RenderableType:
    """One screen.

    Args:
        shown: what to show; None before the first answer.
        url: of the server.
        width: of the terminal, in characters.
        note: what is wrong with the connection, "" for nothing.
    """
    parts: list[RenderableType] = [Text(url, "bold")]
    if note:
        parts.append(Text(note, "bold red"))
    if shown is not None:
        parts += [_head_line(shown.head), Text(), _table(shown, width)]
        parts += [
            Text(f"{row.name}: {row.trouble}", _STATE_STYLES.get(row.state, ""))
            for row in shown.rows
            if row.trouble
        ]
        # What was true before the server went away is not what is true now.
        if note:
            for part in parts[2:]:
                if isinstance(part, Text):
                    part.stylize("dim")
                elif isinstance(part, Table):
                    part.style = "dim"
    return Group(*parts)


def columns_for(width: int) -> list[Column]:
    """The columns that fit, in their order; the least dear ones go first."""
    kept = list(COLUMNS)
    while sum(column.width for column in kept) > width and any(column.rank for column in kept):
        kept.remove(max(kept, key=lambda column: column.rank))
    return kept


def _table(shown: Frame, width: int) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", pad_edge=False)
    chosen = columns_for(width)
    for column in chosen:
        table.add_column(
            column.title,
            justify="left" if column.title in ("scorer", "state") else "right",
            no_wrap=True,
            max_width=column.width - 1,
            overflow="ellipsis",
        )
    for row in shown.rows:
        table.add_row(*(column.cell(row) for column in chosen))
    return table


def _head_line(head: Head) -> Text:
    up = f"up {_span(head.uptime_s)}" if head.uptime_s is not None else ""
    parts = [
        f"version {head.version or '?'} {head.revision[:7]}".strip(),
        up,
        f"cpu {head.cpu_share:.0%}",
        f"memory {_size(head.rss_bytes)}",
        f"{head.requests_per_s:.1f} requests/s",
        f"held {_size(head.held_bytes)} of {_size(head.limit_bytes)}",
    ]
    line = Text("  ".join(part for part in parts if part))
    if head.turned_away_per_s > 0:
        line.append(f"  turns away {head.turned_away_per_s:.1f}/s", "bold red")
    return line


def _span(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{1e3 * seconds:.0f} ms"
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, hours = seconds / 60, seconds / 3600
    if minutes < 100:
        return f"{minutes:.0f} min"
    return f"{hours:.0f} h" if hours < 100 else f"{hours / 24:.0f} d"


def _age(row: Row) -> str:
    return _span(row.oldest_s) if row.waiting else "-"


def _size(n_bytes: int | None) -> str:
    if n_bytes is None:
        return "-"
    size, unit = float(n_bytes), "B"
    for larger in ("K", "M", "G", "T"):
        if size < 1000:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f}{unit}" if size >= 10 or unit == "B" else f"{size:.1f}{unit}"


def _alarming(text: str, is_alarming: bool) -> Text:
    return Text(text, "bold red" if is_alarming else "")


COLUMNS = (
    Column("scorer", 18, 0, lambda row: Text(row.name)),
    Column("state", 9, 0, lambda row: Text(row.state, _STATE_STYLES.get(row.state, ""))),
    Column("ready", 6, 6, lambda row: _alarming(f"{row.ready}/{row.replicas}", row.ready == 0)),
    Column("items/s", 8, 0, lambda row: Text(f"{row.items_per_s:.1f}")),
    Column("queue", 6, 1, lambda row: Text(f"{row.waiting}")),
    Column("oldest", 8, 3, lambda row: _alarming(_age(row), row.oldest_s > 60)),
    Column("fill", 5, 7, lambda row: Text("-" if row.fill is None else f"{row.fill:.0%}")),
    Column("p50", 8, 8, lambda row: Text(_span(row.p50_s))),
    Column("p95", 8, 2, lambda row: Text(_span(row.p95_s))),
    Column(
        "failed/s", 9, 4, lambda row: _alarming(f"{row.failed_per_s:.1f}", row.failed_per_s > 0)
    ),
    Column("restarts", 9, 5, lambda row: Text(f"{row.restarts}")),
    Column("memory", 7, 9, lambda row: Text(_size(row.rss_bytes))),
    Column("gpu", 6, 10, lambda row: Text(_size(row.gpu_bytes))),
)


@contextlib.contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed; an exception could be lost inside a library's callback."""
    asked: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: asked.append(number))
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """Yield a function that waits for a key, some seconds at most, and returns it or ""."""
    if not sys.stdin.isatty():
        yield _wait_only
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def pressed(seconds: float) -> str:
        readable, _, _ = select.select([sys.stdin], [], [], seconds)
        return sys.stdin.read(1) if readable else ""

    try:
        tty.setcbreak(descriptor)
        yield pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _wait_only(seconds: float) -> str:
    time.sleep(seconds)
    return ""
