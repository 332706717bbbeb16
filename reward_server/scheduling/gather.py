"""Awaiting several calls that may each fail in a way callers are told about."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from reward_client.errors import RewardError

T = TypeVar("T")


async def outcomes(calls: Sequence[Coroutine[Any, Any, T]]) -> list[T | RewardError]:
    """Await all of them; a RewardError becomes the outcome of its call.

    When one raises anything else, or the caller gives up, none is left running.
    """
    tasks = [asyncio.create_task(_outcome(call)) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _outcome(call: Coroutine[Any, Any, T]) -> T | RewardError:
    try:
        return await call
    except RewardError as error:
        return error
