"""One message on its way: its deadline, where it has failed, and when it is tried again."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from reward_client._endpoints import Endpoint
from reward_client.errors import DeadlineExceeded, RewardError


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often to try, and how long to wait in between.

    Attributes:
        attempts: per message, one more for each further server; None tries until the deadline.
        wait_initial_s: before a server is tried again; doubles from time to time.
        wait_max_s: bound on that doubling; a server may ask for more with retry-after.
        jitter: share of the wait drawn at random, so that many clients do not come back at once.
        idle_s: how long to wait while no server may be chosen; None waits until the deadline.
    """

    attempts: int | None = None
    wait_initial_s: float = 0.1
    wait_max_s: float = 5.0
    jitter: float = 0.25
    idle_s: float | None = None


@dataclass(slots=True)
class Call:
    """A message on its way.

    Attributes:
        timeout_s: of the whole call.
        deadline_at_s: when it is over, on the loop's clock.
        weight: what it adds to a server's outstanding work.
        allowed: which servers may get it.
        blocked: where it must not go before when.
        tried: where it has failed since the last wait.
    """

    timeout_s: float
    deadline_at_s: float
    wait_s: float
    weight: int
    allowed: Callable[[Endpoint], bool]
    idle_until_s: float
    blocked: dict[Endpoint, float] = field(default_factory=dict)
    tried: set[Endpoint] = field(default_factory=set)
    sent: int = 0
    last_error: RewardError | None = None
    reported: RewardError | None = None

    def backoff_s(self, policy: RetryPolicy) -> float:
        wait_s = self.wait_s * (1 + policy.jitter * random.random())
        self.wait_s = min(2 * self.wait_s, policy.wait_max_s)
        return wait_s

    def too_late(self) -> RewardError:
        why = f"the last attempt failed: {self.last_error.message}" if self.last_error else ""
        return DeadlineExceeded(
            f"not finished within {self.timeout_s:g} s ({why or 'no attempt was answered'}): allow"
            " more with deadline_s"
        )

    def given_up(self) -> RewardError:
        error = self.last_error
        assert error is not None
        if self.sent > 1:
            error.message += f" (tried {self.sent} times)"
            error.args = (error.message,)
        return error
