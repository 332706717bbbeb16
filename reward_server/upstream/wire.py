"""The gRPC channel to one endpoint."""

from __future__ import annotations

from collections.abc import Sequence

from reward_client import _addresses
from reward_client._pb.reward.v1 import reward_pb2 as pb
from reward_client._transports.base import Message
from reward_client._transports.grpc import GrpcTransport
from reward_client._wire import convert
from reward_client.errors import Cancelled, NotFound, Unavailable
from reward_client.types import ScorerInfo
from reward_server.upstream.settings import UpstreamSettings
from reward_server.upstream.targets import Address

_LOOK_TIMEOUT_S = 3.0


class Wire:
    """An open channel; must be made in the event loop that uses it."""

    def __init__(self, address: Address, settings: UpstreamSettings) -> None:
        self._address = address
        self._settings = settings
        scheme = "grpcs" if settings.is_tls else "grpc"
        known = _addresses.Address(
            f"{scheme}://{address}", scheme, address.host, address.port, "", address.name
        )
        self._transport = GrpcTransport(known, settings.api_key, settings.tls, trust_env=False)

    async def score(
        self, message: Message, timeout_s: float, headers: Sequence[tuple[str, str]]
    ) -> pb.ScoreResponse:
        """Send a request; raises RewardError. Cancelling the call cancels it on the wire."""
        try:
            return await self._transport.score(message, timeout_s, headers)
        except Cancelled as error:  # the channel was closed under the call
            raise Unavailable(f"{self._address} was closed") from error

    async def look(self, headers: Sequence[tuple[str, str]]) -> ScorerInfo:
        """Ask what the endpoint says about the scorer.

        Raises:
            NotFound: it does not have it.
            RewardError: it does not answer.
        """
        answer = await self._transport.list_scorers(_LOOK_TIMEOUT_S, headers)
        infos = {info.name: info for info in answer.scorers}
        wanted = self._settings.scorer
        if wanted not in infos:
            raise NotFound(f"it serves no scorer {wanted!r} (it has {', '.join(infos) or 'none'})")
        return convert.info_from_proto(infos[wanted])

    async def close(self) -> None:
        """Close the channel; calls in flight are cancelled."""
        await self._transport.close()
