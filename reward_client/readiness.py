"""Whether the scorers somebody waits for can answer yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reward_client.errors import DeadlineExceeded, RewardError, Unavailable
from reward_client.types import ScorerInfo
from reward_client.validation import unknown_scorer

POLL_INTERVAL_S = 0.25
ATTEMPT_TIMEOUT_S = 5.0


@dataclass(slots=True)
class ReadinessCheck:
    """Judges one look at the server after another, and keeps the last reason for waiting.

    Attributes:
        url: for messages.
        names: the scorers waited for; empty means all that the server has.
        timeout_s: for messages.
        reason: why it is not ready yet.
    """

    url: str
    names: Sequence[str]
    timeout_s: float
    reason: str = "it was not asked yet"

    def look(self, infos: Sequence[ScorerInfo]) -> tuple[ScorerInfo, ...] | None:
        """Return the scorers waited for if all are READY, None to keep waiting.

        Raises:
            NotFound: the server has no such scorer.
            Unavailable: one has FAILED, which waiting does not mend.
        """
        by_name = {info.name: info for info in infos}
        for name in self.names:
            if name not in by_name:
                raise unknown_scorer(name, sorted(by_name))
        wanted = tuple(by_name[name] for name in self.names or by_name)
        for info in wanted:
            if info.state == "FAILED":
                raise Unavailable(
                    f"scorer {info.name!r} at {self.url} has failed and will not become ready:"
                    f" {info.last_error or 'see the log of the server'}",
                    retryable=False,
                )
        waiting = [f"{info.name} is {info.state}" for info in wanted if info.state != "READY"]
        self.reason = ", ".join(waiting) or "it has no scorers"
        return wanted if wanted and not waiting else None

    def missed(self, error: RewardError) -> None:
        """Note a failed attempt; raises it again unless waiting may help."""
        if not error.retryable and not isinstance(error, DeadlineExceeded):
            raise error
        self.reason = error.message

    def gave_up(self) -> Unavailable:
        """The error for a wait that was in vain."""
        return Unavailable(
            f"the reward service at {self.url} was not ready within {self.timeout_s:g} s"
            f" ({self.reason}): start it with `reward-server serve`, correct the url, or wait"
            " longer"
        )
