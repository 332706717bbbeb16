"""The `upstream*` keys of a scorer's table, checked and read."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pydantic import BaseModel, Field

from reward_client._addresses import Address, Source
from reward_client._tls import TlsFiles
from reward_client.errors import InvalidArgument

Policy: TypeAlias = Literal["least_loaded", "round_robin"]
_DNS = "dns:///"
_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+):(\d{1,5})")


class UpstreamKeys(BaseModel):
    """The keys of a scorer's table that mean something where other servers run it."""

    max_batch_items: int = Field(16, ge=1, description="items per batch")
    upstream: str | list[str] = Field(
        default_factory=list, description="HOST:PORT or dns:///HOST:PORT of servers that run it"
    )
    upstream_scorer: str = Field("", description="its name there; default: NAME")
    upstream_policy: Policy = Field("least_loaded", description="how endpoints are chosen")
    upstream_wait_s: float = Field(
        10.0, ge=0, description="how long items wait while no endpoint is usable"
    )
    upstream_api_key_env: str = Field("", description="environment variable with the key to send")
    upstream_tls: bool = Field(False, description="TLS, checked against the system's roots")
    upstream_ca_file: str = Field("", description="TLS, checked against this PEM file")
    upstream_cert_file: str = Field("", description="TLS: PEM certificate to show (mTLS)")
    upstream_key_file: str = Field("", description="its private key")

    @property
    def targets(self) -> tuple[str, ...]:
        """The servers that run it; empty for a scorer of this host."""
        return (self.upstream,) if isinstance(self.upstream, str) else tuple(self.upstream)


class UpstreamConfigError(Exception):
    """The upstream of a scorer cannot be used; one line that names the scorer and the key."""


@dataclass(frozen=True, slots=True)
class Route:
    """How servers are reached; scorers with equal ones share connections and messages."""

    targets: tuple[str, ...]
    policy: Policy
    wait_s: float
    api_key: str | None = None
    is_tls: bool = False
    tls: TlsFiles | None = None

    def sources(self) -> list[Source]:
        return [parse_target(text, is_tls=self.is_tls) for text in self.targets]


@dataclass(frozen=True, slots=True)
class UpstreamSettings:
    """Which scorer of which servers one scorer here stands for."""

    route: Route
    scorer: str
    max_part_items: int


def parse_target(text: str, *, is_tls: bool = False) -> Source:
    """Read "host:port" or "dns:///host:port"; raises ValueError."""
    every_address = text.startswith(_DNS)
    match = _HOST_PORT.fullmatch(text.removeprefix(_DNS))
    if match is None or not 0 < int(match[2]) < 65536:
        raise ValueError(f"upstream {text!r} is not HOST:PORT or dns:///HOST:PORT")
    host, scheme = match[1].strip("[]"), "grpcs" if is_tls else "grpc"
    url = f"{scheme}://{match[1]}:{match[2]}"
    return Source(text, Address(url, scheme, host, int(match[2]), "", host), every_address)


def check_keys(name: str, section: UpstreamKeys) -> None:
    """Raise ValueError where keys of local and upstream scorers are mixed, or a target is wrong."""
    given = section.model_fields_set
    foreign = sorted(key for key in given if key.startswith("upstream") and key != "upstream")
    if not section.targets:
        if foreign or "upstream" in given:
            raise ValueError(f"scorers.{name}.{[*foreign, 'upstream'][0]}: name an `upstream`")
        return
    local = sorted(key for key in given - UpstreamKeys.model_fields.keys())
    if local:
        raise ValueError(
            f"scorers.{name}.{local[0]} says how to run a scorer here, but `upstream` says that"
            " another server runs it: leave one of them out"
        )
    try:
        for text in section.targets:
            parse_target(text)
    except ValueError as error:
        raise ValueError(f"scorers.{name}: {error}") from error


def read_settings(
    name: str, section: UpstreamKeys, environment: Mapping[str, str] = os.environ
) -> UpstreamSettings:
    """An upstream scorer's settings, key and certificates; raises UpstreamConfigError."""
    where = f"scorers.{name}"
    api_key = None
    if section.upstream_api_key_env:
        api_key = environment.get(section.upstream_api_key_env, "").strip()
        if not api_key:
            raise UpstreamConfigError(
                f"{where}.upstream_api_key_env: the environment variable"
                f" {section.upstream_api_key_env} is not set"
            )
    files = [section.upstream_ca_file, section.upstream_cert_file, section.upstream_key_file]
    try:
        tls = TlsFiles(*(file or None for file in files)) if any(files) else None
        if tls is not None:
            tls.context()
    except InvalidArgument as error:
        message = error.message.replace("client_cert_file", "upstream_cert_file")
        message = message.replace("client_key_file", "upstream_key_file")
        raise UpstreamConfigError(f"{where}: {message}") from error
    route = Route(
        targets=section.targets,
        policy=section.upstream_policy,
        wait_s=section.upstream_wait_s,
        api_key=api_key,
        is_tls=section.upstream_tls or tls is not None,
        tls=tls,
    )
    return UpstreamSettings(route, section.upstream_scorer or name, section.max_batch_items)
