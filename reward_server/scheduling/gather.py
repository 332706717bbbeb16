"""Awaiting: several calls of which each may fail, and one for a limited time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Sequence
from typing import Any, TypeVar

from reward_client._tasks import all_of
from reward_client.errors import RewardError

T = TypeVar("T")


async def outcomes(calls: Sequence[Coroutine[Any, Any, T]]) -> list[T | RewardError]:
    """Await all of them; a RewardError becomes the outcome of its call, others cancel the rest."""
    return await all_of([_outcome(call) for call in calls])


async def within(timeout_s: float | None, awaitable: Awaitable[T]) -> T:
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


async def _outcome(call: Coroutine[Any, Any, T]) -> T | RewardError:
    try:
        return await call
    except RewardError as error:
        return error
