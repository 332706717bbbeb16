"""Groups of asyncio tasks, and waiting for an event for a limited time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, TypeVar

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


async def cancel(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel tasks and wait for their end."""
    left = list(tasks)
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


async def until(event: asyncio.Event, wait_s: float) -> bool:
    """Wait for an event, or so many seconds; returns whether it came."""
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait([waiting], timeout=max(0.0, wait_s))
    finally:
        waiting.cancel()
    return event.is_set()
