"""A name that stands for several addresses: they come, die and go while requests are under way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from fleet import Member, timed_items

from reward_client.types import ScoreRequest, ScorerResult, ScorerSelector
from reward_server.backend import Order
from reward_server.observability.metrics import Metrics
from reward_server.upstream.scorer import UpstreamScorer
from reward_server.upstream.servers import Servers
from reward_server.upstream.settings import Route, UpstreamSettings


class Names:
    """A name service whose answers change."""

    def __init__(self, *hosts: str) -> None:
        self.hosts: Sequence[str] = hosts

    async def look_up(self, host: str, port: int) -> Sequence[str]:
        if not self.hosts:
            raise OSError("no such name")
        return self.hosts


@pytest.fixture
async def members(tmp_path: Path) -> AsyncIterator[tuple[Member, Member]]:
    first = Member(tmp_path / "a")
    second = Member(tmp_path / "b", host="127.0.0.2", port=first.port)
    await asyncio.gather(*(asyncio.to_thread(member.start) for member in (first, second)))
    yield first, second
    await asyncio.gather(*(asyncio.to_thread(member.close) for member in (first, second)))


async def score(scorer: UpstreamScorer, values: Sequence[int], seconds: float) -> ScorerResult:
    items = tuple(timed_items(values, seconds))
    request = ScoreRequest(f"r{values}", (ScorerSelector("timed"),), items)
    now_s = time.monotonic()
    return await scorer.score(
        Order(request, {}, {}, "test", now_s, now_s + 60, (), answered=lambda name: None)
    )


async def until(condition, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        await asyncio.sleep(0.05)


async def test_addresses_come_and_go(members: tuple[Member, Member]) -> None:
    first, second = members
    names = Names("127.0.0.1", "127.0.0.3")  # nobody is at the second one
    route = Route((f"dns:///timed:{first.port}",), "least_loaded", 10.0)
    servers = Servers(route, "me", Metrics(), names.look_up)
    settings = UpstreamSettings(route, "timed", 2)
    scorer = UpstreamScorer("timed", settings, servers, on_change=lambda: None)

    def states() -> dict[str, str]:
        return {replica.name: replica.state for replica in scorer.info().replicas}

    scorer.start()
    try:
        here, gone, there = (f"127.0.0.{n}:{first.port}" for n in (1, 3, 2))
        await until(lambda: scorer.info().state == "READY")
        assert states() == {here: "READY", gone: "STARTING"}
        assert f"{gone}: cannot reach" in scorer.info().last_error
        assert (await score(scorer, [1, 2, 3], 0)).scores == (1.0, 2.0, 3.0)
        # `--scale timed=2`: the new address gets its share.
        names.hosts = ["127.0.0.1", "127.0.0.2"]
        await until(lambda: states() == {here: "READY", there: "READY"})
        values = range(16)
        assert (await score(scorer, values, 0.05)).scores == tuple(map(float, values))
        assert second.scored()
        # The name loses an address whose server still works: what that has in hand is finished.
        slow = asyncio.create_task(score(scorer, [50, 51, 52, 53], 1.5))
        await until(lambda: {50, 51, 52, 53} <= {*first.scored(), *second.scored()})
        begun = {50, 51, 52, 53} & set(first.scored())
        assert begun
        names.hosts = ["127.0.0.2"]
        scorer.retry()
        await until(lambda: states() == {there: "READY"})
        assert not slow.done()
        assert (await slow).scores == (50.0, 51.0, 52.0, 53.0)
        assert not begun & set(second.scored())
        # The name service is away: what was known before goes on.
        names.hosts = []
        scorer.retry()
        reason = f"dns:///timed:{first.port}: cannot be resolved (no such name)"
        await until(lambda: scorer.info().last_error == reason)
        assert (await score(scorer, [60], 0)).scores == (60.0,)
    finally:
        await scorer.stop()
    assert scorer.info().state != "READY"
