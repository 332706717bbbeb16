"""Asks for the API key before anything else of a gRPC call is looked at; refuses with reasons."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import grpc
import grpc.aio

from reward_client._transports.base import ERROR_INFO_KEY, PUSHBACK_MS_KEY
from reward_client._wire import convert
from reward_client.errors import STATUS, RewardError, Unauthenticated
from reward_server.observability.metrics import Metrics
from reward_server.security.access import Access, Caller

# Orchestrators probe without keys. Whatever else is added needs one, reflection included.
_OPEN_METHODS = "/grpc.health.v1.Health/"


class ApiKeyInterceptor(grpc.aio.ServerInterceptor):
    """No valid key, no call, on whichever service."""

    def __init__(self, access: Access, metrics: Metrics) -> None:
        self._access = access
        self._metrics = metrics

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        details: Any = handler_call_details  # grpc's stubs leave its attributes out
        if handler is None or details.method.startswith(_OPEN_METHODS):
            return handler
        try:
            self._access.identify(_authorization(details.invocation_metadata), "")
        except Unauthenticated as error:
            self._metrics.requests.labels("grpc", error.code.value).inc()
            return _refusing(handler, error)
        return handler


def caller_of(access: Access, context: Any) -> Caller:
    """Who makes a call; raises Unauthenticated."""
    auth = context.auth_context()
    names = auth.get("x509_subject_alternative_name") or auth.get("x509_common_name")
    peer = names[0].decode("utf-8", "replace") if names else context.peer()
    return access.identify(_authorization(context.invocation_metadata()), peer)


def time_left_s(context: Any) -> float | None:
    """Seconds until the deadline of a call; None if it has none."""
    left_s = context.time_remaining()
    # Without a deadline grpc.aio says None or an effectively infinite value.
    return left_s if left_s is not None and math.isfinite(left_s) else None


def refuse_with(context: Any, error: RewardError) -> None:
    """Give a call an error status, with the details in its trailers; no client reads its response.

    `context.abort` raises an exception that grpc.aio (1.85) never frees, and with it the frames it
    went through: under overload a server would leak every request that it refuses.
    """
    info = convert.error_to_proto(error)
    trailers: list[tuple[str, str | bytes]] = [(ERROR_INFO_KEY, info.SerializeToString())]
    if error.retry_after_s is not None:
        trailers.append((PUSHBACK_MS_KEY, str(math.ceil(1e3 * error.retry_after_s))))
    context.set_code(grpc.StatusCode[STATUS[error.code].grpc])
    context.set_details(error.message)
    context.set_trailing_metadata(tuple(trailers))


def _authorization(pairs: Iterable[tuple[str, str | bytes]] | None) -> str | None:
    for key, value in pairs or ():
        if key == "authorization" and isinstance(value, str):
            return value
    return None


def _refusing(handler: Any, error: RewardError) -> grpc.RpcMethodHandler:
    async def refuse(_: Any, context: Any) -> bytes:
        refuse_with(context, error)
        return b""

    async def refuse_stream(_: Any, context: Any) -> AsyncIterator[bytes]:
        refuse_with(context, error)
        for nothing in ():
            yield nothing

    makers: dict[tuple[bool, bool], Any] = {
        (False, False): lambda: grpc.unary_unary_rpc_method_handler(refuse),
        (False, True): lambda: grpc.unary_stream_rpc_method_handler(refuse_stream),
        (True, False): lambda: grpc.stream_unary_rpc_method_handler(refuse),
        (True, True): lambda: grpc.stream_stream_rpc_method_handler(refuse_stream),
    }
    return makers[handler.request_streaming, handler.response_streaming]()
