"""One part of an order gets to one endpoint after another until one answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from reward_client import _tracing
from reward_client._transports.base import Message
from reward_client.errors import (
    Code,
    DeadlineExceeded,
    Internal,
    ResourceExhausted,
    RewardError,
    Unavailable,
)
from reward_client.types import ScorerResult
from reward_server.backend import Order
from reward_server.upstream import parts
from reward_server.upstream.choice import Identity
from reward_server.upstream.fleet import Fleet
from reward_server.upstream.hops import hop_headers
from reward_server.upstream.link import Link, try_elsewhere
from reward_server.upstream.metrics import UpstreamMetrics
from reward_server.upstream.parts import Part
from reward_server.upstream.settings import UpstreamSettings
from reward_server.upstream.targets import Address

RETRY_AFTER_S = 1.0
_MAX_ATTEMPTS = 6
# Waiting cannot mend these: the endpoints are there and say no.
_FINAL = frozenset({Code.NOT_FOUND, Code.PERMISSION_DENIED})


@dataclass(frozen=True, slots=True)
class Sender:
    """Sends parts of orders; one per upstream scorer."""

    name: str
    settings: UpstreamSettings
    fleet: Fleet
    own_id: str
    metrics: UpstreamMetrics

    async def send(self, order: Order, part: Part, identity: Identity) -> ScorerResult:
        """Get a part scored by any endpoint of the identity.

        The part keeps its request id wherever it is sent. What an endpoint does for a call that was
        given up is cancelled there, and ignored here: there is one answer at most.

        Raises:
            RewardError: no endpoint could, within the deadline and `upstream_wait_s`.
        """
        body = await asyncio.to_thread(parts.message_of, order, part, self.settings.scorer)
        tried: set[Address] = set()
        failed: list[RewardError] = []
        patience_until_s = time.monotonic() + self.settings.wait_s
        while True:
            link = self.fleet.choose(identity, tried)
            if link is None:
                if (final := _final(failed)) is not None:
                    raise final
                until_s = min(patience_until_s, order.deadline_at_s)
                if len(failed) >= _MAX_ATTEMPTS or not await self.fleet.change(until_s):
                    raise self._nobody(failed, order)
                tried.clear()
                continue
            if failed:
                self.metrics.failovers.labels(self.name).inc()
            try:
                return await self._ask(link, body, order, part, identity)
            except RewardError as error:
                if not try_elsewhere(error):
                    raise
                failed.append(error)
                tried.add(link.address)
                patience_until_s = time.monotonic() + self.settings.wait_s

    async def _ask(
        self, link: Link, body: Message, order: Order, part: Part, identity: Identity
    ) -> ScorerResult:
        left_s = order.deadline_at_s - time.monotonic()
        if left_s <= 0:
            raise DeadlineExceeded("the deadline passed before an endpoint could be asked")
        where = {"server.address": str(link.address), "reward.scorer": self.settings.scorer}
        with _tracing.span("forward", "CLIENT", where):
            headers = (*hop_headers(order.client, order.via, self.own_id), *_tracing.headers())
            answer = await link.score(body, len(part.indices), left_s, headers)
        try:
            result = await asyncio.to_thread(parts.read_answer, answer, part, self.settings.scorer)
        except Internal as error:
            raise Internal(f"{link.address}: {error.message}") from error
        if (result.version, result.fingerprint) != (identity.version, identity.fingerprint):
            found = f"version {result.version}, fingerprint {result.fingerprint}"
            reason = f"it changed to {found} while a request was under way"
            link.disqualify(reason)
            raise Unavailable(f"{link.address}: {reason}: send the request again")
        return result

    def _nobody(self, failed: Sequence[RewardError], order: Order) -> RewardError:
        if time.monotonic() >= order.deadline_at_s:
            return DeadlineExceeded("the deadline passed while no endpoint could take the items")
        why = failed[-1].message if failed else self.fleet.last_error
        return Unavailable(
            f"scorer {self.name!r}: no endpoint can take the items now ({why}): try again",
            retry_after_s=RETRY_AFTER_S,
        )


def _final(failed: Sequence[RewardError]) -> RewardError | None:
    """The error that stands once every endpoint has been tried, or None if waiting may help."""
    full = [error for error in failed if isinstance(error, ResourceExhausted)]
    if full:
        return min(full, key=lambda error: error.retry_after_s or RETRY_AFTER_S)
    return next((error for error in failed if error.code in _FINAL), None)
