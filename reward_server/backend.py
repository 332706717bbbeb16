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


@dataclass(frozen=True, slots=True)
class Order:
    """An admitted request and its circumstances: what every scorer asked gets to see.

    Attributes:
        request: checked as a whole; its items are as they arrived, single ones may be broken.
        decoded: item index -> pixels, for backends that need them; empty if none of the request's
            backends does.
        errors: item index -> why no scorer can score it; disjoint from `decoded`.
        client: who asks, for fairness.
        arrival_s: when it came, on the monotonic clock.
        deadline_at_s: on the same clock; the answer is not needed after it.
        via: the servers the request came through, outermost first.
        answered: called with a scorer's name once for each item that has its answer from it, while
            others still wait.
    """

    request: ScoreRequest
    decoded: Mapping[int, DecodedItem]
    errors: Mapping[int, ItemError]
    client: str
    arrival_s: float
    deadline_at_s: float
    via: tuple[str, ...]
    answered: Callable[[str], None]

    def selector(self, scorer: str) -> ScorerSelector:
        """How the request asks for a scorer, by its name here."""
        return next(one for one in self.request.scorers if one.name == scorer)


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
