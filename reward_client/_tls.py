"""Which certificates a client trusts and shows, for grpcs:// and https:// alike."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from reward_client.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files; None means the system's roots, and no client certificate.

    Attributes:
        ca_file: whom to trust, instead of the system's roots.
        client_cert_file: what to show to servers that ask for a certificate (mTLS).
        client_key_file: the private key of `client_cert_file`.
    """

    ca_file: str | None = None
    client_cert_file: str | None = None
    client_key_file: str | None = None

    def __post_init__(self) -> None:
        if bool(self.client_cert_file) != bool(self.client_key_file):
            raise InvalidArgument(
                "client_cert_file and client_key_file belong together: give both, or neither"
            )

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> TlsFiles | None:
        """Read REWARD_CA_FILE, REWARD_CLIENT_CERT_FILE and REWARD_CLIENT_KEY_FILE.

        Returns None if none is set. Raises InvalidArgument if half of a pair is missing.
        """
        names = ("REWARD_CA_FILE", "REWARD_CLIENT_CERT_FILE", "REWARD_CLIENT_KEY_FILE")
        values = [env.get(name) or None for name in names]
        return cls(*values) if any(values) else None

    def pem(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """(roots, key, certificate chain) as gRPC takes them; raises InvalidArgument."""
        # gRPC itself says nothing about broken files until every call fails.
        self.context()
        return _bytes(self.ca_file), _bytes(self.client_key_file), _bytes(self.client_cert_file)

    def context(self) -> ssl.SSLContext:
        """What httpx verifies with; raises InvalidArgument."""
        for file in (self.ca_file, self.client_cert_file, self.client_key_file):
            _bytes(file)
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except ssl.SSLError as error:
            raise InvalidArgument(f"{self.ca_file} holds no PEM certificate") from error
        if self.client_cert_file and self.client_key_file:
            try:
                context.load_cert_chain(self.client_cert_file, self.client_key_file)
            except ssl.SSLError as error:
                raise InvalidArgument(
                    f"{self.client_cert_file} and {self.client_key_file} are not a PEM certificate"
                    " and its key"
                ) from error
        return context


def _bytes(file: str | None) -> bytes | None:
    if file is None:
        return None
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise InvalidArgument(f"cannot read {file}: {error.strerror}") from error
