"""uvicorn's HTTP/1.1 connection: bounds on how slow a client may be, the name of its certificate.

uvicorn waits for ever for the rest of a request, and for a client that does not read. Here a
connection is closed that does not send a whole request within `timeout_s`, that does not take what
was written to it for as long, or that is one too many.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from reward_server.api.http_guard import CERTIFICATE_NAME


def bounded_protocol(timeout_s: float, max_connections: int) -> type[H11Protocol]:
    """The class of connections to give to `uvicorn.Config(http=...)`."""

    class BoundedProtocol(H11Protocol):
        _reading: asyncio.TimerHandle | None = None
        _writing: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > max_connections:
                transport.abort()
                return
            tls = transport.get_extra_info("ssl_object")
            name = _name(tls.getpeercert()) if tls is not None else None
            if name is not None:
                self.app = _Named(self.app, name)
            self._watch_reading()

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in (self._reading, self._writing):
                if timer is not None:
                    timer.cancel()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch_reading()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.conn.their_state is h11.SEND_BODY:  # a pipelined request has begun
                self._watch_reading()
            # What is still to be taken would keep even a closed connection open.
            self._watch_writing()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._watch_writing()

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._writing is not None:
                self._writing.cancel()
                self._writing = None

        def _watch_reading(self) -> None:
            if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
                if self._reading is None:
                    self._reading = self.loop.call_later(timeout_s, self.transport.abort)
            elif self._reading is not None:
                self._reading.cancel()
                self._reading = None

        def _watch_writing(self) -> None:
            if self._writing is None and self.transport.get_write_buffer_size() > 0:
                self._writing = self.loop.call_later(timeout_s, self._still_writing)

        def _still_writing(self) -> None:
            self._writing = None
            if self.transport.get_write_buffer_size() > 0:
                self.transport.abort()

    return BoundedProtocol


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
