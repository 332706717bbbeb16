"""HTTP with the protobuf messages as bodies: the binary mirror of the gRPC API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from concurrent.futures import Future
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import TypeVar

import httpx
from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message

from reward_client import _tracing
from reward_client._pb.reward.v1 import reward_pb2 as pb
from reward_client._tls import TlsFiles, ssl_context
from reward_client._transports.base import (
    DEADLINE_HEADER,
    PROTOBUF_TYPE,
    RETRY_AFTER_MS_KEY,
    AsyncCalls,
    AsyncUnary,
    Calls,
    Endpoint,
    Unary,
    milliseconds,
)
from reward_client._transports.futures import LoopThread
from reward_client._wire import json_mirror
from reward_client.errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    RewardError,
    Unavailable,
    code_from_http,
    error_for,
)

Reply = TypeVar("Reply", bound=Message)
CONNECT_TIMEOUT_S = 5.0
_MAX_QUOTED_CHARS = 300


class HttpTransport:
    """A pool of connections, shared by all threads: `AsyncHttpTransport` in a loop of its own."""

    def __init__(
        self, endpoint: Endpoint, api_key: str | None, tls: TlsFiles | None = None
    ) -> None:
        self._async = AsyncHttpTransport(endpoint, api_key, tls)
        self._url = endpoint.url
        self._thread = LoopThread("reward-client-http")
        self._closed = False

    def score(self, message: pb.ScoreRequest, deadline_s: float) -> Future[pb.ScoreResponse]:
        """Start one request that gives up after `deadline_s` seconds."""
        self._check_open()
        return self._thread.submit(self._async.score(message, deadline_s))

    def list_scorers(self, deadline_s: float) -> Future[pb.ListScorersResponse]:
        """Ask for the scorers; give up after `deadline_s` seconds."""
        self._check_open()
        return self._thread.submit(self._async.list_scorers(deadline_s))

    def stream(self) -> Calls:
        """Requests one by one: HTTP has no stream."""
        return Unary(self)

    def close(self) -> None:
        """Close the connections; calls in flight are cancelled."""
        if not self._closed:
            self._closed = True
            self._thread.close(self._async.close())

    def _check_open(self) -> None:
        if self._closed:
            raise Cancelled(f"the client for {self._url} is closed")


class AsyncHttpTransport:
    """A pool of connections for one event loop; the deadline bounds the whole call."""

    def __init__(
        self, endpoint: Endpoint, api_key: str | None, tls: TlsFiles | None = None
    ) -> None:
        self._url = endpoint.url
        self._client = httpx.AsyncClient(
            base_url=_base_url(endpoint),
            headers=_headers(api_key),
            trust_env=not endpoint.is_loopback,
            verify=ssl_context(tls) or True,
        )

    async def score(self, message: pb.ScoreRequest, deadline_s: float) -> pb.ScoreResponse:
        """Send one request; give up after `deadline_s` seconds."""
        request = _score_request(self._client, message, deadline_s)
        return await self._send(request, pb.ScoreResponse(), deadline_s)

    async def list_scorers(self, deadline_s: float) -> pb.ListScorersResponse:
        """Ask for the scorers; give up after `deadline_s` seconds."""
        request = _list_request(self._client, deadline_s)
        return await self._send(request, pb.ListScorersResponse(), deadline_s)

    def stream(self) -> AsyncCalls:
        """Requests one by one: HTTP has no stream."""
        return AsyncUnary(self)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _send(self, request: httpx.Request, reply: Reply, deadline_s: float) -> Reply:
        try:
            response = await asyncio.wait_for(self._client.send(request), deadline_s)
        except (TimeoutError, asyncio.TimeoutError) as error:
            raise _too_late(self._url) from error
        except httpx.HTTPError as error:
            raise _transport_error(self._url, error) from error
        except RuntimeError as error:
            raise Cancelled(f"the client for {self._url} is closed") from error
        return _parse(self._url, response, reply)


def _base_url(endpoint: Endpoint) -> str:
    return f"{endpoint.scheme}://{endpoint.target}{endpoint.base_path}"


def _headers(api_key: str | None) -> dict[str, str]:
    headers = {"accept": f"{PROTOBUF_TYPE}, application/json;q=0.5"}
    return headers | ({"authorization": f"Bearer {api_key}"} if api_key else {})


def _score_request(
    client: httpx.AsyncClient, message: pb.ScoreRequest, deadline_s: float
) -> httpx.Request:
    headers = {"content-type": PROTOBUF_TYPE, DEADLINE_HEADER: f"{deadline_s * 1e3:.0f}"}
    headers |= dict(_tracing.headers())
    body = message.SerializeToString()
    return client.build_request(
        "POST", "/v1/score", content=body, headers=headers, timeout=_timeout(deadline_s)
    )


def _list_request(client: httpx.AsyncClient, deadline_s: float) -> httpx.Request:
    return client.build_request("GET", "/v1/scorers", timeout=_timeout(deadline_s))


def _timeout(deadline_s: float) -> httpx.Timeout:
    # A host that swallows packets is to be found out while there is time for another server.
    return httpx.Timeout(deadline_s, connect=min(deadline_s, CONNECT_TIMEOUT_S))


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
    except (DecodeError, json_format.ParseError, ValueError) as error:
        raise Internal(f"{url} answered with something unreadable: {error}") from error
    raise Internal(
        f"{url} answered with content type {kind or 'none'!r}, expected {PROTOBUF_TYPE}: is this a"
        " reward server?"
    )


def _error_from(url: str, response: httpx.Response) -> RewardError:
    retry_after_s = _retry_after_s(response.headers)
    try:
        told = json_mirror.error_from_json(response.json())
    except (json.JSONDecodeError, UnicodeDecodeError):
        told = None
    if told is not None:
        if told.retry_after_s is None:
            told.retry_after_s = retry_after_s
        return told
    quoted = " ".join(response.text.split())[:_MAX_QUOTED_CHARS]
    message = f"{url} answered with status {response.status_code}: {quoted or 'no body'}"
    return error_for(code_from_http(response.status_code), message, retry_after_s=retry_after_s)


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    if (wait_s := milliseconds(headers.get(RETRY_AFTER_MS_KEY))) is not None:
        return wait_s
    text = headers.get("retry-after")
    if text is None:
        return None
    if text.strip().isdigit():
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    if date.tzinfo is None:
        return None
    return max(0.0, (date - datetime.now(timezone.utc)).total_seconds())


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
