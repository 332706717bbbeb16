"""gRPC for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio

from reward_client import _tracing
from reward_client._pb.reward.v1 import reward_pb2 as pb
from reward_client._pb.reward.v1 import reward_pb2_grpc
from reward_client._tls import TlsFiles, grpc_pem
from reward_client._transports.base import AsyncCalls, Endpoint
from reward_client._transports.grpc_common import (
    channel_options,
    closed_error,
    ended_error,
    metadata,
    read_answer,
    reward_error,
)
from reward_client.errors import RewardError


class AsyncGrpcTransport:
    """One channel, opened on first use because it belongs to the running event loop."""

    def __init__(
        self,
        endpoint: Endpoint,
        api_key: str | None,
        max_message_bytes: int,
        tls: TlsFiles | None = None,
    ) -> None:
        self._endpoint = endpoint
        # Read now, so that a missing file is told where it was named.
        self._pem = grpc_pem(tls)
        self._options = channel_options(endpoint, max_message_bytes)
        self._metadata = metadata(api_key)
        self._channel: grpc.aio.Channel | None = None
        self._closed = False

    async def score(self, message: pb.ScoreRequest, deadline_s: float) -> pb.ScoreResponse:
        """Send one request; give up after `deadline_s` seconds."""
        return await self._call(self._stub().Score, message, deadline_s)

    async def list_scorers(self, deadline_s: float) -> pb.ListScorersResponse:
        """Ask for the scorers; give up after `deadline_s` seconds."""
        return await self._call(self._stub().ListScorers, pb.ListScorersRequest(), deadline_s)

    def stream(self) -> AsyncCalls:
        """Many small requests over one call."""
        return _Stream(self._stub, self._endpoint.url, self._metadata)

    async def close(self) -> None:
        """Close the channel; calls in flight are cancelled."""
        self._closed = True
        if self._channel is not None:
            await self._channel.close()

    def _stub(self) -> Any:
        if self._closed:
            raise closed_error(self._endpoint.url)
        if self._channel is None:
            target = self._endpoint.target
            if self._endpoint.is_tls:
                credentials = grpc.ssl_channel_credentials(*self._pem)
                self._channel = grpc.aio.secure_channel(target, credentials, self._options)
            else:
                self._channel = grpc.aio.insecure_channel(target, self._options)
        return reward_pb2_grpc.RewardServiceStub(self._channel)

    async def _call(self, method: Callable[..., Any], message: Any, deadline_s: float) -> Any:
        pairs = (*self._metadata, *_tracing.headers())
        try:
            return await method(message, timeout=deadline_s, metadata=pairs)
        except grpc.aio.AioRpcError as error:
            trailers: Any = error.trailing_metadata()
            raise reward_error(self._endpoint.url, error, trailers) from error
        except grpc.aio.UsageError as error:
            raise closed_error(self._endpoint.url) from error


class _Stream:
    """As the blocking one: requests and answers over one ScoreStream call, reopened if it broke."""

    def __init__(
        self, stub: Callable[[], Any], url: str, pairs: tuple[tuple[str, str], ...]
    ) -> None:
        self._stub = stub
        self._url = url
        self._metadata = pairs
        self._open: _OpenStream | None = None

    async def score(self, message: pb.ScoreRequest, deadline_s: float) -> pb.ScoreResponse:
        """Send one request; whoever waits for it keeps the deadline."""
        if self._open is None or self._open.has_ended:
            call = self._stub().ScoreStream(metadata=self._metadata)
            self._open = _OpenStream(call, self._url)
        return await self._open.send(message)

    async def close(self) -> None:
        """End the call; requests under way are cancelled."""
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

    async def send(self, message: pb.ScoreRequest) -> pb.ScoreResponse:
        name = message.request_id
        future = self._waiting[name] = asyncio.get_running_loop().create_future()
        try:
            # Where the call has ended under the write, the reader knows why and says so.
            with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                async with self._writing:
                    await self._call.write(message)
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
                outcome = read_answer(answer)
                if isinstance(outcome, pb.ScoreResponse):
                    future.set_result(outcome)
                else:
                    future.set_exception(outcome)
            error = ended_error(self._url)
        except grpc.aio.AioRpcError as broken:
            trailers: Any = broken.trailing_metadata()
            error = reward_error(self._url, broken, trailers)
        except asyncio.CancelledError:
            # Cancelling a call cancels who reads from it, and so does a write that fails.
            error = (closed_error if self._is_closed else ended_error)(self._url)
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(error)
        return error
