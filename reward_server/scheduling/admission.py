"""Bounds what the server holds, and gives rejected callers a retry-after.

Every scorer has places for `max_items` items, so that one slow scorer does not shut the others out;
bytes are bounded for all of them together. A place is free again as soon as its item is answered,
not only when the whole request is.

The last sixteenth of the places is kept for callers who hold none: one that sends without end can
fill the rest, but cannot keep a newcomer out.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial

from reward_client.errors import InvalidArgument, ResourceExhausted

_RETRY_AFTER_RANGE_S = (0.1, 30.0)
_RETRY_AFTER_UNKNOWN_S = 1.0
_KEPT_FOR_NEWCOMERS = 1 / 16
_WINDOW_S = 10.0
_BUCKET_S = 0.05


class _DrainRate:
    """Units per second that left while there was something to leave."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._busy_since_s: float | None = None
        self._left: deque[tuple[float, int]] = deque()
        self._last_per_s = 0.0

    def busy(self) -> None:
        """Something waits; time counts from here on."""
        if self._busy_since_s is None:
            self._busy_since_s = self._clock()

    def idle(self) -> None:
        """Nothing waits; the rate of now is remembered for the next time."""
        self._last_per_s = self.per_s()
        self._busy_since_s = None
        self._left.clear()

    def add(self, units: int) -> None:
        now_s = self._clock()
        if self._left and now_s - self._left[-1][0] < _BUCKET_S:
            at_s, before = self._left.pop()
            self._left.append((at_s, before + units))
        else:
            self._left.append((now_s, units))

    def per_s(self) -> float:
        """Units per second over the last seconds; 0 if nothing is known."""
        if self._busy_since_s is None:
            return self._last_per_s
        now_s = self._clock()
        begin_s = max(self._busy_since_s, now_s - _WINDOW_S)
        while self._left and self._left[0][0] < begin_s:
            self._left.popleft()
        span_s = max(now_s - begin_s, _BUCKET_S)
        if not self._left:
            # A queue that stands still is not as fast as it was.
            return min(self._last_per_s, 1 / span_s)
        return sum(units for _, units in self._left) / span_s


class _Promises:
    """Places promised to rejected callers until their retry time."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._until: deque[tuple[float, int]] = deque()

    def wait_s(self, units_over: int, per_s: float) -> float:
        """When so many units will be free, after all that were promised before."""
        low_s, high_s = _RETRY_AFTER_RANGE_S
        if per_s <= 0:
            return _RETRY_AFTER_UNKNOWN_S
        now_s = self._clock()
        self._until = deque(entry for entry in self._until if entry[0] > now_s)
        promised = sum(units for _, units in self._until)
        after_s = min(max((units_over + promised) / per_s, low_s), high_s)
        self._until.append((now_s + after_s, units_over))
        return after_s


class _Lane:
    """The places of one scorer."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.taken = 0
        self.by_client: Counter[str] = Counter()
        self.rate = _DrainRate(clock)
        self.promises = _Promises(clock)

    def missing(self, items: int, client: str, max_items: int) -> int:
        """How many places too few there are for a caller; at most 0 if there are enough."""
        kept = int(max_items * _KEPT_FOR_NEWCOMERS) if self.by_client[client] else 0
        return self.taken + items - (max_items - kept)

    def enter(self, items: int, client: str) -> None:
        self.taken += items
        self.by_client[client] += items
        self.rate.busy()

    def leave(self, items: int, client: str) -> None:
        self.taken -= items
        self.by_client[client] -= items
        if self.by_client[client] <= 0:
            del self.by_client[client]
        if self.taken == 0:
            self.rate.idle()


