"""Blocking gRPC."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import grpc

from reward_client._pb.reward.v1 import reward_pb2 as pb
from reward_client._pb.reward.v1 import reward_pb2_grpc
from reward_client.transports.base import Endpoint
from reward_client.transports.grpc_common import (
    channel_options,
    closed_error,
    metadata,
    reward_error,
)

Reply = TypeVar("Reply")


class GrpcTransport:
    """One channel, shared by all threads; reconnects by itself."""

    def __init__(self, endpoint: Endpoint, api_key: str | None, max_message_bytes: int) -> None:
        options = channel_options(endpoint, max_message_bytes)
        if endpoint.is_tls:
            credentials = grpc.ssl_channel_credentials()
            self._channel = grpc.secure_channel(endpoint.target, credentials, options)
        else:
            self._channel = grpc.insecure_channel(endpoint.target, options)
        self._url = endpoint.url
        self._stub = reward_pb2_grpc.RewardServiceStub(self._channel)
        self._metadata = metadata(api_key)

    def score(self, message: pb.ScoreRequest, deadline_s: float) -> pb.ScoreResponse:
        """Send one request; give up after `deadline_s` seconds."""
        return self._call(self._stub.Score, message, deadline_s)

    def list_scorers(self, deadline_s: float) -> pb.ListScorersResponse:
        """Ask for the scorers; give up after `deadline_s` seconds."""
        return self._call(self._stub.ListScorers, pb.ListScorersRequest(), deadline_s)

    def close(self) -> None:
        """Close the channel; calls in flight are cancelled."""
        self._channel.close()

    def _call(self, method: Callable[..., Reply], message: Any, deadline_s: float) -> Reply:
        try:
            return method(message, timeout=deadline_s, metadata=self._metadata)
        except grpc.RpcError as error:
            # The blocking API raises an object that is both the error and the finished call.
            call: Any = error
            raise reward_error(self._url, call, call.trailing_metadata()) from error
        except ValueError as error:
            raise closed_error(self._url) from error
