"""The seam between the client and the wire: serialised requests in, protobuf messages out.

A transport makes exactly one attempt and raises `RewardError` subclasses only; splitting, retries
and checks of the contract belong to the client. It belongs to the event loop that uses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

from reward_client._pb.reward.v1 import reward_pb2 as pb
from reward_client._wire.message import Message

DEADLINE_HEADER = "x-reward-deadline-ms"
RETRY_AFTER_MS_KEY = "retry-after-ms"
PUSHBACK_MS_KEY = "grpc-retry-pushback-ms"
ERROR_INFO_KEY = "reward-error-bin"
PROTOBUF_TYPE = "application/x-protobuf"

Headers: TypeAlias = Sequence[tuple[str, str]]


class Calls(Protocol):
    """Sends requests, each in one attempt."""

    async def score(
        self, message: Message, timeout_s: float, headers: Headers = ()
    ) -> pb.ScoreResponse:
        """Send one request; give up after `timeout_s` seconds. Cancelling it cancels the call."""
        ...

    async def close(self) -> None:
        """Release what is held; requests under way are cancelled."""
        ...


class Transport(Calls, Protocol):
    """A connection to one server."""

    async def list_scorers(self, timeout_s: float, headers: Headers = ()) -> pb.ListScorersResponse:
        """Ask for the scorers; give up after `timeout_s` seconds."""
        ...

    def stream(self) -> Calls | None:
        """Many small requests over one call; None where the wire cannot do that."""
        ...


def milliseconds(text: str | None) -> float | None:
    """Read a wait in milliseconds as seconds; None if absent, malformed or negative."""
    try:
        wait_s = float(text) / 1e3 if text is not None else -1.0
    except ValueError:
        return None
    return wait_s if 0 <= wait_s < float("inf") else None
