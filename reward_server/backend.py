"""The seam between the service and whatever scores: worker processes here, or another server.

The service and the dispatcher know backends only. `ScorerPool` (pool.py) runs the workers of this
host, `UpstreamScorer` (upstream/scorer.py) forwards to other servers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from reward_client.errors import ItemError, RewardError
from reward_client.types import ScoreRequest, ScorerInfo, ScorerResult, ScorerSelector
from reward_server.scheduling.decoding import DecodedItem


def _ignore() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Order:
    """What one scorer is asked to do for one request.

    Attributes:
        request: the whole request; its items are as they arrived.
        selector: the scorer asked, one of the request's.
        decoded: item index -> pixels, for backends that need them; empty if none of the request's
            backends does.
        errors: item index -> why no scorer can score it; disjoint from `decoded`.
        client: who asks, for fairness.
        deadline_at_s: on the monotonic clock; the answer is not needed after it.
        via: the servers the request came through, outermost first.
        answered: called once for each item that has its answer, while others still wait.
    """

    request: ScoreRequest
    selector: ScorerSelector
    decoded: Mapping[int, DecodedItem]
    errors: Mapping[int, ItemError]
    client: str
    deadline_at_s: float
    via: tuple[str, ...] = ()
    answered: Callable[[], None] = _ignore


class Backend(Protocol):
    """One scorer of this server, wherever it runs."""

    @property
    def name(self) -> str:
        """The configured name, which clients ask for."""
        ...

    @property
    def needs_pixels(self) -> bool:
        """Whether orders must come with decoded items."""
        ...

    def start(self) -> None:
        """Begin to become ready; returns at once."""
        ...

    def retry(self) -> None:
        """If it has FAILED, try again now: the cause may have been fixed."""
        ...

    def drain(self) -> None:
        """Show DRAINING; what was ordered is still served."""
        ...

    async def stop(self) -> None:
        """Release everything; what is still ordered fails."""
        ...

    def info(self) -> ScorerInfo:
        """The description clients get; `transforms` is empty until it is known."""
        ...

    def status(self) -> ScorerInfo:
        """As `info`, with replicas and queue: for monitoring, not for every request."""
        ...

    def refusal(self) -> RewardError | None:
        """Why it takes no orders now, or None."""
        ...

    async def score(self, order: Order) -> ScorerResult:
        """Score the items of an order; one outcome for every item of its request.

        Cancelling the call cancels the work.

        Raises:
            RewardError: nothing was done for any item.
        """
        ...
