"""What guards a running server: keys, certificates, their renewal, and where it may listen."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address
from pathlib import Path

import structlog

from reward_server.config import ConfigError, ServerConfig
from reward_server.security.access import Access
from reward_server.security.tls import ServerTls, tls_from

_LOOK_EVERY_S = 1.0


class Guard:
    """Keys and certificates in force."""

    def __init__(self, access: Access, tls: ServerTls | None) -> None:
        self.access = access
        self.tls = tls

    def refresh(self) -> None:
        """Take changed files at once; `watch` does it every second, SIGHUP may ask for it."""
        self.access.refresh()
        if self.tls is not None:
            self.tls.refresh()

    async def watch(self) -> None:
        """Look for changed files until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            self.refresh()


def open_guard(server: ServerConfig) -> Guard:
    """Check whether a config may be served, and prepare what guards it; raises ConfigError."""
    check_exposure(server)
    return Guard(Access(Path(server.keys_file) if server.keys_file else None), tls_from(server))


def check_exposure(server: ServerConfig) -> None:
    """Raise ConfigError for listening beyond loopback without keys, mTLS or explicit consent."""
    if server.keys_file or server.tls_client_ca_file or server.allow_unauthenticated:
        return
    for key, address in addresses_of(server).items():
        if not is_loopback(address):
            raise ConfigError(
                f"server.{key} = {address!r} can be reached from other machines, and nothing asks"
                " callers who they are: set keys_file (reward-server keys create) or"
                " tls_client_ca_file, listen on 127.0.0.1, or say allow_unauthenticated = true"
                " (--allow-unauthenticated)"
            )


def addresses_of(server: ServerConfig) -> dict[str, str]:
    """Key of the config -> HOST:PORT of all that listens."""
    found = {"http": server.http, "grpc": server.grpc}
    if server.legacy:
        found |= {f"legacy_ports.{name}": text for name, text in server.legacy_ports.items()}
    return {key: address for key, address in found.items() if address != "off"}


def is_loopback(address: str) -> bool:
    """Whether only programs of this host can reach HOST:PORT.

    A name other than localhost counts as reachable.
    """
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def log_warnings(server: ServerConfig, guard: Guard) -> None:
    log = structlog.get_logger()
    for warning in guard.access.warnings():
        log.warning("key file", problem=warning)
    reachable = [a for a in addresses_of(server).values() if not is_loopback(a)]
    if reachable and guard.tls is None:
        log.warning("listening without TLS: keys and images can be read on the way", at=reachable)
