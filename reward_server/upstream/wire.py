"""The gRPC channel to one endpoint, speaking bytes: requests are built and read in threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio

from reward_client._pb.reward.v1 import reward_pb2 as pb
from reward_client._transports.base import Endpoint
from reward_client._transports.grpc_common import channel_options, metadata, reward_error
from reward_client._wire import convert
from reward_client.errors import NotFound, Unavailable
from reward_client.types import ScorerInfo
from reward_server.upstream.settings import UpstreamSettings
from reward_server.upstream.targets import Address

_SERVICE = "/reward.v1.RewardService/"
_LOOK_TIMEOUT_S = 3.0
# Requests are bounded where they arrive, and where they go to.
_MAX_MESSAGE_BYTES = 1 << 30


class Wire:
    """An open channel; must be made in the event loop that uses it."""

    def __init__(self, address: Address, settings: UpstreamSettings) -> None:
        self._address = address
        self._settings = settings
        self._url = f"{'grpcs' if settings.is_tls else 'grpc'}://{address}"
        self._channel = _channel(self._url, address, settings)
        self._score = self._channel.unary_unary(_SERVICE + "Score")
        self._list = self._channel.unary_unary(
            _SERVICE + "ListScorers",
            request_serializer=pb.ListScorersRequest.SerializeToString,
            response_deserializer=pb.ListScorersResponse.FromString,
        )

    async def score(
        self, body: bytes, timeout_s: float, headers: Sequence[tuple[str, str]]
    ) -> bytes:
        """Send a serialised ScoreRequest, return the serialised answer; raises RewardError.

        Cancelling the call cancels it on the wire.
        """
        return await self._call(self._score, body, timeout_s, headers)

    async def look(self, headers: Sequence[tuple[str, str]]) -> ScorerInfo:
        """Ask what the endpoint says about the scorer.

        Raises:
            NotFound: it does not have it.
            RewardError: it does not answer.
        """
        request = pb.ListScorersRequest()
        answer = await self._call(self._list, request, _LOOK_TIMEOUT_S, headers)
        infos = {info.name: info for info in answer.scorers}
        wanted = self._settings.scorer
        if wanted not in infos:
            raise NotFound(f"it serves no scorer {wanted!r} (it has {', '.join(infos) or 'none'})")
        return convert.info_from_proto(infos[wanted])

    async def close(self) -> None:
        """Close the channel; calls in flight are cancelled."""
        await self._channel.close()

    async def _call(
        self, method: Any, message: Any, timeout_s: float, headers: Sequence[tuple[str, str]]
    ) -> Any:
        pairs = (*metadata(self._settings.api_key), *headers)
        try:
            return await method(message, timeout=timeout_s, metadata=pairs)
        except grpc.aio.AioRpcError as error:
            trailers: Any = error.trailing_metadata()
            raise reward_error(self._url, error, trailers) from error
        except grpc.aio.UsageError as error:  # the channel was closed under the call
            raise Unavailable(f"{self._address} was closed") from error


def _channel(url: str, address: Address, settings: UpstreamSettings) -> grpc.aio.Channel:
    endpoint = Endpoint(url, url.partition(":")[0], address.host, address.port, "")
    options: list[tuple[str, Any]] = list(channel_options(endpoint, _MAX_MESSAGE_BYTES))
    if not settings.is_tls:
        return grpc.aio.insecure_channel(endpoint.target, options)
    options.append(("grpc.ssl_target_name_override", address.name))
    credentials = grpc.ssl_channel_credentials(*settings.pem)
    return grpc.aio.secure_channel(endpoint.target, credentials, options)
