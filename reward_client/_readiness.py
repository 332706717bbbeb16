"""Whether the scorers somebody waits for can answer yet, on one of several servers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from reward_client._exchange import Attempt
from reward_client._session import Infos, ListMessage, Session, now_s
from reward_client._validation import check_timeout, selectors, unknown_scorer
from reward_client.errors import DeadlineExceeded, RewardError, Unavailable
from reward_client.types import ScorerInfo, ScorerSelector

POLL_INTERVAL_S = 0.25
ATTEMPT_TIMEOUT_S = 5.0


@dataclass(slots=True)
class Readiness:
    """Judges one look at a server after another, and keeps the reasons for waiting."""

    session: Session[Any]
    names: Sequence[str]
    timeout_s: float
    deadline_s: float
    _reasons: dict[int, str] = field(default_factory=dict)
    _hopeless: dict[int, RewardError] = field(default_factory=dict)

    @classmethod
    def start(
        cls, session: Session[Any], scorers: Sequence[str | ScorerSelector], timeout_s: float
    ) -> Readiness:
        """Begin to wait; no scorers means all that a server has."""
        session.check_process()
        names = [selector.name for selector in selectors(scorers)]
        return cls(session, names, check_timeout("timeout_s", timeout_s), now_s() + timeout_s)

    def look_s(self) -> float:
        """How long the next looks may take; not positive once time is up."""
        return min(ATTEMPT_TIMEOUT_S, self.deadline_s - now_s())

    def pause_s(self) -> float:
        """How long to wait between looks."""
        return max(0.0, min(POLL_INTERVAL_S, self.deadline_s - now_s()))

    def looks(self, limit_s: float) -> list[Attempt[ListMessage]]:
        """One look at every server."""
        servers = range(len(self.session.urls))
        return [Attempt(i, ListMessage(), i, limit_s, now_s()) for i in servers]

    def judge(self, look: Attempt[ListMessage], ended: Callable[[], Any]) -> Infos | None:
        """Return the scorers waited for if this server has them READY."""
        index = look.endpoint
        outcome = self.session.outcome(ended, look)
        self._hopeless.pop(index, None)
        if not isinstance(outcome, RewardError):
            outcome = self._wanted(outcome, index)
        if not isinstance(outcome, RewardError):
            return outcome
        self._reasons[index] = outcome.message
        if not outcome.retryable and not isinstance(outcome, DeadlineExceeded):
            self._hopeless[index] = outcome
        return None

    def check_hope(self) -> None:
        """Raise why waiting is in vain, if it is so for every server."""
        if len(self._hopeless) == len(self.session.urls):
            raise self._hopeless[0]

    def gave_up(self) -> Unavailable:
        """The error for a wait that was in vain."""
        if len(self.session.urls) == 1:
            reason = self._reasons.get(0, "it was not asked yet")
        else:
            reasons = sorted(self._reasons.items())
            reason = "; ".join(f"{self.session.urls[i]}: {text}" for i, text in reasons)
        return Unavailable(
            f"the reward service at {self.session.url} was not ready within {self.timeout_s:g} s"
            f" ({reason}): start it with `reward-server serve`, correct the url, or wait longer"
        )

    def _wanted(self, infos: Sequence[ScorerInfo], index: int) -> Infos | RewardError:
        by_name = {info.name: info for info in infos}
        for name in self.names:
            if name not in by_name:
                return unknown_scorer(name, sorted(by_name))
        wanted = tuple(by_name[name] for name in self.names or by_name)
        for info in wanted:
            if info.state == "FAILED":
                return Unavailable(
                    f"scorer {info.name!r} at {self.session.urls[index]} has failed and will not"
                    f" become ready: {info.last_error or 'see the log of the server'}",
                    retryable=False,
                )
        waiting = [f"{info.name} is {info.state}" for info in wanted if info.state != "READY"]
        if waiting or not wanted:
            return Unavailable(", ".join(waiting) or "it has no scorers")
        return wanted
