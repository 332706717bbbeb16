"""Where servers are: urls, names with several addresses behind them, and files that name urls."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

from reward_client._tasks import within
from reward_client.errors import InvalidArgument

SCHEMES = ("grpc", "grpcs", "http", "https")
EVERY_ADDRESS = "+dns"
FILE = "file:"
_RESOLVE_TIMEOUT_S = 5.0
_EXAMPLE = "expected grpc://host:port or http://host:port"

Lookup: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]


@dataclass(frozen=True, slots=True)
class Address:
    """One server.

    Attributes:
        url: for messages.
        scheme: grpc, grpcs, http or https; the ones with s use TLS.
        host: a name or an address.
        port: always set; 80 and 443 are the defaults of http and https.
        base_path: of http urls, without a trailing slash.
        server_name: what its certificate must name; the host, unless that was looked up.
    """

    url: str
    scheme: str
    host: str
    port: int
    base_path: str = ""
    server_name: str = ""

    @property
    def is_grpc(self) -> bool:
        return self.scheme.startswith("grpc")

    @property
    def is_tls(self) -> bool:
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


@dataclass(frozen=True, slots=True)
class Source:
    """One entry of what a caller gives as url.

    Attributes:
        text: as given, for messages.
        address: the server; of the name, where `every_address`; None for a file.
        every_address: whether each address behind the name is a server of its own.
        file: holds urls, one a line or with commas between them; read again after failures.
    """

    text: str
    address: Address | None = None
    every_address: bool = False
    file: Path | None = None

    @property
    def is_static(self) -> bool:
        """Whether it names the same server at all times."""
        return self.address is not None and not self.every_address


def parse_url(url: str) -> Address:
    """Parse "grpc://host:port" or "http://host:port/path"; raises InvalidArgument."""
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise InvalidArgument(f"url {url!r} does not start with one of {SCHEMES}: {_EXAMPLE}")
    try:
        port = parts.port
    except ValueError as error:
        raise InvalidArgument(f"url {url!r}: {error}: {_EXAMPLE}") from error
    if not parts.hostname:
        raise InvalidArgument(f"url {url!r} names no host: {_EXAMPLE}")
    if port is None:
        if parts.scheme.startswith("grpc"):
            raise InvalidArgument(f"url {url!r} names no port: {_EXAMPLE}")
        port = 443 if parts.scheme == "https" else 80
    path = parts.path.rstrip("/")
    return Address(url, parts.scheme, parts.hostname, port, path, parts.hostname)


def parse_sources(url: str | Sequence[str]) -> tuple[Source, ...]:
    """Read one url, several with commas between them, or a list of them; raises InvalidArgument.

    "grpc+dns://host:port" means every address of the name, "file:PATH" a file that holds urls.
    """
    given = url.split(",") if isinstance(url, str) else list(url)
    texts = [part.strip() for part in given]
    if not any(texts):
        raise InvalidArgument("no url given: expected grpc://host:port or http://host:port")
    for text in texts:
        if texts.count(text) > 1:
            raise InvalidArgument(f"url {text!r} is given twice: name every server once")
    return tuple(_source(text) for text in texts)


def _source(text: str) -> Source:
    if text.startswith(FILE):
        path = text.removeprefix(FILE).removeprefix("//")
        if not path:
            raise InvalidArgument(f"url {text!r} names no file: expected file:PATH")
        return Source(text, file=Path(path))
    scheme, _, rest = text.partition("://")
    if scheme.endswith(EVERY_ADDRESS):
        address = parse_url(f"{scheme.removesuffix(EVERY_ADDRESS)}://{rest}")
        return Source(text, address, every_address=True)
    return Source(text, parse_url(text))


async def addresses_of(source: Source, lookup: Lookup) -> list[Address]:
    """The servers of a source now; raises OSError or InvalidArgument."""
    if source.file is not None:
        lines = (await asyncio.to_thread(source.file.read_text, "utf-8")).replace(",", "\n")
        urls = [line.strip() for line in lines.split("\n") if line.strip()]
        if not urls:
            raise InvalidArgument("it holds no url")
        return [parse_url(url) for url in dict.fromkeys(urls)]
    assert source.address is not None
    if not source.every_address:
        return [source.address]
    hosts = await lookup(source.address.host, source.address.port)
    found = [replace(source.address, host=host) for host in hosts]
    return [replace(one, url=f"{one.scheme}://{one.target}{one.base_path}") for one in found]


async def look_up(host: str, port: int) -> Sequence[str]:
    """All IPv4 addresses of a name, or where it has none its IPv6 addresses; raises OSError."""
    loop = asyncio.get_running_loop()
    asking = loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    try:
        found = await within(_RESOLVE_TIMEOUT_S, asking)
    except asyncio.TimeoutError as error:
        raise OSError(f"no answer within {_RESOLVE_TIMEOUT_S:g} s") from error
    for family in (socket.AF_INET, socket.AF_INET6):
        hosts = sorted({str(address[0]) for kind, *_, address in found if kind == family})
        if hosts:
            return hosts
    raise OSError("the name has no address")
