"""One HTTP application on one address: bound first, served later, stopped last."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from reward_client._tasks import within
from reward_server.api.http_connection import bounded_protocol


class AddressInUse(Exception):
    """An address cannot be listened on; one line that says what to do."""


class HttpListener:
    """Holds an address from construction on, so that nothing is started if it cannot be had."""

    def __init__(self, address: str, hint: str) -> None:
        self._socket = bind(address, hint)
        self._server: uvicorn.Server | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    def start(
        self,
        app: ASGIApp,
        client_timeout_s: float,
        max_connections: int,
        tls: ssl.SSLContext | None,
    ) -> None:
        """Serve the application; returns at once."""
        config = uvicorn.Config(
            app,
            http=bounded_protocol(client_timeout_s, max_connections),
            ws="none",
            log_config=None,
            access_log=False,
            lifespan="off",
        )
        config.load()
        # A context of our own, so that a renewed certificate can be loaded into it.
        config.ssl = tls
        self._server = _Server(config)
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]))

    async def stop(self, grace_s: float) -> None:
        """Stop listening; requests in flight get `grace_s` seconds."""
        if self._server is not None and self._task is not None:
            self._server.should_exit = True
            with contextlib.suppress(asyncio.TimeoutError):
                await within(grace_s, self._task)
        self._socket.close()


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the server drains first and stops it afterwards."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(address: str, hint: str) -> socket.socket:
    """Listen on HOST:PORT; raises AddressInUse."""
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named as TCP, or asyncio leaves Nagle's algorithm on and every answer waits 40 ms for an ACK.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host.strip("[]"), int(port)))
        sock.listen(1024)
    except OSError as error:
        sock.close()
        raise in_use(address, hint) from error
    return sock


def in_use(address: str, hint: str) -> AddressInUse:
    """The error for an address that cannot be had."""
    return AddressInUse(
        f"cannot listen on {address}: the port is in use or the address is not this machine's;"
        f" stop the other server, or choose another with {hint} (port 0 picks a free one)"
    )
