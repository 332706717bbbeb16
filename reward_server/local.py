"""Scoring without a server: the same service, in this process, for one request, on no port."""

from __future__ import annotations

import asyncio

from reward_client.types import ScoreRequest, ScoreResponse
from reward_server.config import Config
from reward_server.metrics import Metrics
from reward_server.security.access import Caller
from reward_server.service import RewardService


def score_here(config: Config, request: ScoreRequest) -> ScoreResponse:
    """Start the workers of a config, score one request, stop them.

    Args:
        config: exactly the scorers that are needed.
        request: what a client would send.

    Raises:
        RewardError: as a server would answer.
    """
    return asyncio.run(_score(config, request))


async def _score(config: Config, request: ScoreRequest) -> ScoreResponse:
    service = RewardService(config, Metrics())
    changed = asyncio.Event()
    service.on_change(changed.set)
    service.start()
    try:
        while any(info.state == "STARTING" for info in service.infos()):
            await changed.wait()
            changed.clear()
        return await service.score(request, caller=Caller("here"))
    finally:
        await service.stop()
