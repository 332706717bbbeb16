"""Trace context and spans where OpenTelemetry is set up; free elsewhere.

`opentelemetry` is never imported first from here: a process that records traces has imported it
already, and in any other process every function of this module returns at once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from reward_client.errors import RewardError
from reward_client.types import ScoreRequest

if TYPE_CHECKING:
    from opentelemetry.trace import Span, SpanContext

INSTRUMENTATION = "flow-reward"
Kind = Literal["INTERNAL", "CLIENT", "SERVER"]
Attributes = Mapping[str, str | bool | int | float | Sequence[str]]


def api() -> Any:
    """The module `opentelemetry.trace`, or None in a process that has not set up tracing."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None or isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return None
    return trace


@contextmanager
def span(
    name: str,
    kind: Kind = "INTERNAL",
    attributes: Attributes | None = None,
    carrier: Mapping[str, Any] | None = None,
) -> Iterator[Span | None]:
    """Make a span the current one for the length of a block; None where nothing records.

    An exception marks it as failed and goes on.
    """
    trace = api()
    if trace is None:
        yield None
        return
    with trace.get_tracer(INSTRUMENTATION).start_as_current_span(
        name,
        context=None if carrier is None else _extracted(carrier),
        kind=trace.SpanKind[kind],
        attributes=attributes,
        record_exception=False,
        set_status_on_exception=False,
    ) as current:
        try:
            yield current
        except BaseException as error:
            fail(current, error)
            raise


def about(request: ScoreRequest) -> Attributes:
    """What a span says about a request: names and counts, no texts."""
    return {
        "reward.request_id": request.request_id,
        "reward.items": len(request.items),
        "reward.scorers": [selector.name for selector in request.scorers],
    }


def fail(current: Span | None, error: BaseException) -> None:
    """Mark a span as failed; the status says why, without a traceback."""
    trace = api()
    if current is None or trace is None:
        return
    is_ours = isinstance(error, RewardError)
    current.set_attribute("error.type", error.code.value if is_ours else type(error).__name__)
    reason = error.message if is_ours else type(error).__name__
    current.set_status(trace.Status(trace.StatusCode.ERROR, reason))


def headers() -> tuple[tuple[str, str], ...]:
    """The current context for the other side, as lower-case header names and values."""
    if api() is None:
        return ()
    from opentelemetry import propagate

    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return tuple((name.lower(), value) for name, value in carrier.items())


def current_context() -> SpanContext | None:
    """Whom to link to: the current span, if it is recorded."""
    trace = api()
    if trace is None:
        return None
    current = trace.get_current_span()
    return current.get_span_context() if current.is_recording() else None


def _extracted(carrier: Mapping[str, Any]) -> Any:
    from opentelemetry import propagate

    return propagate.extract(carrier)
