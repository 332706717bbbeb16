"""What both clients are made of: their arguments, what the environment says, and when they end."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from reward_client._addresses import Address, Source, parse_sources
from reward_client._call import RetryPolicy
from reward_client._core import DEFAULT_TIMEOUT_S, Core
from reward_client._endpoints import Hedge
from reward_client._pool import PREFERENCES, Pool, Preference
from reward_client._tls import TlsFiles
from reward_client._transports import check_transport, open_transport
from reward_client._transports.base import Transport
from reward_client._validation import check_timeout
from reward_client.errors import Cancelled, InvalidArgument

if TYPE_CHECKING:
    from typing_extensions import Self


class ClientBase:
    def __init__(
        self,
        url: str | Sequence[str],
        *,
        api_key: str | None = None,
        tls: TlsFiles | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        max_message_bytes: int | None = None,
        max_message_items: int | None = None,
        attempts: int | None = None,
        prefer: Preference = "least_busy",
        hedge: Hedge | None = None,
        trust_env: bool = False,
        shared_memory: bool = True,
        transport: Transport | Sequence[Transport] | None = None,
    ) -> None:
        """Prepare a client; nothing is sent yet.

        Args:
            url: "grpc://host:port" or "http://host:port"; grpcs and https for TLS. Several, as a
                list or with commas between them, are servers with the same scorers: a message goes
                to one of them, and to another one if that fails. "grpc+dns://host:port" means every
                address of the name; "file:PATH" a file that holds urls and is read again after a
                failure.
            api_key: sent as `authorization: Bearer <api_key>`.
            tls: for grpcs and https: whom to trust and what to show, if not the system's roots.
            timeout_s: how long a call may take, retries included, unless it says otherwise.
            max_message_bytes: larger batches are split; by default at 16 MiB, and at what the
                server accepts.
            max_message_items: likewise, by default 256.
            attempts: how often to send a message in total, once more per further url; by default
                until the time is up.
            prefer: "least_busy" spreads messages over all urls, "round_robin" in turn, "first" uses
                the earliest that is up.
            hedge: ask a second server if the first takes long; None never does.
            trust_env: use the proxies of the environment (`http_proxy`, ...), for gRPC and HTTP.
            shared_memory: pass raw pixels to a server on this host in memory instead of messages,
                over gRPC; up to 512 MiB of them at once.
            transport: replaces the network, one per url; then `url` is only a name in messages.

        Raises:
            InvalidArgument: a malformed url or limit, or a TLS file that cannot be used.
            ImportError: the url says grpc and grpcio is not installed.
        """
        counts = {"max_message_bytes": max_message_bytes, "max_message_items": max_message_items}
        for name, value in (counts | {"attempts": attempts}).items():
            if value is not None and value < 1:
                raise InvalidArgument(f"{name} must be at least 1, got {value}")
        if prefer not in PREFERENCES:
            raise InvalidArgument(f"prefer must be one of {list(PREFERENCES)}, got {prefer!r}")
        connect: Callable[[Address], Transport]
        if transport is None:
            sources = parse_sources(url)
            for source in sources:
                if source.address is not None:
                    check_transport(source.address, tls)
            connect = partial(
                open_transport,
                api_key=api_key,
                tls=tls,
                trust_env=trust_env,
                shared_memory=shared_memory,
            )
        else:
            given = transport if isinstance(transport, Sequence) else [transport]
            sources = _names(url)
            if len(given) != len(sources):
                raise InvalidArgument(f"{len(given)} transports for {len(sources)} urls")
            connect = {s.address: t for s, t in zip(sources, given, strict=True)}.__getitem__
        self.url = ",".join(source.text for source in sources)
        self._timeout_s = check_timeout("timeout_s", timeout_s)
        self._max_message = max_message_bytes, max_message_items
        self._make_pool = partial(
            Pool, sources, connect, prefer=prefer, hedge=hedge, policy=RetryPolicy(attempts)
        )
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._is_closed = False

    @classmethod
    def from_env(
        cls,
        environ: Mapping[str, str] | None = None,
        *,
        url: str | None = None,
        timeout_s: float | None = None,
        attempts: int | None = None,
    ) -> Self:
        """Make a client of what the environment says.

        REWARD_URL (one address, or several with commas), REWARD_API_KEY, REWARD_CA_FILE,
        REWARD_CLIENT_CERT_FILE, REWARD_CLIENT_KEY_FILE, REWARD_TIMEOUT_S, REWARD_TRUST_ENV. A
        variable that is empty counts as not set.

        Args:
            environ: the variables; by default those of the process.
            url: instead of REWARD_URL.
            timeout_s: instead of REWARD_TIMEOUT_S.
            attempts: how often to send a message; by default until the time is up.

        Raises:
            InvalidArgument: no url, or a variable that is malformed; says which.
        """
        env = os.environ if environ is None else environ
        url = url or env.get("REWARD_URL")
        if not url:
            raise InvalidArgument(
                "REWARD_URL is not set: set it to the address of a reward server, such as"
                " grpc://127.0.0.1:50051, or to several with commas between them"
            )
        env_timeout_s = _timeout_s(env)
        trust_env = env.get("REWARD_TRUST_ENV") or "0"
        if trust_env not in ("0", "1"):
            raise InvalidArgument(f"REWARD_TRUST_ENV must be 0 or 1, got {trust_env!r}")
        return cls(
            url,
            api_key=env.get("REWARD_API_KEY") or None,
            tls=TlsFiles.from_env(env),
            timeout_s=env_timeout_s if timeout_s is None else timeout_s,
            attempts=attempts,
            trust_env=trust_env == "1",
        )

    def _new_core(self) -> Core:
        return Core(self._make_pool(), self.url, self._timeout_s, *self._max_message)

    def _time_s(self, deadline_s: float | None) -> float:
        return self._timeout_s if deadline_s is None else check_timeout("deadline_s", deadline_s)

    def _check_open(self) -> None:
        """Raise Cancelled after `close`, and after a fork: the sockets are another process's."""
        if os.getpid() != self._pid:
            raise Cancelled(
                f"this client belongs to process {self._pid}, this is {os.getpid()}: make a client"
                " in each process, after the fork"
            )
        if self._is_closed:
            raise self._closed()

    def _closed(self) -> Cancelled:
        return Cancelled(f"the client for {self.url} is closed")


def _names(url: str | Sequence[str]) -> list[Source]:
    texts = [text.strip() for text in (url.split(",") if isinstance(url, str) else url)]
    return [Source(text, Address(text, "fake", text, 0)) for text in texts]


def _timeout_s(env: Mapping[str, str]) -> float:
    text = env.get("REWARD_TIMEOUT_S") or str(DEFAULT_TIMEOUT_S)
    try:
        return check_timeout("REWARD_TIMEOUT_S", float(text))
    except ValueError:
        raise InvalidArgument(
            f"REWARD_TIMEOUT_S must be a number of seconds, got {text!r}"
        ) from None
