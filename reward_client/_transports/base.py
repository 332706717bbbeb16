"""The seam between the client and the wire: protobuf messages in, protobuf messages out.

A transport makes exactly one attempt and raises `RewardError` subclasses only; splitting, retries
and checks of the contract belong to the client.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Protocol
from urllib.parse import urlsplit

from reward_client._pb.reward.v1 import reward_pb2 as pb
from reward_client.errors import InvalidArgument

DEADLINE_HEADER = "x-reward-deadline-ms"
RETRY_AFTER_MS_KEY = "retry-after-ms"
PUSHBACK_MS_KEY = "grpc-retry-pushback-ms"
ERROR_INFO_KEY = "reward-error-bin"
PROTOBUF_TYPE = "application/x-protobuf"

_SCHEMES = ("grpc", "grpcs", "http", "https")


class Calls(Protocol):
    """Sends requests, each in one attempt; safe to share between threads."""

    def score(self, message: pb.ScoreRequest, deadline_s: float) -> Future[pb.ScoreResponse]:
        """Start one request that gives up after `deadline_s` seconds.

        Cancelling the future cancels the request, as far as the wire allows.
        """
        ...

    def close(self) -> None:
        """Release what is held; requests under way are cancelled."""
        ...


class Transport(Calls, Protocol):
    """A connection to one server."""

    def list_scorers(self, deadline_s: float) -> Future[pb.ListScorersResponse]:
        """Ask for the scorers; give up after `deadline_s` seconds."""
        ...

    def stream(self) -> Calls:
        """Many small requests over one call, where the wire can do that."""
        ...


class AsyncCalls(Protocol):
    """As `Calls`, for asyncio."""

    async def score(self, message: pb.ScoreRequest, deadline_s: float) -> pb.ScoreResponse:
        """Send one request; give up after `deadline_s` seconds."""
        ...

    async def close(self) -> None:
        """Release what is held; requests under way are cancelled."""
        ...


class AsyncTransport(AsyncCalls, Protocol):
    """As `Transport`, for asyncio."""

    async def list_scorers(self, deadline_s: float) -> pb.ListScorersResponse:
        """Ask for the scorers; give up after `deadline_s` seconds."""
        ...

    def stream(self) -> AsyncCalls:
        """Many small requests over one call, where the wire can do that."""
        ...


@dataclass(frozen=True, slots=True)
class Unary:
    """What stands for a stream where there is none: requests one by one."""

    transport: Transport

    def score(self, message: pb.ScoreRequest, deadline_s: float) -> Future[pb.ScoreResponse]:
        """Start one request."""
        return self.transport.score(message, deadline_s)

    def close(self) -> None:
        """Leave the connection to its owner."""


@dataclass(frozen=True, slots=True)
class AsyncUnary:
    """As `Unary`, for asyncio."""

    transport: AsyncTransport

    async def score(self, message: pb.ScoreRequest, deadline_s: float) -> pb.ScoreResponse:
        """Send one request."""
        return await self.transport.score(message, deadline_s)

    async def close(self) -> None:
        """Leave the connection to its owner."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A parsed url.

    Attributes:
        url: as given, for messages.
        scheme: grpc, grpcs, http or https; the ones with s use TLS with the system's roots.
        host: a name or an address.
        port: always set; 80 and 443 are the defaults of http and https.
        base_path: of http urls, without a trailing slash.
    """

    url: str
    scheme: str
    host: str
    port: int
    base_path: str

    @property
    def is_grpc(self) -> bool:
        """Whether the url names gRPC rather than HTTP."""
        return self.scheme.startswith("grpc")

    @property
    def is_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.scheme.endswith("s")

    @property
    def target(self) -> str:
        """`host:port`, with brackets around IPv6."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether the server is on this host; a proxy must never stand in between then."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def parse_url(url: str) -> Endpoint:
    """Parse "grpc://host:port" or "http://host:port/path".

    Raises:
        InvalidArgument: no known scheme, no host, or no port where one is needed.
    """
    example = "expected grpc://host:port or http://host:port"
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES:
        raise InvalidArgument(f"url {url!r} does not start with one of {_SCHEMES}: {example}")
    try:
        port = parts.port
    except ValueError as error:
        raise InvalidArgument(f"url {url!r}: {error}: {example}") from error
    if not parts.hostname:
        raise InvalidArgument(f"url {url!r} names no host: {example}")
    if port is None:
        if parts.scheme.startswith("grpc"):
            raise InvalidArgument(f"url {url!r} names no port: {example}")
        port = 443 if parts.scheme == "https" else 80
    return Endpoint(url, parts.scheme, parts.hostname, port, parts.path.rstrip("/"))


def milliseconds(text: str | None) -> float | None:
    """Read a wait in milliseconds as seconds; None if absent, malformed or negative."""
    try:
        wait_s = float(text) / 1e3 if text is not None else -1.0
    except ValueError:
        return None
    return wait_s if 0 <= wait_s < float("inf") else None
