"""Bounded retries: a number of attempts, inside one deadline, with jitter, as the server asks."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from reward_client.errors import DeadlineExceeded, RewardError


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently to retry what is `retryable`.

    Attributes:
        attempts: in total, the first included; 1 never retries.
        wait_initial_s: before the second attempt, in seconds; doubles from attempt to attempt.
        wait_max_s: bound on that doubling; a server may ask for more with retry-after.
        jitter: share of the wait drawn at random, so that many clients do not come back at once.
    """

    attempts: int = 5
    wait_initial_s: float = 0.1
    wait_max_s: float = 5.0
    jitter: float = 0.25


class Deadline:
    """A point in time; each attempt gets what is left until then."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._at = time.monotonic() + timeout_s

    @property
    def left_s(self) -> float:
        """Seconds left; negative once it has passed."""
        return self._at - time.monotonic()


class Backoff:
    """stamina's hook: whether to try again after an error, and after how many seconds.

    A wait that would outlast the deadline is not worth waiting: the error is raised at once.
    """

    def __init__(self, policy: RetryPolicy, deadline: Deadline) -> None:
        self._policy = policy
        self._deadline = deadline
        self._wait_s = policy.wait_initial_s
        self._last_failure = "no attempt was made"

    def time_for_attempt_s(self) -> float:
        """Seconds the next attempt may take.

        Raises:
            DeadlineExceeded: there are none; says why earlier attempts failed.
        """
        left_s = self._deadline.left_s
        if left_s <= 0:
            raise DeadlineExceeded(
                f"not finished within {self._deadline.timeout_s:g} s ({self._last_failure}): allow"
                " more with deadline_s"
            )
        return left_s

    def __call__(self, error: Exception) -> bool | float:
        """Return False to give up, or the seconds to wait."""
        if not isinstance(error, RewardError) or not error.retryable:
            return False
        self._last_failure = f"the last attempt failed: {error.message}"
        wait_s = max(self._wait_s, error.retry_after_s or 0.0)
        self._wait_s = min(2 * self._wait_s, self._policy.wait_max_s)
        wait_s *= 1 + self._policy.jitter * random.random()
        return wait_s if wait_s < self._deadline.left_s else False
