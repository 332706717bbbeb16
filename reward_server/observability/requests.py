"""Observes one request from arrival to answer: span, metrics, log line.

A failed request is one line, a slow one a warning, a good one is logged at debug level only: a
trainer asks thousands of times an hour. No line holds prompts, pixels, details or keys.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import structlog

from reward_client import _tracing
from reward_client.errors import Code, RewardError
from reward_client.types import ScoreRequest, ScoreResponse
from reward_server.observability.metrics import Metrics

LINES_PER_S = 10.0
BURST_LINES = 50.0


class LogBudget:
    """A token bucket per kind of line; kinds must be few and fixed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lines: dict[str, float] = {}
        self._since_s: dict[str, float] = {}
        self._suppressed: dict[str, int] = {}

    def ask(self, kind: str) -> int | None:
        """Whether to write a line now: None for no, else how many were held back before it."""
        now_s = self._clock()
        earned = LINES_PER_S * (now_s - self._since_s.get(kind, now_s))
        left = min(BURST_LINES, self._lines.get(kind, BURST_LINES) + earned)
        self._since_s[kind] = now_s
        if left < 1:
            self._lines[kind] = left
            self._suppressed[kind] = self._suppressed.get(kind, 0) + 1
            return None
        self._lines[kind] = left - 1
        return self._suppressed.pop(kind, 0)


_MAX_ID_CHARS = 128
# What callers do wrong is their news; what the server cannot do is its operator's.
_LEVELS = {
    Code.INTERNAL: "error",
    Code.UNAVAILABLE: "warning",
    Code.RESOURCE_EXHAUSTED: "warning",
    Code.DEADLINE_EXCEEDED: "warning",
}


@dataclass(slots=True)
class Seen:
    """What has become known about a request; filled in by the API that serves it."""

    caller: str
    request: ScoreRequest | None = None
    response: ScoreResponse | None = None
    failure: RewardError | None = None

    @property
    def code(self) -> Code:
        """The outcome; CANCELLED if the caller left."""
        if self.failure is not None:
            return self.failure.code
        return Code.OK if self.response is not None else Code.CANCELLED


class RequestWatch:
    """Watches the requests of one API."""

    def __init__(self, api: str, metrics: Metrics, slow_request_s: float) -> None:
        self._api = api
        self._metrics = metrics
        self._slow_request_s = slow_request_s
        self._budget = LogBudget()

    @contextmanager
    def request(self, method: str, caller: str, headers: Mapping[str, Any]) -> Iterator[Seen]:
        """Watch one request for the length of a block.

        Args:
            method: name of the span, the same for all requests of its kind.
            caller: who asks.
            headers: as they arrived, lower-case; they may carry a trace's context.
        """
        begin_s = time.perf_counter()
        seen = Seen(caller)
        with _tracing.span(method, "SERVER", carrier=headers) as span:
            try:
                yield seen
            finally:
                seconds = time.perf_counter() - begin_s
                self._metrics.requests.labels(self._api, seen.code.value).inc()
                self._metrics.request_seconds.labels(self._api).observe(seconds)
                if span is not None:
                    _describe(span, seen)
                self._log(seen, seconds)

    def _log(self, seen: Seen, seconds: float) -> None:
        code, failed = seen.code, _failed_items(seen)
        is_slow = seconds > self._slow_request_s
        level = _LEVELS.get(code, "info")
        if code is Code.OK:
            level = "warning" if is_slow or Code.INTERNAL.value in failed else "debug"
            level = "info" if failed and level == "debug" else level
        # One flood must not drown the rest: each outcome has its own share of lines.
        suppressed = 0 if level == "debug" else self._budget.ask(code.value)
        if suppressed is None:
            return
        line: dict[str, Any] = {
            "api": self._api,
            "caller": seen.caller,
            "code": code.value,
            "seconds": round(seconds, 4),
        }
        if seen.request is not None:
            line["request_id"] = _printable(seen.request.request_id)
            line["items"] = len(seen.request.items)
        if seen.response is not None:
            line["scorers"] = list(seen.response.results)
        if failed:
            line["failed_items"] = failed
        if seen.failure is not None:
            line["error"] = _printable(seen.failure.message)
        if suppressed:
            line["suppressed"] = suppressed
        event = "slow request" if is_slow and code is Code.OK else "request"
        getattr(structlog.get_logger(), level)(event, **line)


def _failed_items(seen: Seen) -> dict[str, int]:
    results = seen.response.results.values() if seen.response is not None else ()
    return dict(Counter(e.code.value for result in results for e in result.errors.values()))


def _describe(span: Any, seen: Seen) -> None:
    span.set_attribute("reward.code", seen.code.value)
    if seen.request is not None:
        span.set_attribute("reward.request_id", _printable(seen.request.request_id))
        span.set_attribute("reward.items", len(seen.request.items))
    if seen.response is not None:
        span.set_attribute("reward.scorers", list(seen.response.results))
    if seen.failure is not None:
        _tracing.fail(span, seen.failure)


def _printable(text: str) -> str:
    """A caller's text as one short line that cannot pretend to be another."""
    return "".join(c if c.isprintable() else "?" for c in text[:_MAX_ID_CHARS])
