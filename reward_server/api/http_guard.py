"""Asks for the API key before anything else of an HTTP request is looked at."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from fastapi import Request
from fastapi.responses import Response
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from reward_client.errors import PermissionDenied, RewardError, Unauthenticated
from reward_server.api import pages
from reward_server.observability.metrics import Metrics
from reward_server.security.access import Access, Caller
from reward_server.security.guard import is_loopback

# Probes, which orchestrators send without keys, and pages that are the same for every
# installation; they reveal nothing about this one. Any other path needs a key.
PROBES = frozenset({"/livez", "/readyz"})
OPEN_PATHS = PROBES | pages.PATHS
CERTIFICATE_NAME = "certificate_name"
_PORT = re.compile(r":\d+$")
_STATE_KEY = "reward_caller"


class ApiKeyMiddleware:
    """ASGI middleware: rejects requests without a valid API key."""

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        metrics: Metrics,
        respond: Callable[[RewardError], Response],
        *,
        is_local: bool,
    ) -> None:
        """Guard an application.

        Args:
            app: what is guarded.
            access: the keys.
            metrics: where refusals are counted.
            respond: words an error as the application does.
            is_local: whether it serves whatever runs on this host and nothing else. A browser does,
                and with it the web pages of others: they are refused.
        """
        self._app = app
        self._is_local = is_local
        self._access = access
        self._metrics = metrics
        self._respond = respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if self._is_local and scope["path"] not in PROBES and (why := foreign(headers)):
            error = PermissionDenied(
                f"{why}: without API keys this server answers programs of its own host alone; set"
                " keys_file, or allow_unauthenticated = true behind a proxy of yours"
            )
            self._metrics.requests.labels("http", error.code.value).inc()
            await self._refuse(error, {})(scope, receive, send)
            return
        authorization = headers.get("authorization")
        state: MutableMapping[str, Any] = scope.setdefault("state", {})
        try:
            state[_STATE_KEY] = self._access.identify(authorization, _peer(scope))
        except Unauthenticated as error:
            if scope["path"] not in OPEN_PATHS:
                self._metrics.requests.labels("http", error.code.value).inc()
                refusal = self._refuse(error, {"WWW-Authenticate": "Bearer"})
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refuse(self, error: RewardError, headers: Mapping[str, str]) -> Response:
        refusal = self._respond(error)
        # The body has not been read and will not be.
        refusal.headers.update({**headers, "Connection": "close"})
        return refusal


def foreign(headers: Mapping[str, str]) -> str | None:
    """Why a request to a server on loopback may be the work of a web page of others, or None.

    Browsers say where a page is from when it posts (Origin); and a page whose name was made to
    resolve to 127.0.0.1 (DNS rebinding) sends its own name as Host.
    """
    host, origin = headers.get("host", ""), headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != host:
        return f"the request is from a page of another site (Origin {origin[:100]!r})"
    if host and not is_loopback(host if _PORT.search(host) else f"{host}:80"):
        return f"the request is for another host (Host {host[:100]!r})"
    return None


def caller_of(request: Request) -> Caller:
    """Who sends a request; not on open paths."""
    return request.scope["state"][_STATE_KEY]


def is_known(request: Request) -> bool:
    """Whether the caller has shown a key, or none is asked for."""
    return _STATE_KEY in request.scope["state"]


def _peer(scope: Mapping[str, Any]) -> str:
    if name := scope.get(CERTIFICATE_NAME):
        return name
    client = scope.get("client")
    return f"{client[0]}:{client[1]}" if client else "unknown"
