"""The options of an endpoint, checked before anything is contacted."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class EndpointOptions:
    base_url: str
    model: str
    api_key_env: str
    concurrency: int
    timeout_s: float
    batch_timeout_s: float
    attempts: int
    wait_s: float

    def check(self, scorer: str) -> None:
        url = urlsplit(self.base_url)
        if url.username is not None or url.password is not None or url.query:
            # Not quoted: it holds what should never be shown.
            raise ValueError(f"{scorer}: base_url carries a secret; name it with api_key_env")
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError(
                f"{scorer}: base_url {self.base_url!r} is not an address such as"
                " http://127.0.0.1:8001/v1"
            )
        if self.api_key_env and not _VARIABLE.fullmatch(self.api_key_env):
            raise ValueError(
                f"{scorer}: api_key_env is the name of an environment variable (letters, digits,"
                " '_'), not the key itself"
            )
        for name, least in (("concurrency", 1), ("attempts", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{scorer}: {name} must be at least {least}")
        for name in ("timeout_s", "batch_timeout_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{scorer}: {name} must be above 0 seconds")
        if self.wait_s < 0:
            raise ValueError(f"{scorer}: wait_s must be at least 0 seconds")

    @property
    def is_loopback(self) -> bool:
        """Whether the endpoint is on this machine, where no proxy belongs in between."""
        host = urlsplit(self.base_url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    def api_key(self, scorer: str) -> str:
        """The key from the environment; empty without `api_key_env`; raises RuntimeError."""
        if not self.api_key_env:
            return ""
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise RuntimeError(
                f"{scorer}: api_key_env names {self.api_key_env}, which is not set in the"
                " server's environment"
            )
        return key
