"""Bounds what the server holds: items and bytes; and tells the turned-away when to come back."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from reward_client.errors import InvalidArgument, ResourceExhausted

_WINDOW_S = 10.0
_RETRY_AFTER_RANGE_S = (0.1, 30.0)
_RETRY_AFTER_UNKNOWN_S = 1.0


class Ticket:
    """What one request holds until it is released; used as a context manager."""

    def __init__(self, admission: Admission, items: int) -> None:
        self._admission = admission
        self.items = items
        self.bytes = 0

    def grow(self, extra_bytes: int) -> None:
        """Hold more bytes.

        Raises:
            ResourceExhausted: the server is full.
        """
        self._admission.hold_bytes(self, extra_bytes)

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, *exc: object) -> None:
        self._admission.release(self)


class Admission:
    """Counts items (times the scorers asked) and bytes of all requests in flight."""

    def __init__(
        self, max_items: int, max_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._clock = clock
        self.items = 0
        self.bytes = 0
        self._finished: deque[tuple[float, int]] = deque()

    def set_limits(self, max_items: int, max_bytes: int) -> None:
        """Change the bounds; what is held already stays, even beyond them."""
        self._max_items = max_items
        self._max_bytes = max_bytes

    def admit(self, items: int, size_bytes: int) -> Ticket:
        """Take a request in.

        Raises:
            InvalidArgument: it would not fit into an empty server.
            ResourceExhausted: the server is full; `retry_after_s` comes from the drain rate.
        """
        if items > self._max_items:
            raise InvalidArgument(
                f"the request needs {items} places (items x scorers), the queue has"
                f" {self._max_items}: send smaller requests"
            )
        if self.items + items > self._max_items:
            over = self.items + items - self._max_items
            raise self._full(f"{self.items} of {self._max_items} places are taken", over)
        ticket = Ticket(self, items)
        self.hold_bytes(ticket, size_bytes)
        self.items += items
        return ticket

    def hold_bytes(self, ticket: Ticket, extra_bytes: int) -> None:
        """Add bytes to a ticket; a request alone in the server is never turned away."""
        others = self.bytes - ticket.bytes
        if others and self.bytes + extra_bytes > self._max_bytes:
            raise self._full(f"{self.bytes} of {self._max_bytes} bytes are taken", ticket.items)
        ticket.bytes += extra_bytes
        self.bytes += extra_bytes

    def release(self, ticket: Ticket) -> None:
        """Give everything back."""
        self.items -= ticket.items
        self.bytes -= ticket.bytes
        self._finished.append((self._clock(), ticket.items))

    def drain_rate(self) -> float:
        """Items per second that left in the last seconds; 0 if none did."""
        horizon_s = self._clock() - _WINDOW_S
        while self._finished and self._finished[0][0] < horizon_s:
            self._finished.popleft()
        if not self._finished:
            return 0.0
        span_s = max(self._clock() - self._finished[0][0], 0.1)
        return sum(items for _, items in self._finished) / span_s

    def _full(self, what: str, items_over: int) -> ResourceExhausted:
        rate = self.drain_rate()
        low, high = _RETRY_AFTER_RANGE_S
        after_s = min(max(items_over / rate, low), high) if rate else _RETRY_AFTER_UNKNOWN_S
        return ResourceExhausted(f"the server is full ({what})", retry_after_s=after_s)
