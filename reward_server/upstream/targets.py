"""What `upstream = ...` names, and which addresses that is right now."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

_DNS = "dns:///"
_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+):(\d{1,5})")
_RESOLVE_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Target:
    """One entry of `upstream`.

    Attributes:
        host: a name or an address, without brackets.
        port: of the gRPC API.
        every_address: whether each address behind the name is an endpoint of its own.
    """

    host: str
    port: int
    every_address: bool


@dataclass(frozen=True, slots=True)
class Address:
    """One endpoint.

    Attributes:
        host: an address, or the name where the target asked for no more.
        port: of the gRPC API.
        name: the host the target named: what TLS certificates are checked against.
    """

    host: str
    port: int
    name: str

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


Lookup: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]


def parse_target(text: str) -> Target:
    """Read "host:port" or "dns:///host:port".

    Raises:
        ValueError: it is neither; one line.
    """
    every_address = text.startswith(_DNS)
    match = _HOST_PORT.fullmatch(text.removeprefix(_DNS))
    if match is None or not 0 < int(match[2]) < 65536:
        raise ValueError(f"upstream {text!r} is not HOST:PORT or dns:///HOST:PORT")
    return Target(match[1].strip("[]"), int(match[2]), every_address)


async def look_up(host: str, port: int) -> Sequence[str]:
    """All addresses of a name: the IPv4 ones, or where there are none the IPv6 ones.

    Raises:
        OSError: the name is not known, or nobody can be asked.
    """
    loop = asyncio.get_running_loop()
    asking = loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    try:
        found = await asyncio.wait_for(asking, _RESOLVE_TIMEOUT_S)
    except asyncio.TimeoutError as error:
        raise OSError(f"no answer within {_RESOLVE_TIMEOUT_S:g} s") from error
    for family in (socket.AF_INET, socket.AF_INET6):
        hosts = sorted({str(address[0]) for kind, *_, address in found if kind == family})
        if hosts:
            return hosts
    raise OSError("the name has no address")


async def addresses(target: Target, lookup: Lookup) -> list[Address]:
    """The endpoints of a target now; raises OSError where a name cannot be resolved."""
    if not target.every_address:
        return [Address(target.host, target.port, target.host)]
    hosts = await lookup(target.host, target.port)
    return [Address(host, target.port, target.host) for host in hosts]
