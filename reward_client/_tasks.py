"""Awaiting: groups of coroutines, one for a limited time, an event."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from reward_client.errors import RewardError

Value = TypeVar("Value")


async def all_of(coroutines: Sequence[Coroutine[Any, Any, Value]]) -> list[Value]:
    """Their results in order; the first that fails cancels the others."""
    if len(coroutines) == 1:
        return [await coroutines[0]]
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        await cancel(tasks)


async def outcomes(coroutines: Sequence[Coroutine[Any, Any, Value]]) -> list[Value | RewardError]:
    """As `all_of`, but a RewardError is the result of its coroutine."""

    async def outcome(coroutine: Coroutine[Any, Any, Value]) -> Value | RewardError:
        try:
            return await coroutine
        except RewardError as error:
            return error

    return await all_of([outcome(coroutine) for coroutine in coroutines])


async def cancel(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel tasks and wait for their end."""
    left = list(tasks)
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


async def within(timeout_s: float | None, awaitable: Awaitable[Value]) -> Value:
    """Await for a limited time; None for no limit.

    `asyncio.wait_for` before Python 3.12 returns the result instead of raising CancelledError when
    both come in the same turn of the event loop; the caller then goes on although it was cancelled.

    Raises:
        asyncio.TimeoutError: after `timeout_s`; the awaitable has been cancelled.
    """
    task = asyncio.ensure_future(awaitable)
    try:
        await asyncio.wait({task}, timeout=timeout_s)
        if not task.done():
            raise asyncio.TimeoutError
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


async def until(event: asyncio.Event, wait_s: float) -> bool:
    """Wait for an event, or so many seconds; returns whether it came."""
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait([waiting], timeout=max(0.0, wait_s))
    finally:
        waiting.cancel()
    return event.is_set()
