"""gRPC. Methods are named, not generated, so that any version of grpcio will do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from reward_client import _tracing
from reward_client._addresses import Address
from reward_client._pb.reward.v1 import reward_pb2 as pb
from reward_client._shared_memory import SharedMemory
from reward_client._tasks import within
from reward_client._tls import TlsFiles
from reward_client._transports.base import (
    ERROR_INFO_KEY,
    PUSHBACK_MS_KEY,
    RETRY_AFTER_MS_KEY,
    Calls,
    Headers,
    Message,
    milliseconds,
)
from reward_client._wire import convert
from reward_client.errors import (
    Cancelled,
    Code,
    DeadlineExceeded,
    InvalidArgument,
    RewardError,
    Unavailable,
    code_from_grpc,
    error_for,
)

_SERVICE = "/reward.v1.RewardService/"
# Details make answers larger than requests may be.
_MAX_RESPONSE_BYTES = 64 << 20
# A connection that is silently gone is noticed after the sum of both. Servers must allow pings at
# this interval (reward_server does); others answer "too many pings", and gRPC slows down.
_KEEPALIVE_S, _KEEPALIVE_TIMEOUT_S = 20, 10
# grpc.aio's status, INTERNAL, for a stream that ended under a write: no server has said so.
_BROKE_WHILE_SENDING = "Internal error from Core"


class GrpcTransport:
    """One channel, which reconnects by itself."""

    def __init__(
        self,
        address: Address,
        api_key: str | None,
        tls: TlsFiles | None,
        *,
        trust_env: bool,
        shared_memory: bool,
    ) -> None:
        self._url = address.url
        self._may_share = shared_memory
        self._memory: SharedMemory | None = None
        self._is_closed = False
        self._pairs = (("authorization", f"Bearer {api_key}"),) if api_key else ()
        options = _options(address, trust_env)
        if address.is_tls:
            credentials = grpc.ssl_channel_credentials(*(tls.pem() if tls else ()))
            self._channel = grpc.aio.secure_channel(address.target, credentials, options)
        else:
            self._channel = grpc.aio.insecure_channel(address.target, options)
        self._score = self._channel.unary_unary(
            f"{_SERVICE}Score", response_deserializer=pb.ScoreResponse.FromString
        )
        self._list = self._channel.unary_unary(
            f"{_SERVICE}ListScorers", response_deserializer=pb.ListScorersResponse.FromString
        )
        self._stream = self._channel.stream_stream(
            f"{_SERVICE}ScoreStream", response_deserializer=pb.ScoreStreamResponse.FromString
        )

    async def score(
        self, message: Message, timeout_s: float, headers: Headers = ()
    ) -> pb.ScoreResponse:
        """Send one request; give up after `timeout_s` seconds.

        Raw pixels go through memory that the server shares, if it is on this host.
        """
        if self._memory is None or not message.has_raw:
            return await self._call(self._score, message.body, timeout_s, headers)
        if not self._memory.is_open:
            self._forget_memory()
            return await self.score(message, timeout_s, headers)
        begin_s = time.monotonic()
        try:
            with self._memory.borrowed() as place:
                return await self._call(self._score, message.placed(place), timeout_s, headers)
        except InvalidArgument:
            # Perhaps another server has taken over the address: with the bytes the answer is final.
            left_s = timeout_s - (time.monotonic() - begin_s)
            answer = await self._call(self._score, message.body, left_s, headers)
            self._forget_memory()
            return answer

    async def list_scorers(self, timeout_s: float, headers: Headers = ()) -> pb.ListScorersResponse:
        """Ask for the scorers; give up after `timeout_s` seconds. Shares memory where it can."""
        found: pb.ListScorersResponse = await self._call(self._list, b"", timeout_s, headers)
        if self._memory is not None and not self._memory.is_open:
            self._forget_memory()
        if self._memory is None and self._may_share:
            self._memory = SharedMemory.attach(found.shared_memory)
        return found

    def stream(self) -> Calls:
        return _Stream(lambda: self._stream(metadata=self._pairs), self._url)

    async def close(self) -> None:
        self._is_closed = True
        await self._channel.close()
        self._forget_memory()

    def _forget_memory(self) -> None:
        memory, self._memory = self._memory, None
        if memory is not None:
            memory.close()

    async def _call(
        self, method: Callable[..., Any], body: bytes, timeout_s: float, headers: Headers
    ) -> Any:
        pairs = (*self._pairs, *headers, *_tracing.headers())
        try:
            return await method(body, timeout=timeout_s, metadata=pairs)
        except grpc.aio.AioRpcError as error:
            failure = _reward_error(self._url, error)
        except grpc.aio.UsageError as error:
            raise _closed(self._url) from error
        except asyncio.CancelledError:
            if self._is_closed:  # which cancels its calls
                raise _closed(self._url) from None
            raise
        # Not from gRPC's error: its traceback holds the call, and that the connection, even after
        # `close`, for as long as a caller keeps the error.
        raise failure


class _Stream:
    """Requests and answers over one ScoreStream call; where it broke, the next one is opened.

    A request of it cannot be cancelled on the wire: its answer is dropped when it comes. The server
    knows how long it is waited for.
    """

    def __init__(self, begin: Callable[[], Any], url: str) -> None:
        self._begin = begin
        self._url = url
        self._open: _OpenStream | None = None

    async def score(
        self, message: Message, timeout_s: float, headers: Headers = ()
    ) -> pb.ScoreResponse:
        if self._open is None or self._open.has_ended:
            try:
                self._open = _OpenStream(self._begin(), self._url)
            except grpc.aio.UsageError as error:
                raise _closed(self._url) from error
        # Serialised messages that follow each other are merged: this adds a field.
        limit = pb.ScoreRequest(timeout_ms=timeout_s * 1e3).SerializeToString()
        sending = self._open.send(message.request_id, message.body + limit)
        try:
            return await within(timeout_s, sending)
        except asyncio.TimeoutError as error:
            raise DeadlineExceeded(
                f"{self._url} did not answer in time: allow more with deadline_s"
            ) from error

    async def close(self) -> None:
        if self._open is not None:
            await self._open.close()


class _OpenStream:
    def __init__(self, call: Any, url: str) -> None:
        self._call = call
        self._url = url
        self._waiting: dict[str, asyncio.Future[pb.ScoreResponse]] = {}
        self._writing = asyncio.Lock()
        self._is_closed = False
        self._reader = asyncio.ensure_future(self._read())

    @property
    def has_ended(self) -> bool:
        return self._reader.done()

    async def send(self, name: str, body: bytes) -> pb.ScoreResponse:
        future = self._waiting[name] = asyncio.get_running_loop().create_future()
        try:
            # Where the call has ended under the write, the reader knows why and says so.
            with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                async with self._writing:
                    await self._call.write(body)
            if self._reader.done() and not future.done():  # it ended before this one was waiting
                raise self._reader.result()
            return await future
        finally:
            if self._waiting.get(name) is future:
                del self._waiting[name]

    async def close(self) -> None:
        self._is_closed = True
        self._call.cancel()
        await asyncio.wait([self._reader])

    async def _read(self) -> RewardError:
        try:
            async for answer in self._call:
                future = self._waiting.pop(answer.request_id, None)
                if future is None or future.done():
                    continue
                if answer.WhichOneof("outcome") == "response":
                    future.set_result(answer.response)
                else:
                    future.set_exception(convert.error_from_proto(answer.error))
            error = self._ended()
        except grpc.aio.AioRpcError as broken:
            error = _reward_error(self._url, broken)
        except asyncio.CancelledError:
            # Cancelling a call cancels its reader, and so does a write that fails.
            error = _closed(self._url) if self._is_closed else self._ended()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(error)
        return error

    def _ended(self) -> RewardError:
        return Unavailable(f"{self._url} ended the stream before its time")


def _options(address: Address, trust_env: bool) -> list[tuple[str, Any]]:
    options: list[tuple[str, Any]] = [
        # What a server accepts it says itself; see ListScorers.
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", _MAX_RESPONSE_BYTES),
        # A restarted server should be found in seconds; gRPC's default backs off to two minutes.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 2000),
        ("grpc.keepalive_time_ms", _KEEPALIVE_S * 1000),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_S * 1000),
        ("grpc.http2.max_pings_without_data", 0),
        # Retries are the client's, which knows the deadline and repeats the request id.
        ("grpc.enable_retries", 0),
        ("grpc.enable_http_proxy", int(trust_env and not address.is_loopback)),
    ]
    if address.is_tls and address.server_name not in ("", address.host):
        options.append(("grpc.ssl_target_name_override", address.server_name))
    return options


def _reward_error(url: str, error: grpc.aio.AioRpcError) -> RewardError:
    """Translate a failed call; the trailer `reward-error-bin` wins over gRPC's own status."""
    # Not dict(pairs): grpc.aio's Metadata iterates over pairs although it has keys().
    pairs: Any = error.trailing_metadata() or ()
    trailers: dict[str, str | bytes] = {key: value for key, value in pairs}  # noqa: C416
    retry_after_s = milliseconds(_text(trailers.get(RETRY_AFTER_MS_KEY)))
    if retry_after_s is None:
        retry_after_s = milliseconds(_text(trailers.get(PUSHBACK_MS_KEY)))
    info = trailers.get(ERROR_INFO_KEY)
    if isinstance(info, bytes):
        with suppress(DecodeError):
            stated = convert.error_from_proto(pb.ErrorInfo.FromString(info))
            if stated.retry_after_s is None:
                stated.retry_after_s = retry_after_s
            return stated
    code = code_from_grpc(error.code().name)
    details = error.details() or "no details"
    if details == _BROKE_WHILE_SENDING:
        return Unavailable(f"the connection to {url} broke while sending")
    if code is Code.UNAVAILABLE and not trailers:
        details = f"cannot reach {url} ({details}): is the server running and the address right?"
    if code is Code.DEADLINE_EXCEEDED:
        details = f"{url} did not answer in time ({details}): allow more with deadline_s"
    # A message over a size limit is as large the next time.
    retryable = False if "larger than max" in details else None
    return error_for(code, details, retryable=retryable, retry_after_s=retry_after_s)


def _closed(url: str) -> RewardError:
    return Cancelled(f"the client for {url} is closed")


def _text(value: str | bytes | None) -> str | None:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else value
