"""Requests in flight by id: a retry joins the first attempt instead of doing the work twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from reward_client.errors import InvalidArgument
from reward_client.types import ScoreRequest, ScoreResponse


@dataclass(slots=True)
class _Call:
    request: ScoreRequest
    owner: str
    task: asyncio.Task[ScoreResponse]
    waiters: int = 0


class InFlight:
    def __init__(self) -> None:
        self._by_id: dict[tuple[str, str], _Call] = {}

    async def join(
        self,
        request: ScoreRequest,
        owner: str,
        start: Callable[[], Coroutine[Any, Any, ScoreResponse]],
    ) -> ScoreResponse:
        """Wait for the request's answer; start it unless it is in call; raises InvalidArgument.

        Cancelling the last caller cancels the work.
        """
        call = self._by_id.get((owner, request.request_id))
        if call is None:
            call = _Call(request, owner, asyncio.create_task(start()))
            self._by_id[owner, request.request_id] = call
            call.task.add_done_callback(lambda _: self._forget(call))
        elif call.request != request:
            raise InvalidArgument(
                f"request_id {request.request_id!r} is in flight with other content:"
                " choose a new id for every new request"
            )
        call.waiters += 1
        try:
            return await asyncio.shield(call.task)
        finally:
            call.waiters -= 1
            if call.waiters == 0:
                # A retry must not join what is about to be cancelled.
                self._forget(call)
                call.task.cancel()

    async def wait(self, timeout_s: float) -> bool:
        """Wait until all that are in flight now have finished; returns whether they have."""
        tasks = [call.task for call in self._by_id.values()]
        if not tasks:
            return True
        _, pending = await asyncio.wait(tasks, timeout=timeout_s)
        return not pending

    def cancel_all(self) -> None:
        for call in list(self._by_id.values()):
            call.task.cancel()

    def _forget(self, call: _Call) -> None:
        key = call.owner, call.request.request_id
        if self._by_id.get(key) is call:
            del self._by_id[key]
