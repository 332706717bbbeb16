"""Messages that leave one by one, over one call per server, where there is gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from reward_client._core import Core
from reward_client._endpoints import Endpoint
from reward_client._tasks import cancel
from reward_client._transports.base import Calls
from reward_client._wire.splitting import Part
from reward_client.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    ItemError,
    ResourceExhausted,
    Unavailable,
)
from reward_client.types import Item, ItemScores, ScoreRequest, ScoreResponse


class Stream:
    def __init__(
        self,
        core: Core,
        request_of: Callable[[Sequence[Item]], ScoreRequest],
        in_flight: int,
        timeout_s: float,
    ) -> None:
        self._core = core
        self._request_of = request_of
        self._in_flight = in_flight
        self._timeout_s = timeout_s
        self._n_sent = 0
        self._streams: dict[Endpoint, Calls | None] = {}
        self._tasks: dict[asyncio.Future[ScoreResponse], tuple[ScoreRequest, Part, int]] = {}

    @property
    def has_room(self) -> bool:
        return len(self._tasks) < self._in_flight

    @property
    def is_idle(self) -> bool:
        """Whether every message was answered, and every answer taken."""
        return not self._tasks

    async def send(self, items: Sequence[Item]) -> None:
        """Send the next items; raises RewardError for what is wrong with them."""
        request = self._request_of(items)
        parts = await self._core.split(request)
        ends_s = asyncio.get_running_loop().time() + self._timeout_s
        for part in parts:
            sending = self._core.send(request, part, ends_s, self._calls_of)
            self._tasks[asyncio.ensure_future(sending)] = request, part, self._n_sent
        self._n_sent += len(items)

    async def take(
        self, also: asyncio.Future[Any] | None = None, *, block: bool = True
    ) -> list[ItemScores]:
        """Items whose scores are ready; with `block` waits for some, or for `also`.

        Raises:
            RewardError: something is wrong with the call, not with one message.
        """
        waited = [*self._tasks, *([also] if also is not None else [])]
        if not waited:
            return []
        ended, _ = await asyncio.wait(
            waited, timeout=None if block else 0, return_when=asyncio.FIRST_COMPLETED
        )
        found: list[ItemScores] = []
        for task in ended:
            if task is not also:
                found += _items_of(task, *self._tasks.pop(task))
        return found

    async def close(self) -> None:
        await cancel(self._tasks)
        for stream in self._streams.values():
            if stream is not None:
                await stream.close()

    def _calls_of(self, endpoint: Endpoint) -> Calls:
        if endpoint not in self._streams:
            self._streams[endpoint] = endpoint.transport.stream()
        return self._streams[endpoint] or endpoint.transport


def check_counts(items_per_message: int, in_flight: int) -> None:
    for name, value in (("items_per_message", items_per_message), ("in_flight", in_flight)):
        if value < 1:
            raise InvalidArgument(f"{name} must be at least 1, got {value}")


# These concern the items of one message; anything else is wrong with the call.
_ONE_MESSAGE = (DeadlineExceeded, Internal, ResourceExhausted, Unavailable)


def _items_of(
    task: asyncio.Future[ScoreResponse], request: ScoreRequest, part: Part, first: int
) -> list[ItemScores]:
    """The scores of a message's items; raises what is wrong with the call."""
    names = [selector.name for selector in request.scorers]
    items = request.items[part.start : part.stop]
    start = first + part.start
    try:
        results = task.result().results
    except _ONE_MESSAGE as error:
        errors = dict.fromkeys(names, ItemError(error.code, error.message, error.retryable))
        return [
            ItemScores(start + at, item.id, dict.fromkeys(names), errors=errors)
            for at, item in enumerate(items)
        ]
    return [
        ItemScores(
            start + at,
            item.id,
            scores={name: result.scores[at] for name, result in results.items()},
            components={
                name: {key: column[at] for key, column in result.components.items()}
                for name, result in results.items()
            },
            errors={name: r.errors[at] for name, r in results.items() if at in r.errors},
            details={
                name: detail
                for name, r in results.items()
                if r.details and (detail := r.details[at]) is not None
            },
        )
        for at, item in enumerate(items)
    ]
