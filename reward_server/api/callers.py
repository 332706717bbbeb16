"""Whether an HTTP caller is still connected."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from fastapi import Request

from reward_client.errors import Cancelled
from reward_client.types import ScoreResponse


async def unless_disconnected(
    request: Request, scoring: Coroutine[Any, Any, ScoreResponse]
) -> ScoreResponse:
    """Await the answer, but give the work up when the caller hangs up; the body must be read."""
    working = asyncio.create_task(scoring)
    listening = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({working, listening}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Cancelled("the caller hung up")
        return working.result()
    finally:
        working.cancel()
        listening.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
