"""HTTP with the protobuf messages as bodies: the binary mirror of the gRPC API."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import httpx
from google.protobuf import json_format
from google.protobuf import message as protobuf

from reward_client import _retry_after, _tracing
from reward_client._addresses import Address
from reward_client._pb.reward.v1 import reward_pb2 as pb
from reward_client._tasks import within
from reward_client._tls import TlsFiles
from reward_client._transports.base import (
    DEADLINE_HEADER,
    PROTOBUF_TYPE,
    RETRY_AFTER_MS_KEY,
    Headers,
    Message,
    milliseconds,
)
from reward_client._wire import convert
from reward_client.errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    RewardError,
    Unavailable,
    code_from_http,
    error_for,
)

Reply = TypeVar("Reply", bound=protobuf.Message)
CONNECT_TIMEOUT_S = 5.0
_MAX_QUOTED_CHARS = 300
# For each call, httpcore asks the system about every idle connection of a pool: 64 calls at once
# out of one pool cost twice the CPU of the calls themselves.
_CALLS_PER_POOL = 4


@dataclass(slots=True)
class _Pool:
    client: httpx.AsyncClient
    calls: int = 0  # in flight


class HttpTransport:
    """Pools of connections; the time-out bounds the whole call."""

    def __init__(
        self, address: Address, api_key: str | None, tls: TlsFiles | None, *, trust_env: bool
    ) -> None:
        self._url = address.url
        use_proxies = trust_env and not address.is_loopback
        # Distinguishes its errors from the server's.
        self._proxy_note = " (proxies of the environment are in use)" if use_proxies else ""
        headers = {"accept": f"{PROTOBUF_TYPE}, application/json;q=0.5"}
        self._open = functools.partial(
            httpx.AsyncClient,
            base_url=f"{address.scheme}://{address.target}{address.base_path}",
            headers=headers | ({"authorization": f"Bearer {api_key}"} if api_key else {}),
            trust_env=use_proxies,
            verify=tls.context() if tls else httpx.create_ssl_context(trust_env=use_proxies),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        )
        self._pools = [_Pool(self._open())]

    async def score(
        self, message: Message, timeout_s: float, headers: Headers = ()
    ) -> pb.ScoreResponse:
        all_headers = {"content-type": PROTOBUF_TYPE, DEADLINE_HEADER: f"{timeout_s * 1e3:.0f}"}
        all_headers |= dict(headers) | dict(_tracing.headers())
        request = self._pools[0].client.build_request(
            "POST",
            "/v1/score",
            content=message.body,
            headers=all_headers,
            timeout=_timeout(timeout_s),
        )
        return await self._send(request, pb.ScoreResponse(), timeout_s)

    async def list_scorers(self, timeout_s: float, headers: Headers = ()) -> pb.ListScorersResponse:
        request = self._pools[0].client.build_request(
            "GET", "/v1/scorers", headers=dict(headers), timeout=_timeout(timeout_s)
        )
        return await self._send(request, pb.ListScorersResponse(), timeout_s)

    def stream(self) -> None:
        """HTTP has no stream."""

    async def close(self) -> None:
        for pool in self._pools:
            await pool.client.aclose()

    async def _send(self, request: httpx.Request, reply: Reply, timeout_s: float) -> Reply:
        pool = next((pool for pool in self._pools if pool.calls < _CALLS_PER_POOL), None)
        if pool is None:
            pool = _Pool(self._open())
            self._pools.append(pool)
        pool.calls += 1
        try:
            response = await within(timeout_s, pool.client.send(request))
        except asyncio.TimeoutError as error:
            raise _too_late(self._url) from error
        except httpx.HTTPError as error:
            raise _transport_error(self._url + self._proxy_note, error) from error
        except RuntimeError as error:
            raise Cancelled(f"the client for {self._url} is closed") from error
        finally:
            pool.calls -= 1
        return _parse(self._url + self._proxy_note, response, reply)


def _timeout(timeout_s: float) -> httpx.Timeout:
    # A host that swallows packets is to be found out while there is time for another server.
    return httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S))


def _parse(url: str, response: httpx.Response, reply: Reply) -> Reply:
    if not response.is_success:
        raise _error_from(url, response)
    kind = response.headers.get("content-type", "").split(";")[0].strip()
    try:
        if kind == PROTOBUF_TYPE:
            reply.ParseFromString(response.content)
            return reply
        if kind == "application/json":
            return json_format.ParseDict(response.json(), reply)
    except (protobuf.DecodeError, json_format.ParseError, ValueError) as error:
        raise Internal(f"{url} answered with something unreadable: {error}") from error
    raise Internal(
        f"{url} answered with content type {kind or 'none'!r}, expected {PROTOBUF_TYPE}: is this a"
        " reward server?"
    )


def _error_from(url: str, response: httpx.Response) -> RewardError:
    retry_after_s = milliseconds(response.headers.get(RETRY_AFTER_MS_KEY))
    if retry_after_s is None:
        retry_after_s = _retry_after.retry_after_s(response.headers.get("retry-after"))
    try:
        stated = error_from_json(response.json())
    except (json.JSONDecodeError, UnicodeDecodeError):
        stated = None
    if stated is not None:
        if stated.retry_after_s is None:
            stated.retry_after_s = retry_after_s
        return stated
    quoted = " ".join(response.text.split())[:_MAX_QUOTED_CHARS]
    message = f"{url} answered with status {response.status_code}: {quoted or 'no body'}"
    return error_for(code_from_http(response.status_code), message, retry_after_s=retry_after_s)


def error_from_json(body: object) -> RewardError | None:
    """Read `{"error": {"code", "message", ...}}`, or return None for what others answer."""
    if not isinstance(body, Mapping) or not isinstance(body.get("error"), Mapping):
        return None
    try:
        stated = json_format.ParseDict(
            dict(body["error"]), pb.ErrorInfo(), ignore_unknown_fields=True
        )
    except (json_format.ParseError, TypeError, ValueError, OverflowError):
        return None
    return convert.error_from_proto(stated)


def _transport_error(url: str, error: httpx.HTTPError) -> RewardError:
    # Not even connected: that is "unreachable", whatever made the attempt take so long.
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        return _too_late(url)
    reason = str(error) or type(error).__name__
    return Unavailable(
        f"cannot reach {url} ({reason}): is the server running and the address right?"
    )


def _too_late(url: str) -> RewardError:
    return DeadlineExceeded(f"{url} did not answer in time: allow more with deadline_s")
