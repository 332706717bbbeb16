"""Items that are sent as they come, and their scores as they are ready, without waiting here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from reward_client._exchange import Exchange
from reward_client._session import ScoreMessage, Session, now_s
from reward_client._validation import make_request
from reward_client._wire.splitting import split
from reward_client.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    ItemError,
    ResourceExhausted,
    RewardError,
    Unavailable,
)
from reward_client.types import (
    Item,
    ItemScores,
    Priority,
    ScoreResponse,
    ScorerSelector,
)

# These concern the items of one message; anything else is wrong with the call.
_ONE_MESSAGE = (DeadlineExceeded, Internal, ResourceExhausted, Unavailable)


@dataclass(slots=True)
class Stream:
    """One call of `score_stream`.

    Attributes:
        exchange: sends the messages.
    """

    session: Session[Any]
    scorers: Sequence[str | ScorerSelector]
    priority: Priority
    timeout_s: float
    include_details: bool
    items_per_message: int
    exchange: Exchange[ScoreMessage, ScoreResponse]
    _buffer: list[Item] = field(default_factory=list)
    _sent: dict[int, tuple[int, ScoreMessage]] = field(default_factory=dict)
    _count: int = 0

    @classmethod
    def start(
        cls,
        session: Session[Any],
        scorers: Sequence[str | ScorerSelector],
        *,
        priority: Priority,
        deadline_s: float | None,
        include_details: bool,
        items_per_message: int,
        in_flight: int,
    ) -> Stream:
        """Check the arguments.

        Raises:
            InvalidArgument: a number below 1.
        """
        session.check_process()
        for name, value in (("items_per_message", items_per_message), ("in_flight", in_flight)):
            if value < 1:
                raise InvalidArgument(f"{name} must be at least 1, got {value}")
        timeout_s = session.limits.time_s(deadline_s)
        exchange = session.exchange(in_flight)
        return cls(
            session, scorers, priority, timeout_s, include_details, items_per_message, exchange
        )

    def add(self, item: Item) -> None:
        """Accept the next item; it leaves with its message."""
        self._buffer.append(item)
        if len(self._buffer) >= self.items_per_message:
            self.flush()

    def flush(self) -> None:
        """Send what has not left yet.

        Raises:
            InvalidArgument: an item is wrong by itself; says which.
        """
        if not self._buffer:
            return
        request = make_request(
            self._buffer, self.scorers, self.priority, self.include_details, None
        )
        limits = self.session.limits
        for part in split(request, limits.max_message_bytes, limits.max_message_items):
            message = ScoreMessage(request, part)
            number = self.exchange.add(message, self.timeout_s, now_s())
            self._sent[number] = (self._count, message)
        self._count += len(self._buffer)
        self._buffer = []

    def take(self) -> Iterator[ItemScores]:
        """Items whose scores are ready, or that have failed.

        Raises:
            RewardError: something is wrong with the call, not with one message.
        """
        for number, outcome in self.exchange.finished():
            first, message = self._sent.pop(number)
            if isinstance(outcome, RewardError) and not isinstance(outcome, _ONE_MESSAGE):
                raise outcome
            part = message.part
            for offset, item in enumerate(message.request.items[part.start : part.stop]):
                index = first + part.start + offset
                if isinstance(outcome, RewardError):
                    yield _failed(index, item, message, outcome)
                else:
                    yield _scored(index, item, offset, outcome)


def _failed(index: int, item: Item, message: ScoreMessage, error: RewardError) -> ItemScores:
    names = [selector.name for selector in message.request.scorers]
    told = ItemError(error.code, error.message, error.retryable)
    return ItemScores(index, item.id, dict.fromkeys(names), errors=dict.fromkeys(names, told))


def _scored(index: int, item: Item, offset: int, response: ScoreResponse) -> ItemScores:
    results = response.results
    details = {name: r.details[offset] for name, r in results.items() if r.details}
    return ItemScores(
        index,
        item.id,
        scores={name: result.scores[offset] for name, result in results.items()},
        components={
            name: {key: column[offset] for key, column in result.components.items()}
            for name, result in results.items()
        },
        errors={name: r.errors[offset] for name, r in results.items() if offset in r.errors},
        details={name: detail for name, detail in details.items() if detail is not None},
    )
