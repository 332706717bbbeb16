"""The headers of a request that passes through several servers: its origin, and the servers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from reward_client.errors import Unavailable

VIA_KEY = "x-reward-via"
CLIENT_KEY = "x-reward-client"
MAX_HOPS = 8
_MAX_CLIENT_CHARS = 128


@dataclass(frozen=True, slots=True)
class Hop:
    """Where a request comes from.

    Attributes:
        client: who asks, for fairness: behind a gateway the gateway's client, not the gateway.
        via: ids of the servers it passed, outermost first.
    """

    client: str
    via: tuple[str, ...] = ()


def read_hop(metadata: Iterable[tuple[str, str | bytes]] | None, caller: str) -> Hop:
    """Read the headers of a call; `caller` is the sender, as this server knows it."""
    headers = {key: value for key, value in metadata or () if isinstance(value, str)}
    via = tuple(part for part in headers.get(VIA_KEY, "").split(",") if part)
    forwarded = headers.get(CLIENT_KEY, "")[:_MAX_CLIENT_CHARS]
    # Behind the caller's own name, so that a caller cannot impersonate another.
    return Hop(f"{caller}/{forwarded}" if via and forwarded else caller, via)


def hop_headers(client: str, via: tuple[str, ...], own_id: str) -> tuple[tuple[str, str], ...]:
    """The headers of a call that a server makes on behalf of `client`."""
    printable = "".join(char if 32 < ord(char) < 127 else "_" for char in client)
    return (VIA_KEY, ",".join((*via, own_id))), (CLIENT_KEY, printable[-_MAX_CLIENT_CHARS:])


def check_no_loop(via: tuple[str, ...], own_id: str) -> None:
    """Raise Unavailable, not retryable, if a request has been here before or comes from too far."""
    if own_id in via:
        raise Unavailable(
            "a loop of gateways: this server's `upstream` leads back to this server",
            retryable=False,
        )
    if len(via) >= MAX_HOPS:
        raise Unavailable(
            f"the request passed {len(via)} gateways, the limit is {MAX_HOPS}", retryable=False
        )
