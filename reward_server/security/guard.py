"""Everything about security that one running server has: keys, certificates, and their renewal."""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog

from reward_server.config import ServerConfig
from reward_server.security.access import Access
from reward_server.security.exposure import check_exposure, is_loopback
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
    """Check whether a config may be served, and prepare what guards it.

    Raises:
        ConfigError: it would answer without authentication, or a file cannot be used.
    """
    check_exposure(server, addresses_of(server))
    return Guard(Access(Path(server.keys_file) if server.keys_file else None), tls_from(server))


def addresses_of(server: ServerConfig) -> dict[str, str]:
    """Key of the config -> HOST:PORT of all that listens."""
    found = {"http": server.http, "grpc": server.grpc}
    if server.legacy:
        found |= {f"legacy_ports.{name}": text for name, text in server.legacy_ports.items()}
    return {key: address for key, address in found.items() if address != "off"}


def log_warnings(server: ServerConfig, guard: Guard) -> None:
    """Say what is allowed and yet worth a thought."""
    log = structlog.get_logger()
    for warning in guard.access.warnings():
        log.warning("key file", problem=warning)
    reachable = [a for a in addresses_of(server).values() if not is_loopback(a)]
    if reachable and guard.tls is None:
        log.warning("listening without TLS: keys and images can be read on the way", at=reachable)
