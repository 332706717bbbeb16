"""uvicorn as this server runs it: no signal handlers, our TLS, and the name of the certificate."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from reward_server.api.http_guard import CERTIFICATE_NAME


class HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers: the server drains first and stops it afterwards."""

    def __init__(
        self, app: ASGIApp, protocol: type[H11Protocol], tls: ssl.SSLContext | None
    ) -> None:
        config = uvicorn.Config(
            app,
            http=_with_certificate(protocol),
            ws="none",
            log_config=None,
            access_log=False,
            lifespan="off",
        )
        config.load()
        # A context of our own, so that a renewed certificate can be loaded into it.
        config.ssl = tls
        super().__init__(config)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def _with_certificate(protocol: type[H11Protocol]) -> type[H11Protocol]:
    class CertifiedProtocol(protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            tls = transport.get_extra_info("ssl_object")
            name = _name(tls.getpeercert()) if tls is not None else None
            if name is not None:
                self.app = _Named(self.app, name)

    return CertifiedProtocol


class _Named:
    """The application, with the name of the client certificate in its scope."""

    def __init__(self, app: Any, name: str) -> None:
        self._app = app
        self._name = name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[CERTIFICATE_NAME] = self._name
        await self._app(scope, receive, send)


def _name(certificate: Any) -> str | None:
    """The first alternative name, else the common name; as gRPC names its callers."""
    if not certificate:
        return None
    for _, value in certificate.get("subjectAltName", ()):
        return str(value)
    pairs = [pair for part in certificate.get("subject", ()) for pair in part]
    return next((value for key, value in pairs if key == "commonName"), None)