class Ticket:
    """What one request holds until it is released; used as a context manager."""

    def __init__(
        self,
        admission: Admission,
        scorers: Sequence[str],
        items: int,
        client: str,
        arrived_bytes: int = 0,
    ) -> None:
        self._admission = admission
        self.arrived_bytes = arrived_bytes
        self.places = dict.fromkeys(scorers, items)
        self.client = client
        self.bytes = 0

    def grow(self, extra_bytes: int) -> None:
        """Hold more bytes; raises ResourceExhausted, but not for a request alone in the server."""
        server = self._admission
        others = server.bytes - self.bytes - self.arrived_bytes
        over = server.bytes + extra_bytes - server.max_bytes
        if others and over > 0:
            after_s = server.byte_promises.wait_s(over, server.byte_rate.per_s())
            what = f"{server.bytes} of {server.max_bytes} bytes are taken"
            raise ResourceExhausted(f"the server is full ({what})", retry_after_s=after_s)
        server.byte_rate.busy()
        self.bytes += extra_bytes
        server.bytes += extra_bytes

    def answered(self, scorer: str) -> None:
        """Give one place back, and count it into the drain rate: its item has been answered."""
        if self.places[scorer] > 0:
            self.places[scorer] -= 1
            lane = self._admission.lanes[scorer]
            lane.rate.add(1)
            lane.leave(1, self.client)

    def release(self) -> None:
        server = self._admission
        for scorer, items in self.places.items():
            if items:
                server.lanes[scorer].leave(items, self.client)
        server.bytes -= self.bytes
        server.byte_rate.add(self.bytes)
        if server.bytes == 0:
            server.byte_rate.idle()
        self.places = dict.fromkeys(self.places, 0)
        self.bytes = 0

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()


class Admission:
    """Counts the items per scorer, and the bytes, of all requests in flight.

    Attributes:
        max_items: places of each scorer.
        max_bytes: bytes of all requests together.
        bytes: those that are held now.
    """

    def __init__(
        self, max_items: int, max_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.max_items = max_items
        self.max_bytes = max_bytes
        self._new_lane = partial(_Lane, clock)
        self.lanes: dict[str, _Lane] = {}
        self.byte_rate = _DrainRate(clock)
        self.byte_promises = _Promises(clock)
        self.bytes = 0

    def set_limits(self, max_items: int, max_bytes: int) -> None:
        """Change the bounds; what is held already stays, even beyond them."""
        self.max_items = max_items
        self.max_bytes = max_bytes

    def taken(self, scorer: str) -> int:
        return self.lanes[scorer].taken if scorer in self.lanes else 0

    def arrive(self, client: str) -> Ticket:
        """A ticket without places, for the bytes of a message that is still to be read."""
        return Ticket(self, (), 0, client)

    def admit(
        self,
        scorers: Sequence[str],
        items: int,
        size_bytes: int,
        client: str,
        *,
        arrived_bytes: int = 0,
    ) -> Ticket:
        """Take a request in.

        Args:
            scorers: the scorers it asks, each of which needs a place per item.
            items: how many.
            size_bytes: to hold for it now.
            client: who asks.
            arrived_bytes: already held for the same request, by its ticket from `arrive`.

        Raises:
            InvalidArgument: it would not fit into an empty server.
            ResourceExhausted: a scorer or the server is full; `retry_after_s` comes from how fast
                it empties, and takes into account what others were promised.
        """
        if items > self.max_items:
            raise InvalidArgument(
                f"the request has {items} items, the queue has {self.max_items} places: send"
                " smaller requests"
            )
        lanes = [self.lanes.setdefault(name, self._new_lane()) for name in scorers]
        for name, lane in zip(scorers, lanes, strict=True):
            missing = lane.missing(items, client, self.max_items)
            if missing > 0:
                after_s = lane.promises.wait_s(missing, lane.rate.per_s())
                what = f"{lane.taken} of {self.max_items} places of scorer {name!r} are taken"
                raise ResourceExhausted(f"the server is full ({what})", retry_after_s=after_s)
        ticket = Ticket(self, scorers, items, client, arrived_bytes)
        ticket.grow(size_bytes)
        for lane in lanes:
            lane.enter(items, client)
        return ticket
