"""Structured logs on standard error: readable on a terminal, JSON lines otherwise.

What libraries and Python itself say goes the same way, so that every line of a JSON log is JSON.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from reward_client import _tracing

STDERR_FD = 2
_LEVELS = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL)


class LogLevel:
    """What is worth a line now; can be changed while the server runs."""

    def __init__(self, name: str) -> None:
        self.set(name)

    def set(self, name: str) -> None:
        """Drop lines below "debug", "info", "warning", "error" or "critical"."""
        self._number = logging.getLevelName(name.upper())

    def step(self, steps: int) -> None:
        """Say more (-1) or less (+1), and say so whatever the level is."""
        place = _LEVELS.index(self._number) + steps
        self._number = _LEVELS[min(max(place, 0), len(_LEVELS) - 1)]
        name = logging.getLevelName(self._number).lower()
        structlog.get_logger().critical("log level changed", log_level=name)

    def follow_signals(self) -> None:
        """SIGUSR1 to the process says more from now on, SIGUSR2 less; needs a running loop."""
        loop = asyncio.get_running_loop()
        for signal_name, steps in (("SIGUSR1", -1), ("SIGUSR2", 1)):
            if hasattr(signal, signal_name):
                loop.add_signal_handler(getattr(signal, signal_name), self.step, steps)

    def lets_through(self, number: int) -> bool:
        """Whether a line of a level, as a number of `logging`, is worth it."""
        return number >= self._number

    def __call__(
        self, _: Any, method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        """A structlog processor; raises DropEvent for what is below the level."""
        if not self.lets_through(logging.getLevelName(method.upper())):
            raise structlog.DropEvent
        return event


class LogSink:
    """A text file, as far as structlog is concerned, whose writes never fail.

    Lines that cannot be written (no space, a closed pipe) are dropped and counted; the first one
    that can be written again is preceded by the count. It writes to the file descriptor itself: a
    buffer that cannot be flushed would turn up again as a failure when the process ends.
    """

    def __init__(self, fd: int = STDERR_FD) -> None:
        self._fd = fd
        self._lost = 0
        self._tail = b""
        self._is_torn = False  # the last thing written was a part of a line

    def write(self, text: str) -> int:
        """Write a line or a part of one; returns the number of characters, as files do."""
        self._tail += text.encode("utf-8", "backslashreplace")
        if self._tail.endswith(b"\n"):
            line, self._tail = self._tail, b""
            self._write_line(line)
        return len(text)

    def flush(self) -> None:
        """Nothing is buffered beyond an unfinished line."""

    def _write_line(self, line: bytes) -> None:
        if self._lost:
            line = b'{"event": "log lines lost", "lines": %d}\n' % self._lost + line
        if self._is_torn:
            line = b"\n" + line
        try:
            while line:
                line = line[os.write(self._fd, line) :]
                self._is_torn = bool(line)
        except OSError:
            self._lost += 1
        else:
            self._lost = 0


def configure(level: str, style: str) -> LogLevel:
    is_console = style == "console" or (style == "auto" and sys.stderr.isatty())
    threshold = LogLevel(level)
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _add_trace,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: Any = (
        structlog.dev.ConsoleRenderer()
        if is_console
        else structlog.processors.JSONRenderer(sort_keys=False)
    )
    finishing: list[Any] = [] if is_console else [structlog.processors.format_exc_info]
    finishing.append(renderer)
    sink: Any = LogSink()
    structlog.configure(
        processors=[threshold, *shared, *finishing],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=structlog.PrintLoggerFactory(sink),
        cache_logger_on_first_use=False,
    )
    _adopt_logging(sink, threshold, shared, finishing)
    return threshold


def _adopt_logging(sink: Any, threshold: LogLevel, shared: list[Any], finishing: list[Any]) -> None:
    """Send warnings and worse of every library through the same processors to the same place."""
    handler = logging.StreamHandler(sink)
    handler.addFilter(lambda record: threshold.lets_through(record.levelno))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *finishing],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.captureWarnings(True)


def _add_trace(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The id under which a line's request is found among the traces."""
    context = _tracing.current_context()
    if context is not None:
        event["trace_id"] = f"{context.trace_id:032x}"
    return event
