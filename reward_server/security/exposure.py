"""Refuses to listen beyond loopback without keys, mTLS, or explicit consent."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address

from reward_server.config import ConfigError, ServerConfig


def is_loopback(address: str) -> bool:
    """Whether only programs of this host can reach HOST:PORT.

    A name other than localhost counts as reachable.
    """
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_exposure(server: ServerConfig, addresses: Mapping[str, str]) -> None:
    """Refuse to listen beyond loopback without explicit consent.

    Args:
        server: the `[server]` table.
        addresses: key of the config -> HOST:PORT or "off", of everything that listens.

    Raises:
        ConfigError: one line that names the address and the ways out.
    """
    if server.keys_file or server.tls_client_ca_file or server.allow_unauthenticated:
        return
    for key, address in addresses.items():
        if address != "off" and not is_loopback(address):
            raise ConfigError(
                f"server.{key} = {address!r} can be reached from other machines, and nothing asks"
                " callers who they are: set keys_file (reward-server keys create) or"
                " tls_client_ca_file, listen on 127.0.0.1, or say allow_unauthenticated = true"
                " (--allow-unauthenticated)"
            )
