"""gRPC for asyncio."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from reward_client._pb.reward.v1 import reward_pb2 as pb
from reward_client._pb.reward.v1 import reward_pb2_grpc
from reward_client.transports.base import Endpoint
from reward_client.transports.grpc_common import (
    channel_options,
    closed_error,
    metadata,
    reward_error,
)


class AsyncGrpcTransport:
    """One channel, opened on first use because it belongs to the running event loop."""

    def __init__(self, endpoint: Endpoint, api_key: str | None, max_message_bytes: int) -> None:
        self._endpoint = endpoint
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
                credentials = grpc.ssl_channel_credentials()
                self._channel = grpc.aio.secure_channel(target, credentials, self._options)
            else:
                self._channel = grpc.aio.insecure_channel(target, self._options)
        return reward_pb2_grpc.RewardServiceStub(self._channel)

    async def _call(self, method: Callable[..., Any], message: Any, deadline_s: float) -> Any:
        try:
            return await method(message, timeout=deadline_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            trailers: Any = error.trailing_metadata()
            raise reward_error(self._endpoint.url, error, trailers) from error
        except grpc.aio.UsageError as error:
            raise closed_error(self._endpoint.url) from error
