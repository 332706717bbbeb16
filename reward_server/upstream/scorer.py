"""A scorer that other reward servers run."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping

from reward_client.errors import ResourceExhausted, RewardError, Unavailable
from reward_client.types import ScorerInfo, ScorerResult
from reward_server.backend import Order
from reward_server.scheduling.gather import outcomes
from reward_server.scheduling.results import scorer_result
from reward_server.scheduling.shares import nothing_to_do
from reward_server.upstream import parts
from reward_server.upstream.choice import Identity
from reward_server.upstream.fleet import Fleet
from reward_server.upstream.metrics import UpstreamMetrics
from reward_server.upstream.parts import Part
from reward_server.upstream.sending import RETRY_AFTER_S, Sender
from reward_server.upstream.settings import UpstreamSettings
from reward_server.upstream.targets import Lookup, look_up

_UNKNOWN = Identity("", "", (), (), "", (0.0, 0.0))


class UpstreamScorer:
    """One scorer behind one or several endpoints; a `Backend`.

    Every request is forwarded at once and for itself: the far end, which knows its device, makes
    the batches. So nothing waits for company twice, and deadline, priority and hang-up stay those
    of one caller.
    """

    needs_pixels = False

    def __init__(
        self,
        name: str,
        settings: UpstreamSettings,
        *,
        own_id: str,
        metrics: UpstreamMetrics,
        on_change: Callable[[], None],
        lookup: Lookup = look_up,
    ) -> None:
        self.name = name
        self._settings = settings
        self._on_change = on_change
        self._draining = False
        self._fleet = Fleet(
            name, settings, own_id=own_id, metrics=metrics, on_change=on_change, lookup=lookup
        )
        self._sender = Sender(name, settings, self._fleet, own_id, metrics)

    def start(self) -> None:
        """Begin to look for endpoints; returns at once."""
        self._fleet.start()

    def retry(self) -> None:
        """Look at every endpoint again now."""
        self._fleet.look_now()

    def drain(self) -> None:
        """Show DRAINING; what was ordered is still served."""
        self._draining = True
        self._on_change()

    async def stop(self) -> None:
        """Close all connections; what is in flight fails."""
        await self._fleet.stop("the server stopped")

    def refusal(self) -> RewardError | None:
        """Why it takes no orders now, or None.

        An endpoint that was ready before is waited for, `upstream_wait_s` at most.
        """
        state = self._fleet.state
        if self._fleet.identity is not None and state != "FAILED":
            return None
        verb = "has failed" if state == "FAILED" else "is starting"
        trouble = f" ({self._fleet.last_error})" if self._fleet.last_error else ""
        # Endpoints come back by themselves, so even a failed one is worth another try.
        return Unavailable(
            f"scorer {self.name!r} {verb}{trouble}: try again", retry_after_s=RETRY_AFTER_S
        )

    def info(self) -> ScorerInfo:
        """The description clients get: that of the endpoints which are used."""
        known = self._fleet.identity or _UNKNOWN
        return ScorerInfo(
            name=self.name,
            version=known.version,
            fingerprint=known.fingerprint,
            inputs=known.inputs,
            transforms=known.transforms,
            default_transform=known.default_transform,
            output_range=known.output_range,
            state="DRAINING" if self._draining else self._fleet.state,
            last_error=self._fleet.last_error,
            replicas=tuple(self._fleet.replicas()),
        )

    def status(self) -> ScorerInfo:
        """As `info`, which knows the endpoints; what waits is known to them alone."""
        return self.info()

    async def score(self, order: Order) -> ScorerResult:
        """Send the items of an order to endpoints, and again to others where one fails.

        Raises:
            RewardError: nothing was done for any item.
        """
        todo = parts.cut(order, self._settings.max_part_items)
        if not todo:
            raise nothing_to_do(order.errors)
        info, identity = self.info(), self._fleet.identity
        if identity is None:
            raise Unavailable(f"scorer {self.name!r} is starting", retry_after_s=RETRY_AFTER_S)
        results: dict[Part, ScorerResult] = {}
        errors: dict[Part, RewardError] = {}
        while todo:
            found = await outcomes([self._score_part(order, part, identity) for part in todo])
            for part, outcome in zip(todo, found, strict=True):
                errors.pop(part, None)
                if isinstance(outcome, RewardError):
                    errors[part] = outcome
                else:
                    results[part] = outcome
            todo = [part for part, error in errors.items() if _is_full(error)]
            wait_s = max((_wait_s(errors[part]) for part in todo), default=0.0)
            # A request that got in somewhere must not fail because it was cut; one that got in
            # nowhere is told so, and when to come back.
            if not results or time.monotonic() + wait_s >= order.deadline_at_s:
                break
            await asyncio.sleep(wait_s)
        if not results:
            raise _joined(errors)
        return _gathered(order, info, results, errors)

    async def _score_part(self, order: Order, part: Part, identity: Identity) -> ScorerResult:
        result = await self._sender.send(order, part, identity)
        for _ in part.indices:
            order.answered()
        return result


def _gathered(
    order: Order,
    info: ScorerInfo,
    results: Mapping[Part, ScorerResult],
    errors: Mapping[Part, RewardError],
) -> ScorerResult:
    answers = {}
    for number, (part, result) in enumerate(results.items(), 1):
        answers |= parts.answers_of(result, part, number)
    for part, error in errors.items():
        answers |= parts.failures_of(error, part)
    lossy = parts.lossy_of(results, len(order.request.items))
    details = order.request.include_details
    return scorer_result(info, answers, order.errors, lossy, details=details)


def _is_full(error: RewardError) -> bool:
    return isinstance(error, ResourceExhausted) and error.retryable


def _wait_s(error: RewardError) -> float:
    return (error.retry_after_s or RETRY_AFTER_S) * (1 + random.random() / 4)


def _joined(errors: Mapping[Part, RewardError]) -> RewardError:
    """One error for an order none of whose parts was taken; one that may pass comes first."""
    part, first = next(
        ((p, e) for p, e in errors.items() if e.retryable), next(iter(errors.items()))
    )
    first.items = {part.indices[at]: item for at, item in first.items.items()}
    return first
