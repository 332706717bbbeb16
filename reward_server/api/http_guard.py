"""Asks for the API key before anything else of an HTTP request is looked at."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from reward_client.errors import Unauthenticated
from reward_server.api.errors import error_response
from reward_server.observability.metrics import Metrics
from reward_server.security.access import Access, Caller

# Probes, which orchestrators send without keys, and pages that are the same for every
# installation; they reveal nothing about this one. Any other path needs a key.
OPEN_PATHS = frozenset({"/livez", "/readyz", "/", "/docs", "/openapi.json"})
CERTIFICATE_NAME = "certificate_name"
_STATE_KEY = "reward_caller"


class ApiKeyMiddleware:
    """ASGI middleware: rejects requests without a valid API key."""

    def __init__(self, app: ASGIApp, access: Access, metrics: Metrics) -> None:
        self._app = app
        self._access = access
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        authorization = Headers(scope=scope).get("authorization")
        state: MutableMapping[str, Any] = scope.setdefault("state", {})
        try:
            state[_STATE_KEY] = self._access.identify(authorization, _peer(scope))
        except Unauthenticated as error:
            if scope["path"] not in OPEN_PATHS:
                self._metrics.requests.labels("http", error.code.value).inc()
                refusal = error_response(error)
                refusal.headers["WWW-Authenticate"] = "Bearer"
                # The body has not been read and will not be.
                refusal.headers["Connection"] = "close"
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)


def caller_of(request: Request) -> Caller:
    """Who sends a request; only on paths that are not open to everybody."""
    return request.scope["state"][_STATE_KEY]


def is_known(request: Request) -> bool:
    """Whether the caller has shown a key, or none is asked for."""
    return _STATE_KEY in request.scope["state"]


def _peer(scope: Mapping[str, Any]) -> str:
    if name := scope.get(CERTIFICATE_NAME):
        return name
    client = scope.get("client")
    return f"{client[0]}:{client[1]}" if client else "unknown"
