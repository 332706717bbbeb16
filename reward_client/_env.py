"""What the environment says about the reward service, for programs that are configured by it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from reward_client._core import DEFAULT_TIMEOUT_S
from reward_client._tls import TlsFiles
from reward_client._validation import check_timeout
from reward_client.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class Environment:
    """The variables of the client.

    Attributes:
        url: REWARD_URL, one address or several with commas between them; "" if not set.
        api_key: REWARD_API_KEY.
        timeout_s: REWARD_TIMEOUT_S.
        trust_env: REWARD_TRUST_ENV is 1: use the proxies of the environment.
        tls: REWARD_CA_FILE, REWARD_CLIENT_CERT_FILE, REWARD_CLIENT_KEY_FILE; None if none is set.
    """

    url: str
    api_key: str | None
    timeout_s: float
    trust_env: bool
    tls: TlsFiles | None

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> Environment:
        """Read the variables; one that is empty counts as not set.

        Raises:
            InvalidArgument: REWARD_TIMEOUT_S is not a positive number, REWARD_TRUST_ENV is neither
                0 nor 1, or of a client's certificate and its key only one is named.
        """
        text = environ.get("REWARD_TIMEOUT_S") or str(DEFAULT_TIMEOUT_S)
        try:
            timeout_s = float(text)
        except ValueError:
            raise InvalidArgument(
                f"REWARD_TIMEOUT_S must be a number of seconds, got {text!r}"
            ) from None
        return cls(
            environ.get("REWARD_URL") or "",
            environ.get("REWARD_API_KEY") or None,
            check_timeout("REWARD_TIMEOUT_S", timeout_s),
            _is_set("REWARD_TRUST_ENV", environ.get("REWARD_TRUST_ENV") or "0"),
            TlsFiles.from_env(environ),
        )

    def required_url(self) -> str:
        """The address; raises InvalidArgument if there is none."""
        if not self.url:
            raise InvalidArgument(
                "REWARD_URL is not set: set it to the address of a reward server, such as"
                " grpc://127.0.0.1:50051, or to several with commas between them"
            )
        return self.url


def _is_set(name: str, text: str) -> bool:
    if text not in ("0", "1"):
        raise InvalidArgument(f"{name} must be 0 or 1, got {text!r}")
    return text == "1"
