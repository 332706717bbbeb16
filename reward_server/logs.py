"""Structured logs on standard error: readable on a terminal, JSON lines otherwise."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from reward_client import tracing
from reward_server.log_sink import LogSink


def configure(level: str, style: str) -> None:
    """Set up structlog for this process.

    Args:
        level: debug, info, warning, error or critical.
        style: "console", "json", or "auto" to decide by whether stderr is a terminal.
    """
    is_console = style == "console" or (style == "auto" and sys.stderr.isatty())
    renderer: Any = (
        structlog.dev.ConsoleRenderer()
        if is_console
        else structlog.processors.JSONRenderer(sort_keys=False)
    )
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _add_trace,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if not is_console:
        processors.append(structlog.processors.format_exc_info)
    sink: Any = LogSink()
    structlog.configure(
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sink),
        cache_logger_on_first_use=False,
    )


def _add_trace(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The id under which a line's request is found among the traces."""
    context = tracing.current_context()
    if context is not None:
        event["trace_id"] = f"{context.trace_id:032x}"
    return event
